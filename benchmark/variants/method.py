"""The contract of a method: it makes an edit from its settings, a base model and training data."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from benchmark.models.edits import Edit
from benchmark.models.model import Model
from benchmark.training.data import TrainingSet
from benchmark.training.optimisation import Progress


@dataclass(frozen=True)
class TrainingData:
    """The images that a method may learn from.

    train: the training images of the suite.
    outliers: images that show none of the classes, and that are in no evaluated set; None where there are none.
    """

    train: TrainingSet
    outliers: TrainingSet | None = None


class Method(BaseModel, ABC):
    """A way to change a network. Its fields are its settings; they are checked when the object is created.

    id: the name of the method in recipes.
    classified_by_base: whether images are still classified by the base model, while the variant is used for detection
        only.
    uses_outliers: whether the method needs the outliers of the suite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: ClassVar[str]
    classified_by_base: ClassVar[bool] = False

    @property
    def uses_outliers(self) -> bool:
        return False

    @abstractmethod
    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        """Makes the edit of a base model. The base model is not changed.

        base: the model to edit.
        data: the images to learn from.
        progress: where the state of the computation is saved, so that it can be continued.

        Raises ValueError, which names the setting, where a setting does not fit this network or these images.
        """

    @staticmethod
    def about_outliers(outliers: TrainingSet) -> dict[str, Any]:
        """What an edit records about the outliers that it was trained with. None of them may be evaluated."""
        return {"outliers": outliers.image_set.id, "outliers_sha256": sorted(outliers.image_set.image_sha256s)}

    def about(self, base: Model, **more: Any) -> dict[str, Any]:
        """What an edit records about itself: its method, its settings and its base.

        base: the base model.
        more: what else the method records, as JSON.
        """
        settings = self.model_dump(mode="json")
        return {
            "method": self.id,
            "settings": settings,
            "base_sha256": base.weights_sha256,
            "classified_by_base": self.classified_by_base,
            **more,
        }
