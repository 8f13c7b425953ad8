"""Detectors that read the logits alone."""

from dataclasses import dataclass

from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry


@registry.register
@dataclass(kw_only=True, eq=False)
class MSP(Detector):
    """Maximum softmax probability.

    Formula: S = max_c log softmax(o)_c
    Paper: D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
        Networks", ICLR 2017, arXiv:1610.02136
    Deviations:
    - The logarithm of the probability is returned: same order, but probabilities near 1 stay apart.
    """

    id = "msp"
    needs = frozenset({"logits"})

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.log_softmax(dim=1).amax(dim=1)
