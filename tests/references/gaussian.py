"""References for Gaussian and subspace detectors: one image and one class at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import pinv
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance
from sklearn.preprocessing import StandardScaler

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


def residual(data: Data, dimension: int | None = None) -> list[float]:
    """By removing one leading direction after the other; directions that no training feature has are not leading."""
    origin = -pinv(data.weight) @ data.bias
    dimension = data.train.shape[1] // 2 if dimension is None else dimension
    _, spread, directions = np.linalg.svd(data.train - origin)
    leading = [direction for size, direction in zip(spread, directions, strict=False) if size > 1e-7 * spread[0]]
    scores = []
    for row in data.test:
        left = row - origin
        for direction in leading[:dimension]:
            left = left - (left @ direction) * direction
        scores.append(-float(np.linalg.norm(left)))
    return scores


def gmm(data: Data, normalise: bool = False) -> list[float]:
    """Singular values of each class's centred features, and a component at a time."""
    train, test = (unit_rows(data.train), unit_rows(data.test)) if normalise else (data.train, data.test)
    width, epsilon = train.shape[1], np.finfo(float).eps
    classes, levels = [], []
    for label in sorted(set(data.labels.tolist())):
        members = train[data.labels == label]
        mean = members.mean(axis=0)
        _, spread, directions = np.linalg.svd((members - mean) / np.sqrt(max(1, len(members) - 1)))
        variances = np.zeros(width)
        variances[: len(spread)] = spread**2
        level = max(variances[0] * width * epsilon, (abs(mean).max() * len(members) * epsilon) ** 2)
        variances[variances <= level] = 0.0
        levels += [level] * bool((variances == 0).any())
        classes.append((mean, variances, directions))
    ladder = [10.0**exponent for exponent in range(-15, 300)]
    jitter = min(value for value in ladder if value > max(levels)) if levels else 0.0

    def log_density(row: np.ndarray, mean: np.ndarray, variances: np.ndarray, directions: np.ndarray) -> float:
        total = -0.5 * width * np.log(2 * np.pi)
        for variance, direction in zip(variances + jitter, directions, strict=True):
            total -= 0.5 * (np.log(variance) + (direction @ (row - mean)) ** 2 / variance)
        return float(total)

    return [max(log_density(row, *one_class) for one_class in classes) for row in test]


def ssd(data: Data, clusters: int = 1) -> list[float]:
    train, test = unit_rows(data.train), unit_rows(data.test)
    distance = gaussian(train, lloyd(train, halved(train, clusters)))
    return [-distance(row) for row in test]


def halved(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """In rounds: clusters with half the largest scatter are cut at their mean, on their axis of largest variance."""
    groups = [list(range(len(vectors)))]

    def scatter(group: list[int]) -> float:
        return float(vectors[group].var(axis=0).sum() * len(group))

    while len(groups) < clusters:
        large = [group for group in groups if scatter(group) >= 0.5 * max(map(scatter, groups))]
        for group in sorted(large, key=scatter, reverse=True)[: clusters - len(groups)]:
            axis = int(vectors[group].var(axis=0).argmax())
            mean = vectors[group][:, axis].mean()
            upper = [row for row in group if vectors[row, axis] > mean]
            groups[groups.index(group)] = [row for row in group if row not in upper]
            groups.append(upper)
    labels = np.zeros(len(vectors), dtype=int)
    for label, group in enumerate(groups):
        labels[group] = label
    return labels


def lloyd(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    for _ in range(100):
        means = [vectors[labels == label].mean(axis=0) for label in sorted(set(labels.tolist()))]
        moved = np.array([np.argmin([((row - mean) ** 2).sum() for mean in means]) for row in vectors])
        if (moved == labels).all():
            break
        labels = moved
    return labels


def neco(
    data: Data, dimension: int | None = None, max_logit: bool = True, denominator: str = "standardised"
) -> list[float]:
    scaler = StandardScaler().fit(data.train)
    _, spread, directions = np.linalg.svd(scaler.transform(data.train), full_matrices=False)
    shares = spread**2 / (spread**2).sum()
    if dimension is None:
        dimension = next(count for count in range(1, len(shares) + 1) if sum(shares[:count]) >= 0.9)
    principal = [direction for share, direction in zip(shares, directions, strict=True) if share > 1e-14][:dimension]
    scores = []
    for row in data.test:
        standardised = (row - scaler.mean_) / scaler.scale_
        projected = np.sqrt(sum((standardised @ direction) ** 2 for direction in principal))
        share = projected / np.linalg.norm(standardised if denominator == "standardised" else row)
        scores.append(float(share * max(data.logits(row)) if max_logit else share))
    return scores


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("mahalanobis", {}, mahalanobis),
    ("mahalanobis++", {}, partial(mahalanobis, normalise=True)),
    ("relative-mahalanobis", {}, relative_mahalanobis),
    ("relative-mahalanobis++", {}, partial(relative_mahalanobis, normalise=True)),
    ("relative-mahalanobis++", {"global_fit": "raw"}, partial(relative_mahalanobis, normalise=True)),
    ("vim", {}, vim),
    ("vim", {"dimension": 0}, vim),
    ("vim", {"dimension": 2}, vim),
    ("residual", {}, residual),
    ("residual", {"dimension": 0}, residual),
    ("residual", {"dimension": 2}, residual),
    ("gmm", {}, gmm),
    ("gmm++", {}, partial(gmm, normalise=True)),
    ("ssd", {}, ssd),
    ("ssd", {"clusters": 3}, ssd),
    ("ssd", {"clusters": 8}, ssd),
    ("neco", {}, neco),
    ("neco", {"dimension": 1}, neco),
    ("neco", {"dimension": 3}, neco),
    ("neco", {"max_logit": False}, neco),
    ("neco", {"denominator": "raw"}, neco),
]
