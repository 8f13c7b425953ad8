"""Percentiles of streams that are too large to hold: exact, with numpy's linear interpolation."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

_HELD = 2**24  # values, 128 MiB
_SORTED = 2**18  # values of a longer stream: to count more of them is faster than to sort them
_COUNTS = 2**23
_AT_ONCE = 2**15  # values, so that the steps of a piece stay in the processor's cache
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1

Batches = Callable[[], Iterator[Tensor]]


def percentile(batches: Batches, count: int, percent: float, held: int = _HELD) -> float:
    """The percentile of all values of a stream of float64 tensors.

    batches: starts the stream anew. It is read once where `held` values hold it, and otherwise up to eight times,
        two to four times as a rule.
    count: how many values there are in all.
    percent: from 0 to 100.
    held: how many values may be in memory at once.
    """
    if count <= held:
        return float(np.percentile(torch.cat([values.flatten() for values in batches()]).numpy(), percent))
    return float(_streamed(lambda: (values.reshape(-1, 1) for values in batches()), count, 1, percent, held))


def column_percentiles(
    batches: Batches, shape: tuple[int, int], percents: Sequence[float], held: int = _HELD
) -> Tensor:
    """The percentiles (P, D) of each column of a stream of float64 rows (n, D).

    batches, held: as in `percentile`. Besides, 2**23 counts are held.
    shape: (N, D), the rows in all and their width.
    percents: P numbers from 0 to 100.
    """
    rows, width = shape
    if rows * width <= held:
        return torch.from_numpy(np.percentile(torch.cat(list(batches())).numpy(), percents, axis=0))
    return torch.stack([_streamed(batches, rows, width, percent, held) for percent in percents])


def _streamed(batches: Batches, rows: int, width: int, percent: float, held: int) -> Tensor:
    """One percentile (D,) of a stream that is not held."""
    position = percent / 100 * (rows - 1)
    rank = math.floor(position)
    share = position - rank
    lower, upper = _order_statistics(batches, rows, width, rank, min(held, _SORTED))
    if share == 0:
        return lower
    # Two forms, as in numpy, so that a percentile between equal values is that value.
    return lower + (upper - lower) * share if share < 0.5 else upper - (upper - lower) * (1 - share)


def _order_statistics(batches: Batches, rows: int, width: int, rank: int, held: int) -> tuple[Tensor, Tensor]:
    """The values (D,) at a rank (from 0) of each sorted column, and at the next one; infinite where there is none.

    Radix selection: the bit patterns of floats, taken as integers that sort alike, are counted by their next bits, and
    the bin with the wanted rank is kept, until all of these bins together can be held and sorted.
    """
    low, high = torch.full((width,), _LOWEST), torch.full((width,), _HIGHEST)
    ranks, sizes = torch.full((width,), rank), torch.full((width,), rows)
    unknown_bits = 64

    def inside() -> Iterator[tuple[Tensor, Tensor]]:
        """What lies in the bins: integers, and their columns."""
        for values in batches():
            for piece in values.split(max(1, _AT_ONCE // width)):
                integers = _ordered_integers(piece)
                chosen = ((integers >= low) & (integers <= high)).flatten().nonzero()[:, 0]
                yield integers.flatten()[chosen], chosen % width

    while sizes.sum() > held and unknown_bits:
        bits = min(max(1, (_COUNTS // width).bit_length() - 1), 16, unknown_bits)
        unknown_bits -= bits
        counts = torch.zeros(width << bits, dtype=torch.int64)
        first_bins = (torch.arange(width) << bits) - (low >> unknown_bits)
        for integers, columns in inside():
            bins = (integers >> unknown_bits).add_(first_bins[columns])
            counts.scatter_add_(0, bins, torch.ones_like(bins))
        counts = counts.view(width, -1)
        ends = counts.cumsum(dim=1)
        chosen = torch.searchsorted(ends, ranks[:, None], right=True)
        sizes = counts.gather(1, chosen)[:, 0]
        ranks = ranks - ends.gather(1, chosen)[:, 0] + sizes
        low = low + (chosen[:, 0] << unknown_bits)
        high = low + 2**unknown_bits - 1

    has_next = ranks + 1 < sizes
    if unknown_bits:
        integers, columns = (torch.cat(parts) for parts in zip(*inside(), strict=True))
        order = integers.argsort()
        integers = integers[order[columns[order].argsort(stable=True)]]
        first = sizes.cumsum(dim=0) - sizes + ranks
        lower, upper = _floats(integers[first]), _floats(integers[first + has_next.long()])
    else:  # every bin holds one value many times
        lower = upper = _floats(low)
    if has_next.all():
        return lower, upper
    following = (values.where(values > lower, torch.inf).amin(dim=0) for values in batches())
    return lower, upper.where(has_next, reduce(torch.minimum, following))


def _ordered_integers(floats: Tensor) -> Tensor:
    """The bit patterns (int64) of float64 values, changed so that both sort alike; -0.0 and 0.0 have the same."""
    return _flip_negatives((floats + 0.0).view(torch.int64))


def _floats(ordered_integers: Tensor) -> Tensor:
    return _flip_negatives(ordered_integers).view(torch.float64)


def _flip_negatives(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 63) & _HIGHEST)
