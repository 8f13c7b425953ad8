"""Detectors that compare the features with the mean, the weights or the decision boundaries of each class."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.logits import log_odds_of_max
from detectors.numerics import class_means, mean, unit
from detectors.options import is_number, require, require_choice
from detectors.outputs import Head
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class Cosine(Detector):
    """Cosine similarity of the features with the nearest class mean.

    Formula: S = max_c cos(u_c, h), u_c = mean of the training features of class c
    Paper: J. Bitterwolf, M. Müller, M. Hein, "In or Out? Fixing ImageNet Out-of-Distribution Detection Evaluation",
        ICML 2023, arXiv:2306.00826
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything.
    - A class without a training image has no prototype.
    Verified:
    - plain loops written from the formula, 1e-6
    """

    id = "cosine"
    needs = frozenset({"features", "train"})
    prototypes: Tensor = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        classes, indices = self._labels(train, head).unique(return_inverse=True)
        rows = ((batch.features, batch.labels) for batch in self._stream(train, indices))
        _, means = class_means(rows, len(classes))
        self.prototypes = unit(means)

    def _score(self, batch: Batch) -> Tensor:
        return self._similarities(batch).amax(dim=1)

    def _similarities(self, batch: Batch) -> Tensor:
        return unit(batch.features) @ self.prototypes.T


@registry.register
@dataclass(kw_only=True, eq=False)
class RelativeCosine(Cosine):
    """Softmax, over the classes, of the cosine similarities with the class means.

    Formula: S = max_c log softmax(s)_c, s_c = cos(u_c, h), u_c = mean of the training features of class c
    Paper: Y. Ming, Z. Cai, J. Gu, Y. Sun, W. Li, Y. Li, "Delving into Out-of-Distribution Detection with
        Vision-Language Representations", NeurIPS 2022, arXiv:2211.13445
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - Class means stand in for text embeddings, as in NINCO (arXiv:2306.00826), at the paper's temperature 1.
    - The logarithm of the probability is returned: same order.
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything.
    Verified:
    - plain loops written from the formula, 1e-6
    """

    id = "relative-cosine"

    def _score(self, batch: Batch) -> Tensor:
        return self._similarities(batch).log_softmax(dim=1).amax(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class ScaledCosine(Detector):
    """Maximum softmax probability of the scaled cosines between the features and the weights of each class.

    Formula: S = log(p / (1 - p)), p = max_c softmax(t cos(w_.,h))_c, w_c = the head's weights for class c, without its
        bias
    Paper: E. Techapanurak, M. Suganuma, T. Okatani, "Hyperparameter-Free Out-of-Distribution Detection Using Cosine
        Similarity", ACCV 2020, arXiv:1905.10628
    Options:
    - scale: t, above 0, which the cosines are multiplied by
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - A head that was trained as usual and the scale 1, as in Mahalanobis++ (arXiv:2505.18032); the paper trains a head
        of cosines whose scale depends on the image.
    - The log-odds of the probability are returned, as in msp: the same order, but probabilities near 1 stay apart.
    - A zero vector, which the paper leaves undefined, has similarity 0 with everything.
    Verified:
    - plain loops written from the formula, 1e-6
    """

    id = "ssc"
    needs = frozenset({"features", "head"})
    score_scale = 2  # 1: the logarithm of the probability
    scale: float = 1.0
    directions: Tensor = learned()

    def __post_init__(self) -> None:
        ok = is_number(self.scale) and self.scale > 0
        require(ok, self.id, "scale", self.scale, "a number above 0")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.directions = unit(head.weight)

    def _score(self, batch: Batch) -> Tensor:
        cosines = unit(batch.features) @ self.directions.T
        return log_odds_of_max(self.scale * cosines)


@registry.register
@dataclass(kw_only=True, eq=False)
class SHE(Detector):
    """Similarity of the features to the mean of the correctly classified training features of the predicted class.

    Formula: S = h.u_p, p = argmax_c o_c, u_c = mean of the training features of class c that the network puts there
    Paper: J. Zhang, Q. Fu, X. Chen, L. Du, Z. Li, G. Wang, X. Liu, S. Han, D. Zhang, "Out-of-Distribution Detection
        based on In-Distribution Data Patterns Memorization with Modern Hopfield Energy", ICLR 2023, not on arXiv
    Options:
    - metric: 'inner-product', 'euclidean' for S = -|h - u_p|_2, or 'cosine' for S = cos(h, u_p)
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - A class without a correctly classified training image, which has no pattern in the paper, takes the mean of all
        training features.
    - Compared with OpenOOD's code, not with the authors'.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-6
    """

    id = "she"
    needs = frozenset({"features", "logits", "train"})
    metric: str = "inner-product"
    patterns: Tensor = learned()

    def __post_init__(self) -> None:
        require_choice(self.id, "metric", self.metric, ("inner-product", "euclidean", "cosine"))

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        wrong = classes = train.logits.shape[1]
        labels = self._labels(train, head)
        rows = (
            (batch.features, batch.labels.where(batch.logits.argmax(dim=1) == batch.labels, wrong))
            for batch in self._stream(train, labels)
        )
        sizes, means = class_means(rows, classes + 1)
        has_images = sizes > 0
        overall = sizes[has_images] @ means[has_images] / len(train)
        self.patterns = means[:classes].where(has_images[:classes, None], overall)

    def _score(self, batch: Batch) -> Tensor:
        features, patterns = batch.features, self.patterns[batch.logits.argmax(dim=1)]
        if self.metric == "euclidean":
            return -torch.linalg.vector_norm(features - patterns, dim=1)
        if self.metric == "cosine":
            features, patterns = unit(features), unit(patterns)
        return (features * patterns).sum(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class FDBD(Detector):
    """Mean distance of the features to the decision boundaries, relative to their distance from the training mean.

    Formula: S = 1/(C-1) sum_{c != p} (o_p - o_c) / |w_p - w_c|_2 / |h - mu|_2, p = argmax_c o_c, mu = mean of all
        training features, w_c = the head's weights for class c
    Paper: L. Liu, Y. Qin, "Fast Decision Boundary based Out-of-Distribution Detector", ICML 2024, arXiv:2312.11536
    Invariant to: logit shift, logit scale, class order, feature scale, feature shift, feature rotation
    Deviations:
    - The authors' code leaves out the factor 1/(C-1): same order.
    - Classes whose weights are the same up to round-off have no boundary between them, and count as distance 0.
    - |h - mu|_2, by which the paper cannot divide at the mean, is at least the round-off of mu.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-4: it computes in single precision
    """

    id = "fdbd"
    needs = frozenset({"features", "head", "train"})
    head: Head = learned()
    inverse_distances: Tensor = learned()
    mean: Tensor = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        # Squares and products (cdist's own way) would leave similar weights without digits.
        distances = torch.cdist(head.weight, head.weight, compute_mode="donot_use_mm_for_euclid_dist")
        round_off = head.weight.shape[1] * torch.finfo(distances.dtype).eps * head.weight.abs().max()
        self.head = head
        self.inverse_distances = distances.reciprocal().where(distances > round_off, 0.0)
        self.mean = mean(batch.features for batch in self._stream(train))

    def _score(self, batch: Batch) -> Tensor:
        logits = torch.addmm(self.head.bias, batch.features, self.head.weight.T)
        largest, predicted = logits.max(dim=1, keepdim=True)
        distances = (largest - logits).mul_(self.inverse_distances[predicted[:, 0]]).sum(dim=1)
        deviations = torch.linalg.vector_norm(batch.features - self.mean, dim=1)
        round_off = torch.finfo(logits.dtype).eps * torch.linalg.vector_norm(self.mean)
        return distances / deviations.clamp_min(max(float(round_off), 1e-150)) / max(1, logits.shape[1] - 1)
