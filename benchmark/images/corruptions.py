"""Corruptions: the images of a set made to look otherwise, in integers, so that every machine makes the same ones."""

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Pixels = NDArray[np.uint8]
_BYTES = 4  # summed for one noise value, which is normal enough
_DEVIATION_IN_1000THS = 147_801  # of such a sum: the square root of 4 * (256**2 - 1) / 12


class Corruption(BaseModel):
    """What is done to each image, and how much of it.

    noise: normal noise of a standard deviation of `amount` grey levels, another in each channel, from a stream that the
    image's id is the key of. blur: the mean over a square of 2 * amount + 1 pixels, edge pixels repeated. contrast:
    `amount` per cent of the distance from each channel's mean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["noise", "blur", "contrast"]
    amount: int = Field(ge=0, le=255)

    @property
    def changes_nothing(self) -> bool:
        return self.amount == (100 if self.kind == "contrast" else 0)

    def __call__(self, pixels: Pixels, image_id: str) -> Pixels:
        """The corrupted image, uint8 (height, width, 3) as the image."""
        return _CORRUPTIONS[self.kind](pixels.astype(np.int64), self.amount, image_id).clip(0, 255).astype(np.uint8)


def _noise(pixels: NDArray[np.int64], deviation: int, image_id: str) -> NDArray[np.int64]:
    key = hashlib.sha256(f"noise {image_id}".encode()).digest()[:16]
    words = Philox(key=int.from_bytes(key, "little")).random_raw(-(-_BYTES * pixels.size // 8)).astype("<u8")
    drawn = words.view("u1")[: _BYTES * pixels.size].reshape(*pixels.shape, _BYTES).sum(axis=-1, dtype=np.int64)
    centred = drawn - _BYTES * 255 // 2
    return pixels + _rounded(centred * deviation * 1000, _DEVIATION_IN_1000THS)


def _blur(pixels: NDArray[np.int64], radius: int, image_id: str) -> NDArray[np.int64]:
    side = 2 * radius + 1
    sums = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    for axis in (0, 1):
        sums = np.insert(sums.cumsum(axis=axis), 0, 0, axis=axis)
        ends = sums.shape[axis] - side
        sums = sums.take(range(side, side + ends), axis) - sums.take(range(ends), axis)
    return _rounded(sums, side * side)


def _contrast(pixels: NDArray[np.int64], per_cent: int, image_id: str) -> NDArray[np.int64]:
    count = pixels.shape[0] * pixels.shape[1]
    total = pixels.sum(axis=(0, 1), keepdims=True)
    return _rounded(per_cent * pixels * count + (100 - per_cent) * total, 100 * count)


def _rounded(numerator: NDArray[np.int64], denominator: int) -> NDArray[np.int64]:
    return (2 * numerator + denominator) // (2 * denominator)


_CORRUPTIONS: dict[str, Callable[[NDArray[np.int64], int, str], NDArray[np.int64]]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
}
