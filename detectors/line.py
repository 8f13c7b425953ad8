"""Detectors that keep the neurons and weights that matter for the predicted class."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detectors.catalogue import registry
from detectors.himplos import LogitSmoothing, check_clip, rectifier
from detectors.itp import products_above
from detectors.logits import Energy
from detectors.numerics import class_means
from detectors.options import require_percentile
from detectors.parts import USUAL_INVARIANCES, Activations, Part, Training, combination
from detectors.shaping import ReAct
from detectors.state import learned


@dataclass(kw_only=True, eq=False)
class LINe(Part):
    """Clipped features and a head of which only the neurons and weights stay that matter for the predicted class.

    Formula: o_k = sum_d [A_qd > P_q] [|A_qd| W_kd > Q_q] W_kd min(h_d, r) + b_k, q = argmax_k (W min(h, r) + b)_k, A_qd
        = mean of W_qd h_d over the training images of class q, P_q = activation_percentile of A_q, Q_q =
        weight_percentile of all |A_qd| W_kd
    Paper: Y. H. Ahn, G.-M. Park, S. T. Kim, "LINe: Out-of-Distribution Detection by Leveraging Important Neurons",
        CVPR 2023, arXiv:2303.13995
    Options:
    - activation_percentile: of a class's contributions A_c, from 0 to 100: the share of neurons that are pruned.
        Published: 10 (ImageNet-1k, ResNet-50; CIFAR-100, DenseNet-BC-100) and 90 (CIFAR-10, the same)
    - weight_percentile: of a class's |A_cd| W_kd, from 0 to 100: the share of weights that are pruned. Published: 10
        (ImageNet-1k, ResNet-50) and 90 (CIFAR-10 and CIFAR-100, DenseNet-BC-100)
    - clip: r, a number above 0; by default the 90th percentile of all training activations. Published: 0.8
        (ImageNet-1k, ResNet-50) and 1 (CIFAR-10 and CIFAR-100, DenseNet-BC-100)
    Deviations:
    - The default of clip is the rule of ReAct's paper: a number fits one network only.
    - A_c, a Shapley value by a first-order Taylor series, needs no gradient here: for the last layer it is the mean of
        W_cd h_d, and the same number.
    - A product within round-off of Q_c counts as Q_c.
    - A class without a training image has no contributions and prunes nothing.
    Verified:
    - plain loops written from the formula, 1e-6; facts checked against the authors' code: signed contributions of true
        labels, the prediction from clipped features, the order of the steps, the published options
    """

    id = "line"
    needs = frozenset({"train"})
    activation_percentile: float = 10.0
    weight_percentile: float = 10.0
    clip: float | None = None
    clipping: ReAct = learned()
    neurons: Tensor = learned()  # (C, D), which of them a predicted class keeps
    limits: Tensor = learned()  # (C, D), above which it keeps a neuron's weights

    def __post_init__(self) -> None:
        require_percentile(self.id, "activation_percentile", self.activation_percentile)
        require_percentile(self.id, "weight_percentile", self.weight_percentile)
        check_clip(self.id, self.clip)

    def fit(self, training: Training) -> None:
        weight = training.head.weight
        self.clipping = rectifier(self.clip, training)
        rows = ((batch.features, batch.labels) for batch in training.labelled_batches())
        sizes, means = class_means(rows, len(weight))
        present = sizes[:, None] > 0
        contributions = torch.where(present, means, 0.0) * weight
        least = np.percentile(contributions.numpy(), self.activation_percentile, axis=1)
        self.neurons = (contributions > torch.from_numpy(least)[:, None]) | ~present
        self.limits, products = torch.empty_like(weight), torch.empty_like(weight)
        for limits, importance in zip(self.limits, contributions.abs(), strict=True):
            limits.copy_(self._limits(torch.mul(weight, importance, out=products), importance))
        self.limits.masked_fill_(~present, -torch.inf)

    def apply(self, activations: Activations) -> Activations:
        activations = self.clipping.apply(activations)
        predicted = activations.logits.argmax(dim=1)
        kept = activations.features * self.neurons[predicted]
        weight = activations.head.weight
        products = products_above(weight, kept, weight, self.limits[predicted])
        return activations.with_features(kept).with_logits(products.T + activations.head.bias)

    def _limits(self, products: Tensor, importance: Tensor) -> Tensor:
        """The weights (D,) whose product with the importance (D,) of their neuron is the percentile of all products,
        which are written over."""
        percentile = float(np.percentile(products.numpy(), self.weight_percentile, overwrite_input=True))
        limits = percentile / importance
        # The quotient is off by an ulp or so: without this the weight at the limit may pass.
        limits *= 1 + 4 * torch.finfo(limits.dtype).eps * limits.sign()
        always_zero = torch.inf if percentile >= 0 else -torch.inf
        return torch.where(importance > 0, limits, always_zero)


registry.register(combination("line", Energy, LINe, invariant_to=USUAL_INVARIANCES))
registry.register(combination("line+ls", Energy, LINe, LogitSmoothing, invariant_to="class order, feature scale"))
