"""Detectors that reshape the features before the head."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from detectors.catalogue import registry
from detectors.logits import Energy
from detectors.options import is_number, require
from detectors.parts import Activations, Part, Training, combination
from detectors.state import learned


@dataclass(kw_only=True, eq=False)
class ReAct(Part):
    """Features clipped from above.

    Formula: o = W min(h, r) + b, r = percentile of all training activations pooled
    Paper: Y. Sun, C. Guo, Y. Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021,
        arXiv:2111.12797
    Options:
    - percentile: of the training activations, from 0 to 100
    Deviations:
    - The 99th percentile, as in NINCO (arXiv:2306.00826); the paper takes the 90th.
    Verified:
    - pytorch-ood 0.4, 1e-6
    """

    id = "react"
    needs = frozenset({"train"})
    percentile: float = 99.0
    limit: float = learned()

    def __post_init__(self) -> None:
        ok = is_number(self.percentile) and 0 <= self.percentile <= 100
        require(ok, self.id, "percentile", self.percentile, "a number from 0 to 100")

    def fit(self, training: Training) -> None:
        count = training.images * training.head.weight.shape[1]
        self.limit = percentile(lambda: (batch.features for batch in training.batches()), count, self.percentile)

    def apply(self, activations: Activations) -> Activations:
        return activations.with_features(activations.features.clamp(max=self.limit))


registry.register(combination("react", Energy, ReAct))


def percentile(batches: Callable[[], Iterator[Tensor]], count: int, percent: float, held: int = 2**24) -> float:
    """The percentile of a stream's values with numpy's linear interpolation: exact, and in bounded memory.

    batches: starts the stream of float64 tensors, `count` values in all, anew; it is read up to six times, twice or
    thrice as a rule. held: how many values may be held at once.
    """
    position = percent / 100 * (count - 1)
    rank = math.floor(position)
    lower, upper = _order_statistics(batches, count, rank, held)
    return lower if position == rank else lower + (upper - lower) * (position - rank)


def _order_statistics(batches: Callable[[], Iterator[Tensor]], size: int, rank: int, held: int) -> tuple[float, float]:
    """The values at a rank (from 0) and at the next one of the sorted stream; infinite where there is no next one.

    Radix selection: the bit patterns of floats, taken as integers that sort alike, are counted by their next 16 bits,
    and the bin with the wanted rank is kept, until it is small enough to be held and sorted.
    """
    low, high = -(2**63), 2**63 - 1

    def inside() -> Iterator[Tensor]:
        for values in batches():
            keys = _ordered_integers(values.flatten())
            yield keys[(keys >= low) & (keys <= high)]

    for shift in (48, 32, 16, 0):
        if size <= held:
            break
        sizes = reduce(torch.add, (((keys >> shift) - (low >> shift)).bincount(minlength=2**16) for keys in inside()))
        ends = sizes.cumsum(dim=0)
        chosen = int(torch.searchsorted(ends, rank, right=True))
        rank, size = rank - int(ends[chosen] - sizes[chosen]), int(sizes[chosen])
        low += chosen << shift
        high = low + 2**shift - 1
    # A bin that is still too large after all 64 bits holds one value many times.
    keys = torch.cat(list(inside())).sort().values if size <= held else torch.tensor([low]).expand(size)
    nearest = _floats(keys[rank : rank + 2]).tolist()
    if len(nearest) == 2:
        return nearest[0], nearest[1]
    return nearest[0], min(float(values.where(values > nearest[0], torch.inf).min()) for values in batches())


def _ordered_integers(floats: Tensor) -> Tensor:
    """The bit patterns (int64) of float64 values, changed so that both sort alike; -0.0 and 0.0 have the same."""
    return _flip_negatives((floats + 0.0).view(torch.int64))


def _floats(ordered_integers: Tensor) -> Tensor:
    return _flip_negatives(ordered_integers).view(torch.float64)


def _flip_negatives(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 63) & (2**63 - 1))
