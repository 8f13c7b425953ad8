"""Random changes of training images. Every image of a batch gets its own random numbers."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

# "affine" is what the networks of the digits suite were trained with. "crop-flip" is usual on CIFAR. A network that is
# trained further should get the augmentation that it was trained with before.
Augmentation = Literal["none", "affine", "crop-flip"]
CROP_PIXELS = 4


def augment_images(
    images: Tensor, kind: Augmentation, generator: Generator, preprocessing: Mapping[str, Any]
) -> Tensor:
    """The images after a random change of each. What lies outside of an image is black.

    images: the images after a model's preprocessing, (N, 3, H, W).
    kind: the kind of change; "none" returns the images as they are.
    generator: the source of all random numbers.
    preprocessing: that of the model; its mean and std say what a black pixel is.
    """
    if kind == "affine":
        return augment_affine(images, generator, black_pixel(preprocessing))
    if kind == "crop-flip":
        return _crop_and_flip(images, generator, black_pixel(preprocessing))
    return images


def _crop_and_flip(images: Tensor, generator: Generator, black: Tensor) -> Tensor:
    """Each image shifted by up to 4 pixels in both directions; half of the images are also mirrored."""
    count, channels, height, width = images.shape
    down, right = torch.randint(2 * CROP_PIXELS + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = pad(images - black, [CROP_PIXELS] * 4) + black
    every_image, every_channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[every_image, every_channel, rows[:, None, :, None], columns[:, None, None, :]]


BLACK = -1.0


def black_pixel(preprocessing: Mapping[str, Any]) -> Tensor:
    """A black pixel (3, 1, 1) after the preprocessing of a model."""
    mean, std = (torch.tensor(preprocessing.get(name, PREPROCESSING[name])) for name in ("mean", "std"))
    return (-mean / std)[:, None, None]


def augment_affine(images: Tensor, generator: Generator | None = None, black: Tensor | float = BLACK) -> Tensor:
    """The images, each rotated by up to 10 degrees, scaled by up to 10 % and shifted by up to 2 pixels.

    images: the images after preprocessing, (N, 3, H, W).
    generator: the source of all random numbers; None takes torch's global one.
    black: the value of a black pixel, one for all channels or (3, 1, 1). It fills what lies outside of an image.
    """
    count, _, _, width = images.shape
    angle = torch.empty(count).uniform_(-math.radians(10), math.radians(10), generator=generator)
    scale = torch.empty(count).uniform_(0.9, 1.1, generator=generator)
    shift = torch.empty(count, 2).uniform_(-2, 2, generator=generator) * (2 / width)  # affine_grid's image is 2 wide
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return grid_sample(images - black, grid, align_corners=False) + black


# Pixels in [-1, 1]: the networks are trained from scratch, so the mean and std of no other data set are needed.
PREPROCESSING: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
