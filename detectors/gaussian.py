"""Detectors that model the features of each class as a Gaussian with a shared covariance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import class_means, round_off, unit
from detectors.options import require
from detectors.outputs import Head, Outputs
from detectors.state import learned

_Rows = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Moments:
    """What a shared-covariance Gaussian learns: sizes (K,) and means (K, D) of the classes, covariance (D, D)."""

    sizes: Tensor
    means: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, rows: _Rows, classes: int) -> "Moments":
        """Maximum-likelihood moments of batches (features (n, D), class indices (n,)), every class present.

        `rows` starts the stream anew: means first, then centred second moments, because the one-pass form loses digits.
        """
        sizes, means = class_means(rows(), classes)
        centred = (features - means[labels] for features, labels in rows())
        scatter = reduce(torch.add, (batch.T @ batch for batch in centred))
        return cls(sizes, means, scatter / sizes.sum())

    def pooled(self) -> "Moments":
        """The moments of all features as one class, without another pass: within-class plus between-class scatter."""
        shares = self.sizes / self.sizes.sum()
        mean = shares @ self.means
        offsets = self.means - mean
        between = offsets.T @ (shares[:, None] * offsets)
        return Moments(self.sizes.sum()[None], mean[None], self.covariance + between)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Squared Mahalanobis distances to the nearest of K means under their shared covariance.

    The inverse covariance is the Hermitian pseudo-inverse: directions without variance do not count. Features are
    whitened, so that all distances of a batch are one matrix product.
    """

    centre: Tensor
    whitening: Tensor
    means: Tensor  # whitened
    squared_norms: Tensor

    @classmethod
    def of(cls, moments: Moments) -> "Gaussians":
        values, vectors = torch.linalg.eigh(moments.covariance)
        means_round_off = moments.means.abs().max() * moments.sizes.sum() * torch.finfo(values.dtype).eps
        kept = values > torch.maximum(round_off(values), means_round_off.square())
        centre = moments.pooled().means[0]
        whitening = vectors[:, kept] / values[kept].sqrt()
        means = (moments.means - centre) @ whitening
        return cls(centre, whitening, means, means.square().sum(dim=1))

    def squared_distance(self, features: Tensor) -> Tensor:
        """Squared distances (n,) of features (n, D) to their nearest mean."""
        white = (features - self.centre) @ self.whitening
        # |m|^2 - 2 z.m finds the nearest mean; its distance is taken afresh, because the expanded square cancels.
        nearest = torch.addmm(self.squared_norms, white, self.means.T, alpha=-2).argmin(dim=1)
        return white.sub_(self.means[nearest]).square_().sum(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class Mahalanobis(Detector):
    """Mahalanobis distance of the features to the nearest class mean, under one covariance for all classes.

    Formula: S = -min_c (h - mu_c)^T Sigma^+ (h - mu_c), mu_c = class means, Sigma = (1/N) sum_i (h_i - mu_{y_i})
        (h_i - mu_{y_i})^T over the training features
    Paper: K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
        Adversarial Attacks", NeurIPS 2018, arXiv:1807.03888
    Deviations:
    - Pre-logit features only, without input perturbation or a combination of layers, as in NINCO (arXiv:2306.00826).
    - Sigma^+ is the Hermitian pseudo-inverse with scipy's cutoff; directions whose variance is within the round-off of
        the means are left out too, so that features that are constant within each class have distance 0.
    - A class without a training image has no mean.
    """

    id = "mahalanobis"
    needs = frozenset({"features", "train"})
    class_gaussians: Gaussians = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.class_gaussians = Gaussians.of(self._moments(train, head, self._represent))

    def _score(self, batch: Batch) -> Tensor:
        return -self.class_gaussians.squared_distance(self._represent(batch.features))

    def _moments(self, train: Outputs, head: Head | None, represent: Callable[[Tensor], Tensor]) -> Moments:
        classes, indices = self._labels(train, head).unique(return_inverse=True)

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            return ((represent(batch.features), batch.labels) for batch in self._stream(train, indices))

        return Moments.of(rows, len(classes))

    @staticmethod
    def _represent(features: Tensor) -> Tensor:
        return features


@registry.register
@dataclass(kw_only=True, eq=False)
class MahalanobisPlusPlus(Mahalanobis):
    """Mahalanobis distance of the features scaled to norm 1, in training and in scoring.

    Formula: S = -min_c (z - mu_c)^T Sigma^+ (z - mu_c), z = h / |h|_2, mu_c and Sigma as in mahalanobis but of the z_i
    Paper: M. Müller, M. Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025,
        arXiv:2505.18032
    Deviations:
    - The zero vector, which the paper leaves undefined, stays zero.
    - Sigma^+ is the Hermitian pseudo-inverse with scipy's cutoff, as in mahalanobis.
    """

    id = "mahalanobis++"

    @staticmethod
    def _represent(features: Tensor) -> Tensor:
        return unit(features)


@registry.register
@dataclass(kw_only=True, eq=False)
class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class less the distance to one Gaussian of all training features.

    Formula: S = -min_c (h - mu_c)^T Sigma^+ (h - mu_c) + (h - mu_g)^T Sigma_g^+ (h - mu_g), mu_g and Sigma_g = mean and
        (1/N) covariance of all training features
    Paper: J. Ren, S. Fort, J. Liu, A. G. Roy, S. Padhy, B. Lakshminarayanan, "A Simple Fix to Mahalanobis Distance for
        Improving Near-OOD Detection", 2021, arXiv:2106.09022
    Deviations:
    - Squared distances: the square root that some texts print would change the order.
    - Sigma^+ and Sigma_g^+ are Hermitian pseudo-inverses with scipy's cutoff, as in mahalanobis.
    """

    id = "relative-mahalanobis"
    global_gaussian: Gaussians = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        moments = self._moments(train, head, self._represent)
        self.class_gaussians = Gaussians.of(moments)
        self.global_gaussian = Gaussians.of(moments.pooled())

    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) + self.global_gaussian.squared_distance(self._represent(batch.features))


@registry.register
@dataclass(kw_only=True, eq=False)
class RelativeMahalanobisPlusPlus(RelativeMahalanobis):
    """Relative Mahalanobis distance of the features scaled to norm 1.

    Formula: S = -min_c (z - mu_c)^T Sigma^+ (z - mu_c) + (z - mu_g)^T Sigma_g^+ (z - mu_g), z = h / |h|_2, all
        moments as in relative-mahalanobis but of the z_i
    Paper: M. Müller, M. Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025,
        arXiv:2505.18032
    Options:
    - global_fit: 'normalised', or 'raw' to fit mu_g and Sigma_g on features that are not scaled to norm 1. The paper's
        code does the latter when class statistics are cached, so its ImageNet columns may have come from there.
    Deviations:
    - The zero vector, which the paper leaves undefined, stays zero.
    - Sigma^+ and Sigma_g^+ are Hermitian pseudo-inverses with scipy's cutoff, as in mahalanobis.
    """

    id = "relative-mahalanobis++"
    global_fit: str = "normalised"

    def __post_init__(self) -> None:
        ok = self.global_fit in ("normalised", "raw")
        require(ok, self.id, "global_fit", self.global_fit, "'normalised' or 'raw'")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        if self.global_fit == "raw":
            self.global_gaussian = Gaussians.of(self._moments(train, head, lambda features: features).pooled())

    @staticmethod
    def _represent(features: Tensor) -> Tensor:
        return unit(features)
