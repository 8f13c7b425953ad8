"""Parts that reshape the features before the head."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from detectors.catalogue import registry
from detectors.logits import Energy
from detectors.numerics import mean
from detectors.options import is_number, require, require_choice, require_percentile
from detectors.parts import USUAL_INVARIANCES, Activations, Part, Training, combination
from detectors.percentile import column_percentiles, percentile
from detectors.state import learned

# Far above what features from 0 on can give (149, at 99 percent); its exponential leaves room for features and weights.
_LARGEST_EXPONENT = 300.0


@dataclass(kw_only=True, eq=False)
class ReAct(Part):
    """Features clipped from above.

    Formula: h_d -> min(h_d, r), r = percentile of all training activations pooled
    Paper: Y. Sun, C. Guo, Y. Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021,
        arXiv:2111.12797
    Options:
    - percentile: of all training activations pooled, from 0 to 100. Published: 90; NINCO (arXiv:2306.00826) takes 99
    Deviations:
    - The 99th percentile, as in NINCO, where ReAct is the only part; in combinations with others the paper's 90th.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-6
    """

    id = "react"
    needs = frozenset({"train"})
    percentile: float = 99.0
    limit: float = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile)

    def fit(self, training: Training) -> None:
        count = training.images * training.head.weight.shape[1]
        self.limit = percentile(lambda: (batch.features for batch in training.batches()), count, self.percentile)

    def apply(self, activations: Activations) -> Activations:
        return activations.with_features(activations.features.clamp(max=self.limit))


@dataclass(kw_only=True, eq=False)
class _Pruning(Part):
    """A part that keeps the largest features of an image."""

    percentile: float

    def __post_init__(self) -> None:
        require_percentile(self.id, "percentile", self.percentile, largest=99)

    def _largest(self, features: Tensor) -> Tensor:
        """The k largest of each row (n, k), in any order."""
        width = features.shape[1]
        kept = max(1, width - round(width * self.percentile / 100))
        return features.topk(kept, dim=1, sorted=False).values

    @staticmethod
    def _kept(features: Tensor, largest: Tensor) -> Tensor:
        """1 for the largest features of each row, 0 for the others; those that tie for the last places share them."""
        last = largest.amin(dim=1, keepdim=True)
        tied = (features == last).double()
        share = (largest == last).sum(dim=1, keepdim=True) / tied.sum(dim=1, keepdim=True)
        return (features > last).double().addcmul_(tied, share)

    @staticmethod
    def _sharpness(features: Tensor, largest: Tensor) -> Tensor:
        """exp(s1 / s2) (n, 1), with the sums s1 of all features and s2 of the largest."""
        ratio = features.sum(dim=1, keepdim=True) / largest.sum(dim=1, keepdim=True)
        return ratio.nan_to_num(nan=0.0).clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp()


@dataclass(kw_only=True, eq=False)
class ASHP(_Pruning):
    """Features pruned to the largest of each image (ASH-P).

    Formula: h_d -> h_d where it is among the k largest of the image's D features, else 0; k = D - round(D p / 100)
    Paper: A. Djurisic, N. Bozanic, A. Ashok, R. Liu, "Extremely Simple Activation Shaping for Out-of-Distribution
        Detection", ICLR 2023, arXiv:2209.09858
    Options:
    - percentile: p, share of the features that is pruned, from 0 to 99; the authors' code has 65 as its default
    Deviations:
    - At least one feature is kept, however narrow the network.
    - Equal features that compete for the last places of the k share them: each is kept to the same part. The authors'
        code (andrijazz/ash) leaves to the sort which one stays; this is the mean over all its choices.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4 and the mean over all choices among equal features, 1e-9
    """

    id = "ash-p"
    percentile: float = 65.0

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        return activations.with_features(features * self._kept(features, self._largest(features)))


@dataclass(kw_only=True, eq=False)
class ASHB(_Pruning):
    """Features pruned to the largest of each image, which all get the same value, so that the sum stays (ASH-B).

    Formula: h_d -> s1 / k where it is among the k largest of the image's D features, else 0; k = D - round(D p / 100),
        s1 = sum of all features
    Paper: A. Djurisic, N. Bozanic, A. Ashok, R. Liu, "Extremely Simple Activation Shaping for Out-of-Distribution
        Detection", ICLR 2023, arXiv:2209.09858
    Options:
    - percentile: p, share of the features that is pruned, from 0 to 99; 65 for ResNet-50 on ImageNet, in the authors'
        code and in that of Mahalanobis++ (arXiv:2505.18032)
    Deviations:
    - At least one feature is kept, however narrow the network.
    - Equal features that compete for the last places of the k share them: each is kept to the same part. The authors'
        code (andrijazz/ash) leaves to the sort which one stays; this is the mean over all its choices. It matters after
        ReLU, where more features than are pruned may be 0.
    - s1 is the plain sum, as in the authors' code, also where features are below 0.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4 and the mean over all choices among equal features, 1e-9
    """

    id = "ash-b"
    percentile: float = 65.0

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        largest = self._largest(features)
        value = features.sum(dim=1, keepdim=True) / largest.shape[1]
        return activations.with_features(value * self._kept(features, largest))


@dataclass(kw_only=True, eq=False)
class ASHS(_Pruning):
    """Features pruned to the largest of each image, which are scaled up by how much was pruned (ASH-S).

    Formula: h_d -> h_d exp(s1 / s2) where it is among the k largest of the image's D features, else 0;
        k = D - round(D p / 100), s1 = sum of all features, s2 = sum of the k largest
    Paper: A. Djurisic, N. Bozanic, A. Ashok, R. Liu, "Extremely Simple Activation Shaping for Out-of-Distribution
        Detection", ICLR 2023, arXiv:2209.09858
    Options:
    - percentile: p, share of the features that is pruned, from 0 to 99; 90 for ResNet-50 on ImageNet, in the authors'
        code and in that of Mahalanobis++ (arXiv:2505.18032)
    Deviations:
    - At least one feature is kept, however narrow the network.
    - Equal features that compete for the last places of the k share them: each is kept to the same part. The authors'
        code (andrijazz/ash) leaves to the sort which one stays; this is the mean over all its choices.
    - s1 and s2 are plain sums, as in the authors' code, so features below 0 may make s1 / s2 negative or large. It is
        held between -300 and 300, and 0 where both sums are 0, so that the score stays finite.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4 and the mean over all choices among equal features, 1e-9
    """

    id = "ash-s"
    percentile: float = 90.0

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        largest = self._largest(features)
        factor = self._sharpness(features, largest)
        return activations.with_features(features * self._kept(features, largest).mul_(factor))


@dataclass(kw_only=True, eq=False)
class Scale(_Pruning):
    """Features scaled up by how little of their sum the largest of the image hold (SCALE).

    Formula: h_d -> h_d exp(s1 / s2), s1 = sum of the image's D features, s2 = sum of the k largest;
        k = D - round(D p / 100)
    Paper: K. Xu, R. Chen, G. Franchi, A. Yao, "Scaling for Training Time and Post-hoc Out-of-distribution Detection
        Enhancement", ICLR 2024, arXiv:2310.00227
    Options:
    - percentile: p, share of the features that s2 leaves out, from 0 to 99; 85 in the authors' code
    Deviations:
    - At least one feature counts in s2, however narrow the network.
    - s1 and s2 are plain sums, as in the authors' code (kai422/SCALE), so features below 0 may make s1 / s2 negative or
        large. It is held between -300 and 300, and 0 where both sums are 0, so that the score stays finite.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-9
    """

    id = "scale"
    percentile: float = 85.0

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        return activations.with_features(features * self._sharpness(features, self._largest(features)))


@dataclass(kw_only=True, eq=False)
class VRA(Part):
    """Low features set to 0, and high ones clipped.

    Formula: h_d -> 0 where h_d < a_d, b_d where h_d > b_d, else h_d; a_d and b_d = percentiles of training feature d
    Paper: M. Xu, Z. Lian, B. Liu, J. Tao, "VRA: Variational Rectified Activation for Out-of-distribution Detection",
        NeurIPS 2023, arXiv:2302.11716
    Options:
    - low_percentile: that of a, from 0 to 100; 60 on CIFAR in the authors' code
    - high_percentile: that of b, from low_percentile to 100; 90 on CIFAR-10 in the authors' code, 95 on CIFAR-100
    - thresholds: 'per-feature' takes the percentiles of each feature, as the authors' code (zeroQiaoba/VRA) does on
        CIFAR; 'shared' takes those of all training activations pooled: on ImageNet that code has one pair for all
    Deviations:
    - Percentiles for every network; on ImageNet the authors' code has numbers instead: 0.5 and 1 for ResNets, and
        others for other networks.
    - The method itself, without the shift of VRA+ and the feature norm of VRA++.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, whose low features become a instead of 0, where the two agree (low_percentile 0), 1e-6: its
        thresholds are in single precision
    """

    id = "vra"
    needs = frozenset({"train"})
    low_percentile: float = 60.0
    high_percentile: float = 90.0
    thresholds: str = "per-feature"
    low: Tensor = learned()
    high: Tensor = learned()

    def __post_init__(self) -> None:
        require_percentile(self.id, "low_percentile", self.low_percentile)
        ok = is_number(self.high_percentile) and self.low_percentile <= self.high_percentile <= 100
        allowed = f"a number from low_percentile, {self.low_percentile}, to 100"
        require(ok, self.id, "high_percentile", self.high_percentile, allowed)
        require_choice(self.id, "thresholds", self.thresholds, ("per-feature", "shared"))

    def fit(self, training: Training) -> None:
        shape = training.images, training.head.weight.shape[1]
        if self.thresholds == "shared":
            shape = shape[0] * shape[1], 1
        self.low, self.high = column_percentiles(
            lambda: (batch.features.reshape(-1, shape[1]) for batch in training.batches()),
            shape,
            (self.low_percentile, self.high_percentile),
        )

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        clipped = features.minimum(self.high)
        return activations.with_features(clipped.where(features >= self.low, 0.0))


@dataclass(kw_only=True, eq=False)
class _TypicalSet(Part):
    """A part that clips each feature to an interval of its own."""

    needs = frozenset({"train"})
    lower: Tensor = learned()
    upper: Tensor = learned()

    def fit(self, training: Training) -> None:
        centre = mean(batch.features for batch in training.batches())
        variance = mean((batch.features - centre).square_() for batch in training.batches())
        self.lower, self.upper = self._interval(centre, variance.sqrt())

    @abstractmethod
    def _interval(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """The ends (D,) of the interval, from the mean and the standard deviation (D,) of the training features."""

    def apply(self, activations: Activations) -> Activations:
        return activations.with_features(activations.features.minimum(self.upper).maximum(self.lower))


@dataclass(kw_only=True, eq=False)
class BATS(_TypicalSet):
    """Features clipped to their typical values (BATS).

    Formula: h_d -> h_d clipped to [mu_d - lambda sigma_d, mu_d + lambda sigma_d], mu_d and sigma_d = mean and standard
        deviation (1/N) of training feature d
    Paper: Y. Zhu, Y. Chen, C. Xie, X. Li, R. Zhang, H. Xue, X. Tian, B. Zheng, Y. Chen, "Boosting Out-of-distribution
        Detection with Typical Features", NeurIPS 2022, arXiv:2210.04200
    Options:
    - lam: lambda, at least 0; in the authors' code 1.05 for ViT-B/16 on ImageNet, 3.25 for ResNet-18 on CIFAR-10
    Deviations:
    - mu and sigma are those of the pooled training features, as in the authors' code (alibaba/easyrobust), which ships
        them as numbers; the paper takes the parameters of the last batch normalisation, which not every network has.
    Verified:
    - plain loops written from the formula, 1e-6
    """

    id = "bats"
    lam: float = 1.05

    def __post_init__(self) -> None:
        require(is_number(self.lam) and self.lam >= 0, self.id, "lam", self.lam, "a number from 0")

    def _interval(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        return mean - self.lam * deviation, mean + self.lam * deviation


@dataclass(kw_only=True, eq=False)
class LAPS(_TypicalSet):
    """Features clipped to typical values that depend on how their channel differs from the others (LAPS).

    Formula: h_d -> h_d clipped to [mu_d - (lambda - c_d + e_d) sigma_d, mu_d + (lambda + c_d + e_d) sigma_d],
        c_d = a (mean_j mu_j - mu_d), e_d = b (mean_j sigma_j - sigma_d), mu_d and sigma_d = mean and standard deviation
        (1/N) of training feature d
    Paper: R. He, Y. Yuan, Z. Han, F. Wang, W. Su, Y. Yin, T. Liu, Y. Gong, "Exploring Channel-Aware Typical Features
        for Out-of-Distribution Detection", AAAI 2024, not on arXiv
    Options:
    - lam: lambda, at least 0; 1.5 in the authors' code
    - mean_weight: a, at least 0; 13 for torchvision's ResNet-50 on ImageNet in the authors' code. By default
        0.3 over the standard deviation of the mu_j, so that the c_d have 0.3, whatever the unit of the features
    - deviation_weight: b, at least 0; 0 for that network in the authors' code
    Deviations:
    - The default of mean_weight is ours: a shift that is small beside lambda. 13 belongs to the features of one
        network: on others it moves whole intervals off the features. Name 13 to follow the authors' code (rm1972/LAPS).
    - The formula is that of the authors' code; the paper's text was not at hand.
    - Where the lower end lies above the upper one, features become the lower one, as in the authors' code.
    Verified:
    - plain loops written from the formula, 1e-6
    """

    id = "laps"
    lam: float = 1.5
    mean_weight: float | None = None
    deviation_weight: float = 0.0

    def __post_init__(self) -> None:
        for option in ("lam", "mean_weight", "deviation_weight"):
            value = getattr(self, option)
            ok = (is_number(value) and value >= 0) or (option == "mean_weight" and value is None)
            require(ok, self.id, option, value, "a number from 0")

    def _interval(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        lower = mean.mean() - mean
        mean_weight = self.mean_weight
        if mean_weight is None:
            spread = float(lower.square().mean().sqrt())
            mean_weight = 0.3 / spread if spread > 0 else 0.0
        shift = mean_weight * lower
        widening = self.deviation_weight * (deviation.mean() - deviation)
        return mean - (self.lam - shift + widening) * deviation, mean + (self.lam + shift + widening) * deviation


for _part in (ReAct, ASHP, ASHB, ASHS, Scale, LAPS):
    registry.register(combination(_part.id, Energy, _part, invariant_to=USUAL_INVARIANCES))
registry.register(combination("vra", Energy, VRA, invariant_to="logit shift, class order, feature unit, feature scale"))
registry.register(
    combination(
        "bats", Energy, BATS, invariant_to="logit shift, class order, feature unit, feature scale, feature shift"
    )
)
