"""References for pruned heads: one weight at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp

from tests.references.data import Data


def dice(data: Data, percentile: float = 90.0, limit: float = np.inf) -> list[float]:
    means = [np.mean(feature) for feature in data.train.T]
    contributions = [[w * mean for w, mean in zip(row, means, strict=True)] for row in data.weight]
    threshold = np.percentile(contributions, percentile)
    scores = []
    for features in data.test:
        logits = []
        for weights, row, bias in zip(data.weight, contributions, data.bias, strict=True):
            kept = [w * min(h, limit) for w, h, share in zip(weights, features, row, strict=True) if share > threshold]
            logits.append(sum(kept) + bias)
        scores.append(logsumexp(logits))
    return scores


def dice_react(data: Data, percentile: float = 10.0, react_percentile: float = 90.0) -> list[float]:
    return dice(data, percentile, limit=np.percentile(data.train, react_percentile))


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("dice", {}, dice),
    ("dice", {"percentile": 40.0}, dice),
    ("dice+react", {}, dice_react),
    ("dice+react", {"percentile": 70.0, "react_percentile": 60.0}, dice_react),
]
