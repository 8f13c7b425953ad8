"""The data on which detectors and their references meet: random, degenerate, and like a network's features."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from detectors import Head, Outputs, create


@dataclass(frozen=True)
class Data:
    """Features (N, D) and labels (N,) of training images, features (M, D) of test images, weights of a head."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias

    def outputs(self, features: np.ndarray, labels: np.ndarray | None = None) -> Outputs:
        return Outputs(features=features, logits=self.logits(features), labels=labels)

    def scores(self, detector_id: str, **options: Any) -> np.ndarray:
        head = Head(torch.from_numpy(self.weight), torch.from_numpy(self.bias))
        detector = create(detector_id, **options)
        detector.batch_rows = 37
        return detector.fit(self.outputs(self.train, self.labels), head).score(self.outputs(self.test)).numpy()


def make_data(rows: int, width: int, classes: int, seed: int = 0, spread: float = 1.0) -> Data:
    random = np.random.default_rng(seed)
    means = spread * random.normal(size=(classes, width))
    labels = np.arange(rows) % classes
    train = means[labels] + random.normal(size=(rows, width)) * random.uniform(0.5, 2.0, width)
    near, far = means[np.arange(20) % classes] + random.normal(size=(20, width)), 3 * random.normal(size=(20, width))
    test = np.concatenate([train[:7], near, far])
    return Data(
        train, labels, test, random.normal(size=(classes, width)) / math.sqrt(width), random.normal(size=classes)
    )


def changed(data: Data, change: Callable[[np.ndarray], np.ndarray]) -> Data:
    return Data(change(data.train), data.labels, change(data.test), data.weight, data.bias)


def reordered(data: Data, seed: int) -> Data:
    """The same with the features, and the head's weights for them, in another order."""
    order = np.random.default_rng(seed).permutation(data.weight.shape[1])
    return replace(changed(data, lambda features: features[:, order]), weight=data.weight[:, order])


def without_class(data: Data, label: int) -> Data:
    others = data.labels != label
    return Data(data.train[others], data.labels[others], data.test, data.weight, data.bias)


def relu_in_single_precision(features: np.ndarray) -> np.ndarray:
    return np.maximum(features + 0.5, 0).astype(np.float32).astype(np.float64)


def low_rank(features: np.ndarray) -> np.ndarray:
    return features[:, :5] @ np.random.default_rng(1).normal(size=(5, features.shape[1]))


def dead_and_duplicated(features: np.ndarray) -> np.ndarray:
    features = features.copy()
    features[:, 1] = 0.0
    features[:, 2] = features[:, 3]
    return features


def unit_rows(features: np.ndarray) -> np.ndarray:
    return np.array([row / math.sqrt(sum(row**2)) for row in features])


def log_odds(logits: Any) -> float:
    """log(p / (1 - p)) of the largest softmax probability p, in extended precision; 0 for a single class."""
    row = np.asarray(logits).astype(np.longdouble)
    others = np.delete(np.exp(row - row.max()), int(row.argmax()))
    return float(-np.log(others.sum())) if len(others) else 0.0


DATA = {
    "random": make_data(300, 12, 5),
    "ReLU": changed(make_data(400, 32, 10, spread=2.0), relu_in_single_precision),
    "low rank": changed(make_data(300, 20, 5), low_rank),
    "more dimensions than images": make_data(30, 40, 4),
    "dead and duplicated dimensions": changed(make_data(300, 12, 5), dead_and_duplicated),
    "two images a class": make_data(8, 3, 4, spread=5.0),
    "one class": make_data(100, 6, 1),
    "far from the origin": changed(make_data(300, 8, 3), lambda features: features + 1000.0),
    "a class without images": without_class(make_data(200, 8, 3), 1),
}


def agree(scores: np.ndarray, expected: list[float], digits: float = 1e-6) -> bool:
    """To a relative 1e-6; differences of large terms, near 0, to that share of the largest score."""
    return np.allclose(scores, expected, rtol=digits, atol=1e-3 * digits * np.abs(expected).max() + 1e-12)
