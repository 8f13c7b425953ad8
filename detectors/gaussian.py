"""Detectors that model the features of each class as a Gaussian with a shared covariance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import class_means, comparable_units, round_off, unit
from detectors.options import require_choice
from detectors.outputs import Head, Outputs
from detectors.state import learned

# Starts a stream of batches (features (n, D), class indices (n,)) anew.
Rows = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Moments:
    """What Gaussians with a shared covariance learn from K classes.

    sizes: (K,), how many vectors each class has.
    means: (K, D), those of the classes.
    covariance: (D, D), the one that all classes share.
    """

    sizes: Tensor
    means: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, rows: Rows, classes: int) -> "Moments":
        """Maximum-likelihood moments of batches (features (n, D), class indices (n,)), every class present.

        `rows` starts the stream anew: means first, then centred second moments, because the one-pass form loses digits.
        """
        sizes, means = class_means(rows(), classes)
        centred = (features - means[labels] for features, labels in rows())
        scatter = reduce(torch.add, (batch.T @ batch for batch in centred))
        return cls(sizes, means, scatter / sizes.sum())

    def pooled(self) -> "Moments":
        """The moments of all features as one class, made of these: within-class plus between-class scatter."""
        shares = self.sizes / self.sizes.sum()
        mean = shares @ self.means
        offsets = self.means - mean
        between = offsets.T @ (shares[:, None] * offsets)
        return Moments(self.sizes.sum()[None], mean[None], self.covariance + between)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Squared Mahalanobis distances to the nearest of K means under their shared covariance.

        centre: (D,), the mean of all features.
        whitening: (D, rank), takes centred features to axes in which the covariance is the identity.
        means: (K, rank), whitened.
        squared_norms: (K,), those of the whitened means.

    The inverse covariance is the Hermitian pseudo-inverse, of features in comparable units: directions without variance
    do not count. Features are whitened, so that all distances of a batch are one matrix product.
    """

    centre: Tensor
    whitening: Tensor
    means: Tensor
    squared_norms: Tensor

    @classmethod
    def of(cls, moments: Moments) -> "Gaussians":
        round_offs = mean_round_offs(moments.means, moments.sizes.sum())
        units = feature_units(moments.covariance.diagonal(), round_offs)
        values, vectors = torch.linalg.eigh(moments.covariance / units / units[:, None])
        kept = values > variance_round_offs(values, vectors, round_offs / units)
        centre = moments.pooled().means[0]
        whitening = vectors[:, kept] / values[kept].sqrt() / units[:, None]
        means = (moments.means - centre) @ whitening
        return cls(centre, whitening, means, means.square().sum(dim=1))

    def squared_distance(self, features: Tensor) -> Tensor:
        """Squared distances (n,) of features (n, D) to their nearest mean."""
        return self.offsets(features).square_().sum(dim=1)

    def offsets(self, features: Tensor) -> Tensor:
        """Whitened features (n, rank), less the nearest mean of each."""
        white = (features - self.centre) @ self.whitening
        # |m|^2 - 2 z.m finds the nearest mean; the offset is taken afresh, because the expanded square cancels.
        nearest = torch.addmm(self.squared_norms, white, self.means.T, alpha=-2).argmin(dim=1)
        return white.sub_(self.means[nearest])


def mean_round_offs(means: Tensor, images: Tensor) -> Tensor:
    """How far the subtraction of means can be off, for each feature (D,).

    means: (K, D), those of the classes.
    images: how many vectors they are of.
    """
    return means.abs().amax(dim=0) * images * torch.finfo(means.dtype).eps


def feature_units(variances: Tensor, round_offs: Tensor) -> Tensor:
    """The comparable units (D,) of features, as in `comparable_units`; 1 for a feature that is constant.

    variances: (D,), the variances of the features.
    round_offs: (D,), the deviations up to which a feature is constant.
    """
    deviations = variances.sqrt()
    return comparable_units(deviations.where(deviations > round_offs, 0.0))


def variance_round_offs(variances: Tensor, axes: Tensor, mean_round_offs: Tensor) -> Tensor:
    """The levels (D,) up to which eigenvalues of a covariance are round-off: their own, or that of subtracted means.

    variances: (D,), the eigenvalues.
    axes: (D, D), the eigenvectors, a column each.
    mean_round_offs: (D,), how far the subtraction of means can be off for each feature.
    """
    return torch.maximum(round_off(variances), axes.square().T @ mean_round_offs.square())


