"""Low-rank approximation of weights, as SeTAR applies it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.errors import UserError


@dataclass(frozen=True, eq=False)
class Components:
    """The singular value decomposition of a weight, or of each of its kernel positions, in float64.

    weight: (out, in), or (out, in, height, width), of which every kernel position is a matrix (our reading of SeTAR,
    which does not say how it takes a kernel). left: (..., out, r), values: (..., r), descending, and right:
    (..., r, in), with r = min(out, in) and, of a kernel, height and width in front. They are computed on the CPU by
    one thread, wherever the weight is, for the same bits; another make of processor may still round otherwise.
    """

    weight: Tensor
    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.values.shape[-1]

    def without(self, dropped: Sequence[int]) -> Tensor:
        """The weight less some of its components, which are counted from the largest; less none, the weight itself."""
        if not len(dropped):
            return self.weight
        kept = sorted(set(range(self.rank)) - set(dropped))
        with _one_thread():
            product = (self.left[..., kept] * self.values[..., None, kept]) @ self.right[..., kept, :]
        product = product if self.weight.ndim == 2 else product.permute(2, 3, 0, 1)
        return product.to(self.weight).contiguous()


def decompose(weight: Tensor) -> Components:
    slices = weight.detach().cpu().double()
    slices = slices if weight.ndim == 2 else slices.permute(2, 3, 0, 1)
    with _one_thread():
        return Components(weight.detach().clone(), *torch.linalg.svd(slices, full_matrices=False))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads sum in another order, and now and then the last bit of a float32 shows it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def removed_components(shape: Sequence[int], ratio: float) -> int:
    """How many singular values a ratio drops of a matrix, or of each kernel position's (out, in) slice.

    Python's rounding, halves to the even number, as in SeTAR's code. Raises ValueError for a ratio outside 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"a ratio lies between 0 and 1, got {ratio}")
    return round(ratio * min(shape[:2]))


def drop_minor_components(weight: Tensor, ratio: float) -> Tensor:
    """The weight (as in Components) less that share of its singular values, the smallest; less none, itself."""
    dropped = removed_components(weight.shape, ratio)
    rank = min(weight.shape[:2])
    return decompose(weight).without(range(rank - dropped, rank)) if dropped else weight
