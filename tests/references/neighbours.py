"""References for neighbours and prototypes: one image, one neighbour and one class at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from tests.references.data import Data, log_odds, unit_rows


def knn(data: Data, k: int = 10) -> list[float]:
    train, test = unit_rows(data.train), unit_rows(data.test)
    k = min(k, len(train))
    return [-sorted(math.dist(row, other) for other in train)[k - 1] for row in test]


def nnguide(data: Data, k: int = 10, fraction: float | None = None, seed: int = 0) -> list[float]:
    rows = data.train.tolist()
    direction = np.random.default_rng(seed).normal(size=len(rows[0]))
    kept = len(rows) if fraction is None else int(fraction * len(rows))
    chosen = sorted(range(len(rows)), key=lambda row: lot(rows[row], direction))[:kept]
    energies = [logsumexp(row) for row in data.logits(data.train)]
    train, test = unit_rows(data.train), unit_rows(data.test)

    def score(features: np.ndarray, logits: np.ndarray) -> float:
        products = sorted((energies[row] * (features @ train[row]) for row in chosen), reverse=True)[:k]
        return logsumexp(logits) * sum(products) / len(products)

    return [score(*row) for row in zip(test, data.logits(data.test), strict=True)]


def lot(row: list[float], direction: np.ndarray) -> float:
    """The number from 0 to 1 that decides whether an image is kept."""
    length = math.hypot(*row)
    return 100 * (sum(value / length * step for value, step in zip(row, direction, strict=True)) + math.log(length)) % 1


def cosines(data: Data) -> list[list[float]]:
    means = [data.train[data.labels == c].mean(axis=0) for c in sorted(set(data.labels.tolist()))]
    norm = np.linalg.norm
    return [[row @ mean / (norm(row) * norm(mean)) for mean in means] for row in data.test]


def cosine(data: Data) -> list[float]:
    return [max(row) for row in cosines(data)]


def relative_cosine(data: Data) -> list[float]:
    return [max(log_softmax(row)) for row in cosines(data)]


def ssc(data: Data, scale: float = 1.0) -> list[float]:
    norm = np.linalg.norm

    def score(row: np.ndarray) -> float:
        return log_odds([scale * (row @ weights) / (norm(row) * norm(weights)) for weights in data.weight])

    return [score(row) for row in data.test]


def she(data: Data, metric: str = "inner-product") -> list[float]:
    predicted = data.logits(data.train).argmax(axis=1)

    def score(row: np.ndarray, label: int) -> float:
        stored = [
            features
            for features, true, guess in zip(data.train, data.labels, predicted, strict=True)
            if true == label == guess
        ]
        pattern = sum(stored) / len(stored) if stored else data.train.mean(axis=0)
        if metric == "inner-product":
            return row @ pattern
        if metric == "euclidean":
            return -math.dist(row, pattern)
        return row @ pattern / (math.hypot(*row) * math.hypot(*pattern))

    return [score(row, logits.argmax()) for row, logits in zip(data.test, data.logits(data.test), strict=True)]


def fdbd(data: Data) -> list[float]:
    mean = data.train.mean(axis=0)
    classes = range(len(data.weight))

    def score(row: np.ndarray, logits: np.ndarray) -> float:
        best = logits.argmax()
        distances = [
            (logits[best] - logits[c]) / math.dist(data.weight[best], data.weight[c]) for c in classes if c != best
        ]
        return sum(distances) / max(1, len(distances)) / math.dist(row, mean)

    return [score(*row) for row in zip(data.test, data.logits(data.test), strict=True)]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("knn", {}, knn),
    ("knn", {"k": 1}, knn),
    ("knn", {"k": 7}, knn),
    ("nnguide", {"k": 3}, nnguide),
    ("nnguide", {"k": 1, "fraction": 0.2}, nnguide),
    ("nnguide", {"k": 1, "fraction": 0.2, "seed": 5}, nnguide),
    ("nnguide", {}, nnguide),
    ("cosine", {}, cosine),
    ("relative-cosine", {}, relative_cosine),
    ("ssc", {}, ssc),
    ("ssc", {"scale": 20.0}, ssc),
    ("she", {}, she),
    ("she", {"metric": "euclidean"}, she),
    ("she", {"metric": "cosine"}, she),
    ("fdbd", {}, fdbd),
]
