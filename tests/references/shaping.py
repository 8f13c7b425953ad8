"""References for shaped features: one image at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp

from tests.references.data import Data


def react(data: Data, percentile: float = 99.0) -> list[float]:
    limit = np.percentile(data.train, percentile)
    return [logsumexp(data.logits(np.minimum(row, limit))) for row in data.test]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("react", {}, react),
    ("react", {"percentile": 60.0}, react),
]
