"""How training images are varied, each by draws of its own."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from benchmark.training.from_scratch import augment, black_of

# "affine": as the digits suite's trainings. "crop-flip": as is usual on CIFAR. A network goes on best with its own.
Augmentation = Literal["none", "affine", "crop-flip"]
CROP_PIXELS = 4


def augmented(images: Tensor, kind: Augmentation, generator: Generator, preprocessing: Mapping[str, Any]) -> Tensor:
    """Images (N, 3, H, W), which a model's preprocessing made, varied over its black."""
    if kind == "affine":
        return augment(images, generator, black_of(preprocessing))
    if kind == "crop-flip":
        return _crop_and_flip(images, generator, black_of(preprocessing))
    return images


def _crop_and_flip(images: Tensor, generator: Generator, black: Tensor) -> Tensor:
    """Each image shifted by up to 4 pixels either way, and half of them mirrored."""
    count, channels, height, width = images.shape
    down, right = torch.randint(2 * CROP_PIXELS + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = pad(images - black, [CROP_PIXELS] * 4) + black
    every_image, every_channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[every_image, every_channel, rows[:, None, :, None], columns[:, None, None, :]]