@dataclass(kw_only=True, eq=False)
class ClassConditional(Detector):
    """A detector that models the features of each class."""

    needs = frozenset({"features", "train"})

    def _class_rows(self, train: Outputs, head: Head | None, represent: Callable[[Tensor], Tensor]) -> tuple[Rows, int]:
        """The stream of training features with the indices of their classes, and the number of classes with images."""
        classes, indices = self._labels(train, head).unique(return_inverse=True)

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            return ((represent(batch.features), batch.labels) for batch in self._stream(train, indices))

        return rows, len(classes)

    @staticmethod
    def _represent(features: Tensor) -> Tensor:
        return features


@registry.register
@dataclass(kw_only=True, eq=False)
class Mahalanobis(ClassConditional):
    """Mahalanobis distance of the features to the nearest class mean, under one covariance for all classes.

    Formula: S = -min_c (h - mu_c)^T Sigma^+ (h - mu_c), mu_c = class means, Sigma = (1/N) sum_i (h_i - mu_{y_i})
        (h_i - mu_{y_i})^T over the training features
    Paper: K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
        Adversarial Attacks", NeurIPS 2018, arXiv:1807.03888
    Invariant to: logit shift, logit scale, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - Pre-logit features only, without input perturbation or a combination of layers, as in NINCO (arXiv:2306.00826).
    - Sigma^+ is the Hermitian pseudo-inverse with scipy's cutoff; directions whose variance is within the round-off of
        the means are left out too, so that features that are constant within each class have distance 0.
    - The cutoff suits one unit: a feature whose standard deviation within the classes is below 1/1024 of the largest
        one is first multiplied by the power of two that makes it comparable. Where Sigma has an inverse, the score is
        the same, but for round-off.
    - A class without a training image has no mean.
    Verified:
    - plain loops with the precision matrix of scikit-learn's EmpiricalCovariance, 1e-6
    - scikit-learn's EmpiricalCovariance.mahalanobis, for one class, 1e-6
    - pytorch-ood 0.4, which computes in single precision, 1e-3
    """

    id = "mahalanobis"
    class_gaussians: Gaussians = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.class_gaussians = Gaussians.of(Moments.of(*self._class_rows(train, head, self._represent)))

    def _score(self, batch: Batch) -> Tensor:
        return -self.class_gaussians.squared_distance(self._represent(batch.features))


@registry.register
@dataclass(kw_only=True, eq=False)
class MahalanobisPlusPlus(Mahalanobis):
    """Mahalanobis distance of the features scaled to norm 1, in training and in scoring.

    Formula: S = -min_c (z - mu_c)^T Sigma^+ (z - mu_c), z = h / |h|_2, mu_c and Sigma as in mahalanobis but of the z_i
    Paper: M. Müller, M. Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025,
        arXiv:2505.18032
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The zero vector, which the paper leaves undefined, stays zero.
    - Sigma^+ is the Hermitian pseudo-inverse with scipy's cutoff, as in mahalanobis.
    Verified:
    - plain loops with the precision matrix of scikit-learn's EmpiricalCovariance, 1e-6
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
    Invariant to: logit shift, logit scale, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - Squared distances: the square root that some texts print would change the order.
    - Sigma^+ and Sigma_g^+ are Hermitian pseudo-inverses with scipy's cutoff, as in mahalanobis.
    Verified:
    - plain loops with the precision matrix of scikit-learn's EmpiricalCovariance, 1e-6
    - pytorch-ood 0.4, which computes in single precision, 1e-3
    """

    id = "relative-mahalanobis"
    global_gaussian: Gaussians = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        moments = Moments.of(*self._class_rows(train, head, self._represent))
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
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The zero vector, which the paper leaves undefined, stays zero.
    - Sigma^+ and Sigma_g^+ are Hermitian pseudo-inverses with scipy's cutoff, as in mahalanobis.
    Verified:
    - plain loops with the precision matrix of scikit-learn's EmpiricalCovariance, 1e-6
    """

    id = "relative-mahalanobis++"
    global_fit: str = "normalised"

    def __post_init__(self) -> None:
        require_choice(self.id, "global_fit", self.global_fit, ("normalised", "raw"))

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        if self.global_fit == "raw":
            moments = Moments.of(*self._class_rows(train, head, lambda features: features))
            self.global_gaussian = Gaussians.of(moments.pooled())

    @staticmethod
    def _represent(features: Tensor) -> Tensor:
        return unit(features)
