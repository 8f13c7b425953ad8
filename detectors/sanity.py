"""Detectors that know nothing of the images. A benchmark in which they tell OOD images from others is wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.options import is_integer, require

# The constants of SplitMix64 (Steele, Lea, Flood 2014), as signed integers: arithmetic wraps around at 64 bits.
_STEP, _FIRST, _SECOND = (constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

_KNOWS_NOTHING = {"higher_means_in_distribution": "a sanity detector must not tell in-distribution images from others"}


@registry.register
@dataclass(kw_only=True, eq=False)
class Constant(Detector):
    """The same score for every image, at which AUROC is 1/2.

    Formula: S = 0
    Paper: none
    Invariant to: logit shift, logit scale, class order, feature unit, feature scale, feature shift, feature rotation
    Verified:
    - the formula, exactly
    """

    id = "constant"
    needs = frozenset({"logits"})
    expected_failures = _KNOWS_NOTHING

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.new_zeros(len(batch.logits))


@registry.register
@dataclass(kw_only=True, eq=False)
class Random(Detector):
    """A number from 0 to 1 that looks random, but is always the same for an image.

    Formula: S = h / 2^53, h = the upper 53 bits of mix(sum_c k_c fold(o_c)) modulo 2^64, o_c = the bits of the logit in
        double precision, fold(x) = x xor (x >> 32), k_c = mix(seed + c * step) | 1, mix and step those of SplitMix64
    Paper: none; the mixing is of G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom Number Generators",
        OOPSLA 2014
    Options:
    - seed: from 0 to 2^63 - 1; another one gives other numbers
    Invariant to: nothing
    Deviations:
    - Images with the same logits have the same score.
    Verified:
    - plain loops over integers of any size, exactly
    """

    id = "random"
    needs = frozenset({"logits"})
    expected_failures = _KNOWS_NOTHING
    seed: int = 0

    def __post_init__(self) -> None:
        ok = is_integer(self.seed) and 0 <= self.seed < 2**63
        require(ok, self.id, "seed", self.seed, "an integer from 0 to 2^63 - 1")

    def _score(self, batch: Batch) -> Tensor:
        bits = (batch.logits + 0.0).view(torch.int64)  # -0.0 is 0.0
        # Single and half precision leave the lower bits 0, and a product has no more of them than its factor.
        bits = bits ^ (bits >> 32)
        keys = _mix(self.seed + torch.arange(bits.shape[1]) * _STEP) | 1
        return (_shift(_mix((bits * keys).sum(dim=1)), 11)).double() / 2**53


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, count: int) -> Tensor:
    """A logical shift to the right of int64, whose own keeps the sign."""
    return (bits >> count) & (2 ** (64 - count) - 1)
