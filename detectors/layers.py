"""Detectors that look into the network: at several layers, or at the last feature map."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from detectors.catalogue import registry
from detectors.gaussian import Gaussians, Moments
from detectors.gradients import ImageDetector, rise
from detectors.numerics import class_means
from detectors.options import is_number, require
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class RankFeat(ImageDetector):
    """Energy of the logits of the last feature map, freed of its largest singular value.

    Formula: S = log sum_c exp(o_c), o = the logits of X - s_1 u_1 v_1^T, X = the last feature map before pooling
        (positions x channels), s_1 = its largest singular value, u_1 and v_1 = the vectors that belong to it
    Paper: Y. Song, N. Sebe, W. Wang, "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection", NeurIPS
        2022, arXiv:2209.08590
    Invariant to: logit shift, class order, feature scale, feature rotation
    Deviations:
    - The last feature map only. The published results of the full method average these logits with those after the
        same removal one block earlier, which not every network has.
    - Of a map with one position nothing is left: all images have the same score, as the formula has it.
    - u_1 comes from the eigenvectors of X X^T, or v_1 from those of X^T X where this is smaller: the same vectors as
        those of a singular value decomposition.
    Verified:
    - one image at a time with numpy's singular value decomposition, 1e-9
    - pytorch-ood 0.4, 1e-9
    """

    id = "rankfeat"
    needs = frozenset({"images", "model"})

    def _score_images(self, images: Tensor) -> Tensor:
        feature_map = self._ask_model("feature_map", images)
        rest = without_largest_singular_value(self._finite(feature_map, "feature map"))
        logits = self._ask_model("logits_of_map", rest.to(feature_map))
        return self._finite(logits, "logits").logsumexp(dim=1)


def without_largest_singular_value(matrices: Tensor) -> Tensor:
    """The matrices (n, rows, columns) less their best approximations of rank one."""
    if matrices.shape[1] > matrices.shape[2]:
        return without_largest_singular_value(matrices.mT).mT
    _, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    largest = vectors[:, :, -1:]
    return torch.baddbmm(matrices, largest, largest.mT @ matrices, alpha=-1)


@dataclass(frozen=True, eq=False)
class LayerGaussians:
    """The Gaussians of L layers, end to end, so that they are tensors whatever L is.

    shapes: (L, 3), the width, the number of directions with variance and the number of classes of each layer.
    centres, whitenings, means, squared_norms: the fields of all Gaussians, flattened.
    """

    shapes: Tensor
    centres: Tensor
    whitenings: Tensor
    means: Tensor
    squared_norms: Tensor

    @classmethod
    def of(cls, layers: list[Gaussians]) -> "LayerGaussians":
        shapes = [(*layer.whitening.shape, len(layer.means)) for layer in layers]
        return cls(
            torch.tensor(shapes),
            torch.cat([layer.centre for layer in layers]),
            torch.cat([layer.whitening.flatten() for layer in layers]),
            torch.cat([layer.means.flatten() for layer in layers]),
            torch.cat([layer.squared_norms for layer in layers]),
        )

    def layers(self) -> list[Gaussians]:
        widths, directions, classes = self.shapes.unbind(dim=1)
        parts = zip(
            self.shapes.tolist(),
            self.centres.split(widths.tolist()),
            self.whitenings.split((widths * directions).tolist()),
            self.means.split((classes * directions).tolist()),
            self.squared_norms.split(classes.tolist()),
            strict=True,
        )
        return [
            Gaussians(centre, whitening.view(width, rank), means.view(count, rank), squared_norms)
            for (width, rank, count), centre, whitening, means, squared_norms in parts
        ]


@registry.register
@dataclass(kw_only=True, eq=False)
class MahalanobisLayers(ImageDetector):
    """Mahalanobis distances to the nearest class mean in several layers, combined by a logistic regression.

    Formula: S = b - sum_l a_l d_l(x_l), d_l(x) = min_c (h_l(x) - mu_lc)^T Sigma_l^+ (h_l(x) - mu_lc), x_l = x - epsilon
        sign(grad_x d_l(x)), h_l = pooled output of layer l, mu_lc and Sigma_l = its class means and shared covariance,
        a and b = logistic regression that tells validation images from adversarial ones made of them, x + delta
        sign(grad_x CE(f(x), argmax_c f(x)_c))
    Paper: K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
        Adversarial Attacks", NeurIPS 2018, arXiv:1807.03888
    Options:
    - epsilon: size of the step for each value of the image as the model takes it, at least 0; published: 0, 0.0005,
        0.001, 0.0014, 0.002, 0.005 or 0.01. 0 spares a pass forth and one back for each layer
    - adversarial_epsilon: delta, the size of the adversarial step in the same units, above 0
    Invariant to: logit shift, class order, feature unit, feature scale, feature shift, feature rotation
    Deviations:
    - The paper's setting without OOD data (FGSM): no detector sees evaluated OOD images here. epsilon stays at 0.0014,
        in the middle of the published values, where the paper tunes it.
    - epsilon and delta count in units of the image as the model takes it. The authors' code divides a step by the
        channel's standard deviation s, so that they count in pixels from 0 to 1, and takes 0.05 for delta: name
        epsilon / s and 0.05 / s to follow it. It also keeps adversarial images within the range of pixels, which a
        detector does not know here.
    - Adversarial images lower the probability of the predicted class, not of the true one, and all of them are used,
        whether they change the prediction or not: validation images may have no labels, and may be few.
    - The regression takes standardised distances, C = 1 and no cross-validation; the authors' code leaves C to
        scikit-learn's LogisticRegressionCV.
    - The logarithm of the odds is returned: same order as the probability.
    - Sigma_l^+ is the Hermitian pseudo-inverse with scipy's cutoff, as in mahalanobis.
    Verified:
    - one image at a time with a plain backward pass, scipy's pseudo-inverse and scikit-learn's LogisticRegression, 1e-6
    - pytorch-ood 0.4 for the distances of each layer, 1e-3: it computes in single precision
    """

    id = "mahalanobis-layers"
    needs = frozenset({"images", "model", "train", "val"})
    epsilon: float = 0.0014
    adversarial_epsilon: float = 0.05
    gaussians: LayerGaussians = learned()
    weights: Tensor = learned()
    bias: float = learned()

    def __post_init__(self) -> None:
        ok = is_number(self.epsilon) and self.epsilon >= 0
        require(ok, self.id, "epsilon", self.epsilon, "a number from 0")
        ok = is_number(self.adversarial_epsilon) and self.adversarial_epsilon > 0
        require(ok, self.id, "adversarial_epsilon", self.adversarial_epsilon, "a number above 0")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        classes, indices = self._labels(train, head).unique(return_inverse=True)
        moments: list[RunningMoments] = []
        for batch in self._stream(train, indices):
            parts = self._parts(batch.images)
            for images, labels in zip(parts, batch.labels.split(len(parts[0])), strict=True):
                layers = self._layers(images)
                moments = moments or [RunningMoments.none(len(classes), layer.shape[1]) for layer in layers]
                for moment, layer in zip(moments, layers, strict=True):
                    moment.add(layer, labels)
        self.gaussians = LayerGaussians.of([Gaussians.of(moment.moments()) for moment in moments])
        clean, adversarial = [], []
        for batch in self._stream(val):
            for images in self._parts(batch.images):
                clean.append(self._confidences(images))
                adversarial.append(self._confidences(self._adversarial(images)))
        self.weights, self.bias = logistic_regression(torch.cat(clean), torch.cat(adversarial))

    def _score_images(self, images: Tensor) -> Tensor:
        return self._confidences(images) @ self.weights + self.bias

    def _confidences(self, images: Tensor) -> Tensor:
        """-d_l(x_l) (n, L) of a few images."""
        gaussians = self.gaussians.layers()
        if self.epsilon == 0:
            layers = self._layers(images)
        else:
            gradients = self._gradients(lambda images: list(map(rise, gaussians, self._layers(images))), images)
            moved = (images - self.epsilon * gradient.sign() for gradient in gradients)
            layers = [self._layers(images)[layer] for layer, images in enumerate(moved)]
        return -torch.stack(list(map(Gaussians.squared_distance, gaussians, layers)), dim=1)

    def _adversarial(self, images: Tensor) -> Tensor:
        (gradient,) = self._gradients(lambda images: [self._confidence(images)], images)
        return images - self.adversarial_epsilon * gradient.sign()

    def _confidence(self, images: Tensor) -> Tensor:
        return self._finite(self._model(images), "logits").log_softmax(dim=1).max(dim=1).values

    def _layers(self, images: Tensor) -> list[Tensor]:
        return [self._finite(layer, "layers") for layer in self._ask_model("layers", images)]


@dataclass(eq=False)
class RunningMoments:
    """Moments of a stream that is read once: a second pass of the network would take as long as all the rest.

    sizes: (K,), how many vectors each class has so far.
    means: (K, D), those of the classes so far.
    scatter: (D, D), around these means.
    """

    sizes: Tensor
    means: Tensor
    scatter: Tensor

    @classmethod
    def none(cls, classes: int, width: int) -> "RunningMoments":
        zeros = partial(torch.zeros, dtype=torch.float64)
        return cls(zeros(classes), zeros(classes, width), zeros(width, width))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Takes in features (n, D) of classes (n,): by the update of Chan et al. (1983), which keeps digits."""
        present, indices = labels.unique(return_inverse=True)
        sizes, means = class_means([(features, indices)], len(present))
        within, apart = features - means[indices], means - self.means[present]
        before, after = self.sizes[present], self.sizes[present] + sizes
        self.scatter.addmm_(within.T, within)
        self.scatter.addmm_(apart.T, (before * sizes / after)[:, None] * apart)
        self.means[present] += (sizes / after)[:, None] * apart
        self.sizes[present] = after

    def moments(self) -> Moments:
        return Moments(self.sizes, self.means, self.scatter / self.sizes.sum())


