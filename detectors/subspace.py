"""Detectors that split the features into a principal subspace and the rest."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.gaussian import Moments
from detectors.numerics import comparable_units, round_off
from detectors.options import is_integer, require, require_choice
from detectors.outputs import Head, Outputs
from detectors.state import learned

EXPLAINED_SHARE = 0.9


@registry.register
@dataclass(kw_only=True, eq=False)
class Residual(Detector):
    """Norm of the part of the features outside the principal subspace of the training features.

    Formula: S = -|r|_2, r = part of h - u outside the span of the leading eigenvectors of F^T F, F = training features
        less u, u = -W^+ b
    Paper: H. Wang, Z. Li, L. Feng, W. Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022,
        arXiv:2203.10807, its row 'Residual'
    Options:
    - dimension: number of leading eigenvectors, from 0 to D - 1; None for 1000 if D >= 2048, 512 if 768 <= D < 2048,
        else D / 2 rounded down
    Invariant to: logit scale, class order, feature scale, feature rotation
    Deviations:
    - D / 2 for D < 768, as in NINCO and Mahalanobis++; the authors' code takes 512 whatever D is.
    - Training fixes the logits up to a number that is the same for all of them. The origin u depends on it, as in the
        paper.
    - Eigenvectors whose eigenvalues are zero up to round-off are never leading ones: which of them would be is chance.
        Round-off is judged in comparable units of the features, as in mahalanobis.
    Verified:
    - reconstruction error of scikit-learn's PCA, 1e-6
    - plain loops over the singular vectors, 1e-6
    """

    id = "residual"
    needs = frozenset({"features", "head", "train"})
    dimension: int | None = None
    origin: Tensor = learned()
    residual_basis: Tensor = learned()

    def __post_init__(self) -> None:
        ok = self.dimension is None or (is_integer(self.dimension) and self.dimension >= 0)
        require(ok, self.id, "dimension", self.dimension, "an integer from 0 to D - 1, or None")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self._fit_subspace(train, head)

    def _score(self, batch: Batch) -> Tensor:
        return -self._residual(batch)

    def _fit_subspace(self, train: Outputs, head: Head) -> bool:
        """Sets origin and residual basis. Returns whether training features have a residual at all."""
        width = head.weight.shape[1]
        dimension = default_dimension(width) if self.dimension is None else self.dimension
        require(dimension < width, self.id, "dimension", dimension, f"an integer from 0 to {width - 1}, or None")
        self.origin = -torch.linalg.pinv(head.weight) @ head.bias
        centred = (batch.features - self.origin for batch in self._stream(train))
        axes, rank = principal_axes(reduce(torch.add, (rows.T @ rows for rows in centred)))
        self.residual_basis = axes[:, : width - min(dimension, rank)].contiguous()
        return rank > dimension

    def _residual(self, batch: Batch) -> Tensor:
        return torch.linalg.vector_norm((batch.features - self.origin) @ self.residual_basis, dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class ViM(Residual):
    """Virtual-logit matching: the energy of the logits less the scaled norm of the features' residual.

    Formula: S = log sum_c exp(o_c) - alpha |r|_2, r = part of h - u outside the span of the leading eigenvectors of
        F^T F, F = training features less u, u = -W^+ b, alpha = sum_i max_c o_ic / sum_i |r_i|_2 over the training set
    Paper: H. Wang, Z. Li, L. Feng, W. Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022,
        arXiv:2203.10807
    Options:
    - dimension: number of leading eigenvectors, from 0 to D - 1; None for 1000 if D >= 2048, 512 if 768 <= D < 2048,
        else D / 2 rounded down
    Invariant to: class order, feature scale, feature rotation
    Deviations:
    - The paper's score is minus the softmax probability of the virtual logit alpha |r|; this is its log-odds: same
        order, without saturation.
    - D / 2 is rounded down, as in the Mahalanobis++ paper; NINCO rounds to the nearest integer.
    - Training fixes the logits up to a number that is the same for all of them. alpha and the origin u depend on
        it, as in the paper. Where the mean of the largest training logit is below 0, so is alpha, and a large residual
        raises the score.
    - Where all training residuals are zero up to round-off, alpha has no value and 0 is taken: the score is the energy.
        Round-off is judged in comparable units of the features, as in mahalanobis.
    Verified:
    - plain loops over the singular vectors, 1e-6
    - pytorch-ood 0.4, which computes in single precision, 1e-3
    """

    id = "vim"
    needs = Residual.needs | {"logits"}
    alpha: float = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.alpha = 0.0
        if self._fit_subspace(train, head):
            pairs = (torch.stack([batch.logits.amax(dim=1), self._residual(batch)]) for batch in self._stream(train))
            logit_sum, residual_sum = reduce(torch.add, (pair.sum(dim=1) for pair in pairs))
            self.alpha = float(logit_sum / residual_sum)

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.logsumexp(dim=1) - self.alpha * self._residual(batch)


def principal_axes(scatter: Tensor) -> tuple[Tensor, int]:
    """The eigenvectors (D, D) of a scatter matrix (D, D), smallest eigenvalue first, and its rank up to round-off."""
    units = comparable_units(scatter.diagonal().sqrt())
    values, vectors = torch.linalg.eigh(scatter / units / units[:, None])
    kept = values > round_off(values)
    if bool((units == 1).all()):
        return vectors, int(kept.sum())
    # In the features' own units, where a product of features has lost what is small, its factor has not.
    factor = units[:, None] * vectors[:, kept] * values[kept].sqrt()
    axes, _, _ = torch.linalg.svd(factor, full_matrices=True)
    return axes.flip(1), int(kept.sum())


def default_dimension(width: int) -> int:
    """The published dimension of the principal subspace for features of D = `width` values."""
    if width >= 2048:
        return 1000
    return 512 if width >= 768 else width // 2


@registry.register
@dataclass(kw_only=True, eq=False)
class NECO(Detector):
    """Share of the features' norm in the principal subspace of the training features, times the largest logit.

    Formula: S = max_c o_c |P g|_2 / |g|_2, g = h with each dimension less its training mean and over its standard
        deviation, P = projection on the leading principal components of the training features g_i
    Paper: M. Ben Ammar, N. Belkhir, S. Popescu, A. Manzanera, G. Franchi, "NECO: NEural Collapse Based
        Out-of-distribution detection", ICLR 2024, arXiv:2310.06823
    Options:
    - dimension: number of principal components, from 1 to D; None for the fewest that explain 90 % of the variance, as
        in Mahalanobis++ (arXiv:2505.18032); the authors' code is given a number for each network
    - max_logit: whether the share is multiplied by the largest logit; the authors' code does so but for ResNets
    - denominator: norm by which the projected features are divided: 'standardised', or 'raw' for that of the features
        themselves, which the authors' code takes for DeiT and Swin
    Invariant to: logit scale, class order, feature unit, feature scale, feature shift
    Deviations:
    - A dimension that is constant in training is centred and not scaled. Components without variance (up to round-off)
        are never principal ones, whatever `dimension` is.
    - The share of the mean of the training features, 0 / 0, is 0.
    - Training fixes the logits up to a number that is the same for all of them. The largest logit, a factor,
        depends on it, as in the paper. Where it is below 0, a large share lowers the score.
    Verified:
    - scikit-learn's StandardScaler and PCA, 1e-6
    - plain loops over the singular vectors, 1e-6
    """

    id = "neco"
    needs = frozenset({"features", "logits", "train"})
    dimension: int | None = None
    max_logit: bool = True
    denominator: str = "standardised"
    mean: Tensor = learned()
    scale: Tensor = learned()
    components: Tensor = learned()

    def __post_init__(self) -> None:
        ok = self.dimension is None or (is_integer(self.dimension) and self.dimension >= 1)
        require(ok, self.id, "dimension", self.dimension, "an integer from 1 to D, or None")
        require(isinstance(self.max_logit, bool), self.id, "max_logit", self.max_logit, "True or False")
        require_choice(self.id, "denominator", self.denominator, ("standardised", "raw"))

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        one_class = torch.zeros(len(train), dtype=torch.long)
        moments = Moments.of(lambda: ((batch.features, batch.labels) for batch in self._stream(train, one_class)), 1)
        width = moments.means.shape[1]
        allowed = f"an integer from 1 to {width}, or None"
        require(self.dimension is None or self.dimension <= width, self.id, "dimension", self.dimension, allowed)
        self.mean = moments.means[0]
        variances = moments.covariance.diagonal()
        constant = variances <= (len(train) * torch.finfo(variances.dtype).eps * self.mean).square()
        self.scale = variances.sqrt().masked_fill(constant, 1.0)
        correlation = moments.covariance / self.scale / self.scale[:, None]
        correlation.masked_fill_(constant | constant[:, None], 0.0)
        values, vectors = (part.flip(-1) for part in torch.linalg.eigh(correlation))
        rank = int((values > round_off(values)).sum())
        dimension = explaining(values, EXPLAINED_SHARE) if self.dimension is None else self.dimension
        self.components = vectors[:, : min(dimension, rank)].contiguous()

    def _score(self, batch: Batch) -> Tensor:
        standardised = (batch.features - self.mean) / self.scale
        projected = torch.linalg.vector_norm(standardised @ self.components, dim=1)
        divided = standardised if self.denominator == "standardised" else batch.features
        norm = torch.linalg.vector_norm(divided, dim=1)
        share = torch.where(norm > 0, projected / norm, 0.0)
        return batch.logits.amax(dim=1) * share if self.max_logit else share


def explaining(variances: Tensor, share: float) -> int:
    """How many of the variances (D,), largest first, make up this share of their sum."""
    cumulative = variances.cumsum(dim=0)
    # A share that is reached but for round-off is reached.
    return int((cumulative < share * (1 - 1e-12) * cumulative[-1]).sum()) + 1
