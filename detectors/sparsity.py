"""Parts that prune the head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.catalogue import registry
from detectors.logits import Energy
from detectors.numerics import mean
from detectors.options import require_percentile
from detectors.parts import Activations, Part, Training, combination
from detectors.percentile import percentile
from detectors.state import learned


@dataclass(kw_only=True, eq=False)
class DICE(Part):
    """The head pruned to the weights that contribute most on average (DICE).

    Formula: o = (W * M) h + b, M_cd = 1 where W_cd mu_d > t, else 0; mu = mean training feature, t = percentile of all
        W_cd mu_d
    Paper: Y. Sun, Y. Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", ECCV 2022,
        arXiv:2111.09805
    Options:
    - percentile: share of the weights that is pruned, from 0 to 100. In the authors' code 90 for DenseNet on CIFAR and
        70 for ResNet-50 on ImageNet; 10 or 15 there together with ReAct
    Deviations:
    - One default for every network: 90, also that of OpenOOD, and 10 in dice+react, the authors' on ImageNet. The
        formula is that of the authors' code (deeplearning-wisc/dice): where all contributions are equal none is above
        t, and the bias alone is scored.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, which has its threshold and mean in single precision, 1e-5
    """

    id = "dice"
    needs = frozenset({"train"})
    percentile: float = 90.0
    kept: Tensor = learned()
    weight: Tensor = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile)

    def fit(self, training: Training) -> None:
        weight = training.head.weight
        contribution = weight * mean(batch.features for batch in training.batches())
        limit = percentile(lambda: iter([contribution]), contribution.numel(), self.percentile)
        self.kept = contribution > limit
        self.weight = weight.where(self.kept, 0.0)

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        logits = torch.addmm(activations.head.bias, features, self.weight.T)
        return activations.with_logits(logits, reach=lambda: features.abs() @ self.kept.double().T)


registry.register(
    combination("dice", Energy, DICE, invariant_to="logit shift, class order, feature unit, feature scale")
)
