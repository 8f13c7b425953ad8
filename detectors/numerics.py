"""Numerical steps that several families of detectors share. All of them work on float64 tensors."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

# Deviations that differ by no more than this factor are in comparable units. Their variances differ by its square: that
# leaves nine of the digits of float64 to the smallest.
_COMPARABLE = 2.0**10

# Below this norm a square underflows: such a vector counts as (nearly) zero, not as a direction.
_SMALLEST_NORM = 1e-150


def unit(vectors: Tensor) -> Tensor:
    """The rows (n, D) scaled to Euclidean norm 1. A zero row stays zero."""
    return vectors / norms(vectors)


def norms(vectors: Tensor) -> Tensor:
    """The Euclidean norms (n, 1) of the rows (n, D), to divide by: that of a zero row is not zero."""
    return torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)


def l1_norms(vectors: Tensor) -> Tensor:
    """The sums (n, 1) of the absolute values of the rows (n, D)."""
    return torch.linalg.vector_norm(vectors, ord=1, dim=1, keepdim=True)


def mean(batches: Iterable[Tensor]) -> Tensor:
    """The mean (D,) of batches of vectors (n, D), of which there is at least one."""
    total, rows = reduce(lambda one, other: (one[0] + other[0], one[1] + other[1]), map(_sum_and_rows, batches))
    return total / rows


def _sum_and_rows(vectors: Tensor) -> tuple[Tensor, int]:
    return vectors.sum(dim=0), len(vectors)


def round_off(eigenvalues: Tensor) -> Tensor:
    """The level up to which eigenvalues (D,) of a symmetric matrix are round-off: the cutoff of scipy.linalg.pinvh."""
    return eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps


def comparable_units(deviations: Tensor) -> Tensor:
    """What features are divided by (D,), so that a cut-off by the largest variance suits all of them.

    It is 1 for a feature whose deviation is at least 1/1024 of the largest one, and for one whose deviation is 0. For
    others it is the power of two with which the deviation becomes the largest one, or up to half of it. To divide by a
    power of two rounds nothing.

        deviations: (D,), standard deviations of the features, or other measures of their size.
    """
    ratios = deviations / deviations.max()
    mantissas, _ = torch.frexp(ratios)
    is_small = (ratios > 0) & (ratios * _COMPARABLE < 1)
    return torch.where(is_small, ratios / mantissas, 1.0)


def class_means(rows: Iterable[tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, Tensor]:
    """Sizes (K,) and means (K, D) of K classes from batches of (vectors (n, D), class indices (n,)).

    The mean of a class without vectors is NaN. Raises ValueError when there is no batch.
    """
    sizes = sums = None
    for vectors, labels in rows:
        if sizes is None or sums is None:
            sizes, sums = vectors.new_zeros(classes), vectors.new_zeros(classes, vectors.shape[1])
        sizes += labels.bincount(minlength=classes)
        sums.index_add_(0, labels, vectors)
    if sizes is None or sums is None:
        raise ValueError("means need at least one vector")
    return sizes, sums / sizes[:, None]
