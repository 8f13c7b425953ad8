"""Detectors that prune weights of the head for each image, by what they contribute to the logits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.catalogue import registry
from detectors.gradients import ODIN, GradNorm
from detectors.logits import MSP, Energy, MaxLogit
from detectors.numerics import class_means
from detectors.options import is_number, require, require_percentile
from detectors.parts import USUAL_INVARIANCES, Activations, Part, Training, combination
from detectors.percentile import percentile
from detectors.shaping import ReAct
from detectors.state import learned

# Values of a block of rows (256 KiB), which stays in the processor's cache while all classes go over it.
_BLOCK = 2**15


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """What is known of the features of each class; 0 for a class without images.

    sizes: (C,), how many images each class has.
    means: (C, D).
    deviations: (C, D), standard deviations.
    """

    sizes: Tensor
    means: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, training: Training) -> "ClassStatistics":
        rows = ((batch.features, batch.labels) for batch in training.labelled_batches())
        sizes, means = class_means(rows, len(training.head.weight))
        means = torch.where(sizes[:, None] > 0, means, 0.0)
        squares = torch.zeros_like(means)
        for batch in training.labelled_batches():
            squares.index_add_(0, batch.labels, (batch.features - means[batch.labels]).square_())
        return cls(sizes, means, (squares / (sizes - 1).clamp_min(1)[:, None]).sqrt())

    def important(self, weight: Tensor, percent: float) -> Tensor:
        """Which weights (C, D) contribute on average more than that percentile of them."""
        contributions = self.means * weight
        present = self.sizes > 0
        entries = contributions[present].flatten()
        limit = percentile(lambda: iter([entries]), len(entries), percent)
        return (contributions > limit) | ~present[:, None]

    def limits(self, weight: Tensor, z: float) -> Tensor:
        """For each weight (C, D) the feature above which the z test removes it, or, if negative, keeps it."""
        round_off = self.sizes[:, None] * torch.finfo(self.means.dtype).eps * self.means.abs()
        usual = torch.where(self.sizes[:, None] > 0, z * self.deviations + round_off, torch.inf)
        return torch.where(weight > 0, self.means + usual, self.means - usual)


def products_above(values: Tensor, weights: Tensor, compared: Tensor, limits: Tensor) -> Tensor:
    """Sums (N, C) over d of values[n, d] weights[c, d] where compared[n, d] > limits[c, d].

        values, compared: (N, D).
        weights, limits: (C, D).

    It can be differentiated in values and weights.
    """
    return _ProductsAbove.apply(values, weights, compared.detach(), limits)


class _ProductsAbove(torch.autograd.Function):
    """Class by class over blocks of rows: no N x C x D memory, neither here nor for the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, compared: Tensor, limits: Tensor) -> Tensor:
        ctx.save_for_backward(values, weights, compared, limits)

        @torch.no_grad()
        def sums(block: slice) -> Tensor:
            block_values, block_compared = values[block], compared[block]
            above = torch.empty_like(block_values)
            sums = above.new_empty(len(weights), len(above))
            for weight, limit, of_class in zip(weights.unbind(), limits.unbind(), sums.unbind(), strict=True):
                # torch.where takes ten times as long as a product with 0 or 1.
                torch.gt(block_compared, limit, out=above)
                torch.mv(above.mul_(block_values), weight, out=of_class)
            return sums

        # A thread a block: torch's own threads would wait for each other after every one of these small steps.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return torch.cat(list(threads.map(sums, _blocks(values))), dim=1).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weights, compared, limits = ctx.saved_tensors
        of_values, of_weights = torch.zeros_like(values), torch.zeros_like(weights)
        for block in _blocks(values):
            for label, gradient in enumerate(gradients[0][block].unbind(dim=1)):
                above = (compared[block] > limits[label]).double()
                if ctx.needs_input_grad[1]:
                    of_weights[label] += (above * values[block]).T @ gradient
                of_values[block].addcmul_(above.mul_(weights[label]), gradient[:, None])
        return of_values, of_weights, None, None