def logistic_regression(positives: Tensor, negatives: Tensor) -> tuple[Tensor, float]:
    """Weights (L,) and bias of the log odds that inputs (n, L) are positive, by Newton's method.

    They minimise |w|^2 / 2 + the sum of the log losses, w being the weights of the inputs scaled to mean 0 and variance
    1. An input that is constant up to round-off has weight 0.
    """
    inputs = torch.cat([positives, negatives])
    signs = torch.cat([positives.new_ones(len(positives)), negatives.new_full((len(negatives),), -1.0)])
    means, deviations = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
    round_off = len(inputs) * torch.finfo(inputs.dtype).eps * inputs.abs().amax(dim=0)
    deviations = deviations.where(deviations > round_off, torch.inf)
    design = torch.cat([(inputs - means) / deviations, torch.ones_like(signs[:, None])], dim=1)
    ridge = torch.ones_like(design[0])
    ridge[-1] = 0.0

    def loss(coefficients: Tensor) -> Tensor:
        return (ridge * coefficients.square()).sum() / 2 + softplus(-signs * (design @ coefficients)).sum()

    coefficients = torch.zeros_like(ridge)
    for _ in range(100):
        errors = -signs * torch.sigmoid(-signs * (design @ coefficients))
        variances = errors.abs() * (1 - errors.abs())
        gradient = ridge * coefficients + design.T @ errors
        step = torch.linalg.solve(ridge.diag() + design.T @ (variances[:, None] * design), gradient)
        decrease = step @ gradient
        while decrease > 1e-9 and loss(coefficients - step) > loss(coefficients) - decrease / 4:
            step, decrease = step / 2, decrease / 2
        coefficients -= step
        if decrease < 1e-20:
            break
    weights = coefficients[:-1] / deviations
    return weights, float(coefficients[-1] - weights @ means)
