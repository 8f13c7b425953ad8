"""The seventeen recipes: OOD unit tests of Bitterwolf, Müller and Hein, "In or Out? Fixing ImageNet Out-of-Distribution
Detection Evaluation" (ICML 2023).

A recipe takes the random bits of one image and the image's size in pixels. It returns the image: uint8 (height, width,
3). What is drawn once for an image (such as a width or a colour) is drawn before its pixels, so that it is the same at
every size. A recipe whose docstring names no origin was first published in this paper.

The paper does not say everything. Here:

- All values are pixel values: the paper's uniform distribution on [0, 1] is the uniform distribution over the 256
  values, and Gaussian noise is rounded to the nearest of them.
- A blur width is the standard deviation of a Gaussian, over space only. The paper gives blur widths in pixels of images
  as large as those of ImageNet; see `blur_width` for other sizes. Outside of its edges, an image continues as its
  mirror image.
- Stripes are equally wide where their number divides the side. Otherwise their widths differ by at most one pixel.
- A quantile is the value at a rank, without interpolation.
- A constant channel cannot be stretched to a range. It becomes black, and in `smooth_colour` the colour itself. This
  happens in images of a few pixels.
- A photograph is resized before its pixels are permuted, see `nearest_neighbour`. What it shows has almost no effect.

The published images came without a seed or a generator. The images here have the same distribution, not the same
pixels.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unit_tests_ood.blur import UNIT, blur
from unit_tests_ood.random_bits import RandomBits

Pixels = NDArray[np.uint8]
Recipe = Callable[..., Pixels]


class Source(Protocol):
    """Images by number: PIL images or uint8 arrays (height, width, 3)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


GAUSSIAN_SIGMAS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
STRIPES = (4, 5, 7, 10, 15, 20)
SMOOTH_NOISE_SIGMAS = (10, 15, 25, 40, 60, 85)
SMOOTH_PERMUTATION_SIGMAS = (1, 1.5, 2, 3, 4, 6, 8)
BLOB_SIGMAS = (1.5, 2, 2.5, 3, 3.5, 4)

NATIVE_SHORTER_SIDE = 375  # most ImageNet images have 500x375 pixels
MIN_BLUR_WIDTH = 1.0  # the narrowest of the paper


def uniform_noise(bits: RandomBits, height: int, width: int) -> Pixels:
    """Every channel of every pixel is uniform.

    Origin: Hendrycks and Gimpel 2017.
    """
    return bits.levels(height, width, 3)


def gaussian_noise(bits: RandomBits, height: int, width: int) -> Pixels:
    """Every channel of every pixel is normal around mid-grey, clipped; one standard deviation per image.

    Origin: Hendrycks and Gimpel 2017.
    """
    levels = gaussian_levels(bits.choice(GAUSSIAN_SIGMAS))
    return levels[bits.shorts(height, width, 3)]


def rademacher_noise(bits: RandomBits, height: int, width: int) -> Pixels:
    """Every channel of every pixel is 0 or 255: eight colours.

    Origin: Hendrycks, Mazeika and Dietterich 2019.
    """
    return 255 * bits.coins(height, width, 3)


def pixel_permutation(bits: RandomBits, height: int, width: int, source: Source) -> Pixels:
    """The pixels of a photograph in random order.

    Origin: Hein, Andriushchenko and Bitterwolf 2019.
    """
    photo = nearest_neighbour(source_image(source, bits.below(len(source))), height, width)
    return photo.reshape(-1, 3)[bits.permutation(height * width)].reshape(height, width, 3)


def black(bits: RandomBits, height: int, width: int) -> Pixels:
    """All pixels are black."""
    return _plain_image((0, 0, 0), height, width)


def white(bits: RandomBits, height: int, width: int) -> Pixels:
    """All pixels are white."""
    return _plain_image((255, 255, 255), height, width)


def grey(bits: RandomBits, height: int, width: int) -> Pixels:
    """All pixels are of one shade of grey."""
    return _plain_image(bits.levels(1), height, width)


def monochrome(bits: RandomBits, height: int, width: int) -> Pixels:
    """All pixels are of one colour."""
    return _plain_image(bits.levels(3), height, width)