def _blocks(rows: Tensor) -> list[slice]:
    height = max(1, _BLOCK // rows.shape[1])
    return [slice(start, start + height) for start in range(0, len(rows), height)]


def pruned(activations: Activations, kept: Tensor) -> Activations:
    """With the logits of the kept weights (C, D) of the head alone."""
    head, features = activations.head, activations.features
    logits = torch.addmm(head.bias, features, (head.weight * kept).T)
    return activations.with_logits(logits, lambda: features.abs() @ kept.double().T)


def z_tested(activations: Activations, kept: Tensor, limits: Tensor) -> Activations:
    """With the logits of those kept weights (C, D) that pass the z test, whose limits are (C, D), for the image."""
    head, features = activations.head, activations.features
    weight = head.weight * kept
    # All products of positive weights, less those above their limits; of negative ones those above theirs.
    logits = torch.addmm(head.bias, features, weight.clamp_min(0).T)
    logits = logits - products_above(features, weight.abs(), features, limits)

    def reach() -> Tensor:
        sizes, signs = features.abs(), head.weight.sign() * kept
        unless_above = sizes @ ((head.weight >= 0) & kept).double().T
        return (unless_above - products_above(sizes, signs, features, limits)).clamp_min_(0)

    return activations.with_logits(logits, reach)


def _check_z(part: str, z: Any) -> None:
    require(is_number(z) and z > 0, part, "z", z, "a number above 0")


@dataclass(kw_only=True, eq=False)
class CoarsePruning(Part):
    """A head without the weights that contribute little, or most negatively, to the logits of their own classes.

    Formula: o_c = sum_d [M_cd > P] W_cd h_d + b_c, M_cd = W_cd m_cd, m_c = mean training feature of class c, P =
        percentile of all entries of M
    Paper: H. Xu, Y. Yang, "ITP: Instance-Aware Test Pruning for Out-of-Distribution Detection", AAAI 2025,
        arXiv:2412.12566
    Options:
    - percentile: of the mean contributions, from 0 to 100. Published: 30 (ImageNet-1k, ResNet-50); in the authors' code
        10 (CIFAR-10, DenseNet-BC-100) and 20 (CIFAR-100, the same)
    Deviations:
    - A class without a training image keeps all of its weights, and has no entry among those of the percentile.
    Verified:
    - plain loops written from the formula, 1e-6; facts checked against the authors' code: one percentile for all
        classes, of the signed means, of true labels
    """

    id = "itp-crp"
    needs = frozenset({"train"})
    percentile: float = 30.0
    kept: Tensor = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile)

    def fit(self, training: Training) -> None:
        weight = training.head.weight
        self.kept = ClassStatistics.of(training).important(weight, self.percentile)

    def apply(self, activations: Activations) -> Activations:
        return pruned(activations, self.kept)


@dataclass(kw_only=True, eq=False)
class FinePruning(Part):
    """For each image, a head without the weights that contribute far more than for images of their own classes.

    Formula: o_c = sum_d [W_cd h_d <= W_cd m_cd + z |W_cd| s_cd] W_cd h_d + b_c, m_c and s_c = mean and standard
        deviation (n - 1) of the training features of class c
    Paper: H. Xu, Y. Yang, "ITP: Instance-Aware Test Pruning for Out-of-Distribution Detection", AAAI 2025,
        arXiv:2412.12566
    Options:
    - z: how many standard deviations above its mean a contribution may lie, above 0. Published: 1.5 (ImageNet-1k,
        ResNet-50); in the authors' code 2.2 (CIFAR-10, DenseNet-BC-100) and 1.6 (CIFAR-100, the same)
    Deviations:
    - The limit is on the feature, m_cd + z s_cd for a positive and m_cd - z s_cd for a negative weight, which is the
        same test, with room for the round-off of the mean, so that features that are constant in a class pass.
    - A contribution at the limit passes, as in the paper; the authors' code removes it.
    - A class with one training image has s = 0; one without any keeps all of its weights.
    Verified:
    - plain loops over the contributions written from the formula, 1e-6
    """

    id = "itp-ftp"
    needs = frozenset({"train"})
    z: float = 1.5
    limits: Tensor = learned()

    def __post_init__(self) -> None:
        _check_z(self.id, self.z)

    def fit(self, training: Training) -> None:
        self.limits = ClassStatistics.of(training).limits(training.head.weight, self.z)

    def apply(self, activations: Activations) -> Activations:
        return z_tested(activations, torch.ones_like(self.limits, dtype=torch.bool), self.limits)


