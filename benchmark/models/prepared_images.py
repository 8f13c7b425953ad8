"""The images of a set as a model takes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.images.image_set import ImageSet
from benchmark.models.model import Model


class PreparedImages:
    """The images of a set as a model takes them, (N, 3, H, W), decoded when they are sliced."""

    def __init__(self, model: Model, image_set: ImageSet) -> None:
        self._model, self._image_set = model, image_set
        self.shape = (len(image_set), *model.preprocessing["input_size"])

    def __getitem__(self, rows: slice) -> Tensor:
        indices = range(*rows.indices(self.shape[0]))
        pixels = torch.empty(len(indices), *self.shape[1:])
        self.prepare(indices, pixels)
        return pixels

    def prepare(self, indices: Sequence[int], pixels: Tensor) -> None:
        """Fills pixels (n, 3, H, W) with the images at `indices`."""
        for index, place in zip(indices, pixels, strict=True):
            place.copy_(self._model.transform(self._image_set[index]))