def tricolour(bits: RandomBits, height: int, width: int) -> Pixels:
    """Three equal stripes, vertical or horizontal, each of one colour."""
    stripes = bits.choice((_horizontal_bands, _vertical_bands))
    return stripes(bits.levels(3, 3), height, width)


def primary_tricolour(bits: RandomBits, height: int, width: int) -> Pixels:
    """Three equal stripes, vertical or horizontal, each of one of eight colours whose channels are 0 or 255."""
    stripes = bits.choice((_horizontal_bands, _vertical_bands))
    return stripes(255 * bits.coins(3, 3), height, width)


def horizontal_stripes(bits: RandomBits, height: int, width: int) -> Pixels:
    """4 to 20 equal horizontal stripes, each of one colour."""
    return _horizontal_bands(bits.levels(bits.choice(STRIPES), 3), height, width)


def vertical_stripes(bits: RandomBits, height: int, width: int) -> Pixels:
    """4 to 20 equal vertical stripes, each of one colour."""
    return _vertical_bands(bits.levels(bits.choice(STRIPES), 3), height, width)


def smooth_noise(bits: RandomBits, height: int, width: int) -> Pixels:
    """Blurred uniform noise, stretched so that the smallest value of all channels is 0 and the largest 255.

    Origin: Hein, Andriushchenko and Bitterwolf 2019; Bitterwolf, Meinke and Hein 2020; Meinke, Bitterwolf and
    Hein 2022.
    """
    values = _blurred_noise(bits, height, width)
    return _stretch_to_range(values, values.min(), values.max())


def smooth_noise_plus(bits: RandomBits, height: int, width: int) -> Pixels:
    """Blurred uniform noise, each channel stretched so that its smallest value is 0 and its largest 255."""
    values = _blurred_noise(bits, height, width)
    return _stretch_to_range(values, values.min(axis=(0, 1)), values.max(axis=(0, 1)))


def smooth_colour(bits: RandomBits, height: int, width: int) -> Pixels:
    """Blurred uniform noise around one colour.

    The central 95 % of each channel are stretched to [c - delta, c + delta], c being the channel of the colour; delta
    is uniform on [0.1, 0.3] of the full range, in steps of a thousandth. What leaves the range of pixels is clipped.
    """
    delta_thousandths = 100 + bits.below(201)
    colour = bits.levels(3).astype(np.int64)
    values = _blurred_noise(bits, height, width)
    low, high = central_95_percent(values)
    deviation = 255 * delta_thousandths * (2 * values - low - high)
    return np.clip(colour + _rounded_quotient(deviation, 1000 * np.maximum(high - low, 1)), 0, 255).astype(np.uint8)


def smooth_pixel_permutation(bits: RandomBits, height: int, width: int, source: Source) -> Pixels:
    """The pixels of a photograph in random order, blurred.

    Origin: Hein, Andriushchenko and Bitterwolf 2019.
    """
    sigma = blur_width(bits.choice(SMOOTH_PERMUTATION_SIGMAS), height, width)
    return _rounded_quotient(blur(pixel_permutation(bits, height, width, source), sigma), UNIT).astype(np.uint8)


def blobs(bits: RandomBits, height: int, width: int) -> Pixels:
    """Noise of 0 (30 %) and 255 (70 %), blurred; what falls below three quarters of the range becomes 0.

    Origin: Hendrycks, Mazeika and Dietterich 2019.
    """
    sigma = blur_width(bits.choice(BLOB_SIGMAS), height, width)
    noise = np.where(bits.shorts(height, width, 3) < round(0.7 * 2**16), 255, 0).astype(np.uint8)
    values = blur(noise, sigma)
    return np.where(4 * values < 3 * 255 * UNIT, 0, _rounded_quotient(values, UNIT)).astype(np.uint8)


RECIPES: dict[str, Recipe] = {
    "uniform-noise": uniform_noise,
    "gaussian-noise": gaussian_noise,
    "rademacher-noise": rademacher_noise,
    "pixel-permutation": pixel_permutation,
    "black": black,
    "white": white,
    "grey": grey,
    "monochrome": monochrome,
    "tricolour": tricolour,
    "primary-tricolour": primary_tricolour,
    "horizontal-stripes": horizontal_stripes,
    "vertical-stripes": vertical_stripes,
    "smooth-noise": smooth_noise,
    "smooth-noise-plus": smooth_noise_plus,
    "smooth-colour": smooth_colour,
    "smooth-pixel-permutation": smooth_pixel_permutation,
    "blobs": blobs,
}

