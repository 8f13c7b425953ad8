"""Gaussian blur in whole numbers, so that no processor and no BLAS changes a pixel."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KERNEL_SUM = 2**18
UNIT = KERNEL_SUM**2  # one grey level of a blurred image

# A blurred pixel of 255 is below 2**44 units: float64 holds every partial sum of the two products exactly (the limit is
# 2**53), whatever their order, and int64 leaves room for the rescaling in `recipes`.


def blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.int64]:
    """The image (height, width, channels), each channel blurred, in units of 1 / UNIT grey levels.

    sigma: the Gaussian's standard deviation in pixels. The image goes on beyond its edges as its mirror image, the edge
    pixel itself repeated (d c b a | a b c d | d c b a).
    """
    height, width, channels = image.shape
    lines = image.transpose(0, 2, 1).reshape(height, channels * width).astype(np.float64)
    lines = blur_matrix(height, sigma) @ lines
    lines = lines.reshape(height * channels, width) @ blur_matrix(width, sigma).T
    return lines.reshape(height, channels, width).transpose(0, 2, 1).astype(np.int64)


@lru_cache(maxsize=32)
def blur_matrix(length: int, sigma: float) -> NDArray[np.float64]:
    """(length, length): row i weighs the pixels of a line for blurred pixel i, in integers that sum to KERNEL_SUM."""
    weights = kernel(sigma)
    radius = len(weights) // 2
    matrix = np.zeros((length, length))
    rows = np.arange(length)
    for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
        mirrored = (rows + offset) % (2 * length)
        np.add.at(matrix, (rows, np.minimum(mirrored, 2 * length - 1 - mirrored)), weight)
    return matrix


def kernel(sigma: float) -> list[int]:
    """Gaussian weights out to 4 sigma, rounded to integers; the centre takes what they lack of KERNEL_SUM."""
    radius = int(4 * sigma + 0.5)
    weights = [round(weight) for weight in exact_kernel(sigma, radius)]
    weights[radius] += KERNEL_SUM - sum(weights)
    return weights


def exact_kernel(sigma: float, radius: int) -> list[float]:
    weights = [math.exp(-offset * offset / (2 * sigma * sigma)) for offset in range(-radius, radius + 1)]
    total = math.fsum(weights)
    return [KERNEL_SUM * weight / total for weight in weights]
