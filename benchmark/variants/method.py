"""The contract of a method: settings, a base model and training data in, an edit out."""

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
    """What a method may learn from. outliers: images of none of the classes, which no evaluated set holds."""

    train: TrainingSet
    outliers: TrainingSet | None = None


class Method(BaseModel, ABC):
    """A way to change a network. Its fields are its settings, checked when it is made.

    classified_by_base: whether the base model goes on classifying, the variant's outputs serving detection alone.
    uses_outliers: whether it reads the suite's outliers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: ClassVar[str]
    classified_by_base: ClassVar[bool] = False

    @property
    def uses_outliers(self) -> bool:
        return False

    @abstractmethod
    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        """The edit of a base model, which stays as it was.

        Raises ValueError, naming the setting, for one that does not fit this network or this data.
        """

    @staticmethod
    def about_outliers(outliers: TrainingSet) -> dict[str, Any]:
        """What an edit says of the outliers that it was trained with, so that none of them is evaluated."""
        return {"outliers": outliers.image_set.id, "outliers_sha256": sorted(outliers.image_set.image_sha256s)}

    def about(self, base: Model, **more: Any) -> dict[str, Any]:
        """What an edit says of itself."""
        settings = self.model_dump(mode="json")
        return {
            "method": self.id,
            "settings": settings,
            "base_sha256": base.weights_sha256,
            "classified_by_base": self.classified_by_base,
            **more,
        }
