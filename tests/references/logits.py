"""References for the detectors of logits: one image at a time, as the formulas read."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp, rel_entr, softmax

from tests.references.data import Data


def msp(data: Data) -> list[float]:
    rows = data.logits(data.test).astype(np.longdouble)
    return [float(max(row - row.max() - np.log(np.exp(row - row.max()).sum()))) for row in rows]


def max_logit(data: Data) -> list[float]:
    return [max(row) for row in data.logits(data.test)]


def energy(data: Data, temperature: float = 1.0) -> list[float]:
    return [temperature * logsumexp(row / temperature) for row in data.logits(data.test)]


def kl_matching(data: Data, classes: str = "predicted") -> list[float]:
    logits = data.logits(data.train)
    members = data.labels if classes == "true" else np.array([int(np.argmax(row)) for row in logits])
    templates = [softmax(logits[members == c], axis=1).mean(axis=0) for c in sorted(set(members))]
    return [-min(rel_entr(softmax(row), template).sum() for template in templates) for row in data.logits(data.test)]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("msp", {}, msp),
    ("max-logit", {}, max_logit),
    ("energy", {}, energy),
    ("energy", {"temperature": 2.5}, energy),
    ("kl-matching", {}, kl_matching),
    ("kl-matching", {"classes": "true"}, kl_matching),
]
