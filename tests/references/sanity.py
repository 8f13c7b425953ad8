"""References for the detectors that know nothing: integers of any size, one logit at a time."""

import struct
from collections.abc import Callable
from typing import Any

from tests.references.data import Data

WRAP = 2**64


def mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % WRAP
    value = (value ^ value >> 27) * 0x94D049BB133111EB % WRAP
    return value ^ value >> 31


def random(data: Data, seed: int = 0) -> list[float]:
    scores = []
    for row in data.logits(data.test):
        total = 0
        for c, logit in enumerate(row):
            (bits,) = struct.unpack("<q", struct.pack("<d", logit))
            key = mix((seed + c * 0x9E3779B97F4A7C15) % WRAP) | 1
            total += (bits ^ bits >> 32) * key
        scores.append((mix(total % WRAP) >> 11) / 2**53)
    return scores


def constant(data: Data) -> list[float]:
    return [0.0 for _ in data.test]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("constant", {}, constant),
    ("random", {}, random),
    ("random", {"seed": 7}, random),
]
