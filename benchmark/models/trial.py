"""A trial: what a network makes of a few fixed images.

Numbers depend on more than weights: on the code of the network and of its transform, on code that these import, on the
version of a library. No hash of files covers all of that. What comes out of a trial does, for the price of one forward
pass of two images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmark.models.preprocessing import Transform

Size = tuple[int, int]  # height and width, in pixels

SIZES: tuple[Size, Size] = ((96, 64), (50, 80))
# How far outputs may lie apart, relative to the largest, and still be of the same code: another processor rounds
# otherwise, by about 1e-5. What changes them less than this changes no figure either.
TOLERANCE = 1e-3


def trial_images(sizes: Sequence[Size] = SIZES) -> list[Image.Image]:
    """An image of each size, in which all values, edges and smooth parts occur. They never change."""
    return [Image.fromarray(_pixels(size, number)) for number, size in enumerate(sizes)]


def trial_sizes(preprocessing: Mapping[str, Any]) -> tuple[Size, ...]:
    """The sizes of the trial images for a network: of one that takes images of one size, `image_size`, that one."""
    if "image_size" not in preprocessing:
        return SIZES
    height, width = preprocessing["image_size"]
    return ((height, width), (height, width))


def _pixels(size: Size, number: int) -> np.ndarray:
    """Integers alone make them, so that every machine makes the same."""
    rows, columns, channels = np.ogrid[: size[0], : size[1], :3]
    smooth = rows * (3 + number) + columns * (5 - number) + 85 * channels
    rough = rows * columns * (7 + 2 * channels) + 31 * (rows // 8) * (columns // 8)
    return np.where((rows // 16 + columns // 16) % 2, smooth % 256, rough % 256).astype(np.uint8)


def trial(network: nn.Module, transform: Transform, sizes: Sequence[Size] = SIZES) -> Tensor:
    """What a network with timm's interface gives for the trial images: features and logits, a row an image, float64."""
    pixels = torch.stack([transform(image) for image in trial_images(sizes)])
    with torch.no_grad():
        hidden = network.forward_features(pixels)  # type: ignore[operator]
        features = network.forward_head(hidden, pre_logits=True)  # type: ignore[operator]
        return torch.cat([features.flatten(1), network(pixels)], dim=1).double().cpu()


def trial_sha256(outputs: Tensor) -> str:
    """A hash of what came out of a trial, to three digits of the largest value: the rest is the machine's."""
    scale = outputs.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    digits = (outputs / scale / TOLERANCE).round().to(torch.int64)
    return hashlib.sha256(f"{float(scale):.2e} {digits.tolist()}".encode()).hexdigest()


def same_outcome(outputs: Sequence[float], others: Sequence[float]) -> bool:
    """Whether what came out of two trials is the same but for rounding."""
    if len(outputs) != len(others):
        return False
    one, other = np.asarray(outputs), np.asarray(others)
    return bool(np.abs(one - other).max(initial=0.0) <= TOLERANCE * max(np.abs(one).max(initial=0.0), 1e-30))
