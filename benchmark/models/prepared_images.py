"""Images of a set, prepared as the input of a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.images.image_set import ImageSet
from benchmark.models.entries import ModelError
from benchmark.models.model import Model


class PreparedImages:
    """The images of a set as the input of a model, (N, 3, H, W). A slice decodes and transforms its images.

    model: the model, whose transform is applied.
    image_set: the N images.
    """

    def __init__(self, model: Model, image_set: ImageSet) -> None:
        self._model, self._image_set = model, image_set
        self.shape = (len(image_set), *model.preprocessing["input_size"])

    def __getitem__(self, rows: slice) -> Tensor:
        """The images of a slice, (n, 3, H, W), float32. Raises ImageSetError where an image cannot be decoded."""
        indices = range(*rows.indices(self.shape[0]))
        pixels = torch.empty(len(indices), *self.shape[1:])
        self.prepare(indices, pixels)
        return pixels

    def prepare(self, indices: Sequence[int], pixels: Tensor) -> None:
        """Writes the n images at `indices` into `pixels` (n, 3, H, W)."""
        for index, place in zip(indices, pixels, strict=True):
            prepared = self._model.transform(self._image_set[index])
            if prepared.shape != place.shape:
                raise ModelError(
                    f"model {self._model.id}: its transform makes {tuple(prepared.shape)} of the image "
                    f"{self._image_set.image_ids[index]} of {self._image_set.id}, and its network takes "
                    f"{tuple(place.shape)}: begin the transform with a resize to (height, width)"
                )
            place.copy_(prepared)
