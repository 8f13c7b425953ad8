"""Detectors that differentiate the network."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector, check_finite
from detectors.catalogue import registry
from detectors.gaussian import Gaussians, Moments
from detectors.logits import log_odds_of_max
from detectors.options import is_number, require, require_temperature
from detectors.outputs import Outputs
from detectors.state import learned

# A backward pass holds the network's activations, which grow with the pixels: 64 images of 32 x 32, 20 of 224 x 224.
_PIXELS_AT_ONCE = 2**20


@dataclass(kw_only=True, eq=False)
class ImageDetector(Detector):
    """A detector that takes images through the network, as many at once as memory allows for the activations."""

    def _rows_in_a_batch(self, outputs: Outputs) -> int:
        """With images: 64, or as many values as 32 images of 224 x 224."""
        if outputs.images is None:
            return self.batch_rows
        values_in_an_image = math.prod(outputs.images.shape[1:])
        return max(1, min(self.batch_rows, 64, 32 * 3 * 224 * 224 // max(1, values_in_an_image)))

    def _score(self, batch: Batch) -> Tensor:
        return torch.cat([self._score_images(images) for images in self._parts(batch.images)])

    @abstractmethod
    def _score_images(self, images: Tensor) -> Tensor:
        """Scores (n,) of a few images."""

    @staticmethod
    def _parts(images: Tensor) -> tuple[Tensor, ...]:
        """The images, a few at a time and in a precision that a network computes in."""
        # Half-precision images are only a way to store them; double ones are for a double network.
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return images.split(max(1, _PIXELS_AT_ONCE // images[0, 0].numel()))

    def _gradients(self, function: Callable[[Tensor], list[Tensor]], images: Tensor) -> list[Tensor]:
        """The gradients (n, 3, H, W) of the function's values, each (n,), in the images alone: parameters get none."""
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone().requires_grad_()
            values = function(images)
            if not all(value.requires_grad for value in values):
                raise ValueError(f"{self.id} needs a model that torch can differentiate: its outputs have no gradient")
            return [torch.autograd.grad(value.sum(), images, retain_graph=True)[0] for value in values]

    def _finite(self, outputs: Tensor, name: str) -> Tensor:
        """The network's outputs in float64, on the CPU. Raises ValueError unless all are finite."""
        check_finite(outputs.detach(), f"{self.id}: the network's {name}")
        return outputs.to("cpu", torch.float64)


@registry.register
@dataclass(kw_only=True, eq=False)
class ODIN(ImageDetector):
    """Maximum softmax probability at a high temperature, of images moved a step towards a higher one.

    Formula: S = log(p / (1 - p)), p = max_c softmax(f(x') / T)_c, x' = x + epsilon sign(grad_x max_c log softmax(f(x) /
        T)_c)
    Paper: S. Liang, Y. Li, R. Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural
        Networks", ICLR 2018, arXiv:1706.02690
    Options:
    - temperature: T, at least 0.000001
    - epsilon: size of the step for each value of the image as the model takes it, at least 0
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - Where the gradient is 0 the image stays.
    - epsilon stays at 0.0014, the usual default; the paper tunes it for each OOD set, and no detector sees those here.
    - epsilon counts in units of the image as the model takes it. The authors' code divides the step by the channel's
        standard deviation s, so that epsilon counts in pixels from 0 to 1: name epsilon / s to follow it.
    - The log-odds of the probability are returned, as in msp: the same order, but probabilities near 1 stay apart.
    Verified:
    - one image at a time with a plain backward pass, 1e-12
    """

    id = "odin"
    needs = frozenset({"images", "model"})
    score_scale = 2  # 1: the logarithm of the probability
    temperature: float = 1000.0
    epsilon: float = 0.0014

    def __post_init__(self) -> None:
        require_temperature(self.id, "temperature", self.temperature)
        ok = is_number(self.epsilon) and self.epsilon >= 0
        require(ok, self.id, "epsilon", self.epsilon, "a number from 0")

    def _score_images(self, images: Tensor) -> Tensor:
        (gradient,) = self._gradients(lambda images: [self._confidence(images)], images)
        return log_odds_of_max(self._scaled_logits(images + self.epsilon * gradient.sign()))

    def _confidence(self, images: Tensor) -> Tensor:
        return self._scaled_logits(images).log_softmax(dim=1).max(dim=1).values

    def _scaled_logits(self, images: Tensor) -> Tensor:
        return self._finite(self._model(images), "logits") / self.temperature


