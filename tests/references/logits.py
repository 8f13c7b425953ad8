"""References for the detectors of logits: one image at a time, as the formulas read."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, rel_entr, softmax

from tests.references.data import Data, log_odds


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.longdouble) - row.max()
    others = np.delete(np.exp(row), int(np.argmax(row)))
    return row - np.log1p(others.sum())


def msp(data: Data) -> list[float]:
    return [log_odds(row) for row in data.logits(data.test)]


def max_logit(data: Data) -> list[float]:
    return [max(row) for row in data.logits(data.test)]


def energy(data: Data, temperature: float = 1.0) -> list[float]:
    return [temperature * logsumexp(row / temperature) for row in data.logits(data.test)]


def kl_matching(data: Data, classes: str = "predicted") -> list[float]:
    logits = data.logits(data.train)
    members = data.labels if classes == "true" else np.array([int(np.argmax(row)) for row in logits])
    templates = [softmax(logits[members == c], axis=1).mean(axis=0) for c in sorted(set(members))]
    return [-min(rel_entr(softmax(row), template).sum() for template in templates) for row in data.logits(data.test)]


def entropy(data: Data) -> list[float]:
    if len(data.bias) == 1:
        return [0.0] * len(data.test)
    entropies = [-sum(np.exp(log_p) * log_p for log_p in log_softmax(row)) for row in data.logits(data.test)]
    return [-float(np.log(entropy)) for entropy in entropies]


def gen(data: Data, gamma: float = 0.1, top: int = 100) -> list[float]:
    if len(data.bias) == 1:
        return [0.0] * len(data.test)
    scores = []
    for row in data.logits(data.test):
        p = np.sort(np.exp(log_softmax(row)))[::-1]
        rest = [np.delete(p, c).sum() for c in range(len(p))]  # 1 - p would round
        scores.append(-float(np.log(sum(p[c] ** gamma * rest[c] ** gamma for c in range(min(top, len(p)))))))
    return scores


def nll(log_inverse: float, logits: np.ndarray, labels: np.ndarray) -> float:
    rows = np.exp(log_inverse) * logits
    return sum(logsumexp(row) - row[label] for row, label in zip(rows, labels, strict=True))


def weibull(tail: list[float]) -> tuple[float, float]:
    """The maximum-likelihood shape and scale."""
    tail, logs = np.array(tail), np.log(tail)

    def slope(shape: float) -> float:
        powers = (tail / max(tail)) ** shape
        return float((powers * logs).sum() / powers.sum() - 1 / shape - logs.mean())

    shape = brentq(slope, 1e-3, 1e12, xtol=1e-300, rtol=1e-14, maxiter=1000)
    return shape, max(tail) * float(((tail / max(tail)) ** shape).mean()) ** (1 / shape)


def openmax(
    data: Data, tail: int | None = None, alpha: int | None = None, distance: str = "euclidean", shift: float = 1.0
) -> list[float]:
    def far(a: np.ndarray, b: np.ndarray) -> float:
        euclidean = float(np.sqrt(((a - b) ** 2).sum()))
        cosine = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        return euclidean if distance == "euclidean" else euclidean / 200 + 1 - cosine

    logits, classes = data.logits(data.train), len(data.bias)
    alpha = min(3, classes) if alpha is None else alpha
    models = {}
    for c in range(classes):
        members = [row for row, label in zip(logits, data.labels, strict=True) if label == c == np.argmax(row)]
        if members:
            mean = np.mean(members, axis=0)
            count = min(20, -(-len(members) // 10)) if tail is None else tail
            largest = sorted(far(row, mean) for row in members)[-count:]
            if largest[-1] - largest[0] <= 1e-10 * largest[-1]:
                models[c] = mean, largest[-1] * (1 + 1e-10), None
            else:
                models[c] = mean, largest[0], weibull([d - largest[0] + shift for d in largest])

    def outlying(row: np.ndarray, c: int) -> float:
        if c not in models:
            return 0.0
        mean, smallest, fitted = models[c]
        beyond = far(row, mean) - smallest
        if fitted is None:
            return float(beyond > 0)
        return float(-np.expm1(-((max(beyond + shift, 0.0) / fitted[1]) ** fitted[0])))

    scores = []
    for row in data.logits(data.test):
        known, unknown = row.copy(), 0.0
        for i, c in enumerate(np.argsort(-row)[:alpha]):
            moved = row[c] * outlying(row, c) * (alpha - i) / alpha
            known[c] -= moved
            unknown += moved
        scores.append(float(logsumexp(known) - unknown))
    return scores


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("msp", {}, msp),
    ("max-logit", {}, max_logit),
    ("energy", {}, energy),
    ("energy", {"temperature": 2.5}, energy),
    ("kl-matching", {}, kl_matching),
    ("kl-matching", {"classes": "true"}, kl_matching),
    ("entropy", {}, entropy),
    ("gen", {}, gen),
    ("gen", {"gamma": 0.5, "top": 2}, gen),
    ("gen", {"gamma": 1.5, "top": 1}, gen),
    ("openmax", {}, openmax),
    ("openmax", {"tail": 12, "alpha": 1}, openmax),
    ("openmax", {"tail": 20, "distance": "eucos"}, openmax),
    ("openmax", {"tail": 7, "shift": 10000.0}, openmax),
]
