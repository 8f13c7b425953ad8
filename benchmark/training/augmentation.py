"""How training images are varied, each by draws of its own."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

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


BLACK = -1.0


def black_of(preprocessing: Mapping[str, Any]) -> Tensor:
    """A black pixel (3, 1, 1) after the preprocessing of a model."""
    mean, std = (torch.tensor(preprocessing.get(name, PREPROCESSING[name])) for name in ("mean", "std"))
    return (-mean / std)[:, None, None]


def augment(images: Tensor, generator: Generator | None = None, black: Tensor | float = BLACK) -> Tensor:
    """Images (N, 3, H, W) over black, each turned by up to 10 degrees, scaled by up to 10 %, shifted by up to 2 pixels.

    Without a generator it draws from torch's global one. black: the value of such a pixel, of each channel.
    """
    count, _, _, width = images.shape
    angle = torch.empty(count).uniform_(-math.radians(10), math.radians(10), generator=generator)
    scale = torch.empty(count).uniform_(0.9, 1.1, generator=generator)
    shift = torch.empty(count, 2).uniform_(-2, 2, generator=generator) * (2 / width)  # affine_grid's image is 2 wide
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return grid_sample(images - black, grid, align_corners=False) + black


# Plain pixels in [-1, 1]: the networks start from nothing, so no other data's statistics have a claim.
PREPROCESSING: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
