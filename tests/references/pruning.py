"""References for pruned heads: one image, one class and one weight at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax

from tests.references.data import Data, log_odds


def contributions(data: Data, label: int) -> np.ndarray:
    """W_cd h_d of every training image of a class (n, D)."""
    return np.array(
        [data.weight[label] * row for row, true in zip(data.train, data.labels, strict=True) if true == label]
    ).reshape(-1, data.train.shape[1])


def mean_contributions(data: Data) -> np.ndarray:
    """One row a class; NaN in a class without images."""
    found = [contributions(data, label) for label in range(len(data.bias))]
    return np.array([rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan) for rows in found])


def itp_logits(
    data: Data, row: np.ndarray, percentile: float | None, z: float, means: np.ndarray, sd: np.ndarray
) -> np.ndarray:
    limit = -math.inf if percentile is None else np.nanpercentile(means, percentile)
    logits = data.bias.copy()
    for label, dimension in np.ndindex(means.shape):
        contribution = data.weight[label, dimension] * row[dimension]
        mean = means[label, dimension]
        important = np.isnan(mean) or mean > limit
        usual = np.isnan(mean) or z == math.inf or contribution <= mean + z * sd[label, dimension]
        logits[label] += contribution if important and usual else 0.0
    return logits


def every_itp_logits(data: Data, percentile: float | None, z: float, clip: float = math.inf) -> list[np.ndarray]:
    means = mean_contributions(data)
    found = [contributions(data, label) for label in range(len(data.bias))]
    sd = np.array([rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1]) for rows in found])
    return [itp_logits(data, np.minimum(row, clip), percentile, z, means, sd) for row in data.test]


def itp(data: Data, percentile: float = 30.0, z: float = 1.5) -> list[float]:
    return [logsumexp(logits) for logits in every_itp_logits(data, percentile, z)]


def itp_crp(data: Data, percentile: float = 30.0) -> list[float]:
    return itp(data, percentile, math.inf)


def itp_ftp(data: Data, z: float = 1.5) -> list[float]:
    return [logsumexp(logits) for logits in every_itp_logits(data, None, z)]


def itp_react(data: Data, percentile: float = 30.0, z: float = 1.5, react_percentile: float = 90.0) -> list[float]:
    clip = np.percentile(data.train, react_percentile)
    return [logsumexp(logits) for logits in every_itp_logits(data, percentile, z, clip)]


def msp_itp(data: Data, itp_percentile: float = 30.0, itp_z: float = 1.5) -> list[float]:
    return [log_odds(logits) for logits in every_itp_logits(data, itp_percentile, itp_z)]


def max_logit_itp(data: Data, itp_percentile: float = 30.0, itp_z: float = 1.5) -> list[float]:
    return [max(logits) for logits in every_itp_logits(data, itp_percentile, itp_z)]


def gradnorm_itp(data: Data, temperature: float = 1.0, itp_percentile: float = 30.0, itp_z: float = 1.5) -> list[float]:
    """The gradient of the divergence in each weight that is left, which is its feature times the logit's gradient."""
    means = mean_contributions(data)
    limit = np.nanpercentile(means, itp_percentile)
    scores = []
    for row, logits in zip(data.test, every_itp_logits(data, itp_percentile, itp_z), strict=True):
        of_logits = (softmax(logits / temperature) - 1 / len(logits)) / temperature
        norm = 0.0
        for label in range(len(logits)):
            found = contributions(data, label)
            if len(found) == 0:
                left = np.ones(len(row), dtype=bool)
            else:
                highest = found.mean(axis=0) + itp_z * found.std(axis=0, ddof=1)
                left = (means[label] > limit) & (data.weight[label] * row <= highest)
            norm += sum(abs(of_logits[label] * value) for value in row[left])
        scores.append(norm)
    return scores


def line_logits(
    data: Data, activation_percentile: float, weight_percentile: float, clip: float | None
) -> list[np.ndarray]:
    clip = np.percentile(data.train, 90) if clip is None else clip
    means = mean_contributions(data)
    every = []
    for row in np.minimum(data.test, clip):
        predicted = int(np.argmax(data.logits(row)))
        important = means[predicted]
        if np.isnan(important).any():
            every.append(data.logits(row))
            continue
        neurons = important > np.percentile(important, activation_percentile)
        products = np.array([abs(important) * weights for weights in data.weight])
        left = products > np.percentile(products, weight_percentile)
        every.append(
            np.array([sum((row * neurons * w)[m]) for w, m in zip(data.weight, left, strict=True)]) + data.bias
        )
    return every


def line(
    data: Data, activation_percentile: float = 10.0, weight_percentile: float = 10.0, clip: float | None = None
) -> list[float]:
    return [logsumexp(logits) for logits in line_logits(data, activation_percentile, weight_percentile, clip)]


def opnp(
    data: Data,
    parameters_low: float = 10.0,
    parameters_high: float = 1.0,
    neurons_low: float = 10.0,
    neurons_high: float = 1.0,
    clip: float = math.inf,
) -> list[float]:
    gradients = [np.outer(softmax(data.logits(row)), row) for row in data.train]
    parameters = np.mean([abs(gradient) for gradient in gradients], axis=0)
    neurons = parameters.mean(axis=0)

    def left(values: np.ndarray, low: float, high: float) -> np.ndarray:
        above = values > np.percentile(values, low) if low > 0 else values == values
        return above & (values < np.percentile(values, 100 - high)) if high > 0 else above

    mask = left(parameters, parameters_low, parameters_high)
    mask = mask & left(neurons, neurons_low, neurons_high)[None]
    return [logsumexp((data.weight * mask) @ np.minimum(row, clip) + data.bias) for row in data.test]


def opnp_react(data: Data, react_percentile: float = 90.0, **options: float) -> list[float]:
    return opnp(data, **options, clip=np.percentile(data.train, react_percentile))


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("itp", {}, itp),
    ("itp", {"percentile": 55.0, "z": 0.7}, itp),
    ("itp-crp", {}, itp_crp),
    ("itp-crp", {"percentile": 85.5}, itp_crp),
    ("itp-ftp", {}, itp_ftp),
    ("itp-ftp", {"z": 0.3}, itp_ftp),
    ("itp+react", {}, itp_react),
    ("itp+react", {"percentile": 10.0, "z": 2.2, "react_percentile": 70.0}, itp_react),
    ("msp+itp", {}, msp_itp),
    ("msp+itp", {"itp_percentile": 60.0, "itp_z": 1.0}, msp_itp),
    ("max-logit+itp", {}, max_logit_itp),
    ("max-logit+itp", {"itp_percentile": 60.0, "itp_z": 1.0}, max_logit_itp),
    ("gradnorm+itp", {}, gradnorm_itp),
    ("gradnorm+itp", {"temperature": 2.0, "itp_percentile": 60.0, "itp_z": 1.0}, gradnorm_itp),
    ("line", {}, line),
    ("line", {"activation_percentile": 40.0, "weight_percentile": 75.0, "clip": 0.9}, line),
    ("opnp", {}, opnp),
    ("opnp", {"parameters_low": 0.0, "parameters_high": 20.0, "neurons_low": 30.0, "neurons_high": 0.0}, opnp),
    ("opnp", {"parameters_low": 40.0, "parameters_high": 0.0, "neurons_low": 0.0, "neurons_high": 25.0}, opnp),
    ("opnp+react", {}, opnp_react),
    ("opnp+react", {"parameters_low": 5.0, "neurons_low": 20.0, "react_percentile": 60.0}, opnp_react),
]
