"""Detectors that mask features by the head's weights for the predicted class and scale logits by its prototype."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors.catalogue import registry
from detectors.gradients import ODIN
from detectors.logits import MSP, Energy
from detectors.numerics import class_means, norms, unit
from detectors.options import is_number, require, require_percentile
from detectors.parts import USUAL_INVARIANCES, Activations, Part, Training, combination
from detectors.shaping import ReAct
from detectors.state import learned


def rectifier(clip: float | None, training: Training) -> ReAct:
    """ReAct with that limit or, where there is none, with the 90th percentile of the training activations."""
    react = ReAct(percentile=90.0)
    if clip is None:
        react.fit(training)
    else:
        react.limit = float(clip)
    return react


def check_clip(part: str, clip: Any) -> None:
    ok = clip is None or (is_number(clip) and clip > 0)
    require(ok, part, "clip", clip, "a number above 0, or None for the rule")


@dataclass(kw_only=True, eq=False)
class FeatureMasking(Part):
    """Features of which only those stay that have the largest weights for the predicted class.

    Formula: h_d -> [W_cd >= P_c] h_d, c = argmax_k o_k(h) of the network, P_c = percentile of the weights W_c
    Paper: Z. Sun, Y. Qiu, Z. Tan, W. Zheng, R. Wang, "Classifier-head Informed Feature Masking and Prototype-based
        Logit Smoothing for Out-of-Distribution Detection", 2023, arXiv:2310.18104
    Options:
    - percentile: of a class's weights, from 0 to 100: the share of features that it masks. The paper gives none for
        its tables and finds 10 to 80 stable; its code has 30 (ImageNet-1k, ResNet-50) and 60 (CIFAR-10 and CIFAR-100,
        DenseNet-BC-100)
    Verified:
    - plain loops written from the formula, 1e-6; facts checked against the authors' code: signed weights, one
        percentile a class, the prediction of the network as it is
    """

    id = "fm"
    needs = frozenset({"logits"})
    percentile: float = 30.0
    mask: Tensor = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile)

    def fit(self, training: Training) -> None:
        weight = training.head.weight
        limits = torch.from_numpy(np.percentile(weight.numpy(), self.percentile, axis=1))
        self.mask = weight >= limits[:, None]

    def apply(self, activations: Activations) -> Activations:
        return activations.with_features(activations.features * self.mask[activations.predicted])


@dataclass(kw_only=True, eq=False)
class LogitSmoothing(Part):
    """Logits scaled by the cosine similarity of the features with the prototype of the predicted class.

    Formula: o = cos(h, u_c) f, f = the logits so far, h = the network's features, c = argmax_k o_k(h) of the network,
        u_c = mean training feature of class c
    Paper: Z. Sun, Y. Qiu, Z. Tan, W. Zheng, R. Wang, "Classifier-head Informed Feature Masking and Prototype-based
        Logit Smoothing for Out-of-Distribution Detection", 2023, arXiv:2310.18104
    Deviations:
    - Training fixes the logits up to a number that is the same for all of them. The scaled logits depend on it,
        as in the paper: large ones are meant to be positive. In a softmax of the scaled logits it cancels.
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything; so has every vector with the
        prototype of a class without a training image.
    Verified:
    - plain loops written from the formula, 1e-6; facts checked against the authors' code: prototypes of true labels and
        of features that are neither masked nor clipped
    """

    id = "ls"
    needs = frozenset({"train", "logits"})
    prototypes: Tensor = learned()

    def fit(self, training: Training) -> None:
        rows = ((batch.features, batch.labels) for batch in training.labelled_batches())
        sizes, means = class_means(rows, len(training.head.weight))
        self.prototypes = unit(torch.where(sizes[:, None] > 0, means, 0.0))

    def apply(self, activations: Activations) -> Activations:
        return activations.with_logits(activations.logits * self._similarities(activations))

    def _similarities(self, activations: Activations) -> Tensor:
        """Cosine similarities (n, 1) with the prototypes of the predicted classes."""
        products = torch.linalg.vecdot(activations.network_features, self.prototypes[activations.predicted])
        return products[:, None] / norms(activations.network_features)


@dataclass(kw_only=True, eq=False)
class LogitEnhancing(LogitSmoothing):
    """Logits raised by the cosine similarity of the features with the prototype of the predicted class.

    Formula: o = f + alpha cos(h, u_c), f = the logits so far, h = the network's features, c = argmax_k o_k(h) of the
        network, u_c = mean training feature of class c
    Paper: Z. Sun, Y. Qiu, Z. Tan, W. Zheng, R. Wang, "Classifier-head Informed Feature Masking and Prototype-based
        Logit Smoothing for Out-of-Distribution Detection", 2023, arXiv:2310.18104
    Options:
    - alpha: at least 0. The paper tries 1, 5, 10, 20, 50 and 100, and finds 20 the best
    Deviations:
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything; so has every vector with the
        prototype of a class without a training image.
    Verified:
    - plain loops written from the formula, 1e-6; not in the authors' code
    """

    id = "le"
    alpha: float = 20.0

    def __post_init__(self) -> None:
        require(is_number(self.alpha) and self.alpha >= 0, self.id, "alpha", self.alpha, "a number from 0")

    def apply(self, activations: Activations) -> Activations:
        return activations.with_logits(activations.logits + self.alpha * self._similarities(activations))


@dataclass(kw_only=True, eq=False)
class HIMPLoS(Part):
    """Features masked for the predicted class and clipped, and logits scaled by the similarity with its prototype.

    Formula: o = cos(h, u_c) (W min(M_c h, r) + b), c = argmax_k o_k(h) of the network, M_cd = [W_cd >=
        P_c], P_c = percentile of the weights W_c, u_c = mean training feature of class c
    Paper: Z. Sun, Y. Qiu, Z. Tan, W. Zheng, R. Wang, "Classifier-head Informed Feature Masking and Prototype-based
        Logit Smoothing for Out-of-Distribution Detection", 2023, arXiv:2310.18104
    Options:
    - percentile: of a class's weights, from 0 to 100: the share of features that it masks. The paper gives none for
        its tables and finds 10 to 80 stable; its code has 30 (ImageNet-1k, ResNet-50) and 60 (CIFAR-10 and CIFAR-100,
        DenseNet-BC-100)
    - clip: r, a number above 0; by default the 90th percentile of all training activations. The authors' code has 0.8
        (ImageNet-1k, ResNet-50) and 1.6 (CIFAR-10 and CIFAR-100, DenseNet-BC-100)
    Deviations:
    - The default of clip is the rule of ReAct's paper, whose clipping this is: a number fits one network only.
    - Training fixes the logits up to a number that is the same for all of them. The scaled logits depend on it,
        as in the paper: large ones are meant to be positive. In a softmax of the scaled logits it cancels.
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything; so has every vector with the
        prototype of a class without a training image.
    Verified:
    - plain loops written from the formula, 1e-6; facts checked against the authors' code: the order of the steps, the
        prediction of the network as it is, prototypes of true labels and of features neither masked nor clipped
    """

    id = "himplos"
    needs = frozenset({"train", "logits"})
    percentile: float = 30.0
    clip: float | None = None
    masking: FeatureMasking = learned()
    clipping: ReAct = learned()
    smoothing: LogitSmoothing = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile)
        check_clip(self.id, self.clip)

    def fit(self, training: Training) -> None:
        self.masking, self.smoothing = FeatureMasking(percentile=self.percentile), LogitSmoothing()
        self.masking.fit(training)
        self.smoothing.fit(training)
        self.clipping = rectifier(self.clip, training)

    def apply(self, activations: Activations) -> Activations:
        for part in (self.masking, self.clipping, self.smoothing):
            activations = part.apply(activations)
        return activations


# Masks come before clipping, as in HIMPLoS, and ReAct takes its paper's percentile.
registry.register(combination("fm", Energy, FeatureMasking, invariant_to=USUAL_INVARIANCES))
registry.register(
    combination("ls", Energy, LogitSmoothing, invariant_to="class order, feature scale, feature rotation")
)
registry.register(
    combination("fm+ls", Energy, FeatureMasking, LogitSmoothing, invariant_to="class order, feature scale")
)
registry.register(
    combination("fm+react", Energy, FeatureMasking, ReAct, react_percentile=90.0, invariant_to=USUAL_INVARIANCES)
)
registry.register(
    combination(
        "ls+react", Energy, ReAct, LogitSmoothing, react_percentile=90.0, invariant_to="class order, feature scale"
    )
)
registry.register(
    combination(
        "fm+le+react",
        Energy,
        FeatureMasking,
        ReAct,
        LogitEnhancing,
        react_percentile=90.0,
        invariant_to=USUAL_INVARIANCES,
    )
)
registry.register(combination("himplos", Energy, HIMPLoS, invariant_to="class order, feature scale"))
registry.register(combination("msp+himplos", MSP, HIMPLoS, invariant_to=USUAL_INVARIANCES))
registry.register(combination("odin+himplos", ODIN, HIMPLoS, invariant_to=USUAL_INVARIANCES))
