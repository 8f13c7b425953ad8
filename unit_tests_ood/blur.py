"""Gaussian blur in integers, so that every processor and every BLAS library gives the same pixels."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KERNEL_SUM = 2**18
UNIT = KERNEL_SUM**2  # one grey level of a blurred image

# A blurred pixel of 255 is below 2**44 units. So float64 holds every partial sum of the two matrix products exactly, in
# any order (its limit is 2**53), and int64 has room for the rescaling in `recipes`.


def blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.int64]:
    """The image with each channel blurred: (height, width, channels), in units of 1 / UNIT grey levels.

    image: the image, (height, width, channels).
    sigma: the standard deviation of the Gaussian, in pixels.

    Outside of its edges the image continues as its mirror image, with the edge pixel repeated (d c b a | a b c d | d c
    b a).
    """
    height, width, channels = image.shape
    lines = image.transpose(0, 2, 1).reshape(height, channels * width).astype(np.float64)
    lines = blur_matrix(height, sigma) @ lines
    lines = lines.reshape(height * channels, width) @ blur_matrix(width, sigma).T
    return lines.reshape(height, channels, width).transpose(0, 2, 1).astype(np.int64)


@lru_cache(maxsize=32)
def blur_matrix(length: int, sigma: float) -> NDArray[np.float64]:
    """The matrix that blurs a line of pixels: (length, length). Row i has the weights of the pixels for blurred pixel
    i.

    The weights are integers; each row sums to KERNEL_SUM.
    """
    weights = kernel(sigma)
    radius = len(weights) // 2
    matrix = np.zeros((length, length))
    rows = np.arange(length)
    for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
        mirrored = (rows + offset) % (2 * length)
        np.add.at(matrix, (rows, np.minimum(mirrored, 2 * length - 1 - mirrored)), weight)
    return matrix


def kernel(sigma: float) -> list[int]:
    """Gaussian weights up to 4 sigma, rounded to integers. The centre is adjusted so that they sum to KERNEL_SUM."""
    radius = int(4 * sigma + 0.5)
    weights = [round(weight) for weight in exact_kernel(sigma, radius)]
    weights[radius] += KERNEL_SUM - sum(weights)
    return weights


def exact_kernel(sigma: float, radius: int) -> list[float]:
    weights = [math.exp(-offset * offset / (2 * sigma * sigma)) for offset in range(-radius, radius + 1)]
    total = math.fsum(weights)
    return [KERNEL_SUM * weight / total for weight in weights]
