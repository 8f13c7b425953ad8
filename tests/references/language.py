"""References for vision-language detectors: one image, patch, class and word at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax

from tests.references.data import Data, log_odds


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = math.sqrt(sum(a * a)) * math.sqrt(sum(b * b))
    return float(sum(a * b)) / size if size > 0 else 0.0


def similarities(image: np.ndarray, texts: np.ndarray, temperature: float) -> list[float]:
    return [cosine(image, text) / temperature for text in texts]


def probabilities(image: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(similarities(image, texts, temperature))


def mcm(data: Data, temperature: float = 1.0) -> list[float]:
    return [log_odds(similarities(row, data.weight, temperature)) for row in data.test]


def gl_mcm(
    data: Data,
    patches: np.ndarray,
    temperature: float = 1.0,
    local_temperature: float = 1.0,
    form: str = "code",
) -> list[float]:
    scores = []
    for row, places in zip(data.test, patches, strict=True):
        if form == "code":
            local = max(max(probabilities(place, data.weight, local_temperature)) for place in places)
        else:
            best = [max(cosine(place, text) for place in places) for text in data.weight]
            local = max(softmax(np.array(best) / local_temperature))
        both = max(probabilities(row, data.weight, temperature)) + local
        scores.append(math.log(both / (2 - both)) if len(data.weight) > 1 else 0.0)
    return scores


def neglabel(
    data: Data,
    embeddings: np.ndarray,
    keep: float = 0.15,
    percentile: float = 95.0,
    groups: int | None = None,
    temperature: float = 0.01,
) -> list[float]:
    nearness = [np.percentile([cosine(word, text) for text in data.weight], percentile) for word in embeddings]
    negatives = [embeddings[i] for i in np.argsort(nearness)[: max(1, int(keep * len(embeddings)))]]
    groups = min(100, len(negatives)) if groups is None else groups
    negatives = negatives[: len(negatives) // groups * groups]
    scores = []
    for row in data.test:
        shares = []
        for group in range(groups):
            texts = [*data.weight, *negatives[group::groups]]
            known = probabilities(row, np.array(texts), temperature)
            shares.append((sum(known[: len(data.weight)]), sum(known[len(data.weight) :])))
        scores.append(math.log(sum(share for share, _ in shares)) - math.log(sum(rest for _, rest in shares)))
    return scores


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("mcm", {}, mcm),
    ("mcm", {"temperature": 0.01}, mcm),
]
