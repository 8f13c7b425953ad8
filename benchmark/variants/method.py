"""The contract of a method: settings, a base model and training data in, an edit out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor

from benchmark.images.image_set import ImageSet
from benchmark.models.edits import Edit
from benchmark.models.model import Model
from benchmark.running.store import PreparedImages
from benchmark.training.optimisation import Progress

IN_MEMORY_BYTES = 2**30


class TrainingSet:
    """Images as a model takes them, in any order, with their labels.

    labels: (N,) int64, or None where the images have no classes. A set of up to a gibibyte is decoded once.
    """

    def __init__(self, model: Model, image_set: ImageSet) -> None:
        self.image_set = image_set
        self.labels = None if image_set.labels is None else torch.from_numpy(image_set.labels).long()
        self._images = PreparedImages(model, image_set)
        self._decoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_set)

    def images(self, rows: Tensor) -> Tensor:
        """The images (n, 3, H, W) at the indices `rows` (n,), in float32 on the CPU."""
        shape = self._images.shape
        if self._decoded is None and 4 * torch.Size(shape).numel() <= IN_MEMORY_BYTES:
            self._decoded = self._images[:]
        if self._decoded is not None:
            return self._decoded[rows]
        pixels = torch.empty(len(rows), *shape[1:])
        self._images.prepare(rows.tolist(), pixels)
        return pixels


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


def images_of_each_class(labels: Tensor | None, classes: int, count: int, seed: int) -> Tensor:
    """The indices of `count` images of each class (classes * count,), drawn without replacement.

    Raises ValueError where a class has fewer, or the images have no labels (N,).
    """
    if labels is None:
        raise ValueError("the training images have no labels; the loss needs their classes")
    counts = labels.bincount(minlength=classes)
    fewest = int(counts.min())
    if count > fewest:
        scarcest = f"class {int(counts.argmin())} (counted from 0) has {fewest} training images"
        raise ValueError(f"images_per_class is {count}; allowed: at most the images of each class, but {scarcest}")
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][:count] for label in range(classes)])