@dataclass(kw_only=True, eq=False)
class ITP(Part):
    """A head without the weights that contribute little and, for each image, without those that contribute too much.

    Formula: o_c = sum_d [W_cd m_cd > P] [W_cd h_d <= W_cd m_cd + z |W_cd| s_cd] W_cd h_d + b_c, m_c and s_c = mean and
        standard deviation (n - 1) of the training features of class c, P = percentile of all W_cd m_cd
    Paper: H. Xu, Y. Yang, "ITP: Instance-Aware Test Pruning for Out-of-Distribution Detection", AAAI 2025,
        arXiv:2412.12566
    Options:
    - percentile: of the mean contributions, from 0 to 100. Published: 30 (ImageNet-1k, ResNet-50); in the authors' code
        10 (CIFAR-10, DenseNet-BC-100) and 20 (CIFAR-100, the same)
    - z: how many standard deviations above its mean a contribution may lie, above 0. Published: 1.5 (ImageNet-1k,
        ResNet-50); in the authors' code 2.2 (CIFAR-10, DenseNet-BC-100) and 1.6 (CIFAR-100, the same)
    Deviations:
    - The z test's limit is on the feature, m_cd + z s_cd for a positive and m_cd - z s_cd for a negative weight, which
        is the same test, with room for the round-off of the mean, so that features that are constant in a class pass.
    - A contribution at the limit passes, as in the paper; the authors' code removes it.
    - A class with one training image has s = 0; one without any keeps all of its weights, and has no entry among those
        of the percentile.
    - In itp+react, m and s are those of features that are not clipped, and ReAct takes its paper's 90th percentile;
        ITP's paper and code leave both open.
    Verified:
    - plain loops over the contributions written from the formula, 1e-6; facts checked against the authors' code: one
        percentile for all classes, of the signed means, of true labels
    """

    id = "itp"
    needs = frozenset({"train"})
    percentile: float = 30.0
    z: float = 1.5
    kept: Tensor = learned()
    limits: Tensor = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile)
        _check_z(self.id, self.z)

    def fit(self, training: Training) -> None:
        weight, statistics = training.head.weight, ClassStatistics.of(training)
        self.kept = statistics.important(weight, self.percentile)
        self.limits = statistics.limits(weight, self.z)

    def apply(self, activations: Activations) -> Activations:
        return z_tested(activations, self.kept, self.limits)


registry.register(
    combination("itp-crp", Energy, CoarsePruning, invariant_to="logit shift, class order, feature unit, feature scale")
)
registry.register(
    combination("itp-ftp", Energy, FinePruning, invariant_to="logit shift, class order, feature unit, feature scale")
)
registry.register(combination("itp", Energy, ITP, invariant_to="logit shift, class order, feature unit, feature scale"))
registry.register(combination("itp+react", Energy, ReAct, ITP, react_percentile=90.0, invariant_to=USUAL_INVARIANCES))
registry.register(
    combination("msp+itp", MSP, ITP, invariant_to="logit shift, class order, feature unit, feature scale")
)
registry.register(
    combination(
        "max-logit+itp",
        MaxLogit,
        ITP,
        invariant_to="logit shift, logit scale, class order, feature unit, feature scale",
    )
)
registry.register(
    combination("odin+itp", ODIN, ITP, invariant_to="logit shift, class order, feature unit, feature scale")
)
registry.register(combination("gradnorm+itp", GradNorm, ITP, invariant_to=USUAL_INVARIANCES))
