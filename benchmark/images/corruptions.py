"""Corruptions: changes of the pixels of a set's images, computed in integers so that every machine gives the same."""

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Pixels = NDArray[np.uint8]
_BYTES = 4  # so many random bytes are summed for one noise value; the sum is close to a normal distribution
_DEVIATION_IN_1000THS = 147_801  # the standard deviation of such a sum: the square root of 4 * (256**2 - 1) / 12


class Corruption(BaseModel):
    """A change of the pixels of each image.

    kind: what is changed.
        noise: normal noise is added, different in each channel. The image's id is the key of the random stream.
        blur: each pixel becomes the mean over a square around it. Pixels at the edge are repeated.
        contrast: the distance of each pixel from the mean of its channel is scaled.
    amount: of noise the standard deviation in grey levels; of blur the radius in pixels, so that the side of the
        square is 2 * amount + 1; of contrast the scale in per cent. 0 to 255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["noise", "blur", "contrast"]
    amount: int = Field(ge=0, le=255)

    @property
    def changes_nothing(self) -> bool:
        return self.amount == (100 if self.kind == "contrast" else 0)

    def __call__(self, pixels: Pixels, image_id: str) -> Pixels:
        """The corrupted image, uint8 (height, width, 3).

        pixels: the image, uint8 (height, width, 3).
        image_id: the id of the image, which seeds the noise.
        """
        return _CORRUPTIONS[self.kind](pixels.astype(np.int64), self.amount, image_id).clip(0, 255).astype(np.uint8)


def _add_noise(pixels: NDArray[np.int64], deviation: int, image_id: str) -> NDArray[np.int64]:
    key = hashlib.sha256(f"noise {image_id}".encode()).digest()[:16]
    words = Philox(key=int.from_bytes(key, "little")).random_raw(-(-_BYTES * pixels.size // 8)).astype("<u8")
    drawn = words.view("u1")[: _BYTES * pixels.size].reshape(*pixels.shape, _BYTES).sum(axis=-1, dtype=np.int64)
    centred = drawn - _BYTES * 255 // 2
    return pixels + _divide_rounded(centred * deviation * 1000, _DEVIATION_IN_1000THS)


def _blur_pixels(pixels: NDArray[np.int64], radius: int, image_id: str) -> NDArray[np.int64]:
    side = 2 * radius + 1
    sums = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    for axis in (0, 1):
        sums = np.insert(sums.cumsum(axis=axis), 0, 0, axis=axis)
        ends = sums.shape[axis] - side
        sums = sums.take(range(side, side + ends), axis) - sums.take(range(ends), axis)
    return _divide_rounded(sums, side * side)


def _scale_contrast(pixels: NDArray[np.int64], per_cent: int, image_id: str) -> NDArray[np.int64]:
    count = pixels.shape[0] * pixels.shape[1]
    total = pixels.sum(axis=(0, 1), keepdims=True)
    return _divide_rounded(per_cent * pixels * count + (100 - per_cent) * total, 100 * count)


def _divide_rounded(numerator: NDArray[np.int64], denominator: int) -> NDArray[np.int64]:
    """The quotient in whole numbers, rounded to the nearest."""
    return (2 * numerator + denominator) // (2 * denominator)


_CORRUPTIONS: dict[str, Callable[[NDArray[np.int64], int, str], NDArray[np.int64]]] = {
    "noise": _add_noise,
    "blur": _blur_pixels,
    "contrast": _scale_contrast,
}
