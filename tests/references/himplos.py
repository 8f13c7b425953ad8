"""References for HIMPLoS and its steps: one image at a time, the network's own prediction for every step."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.special import logsumexp

from tests.references.data import Data, log_odds
from tests.references.pruning import line_logits


def predicted(data: Data, row: np.ndarray) -> int:
    return int(np.argmax(data.logits(row)))


def masked(data: Data, row: np.ndarray, percentile: float) -> np.ndarray:
    weights = data.weight[predicted(data, row)]
    limit = np.percentile(weights, percentile)
    return np.array([value if weight >= limit else 0.0 for value, weight in zip(row, weights, strict=True)])


def similarity(data: Data, row: np.ndarray) -> float:
    members = data.train[data.labels == predicted(data, row)]
    if len(members) == 0:
        return 0.0
    prototype = sum(members) / len(members)
    norms = math.sqrt(sum(row**2)) * math.sqrt(sum(prototype**2))
    return float(sum(row * prototype)) / norms if norms > 0 else 0.0


def logits(data: Data, row: np.ndarray, fm: float | None, clip: float, ls: bool) -> np.ndarray:
    shaped = row if fm is None else masked(data, row, fm)
    return data.logits(np.minimum(shaped, clip)) * (similarity(data, row) if ls else 1.0)


def energies(data: Data, fm: float | None = None, react: float | None = None, ls: bool = False) -> list[float]:
    clip = math.inf if react is None else np.percentile(data.train, react)
    return [logsumexp(logits(data, row, fm, clip, ls)) for row in data.test]


def fm(data: Data, percentile: float = 30.0) -> list[float]:
    return energies(data, fm=percentile)


def fm_ls(data: Data, percentile: float = 30.0) -> list[float]:
    return energies(data, fm=percentile, ls=True)


def react_fm(data: Data, percentile: float = 30.0, react_percentile: float = 90.0) -> list[float]:
    return energies(data, fm=percentile, react=react_percentile)


def react_ls(data: Data, react_percentile: float = 90.0) -> list[float]:
    return energies(data, react=react_percentile, ls=True)


def react_fm_le(
    data: Data, percentile: float = 30.0, react_percentile: float = 90.0, le_alpha: float = 20.0
) -> list[float]:
    energy = react_fm(data, percentile, react_percentile)
    return [score + le_alpha * similarity(data, row) for score, row in zip(energy, data.test, strict=True)]


def himplos_logits(data: Data, percentile: float, clip: float | None) -> list[np.ndarray]:
    limit = np.percentile(data.train, 90) if clip is None else clip
    return [logits(data, row, percentile, limit, True) for row in data.test]


def himplos(data: Data, percentile: float = 30.0, clip: float | None = None) -> list[float]:
    return [logsumexp(row) for row in himplos_logits(data, percentile, clip)]


def msp_himplos(data: Data, himplos_percentile: float = 30.0, himplos_clip: float | None = None) -> list[float]:
    return [log_odds(row) for row in himplos_logits(data, himplos_percentile, himplos_clip)]


def line_ls(
    data: Data, activation_percentile: float = 10.0, weight_percentile: float = 10.0, clip: float | None = None
) -> list[float]:
    every = line_logits(data, activation_percentile, weight_percentile, clip)
    return [logsumexp(row * similarity(data, image)) for row, image in zip(every, data.test, strict=True)]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("fm", {}, fm),
    ("fm", {"percentile": 75.0}, fm),
    ("ls", {}, partial(energies, ls=True)),
    ("fm+ls", {}, fm_ls),
    ("fm+ls", {"percentile": 75.0}, fm_ls),
    ("fm+react", {}, react_fm),
    ("fm+react", {"react_percentile": 60.0, "percentile": 75.0}, react_fm),
    ("ls+react", {}, react_ls),
    ("ls+react", {"react_percentile": 60.0}, react_ls),
    ("fm+le+react", {}, react_fm_le),
    ("fm+le+react", {"react_percentile": 60.0, "percentile": 75.0, "le_alpha": 5.0}, react_fm_le),
    ("himplos", {}, himplos),
    ("himplos", {"percentile": 60.0, "clip": 1.6}, himplos),
    ("msp+himplos", {}, msp_himplos),
    ("msp+himplos", {"himplos_percentile": 60.0, "himplos_clip": 1.6}, msp_himplos),
    ("line+ls", {}, line_ls),
    ("line+ls", {"activation_percentile": 40.0, "weight_percentile": 75.0, "clip": 0.9}, line_ls),
]
