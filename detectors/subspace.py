"""Detectors that split the features into a principal subspace and a residual."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import round_off
from detectors.options import is_integer, require
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class ViM(Detector):
    """Virtual-logit matching: the energy of the logits less the scaled norm of the features' residual.

    Formula: S = log sum_c exp(o_c) - alpha |r|_2, r = part of h - u outside the span of the leading eigenvectors of
        F^T F, F = training features less u, u = -W^+ b, alpha = sum_i max_c o_ic / sum_i |r_i|_2 over the training set
    Paper: H. Wang, Z. Li, L. Feng, W. Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022,
        arXiv:2203.10807
    Options:
    - dimension: number of leading eigenvectors, from 0 to D - 1; None for 1000 if D >= 2048, 512 if 768 <= D < 2048,
        else D / 2 rounded down
    Deviations:
    - The paper's score is minus the softmax probability of the virtual logit alpha |r|; this is its log-odds: same
        order, without saturation.
    - D / 2 is rounded down, as in the Mahalanobis++ paper; NINCO rounds to the nearest integer.
    - Where all training residuals are zero up to round-off, alpha has no value and 0 is taken: the score is the energy.
    """

    id = "vim"
    needs = frozenset({"features", "logits", "head", "train"})
    dimension: int | None = None
    origin: Tensor = learned()
    residual_basis: Tensor = learned()
    alpha: float = learned()

    def __post_init__(self) -> None:
        ok = self.dimension is None or (is_integer(self.dimension) and self.dimension >= 0)
        require(ok, self.id, "dimension", self.dimension, "an integer from 0 to D - 1, or None")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        width = head.weight.shape[1]
        dimension = default_dimension(width) if self.dimension is None else self.dimension
        require(dimension < width, self.id, "dimension", dimension, f"an integer from 0 to {width - 1}, or None")
        self.origin = -torch.linalg.pinv(head.weight) @ head.bias
        centred = (batch.features - self.origin for batch in self._stream(train))
        values, vectors = torch.linalg.eigh(reduce(torch.add, (rows.T @ rows for rows in centred)))
        self.residual_basis = vectors[:, : width - dimension].contiguous()
        self.alpha = 0.0
        if values[width - dimension - 1] > round_off(values):
            pairs = (torch.stack([batch.logits.amax(dim=1), self._residual(batch)]) for batch in self._stream(train))
            logit_sum, residual_sum = reduce(torch.add, (pair.sum(dim=1) for pair in pairs))
            self.alpha = float(logit_sum / residual_sum)

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.logsumexp(dim=1) - self.alpha * self._residual(batch)

    def _residual(self, batch: Batch) -> Tensor:
        return torch.linalg.vector_norm((batch.features - self.origin) @ self.residual_basis, dim=1)


def default_dimension(width: int) -> int:
    """The published dimension of the principal subspace for features of D = `width` values."""
    if width >= 2048:
        return 1000
    return 512 if width >= 768 else width // 2
