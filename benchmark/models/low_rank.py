"""Low-rank approximation of weights, as SeTAR applies it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.errors import UserError


@dataclass(frozen=True, eq=False)
class Components:
    """The singular value decomposition of a weight, or of each position of a convolution's kernels, in float64.

    weight: (out, in), or (out, in, height, width). Of the latter, every position of the kernel is a matrix (out, in):
        this is our reading of SeTAR, which does not say how it treats kernels.
    left: the left singular vectors, (..., out, r) with r = min(out, in). The dots are height and width of a kernel.
    values: the singular values, (..., r), descending.
    right: the right singular vectors, (..., r, in).

    The decomposition is computed on the processor in one thread, so that every run gives the same bits. Another model
    of processor may still round differently.
    """

    weight: Tensor
    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.values.shape[-1]

    def without(self, dropped: Sequence[int]) -> Tensor:
        """The weight without some of its components, in the weight's shape and dtype.

        dropped: which components, counted from the largest, 0 to r - 1. Without any, the result is the weight itself.
        """
        if not len(dropped):
            return self.weight
        kept = sorted(set(range(self.rank)) - set(dropped))
        with _one_thread():
            product = (self.left[..., kept] * self.values[..., None, kept]) @ self.right[..., kept, :]
        product = product if self.weight.ndim == 2 else product.permute(2, 3, 0, 1)
        return product.to(self.weight).contiguous()


def decompose(weight: Tensor) -> Components:
    """The singular value decomposition of a weight, (out, in) or (out, in, height, width)."""
    slices = weight.detach().cpu().double()
    slices = slices if weight.ndim == 2 else slices.permute(2, 3, 0, 1)
    with _one_thread():
        return Components(weight.detach().clone(), *torch.linalg.svd(slices, full_matrices=False))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes in one thread. Several threads sum in another order, which sometimes changes the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def removed_components(shape: Sequence[int], ratio: float) -> int:
    """How many singular values a ratio drops.

    shape: of the weight, (out, in) or (out, in, height, width).
    ratio: the share of the min(out, in) singular values that is dropped, 0 to 1. Halves are rounded to the even
        number, as Python and SeTAR's code do.
    Raises UserError for a ratio outside of 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"a ratio lies between 0 and 1, got {ratio}")
    return round(ratio * min(shape[:2]))


def drop_minor_components(weight: Tensor, ratio: float) -> Tensor:
    """The weight without a share of its singular values, the smallest. Where none is dropped, the weight itself.

    weight: (out, in) or (out, in, height, width), as in `Components`.
    ratio: the share, as in `removed_components`.
    """
    dropped = removed_components(weight.shape, ratio)
    rank = min(weight.shape[:2])
    return decompose(weight).without(range(rank - dropped, rank)) if dropped else weight
