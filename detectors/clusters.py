"""Detectors that model clusters of the features, without labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.gaussian import Gaussians, Moments
from detectors.numerics import class_means, unit
from detectors.options import is_integer, require
from detectors.state import learned

# Starts the stream anew, in batches (vectors (n, D), their part of the given labels (N,)).
_Rows = Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]]

MOST_STEPS = 100
# What differs by less than this, of unit vectors, counts as equal: else round-off, and so the order of images, decides.
_TIE = 1e-12


@registry.register
@dataclass(kw_only=True, eq=False)
class SSD(Detector):
    """Mahalanobis distance of the features scaled to norm 1 to the nearest cluster, found without labels.

    Formula: S = -min_k (z - mu_k)^T Sigma^+ (z - mu_k), z = h / |h|_2, mu_k = means of the k-means clusters of the
        training z_i, Sigma = (1/N) sum_i (z_i - mu_{k(i)}) (z_i - mu_{k(i)})^T, k(i) = the cluster of z_i
    Paper: V. Sehwag, M. Chiang, P. Mittal, "SSD: A Unified Framework for Self-Supervised Outlier Detection", ICLR 2021,
        arXiv:2103.12051
    Options:
    - clusters: number of clusters, from 1 to N; 1 in the authors' code, 100, 500 and 1000 for SSD+ on ImageNet in
        Mahalanobis++ (arXiv:2505.18032)
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - One covariance for all clusters, as Mahalanobis++ describes it; the authors' code takes one a cluster. With one
        cluster, the default, it is the same.
    - The authors' code standardises each dimension of z before the clustering; the distances to given clusters do not
        depend on it. It clusters by faiss from random centres, here k-means starts from the clusters that halving along
        the axis of largest variance gives (T. Su, J. G. Dy, "In Search of Deterministic Methods for Initializing
        K-Means and Gaussian Mixture Clustering", Intelligent Data Analysis 11, 2007, 'Var-Part'; all clusters with
        half the largest scatter or more are halved in one pass), so that the order of the images changes nothing.
    - Lloyd's steps end when no image moves, or after 100. A cluster that loses all its images is dropped; there are
        fewer clusters than named where fewer features differ.
    - Any network's features; the paper trains with a contrastive loss.
    - Sigma^+ is the Hermitian pseudo-inverse with scipy's cutoff, as in mahalanobis. The zero vector stays zero.
    Verified:
    - plain loops written from the formula, 1e-6
    - scikit-learn's KMeans from the same start: the same clusters, where none loses all its images
    - mahalanobis++ of one class, 1e-12
    """

    id = "ssd"
    needs = frozenset({"features", "train"})
    clusters: int = 1
    cluster_gaussians: Gaussians = learned()

    def __post_init__(self) -> None:
        self._require_clusters(is_integer(self.clusters) and self.clusters >= 1, "N")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self._require_clusters(self.clusters <= len(train), len(train))

        def rows(labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            return ((unit(batch.features), batch.labels) for batch in self._stream(train, labels))

        found, labels = k_means(rows, len(train), self.clusters).unique(return_inverse=True)
        self.cluster_gaussians = Gaussians.of(Moments.of(lambda: rows(labels), len(found)))

    def _score(self, batch: Batch) -> Tensor:
        return -self.cluster_gaussians.squared_distance(unit(batch.features))

    def _require_clusters(self, ok: bool, most: Any) -> None:
        require(ok, self.id, "clusters", self.clusters, f"an integer from 1 to {most}")


def k_means(rows: _Rows, images: int, clusters: int) -> Tensor:
    """The cluster (N,) of each of `images` unit vectors, after Lloyd's algorithm; some clusters may have none."""
    labels = halved_by_variance(rows, images, clusters)
    if clusters == 1:
        return labels
    means = class_means(rows(labels), int(labels.max()) + 1)[1]
    for _ in range(MOST_STEPS):
        moved, sizes, moved_means = move_to_nearest(rows, labels, means)
        if torch.equal(moved, labels):
            break
        labels, means = moved, moved_means[sizes > 0]
    return labels


def move_to_nearest(rows: _Rows, labels: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The index (N,) of the nearest mean to each vector, and the sizes and means of these new clusters."""
    moved = []
    squared_norms = means.square().sum(dim=1)

    def moved_rows() -> Iterator[tuple[Tensor, Tensor]]:
        for vectors, _ in rows(labels):
            distances = torch.addmm(squared_norms, vectors, means.T, alpha=-2)
            moved.append(_first(distances <= distances.amin(dim=1, keepdim=True) + _TIE))
            yield vectors, moved[-1]

    sizes, moved_means = class_means(moved_rows(), len(means))
    return torch.cat(moved), sizes, moved_means


def halved_by_variance(rows: _Rows, images: int, clusters: int) -> Tensor:
    """Labels (N,) of up to `clusters` clusters of unit vectors.

    All are one at first. In each round the clusters with at least half the scatter of the one with the largest, as many
    as are wanted still, are cut in two at their mean along the axis on which they vary most.
    """
    labels = torch.zeros(images, dtype=torch.long)
    existing = 1
    while existing < clusters:
        sizes, means = class_means(rows(labels), existing)
        scatter = torch.zeros_like(means)
        for vectors, own in rows(labels):
            scatter.index_add_(0, own, (vectors - means[own]).square_())
        largest, shares = scatter.amax(dim=1), scatter.sum(dim=1) / images
        axes = _first(scatter >= largest[:, None] * (1 - 1e-9))
        deviations = (largest / sizes).sqrt()
        order = (shares / _TIE).round().argsort(descending=True, stable=True)
        halved = (deviations > _TIE) & (shares >= (0.5 - _TIE) * shares.max())
        chosen = order[halved[order]][: clusters - existing]
        if len(chosen) == 0:
            break
        upper_labels = torch.arange(existing)
        upper_labels[chosen] = existing + torch.arange(len(chosen))
        cuts = means.gather(1, axes[:, None])[:, 0] + 1e-9 * deviations
        labels = torch.cat(
            [
                torch.where(vectors.gather(1, axes[own, None])[:, 0] > cuts[own], upper_labels[own], own)
                for vectors, own in rows(labels)
            ]
        )
        existing += len(chosen)
    return labels


def _first(flags: Tensor) -> Tensor:
    """The index (n,) of the first true value in each row (n, K)."""
    return flags.byte().argmax(dim=1)