PERMUTATIONS = frozenset({"pixel-permutation", "smooth-pixel-permutation"})


@lru_cache
def gaussian_levels(sigma: float) -> Pixels:
    """A pixel value for each of 65536 equally likely integers: (65536,). They follow N(0.5, sigma), rounded and
    clipped.

    sigma: the standard deviation, as a share of the range of pixel values.
    """
    limits = [round(limit) for limit in gaussian_limits(sigma)]
    return np.searchsorted(limits, np.arange(2**16), side="right").astype(np.uint8)


def gaussian_limits(sigma: float) -> list[float]:
    """2**16 times the probability that a pixel value is at most 0, 1, ..., 254."""
    deviations = [((level + 0.5) / 255 - 0.5) / sigma for level in range(255)]
    return [2**15 * (1 + math.erf(deviation / math.sqrt(2))) for deviation in deviations]


def blur_width(native: float, height: int, width: int) -> float:
    """The blur width for an image size, in pixels. It grows in proportion to the shorter side.

    native: the blur width where the shorter side has 375 pixels, as in most images of ImageNet.

    It is at least one pixel: a narrower blur would hardly change the image, and small images of blobs would be noise.
    """
    return max(native * min(height, width) / NATIVE_SHORTER_SIDE, MIN_BLUR_WIDTH)


def central_95_percent(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The 2.5 % and the 97.5 % quantile of each channel.

    Of n values they are those of rank (n - 1) // 40, counted from the smallest and from the largest.
    """
    count = values.shape[0] * values.shape[1]
    rank = (count - 1) // 40
    ordered = np.partition(values.reshape(count, -1), [rank, count - 1 - rank], axis=0)
    return ordered[rank], ordered[count - 1 - rank]


def nearest_neighbour(image: Pixels, height: int, width: int) -> Pixels:
    """The image at another size: each new pixel has the value of the old pixel at its centre."""
    rows = (2 * np.arange(height) + 1) * image.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * image.shape[1] // (2 * width)
    return image[rows[:, None], columns]


def source_image(source: Source, index: int) -> Pixels:
    """The pixels of one image of the source, uint8 (height, width, 3). Raises ValueError where it is no such image."""
    image = source[index]
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"source image {index}: expected a PIL image or a uint8 array (height, width, 3), "
            f"got {type(image).__name__} of shape {pixels.shape} and type {pixels.dtype}"
        )
    return pixels


def _plain_image(colour: Any, height: int, width: int) -> Pixels:
    return np.broadcast_to(np.asarray(colour, dtype=np.uint8), (height, width, 3))


def _horizontal_bands(colours: Pixels, height: int, width: int) -> Pixels:
    """Horizontal stripes from top to bottom, one for each row of `colours` (n, 3)."""
    edges = np.arange(len(colours) + 1) * height // len(colours)
    column = np.repeat(colours, np.diff(edges), axis=0)
    return np.broadcast_to(column[:, None], (height, width, 3))


def _vertical_bands(colours: Pixels, height: int, width: int) -> Pixels:
    """Vertical stripes from left to right, one for each row of `colours` (n, 3)."""
    return _horizontal_bands(colours, width, height).transpose(1, 0, 2)


def _blurred_noise(bits: RandomBits, height: int, width: int) -> NDArray[np.int64]:
    sigma = blur_width(bits.choice(SMOOTH_NOISE_SIGMAS), height, width)
    return blur(uniform_noise(bits, height, width), sigma)


def _stretch_to_range(values: NDArray[np.int64], low: Any, high: Any) -> Pixels:
    """The values, scaled so that `low` becomes 0 and `high` 255."""
    return _rounded_quotient(255 * (values - low), np.maximum(high - low, 1)).astype(np.uint8)


def _rounded_quotient(values: NDArray[np.int64], divisor: Any) -> NDArray[np.int64]:
    """The nearest integer to values / divisor; halves are rounded up."""
    return (2 * values + divisor) // (2 * divisor)
