"""References for Gaussian and subspace detectors: one image and one class at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import pinv
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance

from tests.references.data import Data, unit_rows


def gaussian(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    """The squared distance to the nearest class mean, by scikit-learn's pseudo-inverse."""
    means = {c: features[labels == c].mean(axis=0) for c in set(labels.tolist())}
    centred = np.array([row - means[c] for row, c in zip(features, labels.tolist(), strict=True)])
    precision = EmpiricalCovariance(assume_centered=True).fit(centred).precision_
    return lambda row: min((row - mean) @ precision @ (row - mean) for mean in means.values())


def mahalanobis(data: Data, normalise: bool = False) -> list[float]:
    train, test = (unit_rows(data.train), unit_rows(data.test)) if normalise else (data.train, data.test)
    distance = gaussian(train, data.labels)
    return [-distance(row) for row in test]


def relative_mahalanobis(data: Data, normalise: bool = False, global_fit: str = "normalised") -> list[float]:
    train, test = (unit_rows(data.train), unit_rows(data.test)) if normalise else (data.train, data.test)
    background = gaussian(train if global_fit == "normalised" else data.train, np.zeros_like(data.labels))
    return [score + background(row) for score, row in zip(mahalanobis(data, normalise), test, strict=True)]


def vim(data: Data, dimension: int | None = None) -> list[float]:
    origin = -pinv(data.weight) @ data.bias
    dimension = data.train.shape[1] // 2 if dimension is None else dimension
    _, _, directions = np.linalg.svd(data.train - origin)

    def residual(row: np.ndarray) -> float:
        row = row - origin
        return float(np.linalg.norm(row - sum((row @ direction) * direction for direction in directions[:dimension])))

    residuals = sum(residual(row) for row in data.train)
    is_zero = residuals < 1e-9 * np.linalg.norm(data.train - origin)
    alpha = 0.0 if is_zero else sum(max(row) for row in data.logits(data.train)) / residuals
    return [logsumexp(data.logits(row)) - alpha * residual(row) for row in data.test]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("mahalanobis", {}, mahalanobis),
    ("mahalanobis++", {}, partial(mahalanobis, normalise=True)),
    ("relative-mahalanobis", {}, relative_mahalanobis),
    ("relative-mahalanobis++", {}, partial(relative_mahalanobis, normalise=True)),
    ("relative-mahalanobis++", {"global_fit": "raw"}, partial(relative_mahalanobis, normalise=True)),
    ("vim", {}, vim),
    ("vim", {"dimension": 0}, vim),
    ("vim", {"dimension": 2}, vim),
]
