"""Detectors that model each class as a Gaussian with a covariance of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch
from detectors.catalogue import registry
from detectors.gaussian import ClassConditional, Rows, feature_units, mean_round_offs, variance_round_offs
from detectors.numerics import class_means, unit
from detectors.state import learned

# 64 MiB in float64: how much a step may hold besides the class covariances themselves.
_HELD_VALUES = 2**23
_SMALLEST_JITTER_EXPONENT = -15


@dataclass(frozen=True, eq=False)
class ClassGaussians:
    """K Gaussians, each with a mean and a covariance of its own.

    means: (K, D).
    whitening: (K, D, D), takes centred features to axes in which the covariance is the identity.
    log_peaks: (K,), the log-densities at the means.
    """

    means: Tensor
    whitening: Tensor
    log_peaks: Tensor

    @classmethod
    def of(cls, rows: Rows, classes: int) -> "ClassGaussians":
        """The Gaussians of batches (features (n, D), class indices (n,)), every class present."""
        sizes, means = class_means(rows(), classes)
        matrices = _class_covariances(rows, sizes, means)
        within = (sizes - 1) @ matrices.diagonal(dim1=1, dim2=2) / (sizes - 1).sum().clamp(min=1)
        units = feature_units(within, mean_round_offs(means, sizes.sum()))
        variances, cutoffs = torch.empty_like(means), torch.empty_like(means)
        for label in range(classes):
            round_offs = mean_round_offs(means[[label]], sizes[label]) / units
            variances[label], matrices[label] = torch.linalg.eigh(matrices[label] / units / units[:, None])
            cutoffs[label] = variance_round_offs(variances[label], matrices[label], round_offs)
        # What is round-off is zero: as it is, the scores of singular covariances would be made of it.
        variances = variances.where(variances > cutoffs, 0.0)
        variances += smallest_jitter(cutoffs[(variances == 0).any(dim=1)])
        matrices *= variances.rsqrt()[:, None]
        matrices /= units[:, None]
        peaks = -0.5 * (variances.log().sum(dim=1) + means.shape[1] * math.log(2 * math.pi))
        return cls(means, matrices, peaks - units.log().sum())

    def log_density(self, features: Tensor) -> Tensor:
        """Log-densities (n,) of features (n, D) under the likeliest of the Gaussians."""
        block = max(1, _HELD_VALUES // features.numel())
        blocks = (tensor.split(block) for tensor in (self.means, self.whitening, self.log_peaks))
        best = features.new_full((len(features),), -torch.inf)
        for means, whitening, peaks in zip(*blocks, strict=True):
            white = torch.bmm(features - means[:, None], whitening)
            squared_distances = white.square_().sum(dim=2)
            best = torch.maximum(best, (peaks[:, None] - 0.5 * squared_distances).amax(dim=0))
        return best


def _class_covariances(rows: Rows, sizes: Tensor, means: Tensor) -> Tensor:
    """Unbiased covariances (K, D, D) of the classes; zero for a class of one vector."""
    width = means.shape[1]
    covariances = means.new_zeros(len(means), width, width)
    for centred, labels in _gathered(rows, means):
        labels, order = labels.sort()
        present, sizes_here = labels.unique_consecutive(return_counts=True)
        parts = centred[order].split(sizes_here.tolist())
        for label, part in zip(present.tolist(), parts, strict=True):
            covariances[label].addmm_(part.T, part)
    return covariances.div_((sizes - 1).clamp(min=1)[:, None, None])


def _gathered(rows: Rows, means: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The vectors less their class means in batches of about _HELD_VALUES values, so that many share a class: each
    class in a batch costs a pass over its D x D covariance."""
    held: list[tuple[Tensor, Tensor]] = []
    values = 0
    for features, labels in rows():
        held.append((features - means[labels], labels))
        values += features.numel()
        if values >= _HELD_VALUES:
            yield _joined(held)
            held, values = [], 0
    if held:
        yield _joined(held)


def _joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    centred, labels = zip(*batches, strict=True)
    return torch.cat(centred), torch.cat(labels)


def smallest_jitter(cutoffs: Tensor) -> float:
    """The least power of ten, from 1e-15 up, above the round-off levels of all singular covariances; 0 for none."""
    if cutoffs.numel() == 0:
        return 0.0
    cutoff = float(cutoffs.max())
    return next(10.0**exponent for exponent in count(_SMALLEST_JITTER_EXPONENT) if 10.0**exponent > cutoff)


@registry.register
@dataclass(kw_only=True, eq=False)
class GaussianMixture(ClassConditional):
    """Log-density of the features under the likeliest class, each a Gaussian with its own full covariance.

    Formula: S = max_c log N(h; mu_c, Sigma_c + jitter I), mu_c = class means, Sigma_c = 1/(N_c - 1) sum_{y_i = c}
        (h_i - mu_c) (h_i - mu_c)^T
    Paper: J. Mukhoti, A. Kirsch, J. van Amersfoort, P. H. S. Torr, Y. Gal, "Deep Deterministic Uncertainty: A New
        Simple Baseline", CVPR 2023, arXiv:2102.11582
    Invariant to: logit shift, logit scale, class order, feature scale, feature shift, feature rotation
    Deviations:
    - The likeliest class without priors, as in Mahalanobis++ (arXiv:2505.18032), whose 'GMM' this is; the paper's
        density is a sum over the classes.
    - jitter is 0 when no covariance is singular, else the least of 1e-15, 1e-14, ... above the round-off D eps
        lambda_max of each singular one: there a Cholesky factor surely exists. Mahalanobis++'s code takes the first of
        0, the smallest positive number, 1e-15, ..., 0.1 (for CIFAR also 0.5 and 1) with which LAPACK finds the factors,
        which round-off decides.
    - Eigenvalues within round-off count as zero before the jitter, so that the order of the images changes nothing.
    - Round-off and jitter suit one unit: a feature whose standard deviation within the classes is below 1/1024 of the
        largest one is first multiplied by the power of two that makes it comparable, and its density by the same.
    - The powers of ten go on beyond 1, so that huge features have scores too.
    - A class with one image has covariance 0, one without an image is left out.
    Verified:
    - scipy's multivariate_normal.logpdf, 1e-9
    - pytorch-ood 0.4's GMM, for one class, 1e-9
    - plain loops over the singular values of each class, 1e-6
    """

    id = "gmm"
    gaussians: ClassGaussians = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.gaussians = ClassGaussians.of(*self._class_rows(train, head, self._represent))

    def _score(self, batch: Batch) -> Tensor:
        return self.gaussians.log_density(self._represent(batch.features))


@registry.register
@dataclass(kw_only=True, eq=False)
class GaussianMixturePlusPlus(GaussianMixture):
    """Log-density of the features scaled to norm 1 under the likeliest class, each a Gaussian with its own covariance.

    Formula: S = max_c log N(z; mu_c, Sigma_c + jitter I), z = h / |h|_2, mu_c, Sigma_c and jitter as in gmm but of the
        z_i
    Paper: M. Müller, M. Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025,
        arXiv:2505.18032
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The jitter is chosen as in gmm, and not by the success of a factorisation.
    - The zero vector, which the paper leaves undefined, stays zero.
    - A class with one image has covariance 0, one without an image is left out.
    Verified:
    - plain loops over the singular values of each class, 1e-6
    """

    id = "gmm++"

    @staticmethod
    def _represent(features: Tensor) -> Tensor:
        return unit(features)
