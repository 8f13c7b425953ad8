"""Tuning: a detector's options chosen on images that no case evaluates."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from benchmark.records import Tuned


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All choices of one value an option, in order; the last option changes first."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def tune(ood: str, values: Mapping[str, Sequence[Any]], auroc_with: Callable[[dict[str, Any]], float]) -> Tuned:
    """The options with the highest AUROC, the first of equals.

    ood: the id of the OOD set.
    values: the values to try, by option.
    auroc_with: gives the AUROC of the detector with some options, between the val split and the OOD set.
    """
    tried: list[dict[str, Any]] = [
        {"options": options, "auroc": auroc_with(options)} for options in combinations(values)
    ]
    best = max(tried, key=lambda one: one["auroc"])
    return Tuned(ood=ood, options=best["options"], tried=tried)
