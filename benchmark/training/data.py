"""Training data: images after a model's preprocessing, with their labels."""

import torch
from torch import Generator, Tensor

from benchmark.errors import UserError
from benchmark.images.image_set import ImageSet
from benchmark.models.model import Model
from benchmark.models.prepared_images import PreparedImages


class TrainingSet:
    """The images of a set after a model's preprocessing, with their labels.

    A set that takes up to a gibibyte is decoded once and kept in memory.

    image_set: the set of the images.
    labels: the index of the class of each image, (N,) int64; None where the images have no classes.
    """

    def __init__(self, model: Model, image_set: ImageSet) -> None:
        self.image_set = image_set
        self.labels = None if image_set.labels is None else torch.from_numpy(image_set.labels).long()
        self._images = PreparedImages(model, image_set)
        self._decoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_set)

    def images(self, rows: Tensor) -> Tensor:
        """The images at the indices `rows` (n,): (n, 3, H, W) float32, on the CPU."""
        shape = self._images.shape
        if self._decoded is None and 4 * torch.Size(shape).numel() <= IN_MEMORY_BYTES:
            self._decoded = self._images[:]
        if self._decoded is not None:
            return self._decoded[rows]
        pixels = torch.empty(len(rows), *shape[1:])
        self._images.prepare(rows.tolist(), pixels)
        return pixels


def images_of_each_class(labels: Tensor | None, classes: int, count: int, seed: int) -> Tensor:
    """The indices of some images of each class, drawn at random without replacement: (classes * count,).

    labels: the class of each image, (N,).
    classes: the number of classes.
    count: how many images are drawn of each class.
    seed: the seed of the draw.

    Raises ValueError where a class has fewer images, or where there are no labels.
    """
    if labels is None:
        raise UserError("the training images have no labels; the loss needs their classes")
    counts = labels.bincount(minlength=classes)
    fewest = int(counts.min())
    if count > fewest:
        scarcest = f"class {int(counts.argmin())} (counted from 0) has {fewest} training images"
        raise UserError(f"images_per_class is {count}; allowed: at most the images of each class, but {scarcest}")
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][:count] for label in range(classes)])


IN_MEMORY_BYTES = 2**30
