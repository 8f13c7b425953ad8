"""References for shaped features: one image, or one feature, at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp

from tests.references.data import Data, log_odds

Shape = Callable[[list[float]], list[float]]


def energies(data: Data, shape: Shape) -> list[float]:
    return [logsumexp(data.logits(np.array(shape(row.tolist())))) for row in data.test]


def react(data: Data, percentile: float = 99.0) -> list[float]:
    limit = np.percentile(data.train, percentile)
    return energies(data, lambda row: [min(value, limit) for value in row])


def msp_react(data: Data, react_percentile: float = 99.0) -> list[float]:
    limit = np.percentile(data.train, react_percentile)
    return [log_odds(data.logits(np.minimum(row, limit))) for row in data.test]


def largest(row: list[float], percentile: float) -> list[float]:
    kept = max(1, len(row) - int(np.round(len(row) * percentile / 100)))
    return sorted(row, reverse=True)[:kept]


def kept(row: list[float], percentile: float) -> list[float]:
    """How much of each feature stays; the last places are shared by all that are equal to the last."""
    chosen = largest(row, percentile)
    share = chosen.count(chosen[-1]) / row.count(chosen[-1])
    return [1.0 if value > chosen[-1] else share if value == chosen[-1] else 0.0 for value in row]


def sharpness(row: list[float], percentile: float) -> float:
    values, some = sum(row), sum(largest(row, percentile))
    if some == 0:
        return math.exp(math.copysign(300, values)) if values else 1.0
    return math.exp(min(300, max(-300, values / some)))


def ash_p(data: Data, percentile: float = 65.0) -> list[float]:
    return energies(data, lambda row: [h * keep for h, keep in zip(row, kept(row, percentile), strict=True)])


def ash_b(data: Data, percentile: float = 65.0) -> list[float]:
    def shape(row: list[float]) -> list[float]:
        return [keep * sum(row) / len(largest(row, percentile)) for keep in kept(row, percentile)]

    return energies(data, shape)


def ash_s(data: Data, percentile: float = 90.0) -> list[float]:
    def shape(row: list[float]) -> list[float]:
        factor = sharpness(row, percentile)
        return [h * keep * factor for h, keep in zip(row, kept(row, percentile), strict=True)]

    return energies(data, shape)


def scale(data: Data, percentile: float = 85.0) -> list[float]:
    return energies(data, lambda row: [h * sharpness(row, percentile) for h in row])


def vra(
    data: Data, low_percentile: float = 60.0, high_percentile: float = 90.0, thresholds: str = "per-feature"
) -> list[float]:
    limits = []
    for feature in data.train.T:
        values = data.train if thresholds == "shared" else feature
        limits.append((np.percentile(values, low_percentile), np.percentile(values, high_percentile)))
    return energies(
        data,
        lambda row: [0.0 if h < low else high if h > high else h for h, (low, high) in zip(row, limits, strict=True)],
    )


def clip_to(data: Data, intervals: list[tuple[float, float]]) -> list[float]:
    return energies(
        data, lambda row: [max(min(h, upper), lower) for h, (lower, upper) in zip(row, intervals, strict=True)]
    )


def bats(data: Data, lam: float = 1.05) -> list[float]:
    means, deviations = np.mean(data.train, axis=0), np.std(data.train, axis=0)
    return clip_to(data, [(m - lam * s, m + lam * s) for m, s in zip(means, deviations, strict=True)])


def laps(data: Data, lam: float = 1.5, mean_weight: float | None = None, deviation_weight: float = 0.0) -> list[float]:
    means, deviations = np.mean(data.train, axis=0), np.std(data.train, axis=0)
    if mean_weight is None:
        mean_weight = 0.3 / means.std() if means.std() > 0 else 0.0
    intervals = []
    for m, s in zip(means, deviations, strict=True):
        below = lam - mean_weight * (means.mean() - m) + deviation_weight * (deviations.mean() - s)
        above = lam + mean_weight * (means.mean() - m) + deviation_weight * (deviations.mean() - s)
        intervals.append((m - below * s, m + above * s))
    return clip_to(data, intervals)


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("react", {}, react),
    ("react", {"percentile": 60.0}, react),
    ("msp+react", {}, msp_react),
    ("msp+react", {"react_percentile": 60.0}, msp_react),
    ("ash-p", {}, ash_p),
    ("ash-p", {"percentile": 90.0}, ash_p),
    ("ash-b", {}, ash_b),
    ("ash-b", {"percentile": 20.0}, ash_b),
    ("ash-s", {}, ash_s),
    ("ash-s", {"percentile": 50.0}, ash_s),
    ("scale", {}, scale),
    ("scale", {"percentile": 50.0}, scale),
    ("vra", {}, vra),
    ("vra", {"low_percentile": 25.0, "high_percentile": 95.0}, vra),
    ("vra", {"thresholds": "shared"}, vra),
    ("bats", {}, bats),
    ("bats", {"lam": 0.3}, bats),
    ("laps", {}, laps),
    ("laps", {"lam": 0.5, "mean_weight": 13.0}, laps),
    ("laps", {"mean_weight": 0.2, "deviation_weight": 2.0}, laps),
]
