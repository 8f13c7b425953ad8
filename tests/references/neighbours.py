"""References for neighbours and prototypes: one image and one neighbour at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_softmax

from tests.references.data import Data, unit_rows


def knn(data: Data, k: int = 10) -> list[float]:
    train, test = unit_rows(data.train), unit_rows(data.test)
    k = min(k, len(train))
    return [-sorted(math.dist(row, other) for other in train)[k - 1] for row in test]


def cosines(data: Data) -> list[list[float]]:
    means = [data.train[data.labels == c].mean(axis=0) for c in sorted(set(data.labels.tolist()))]
    norm = np.linalg.norm
    return [[row @ mean / (norm(row) * norm(mean)) for mean in means] for row in data.test]


def cosine(data: Data) -> list[float]:
    return [max(row) for row in cosines(data)]


def relative_cosine(data: Data) -> list[float]:
    return [max(log_softmax(row)) for row in cosines(data)]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("knn", {}, knn),
    ("knn", {"k": 1}, knn),
    ("knn", {"k": 7}, knn),
    ("cosine", {}, cosine),
    ("relative-cosine", {}, relative_cosine),
]