@registry.register
@dataclass(kw_only=True, eq=False)
class GradNorm(Detector):
    """Norm of the gradient in the head's weights of the divergence between the softmax and a uniform distribution.

    Formula: S = |grad_W KL(1/C || softmax(o / T))|_1 = sum_c r_c |softmax(o / T)_c - 1/C| / T, r_c = sum of |h_d| over
        the weights that reach class c: |h|_1 where none is pruned
    Paper: R. Huang, A. Geng, Y. Li, "On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
        NeurIPS 2021, arXiv:2110.00218
    Options:
    - temperature: T, at least 0.000001
    Invariant to: logit shift, class order, feature scale
    Deviations:
    - The authors' code sums where the divergence takes the mean over the classes: C times this, same order.
    Verified:
    - the gradient by torch's automatic differentiation, image by image, 1e-6
    - pytorch-ood 0.4, 1e-6
    """

    id = "gradnorm"
    needs = frozenset({"features", "logits"})
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_temperature(self.id, "temperature", self.temperature)

    def _score(self, batch: Batch) -> Tensor:
        logits = batch.logits / self.temperature
        # exp(o) - 1 in place of exp(o) keeps the digits of a softmax that is almost uniform.
        less_one = torch.expm1(logits - logits.amax(dim=1, keepdim=True))
        mean = less_one.mean(dim=1, keepdim=True)
        off_uniform = (less_one - mean).abs_().div_(logits.shape[1] * (1 + mean))
        return (batch.reach * off_uniform).sum(dim=1) / self.temperature


@registry.register
@dataclass(kw_only=True, eq=False)
class MahalanobisODIN(ImageDetector):
    """Mahalanobis distance of the features to the nearest class mean, of images moved a step towards that mean.

    Formula: S = -d(x'), x' = x - epsilon sign(grad_x d(x)), d(x) = min_c (h(x) - mu_c)^T Sigma^+ (h(x) - mu_c), mu_c
        and Sigma as in mahalanobis
    Paper: K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
        Adversarial Attacks", NeurIPS 2018, arXiv:1807.03888
    Options:
    - epsilon: size of the step for each value of the image as the model takes it, at least 0; published: 0, 0.0005,
        0.001, 0.0014, 0.002, 0.005 or 0.01
    Invariant to: logit shift, logit scale, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - Pre-logit features only; mahalanobis-layers combines several layers.
    - epsilon stays at 0.0014, in the middle of the published values and the one that OpenOOD takes; the paper tunes it
        for each OOD set, and no detector sees those here.
    - epsilon counts in units of the image as the model takes it. The authors' code divides the step by the channel's
        standard deviation s, so that epsilon counts in pixels from 0 to 1: name epsilon / s to follow it.
    - Where the gradient is 0 the image stays; the authors' code moves it.
    - Sigma^+ is the Hermitian pseudo-inverse with scipy's cutoff, as in mahalanobis.
    Verified:
    - one image at a time with a plain backward pass and scipy's pseudo-inverse, 1e-9
    - pytorch-ood 0.4, 1e-3: it computes in single precision
    """

    id = "mahalanobis-odin"
    needs = frozenset({"features", "images", "model", "train"})
    epsilon: float = 0.0014
    class_gaussians: Gaussians = learned()

    def __post_init__(self) -> None:
        ok = is_number(self.epsilon) and self.epsilon >= 0
        require(ok, self.id, "epsilon", self.epsilon, "a number from 0")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        classes, indices = self._labels(train, head).unique(return_inverse=True)
        no_images = train.only({"features"})

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            batches = self._stream(no_images, indices, only={"features"})
            return ((batch.features, batch.labels) for batch in batches)

        self.class_gaussians = Gaussians.of(Moments.of(rows, len(classes)))

    def _score_images(self, images: Tensor) -> Tensor:
        (gradient,) = self._gradients(lambda images: [rise(self.class_gaussians, self._features(images))], images)
        return -self.class_gaussians.squared_distance(self._features(images - self.epsilon * gradient.sign()))

    def _features(self, images: Tensor) -> Tensor:
        return self._finite(self._ask_model("features", images), "features")


def rise(gaussians: Gaussians, features: Tensor) -> Tensor:
    """Values (n,) whose gradients in the features (n, D) are half those of their squared distances.

    What was learned may be tensors of inference mode, which the distances themselves cannot be differentiated with.
    """
    with torch.no_grad():
        half_gradients = gaussians.offsets(features) @ gaussians.whitening.T
    return (features * half_gradients).sum(dim=1)
