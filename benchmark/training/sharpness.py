"""Sharpness: how much the training loss rises near a network's weights. It describes models; no detector uses it.

    python -m benchmark sharpness digits-resnet digits-vit    the 12 definitions of the paper, model by model

Source: Andriushchenko, Croce, Müller, Hein, Flammarion, "A Modern Look at the Relationship between Sharpness and
Generalization", ICML 2023, section 3 and appendices C and H. With the loss L_S(w) on a batch S of m training
images, a scale c >= 0 for each weight and a radius rho:

    average:  E_S E_delta [L_S(w + delta) - L_S(w)]                     delta = c * N(0, rho^2) or c * U(-rho, rho)
    worst:    E_S max [L_S(w + delta) - L_S(w)]                         over |delta / c|_p <= rho, p = 2 or infinity

with c = 1 (standard) or c = |w| (adaptive). Weights can be rescaled in ways that leave the network's function as it is,
for example around BatchNorm, ReLU and a convolution. Such a rescaling does not change adaptive sharpness. The paper
finds that no definition predicts how well a model generalises. It does not study OOD detection.

Sharpness can be compared only between models of one architecture and one training set, on the same images.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field, validate_call
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmark.errors import UserError
from benchmark.images.image_set import load_image_set
from benchmark.models.class_order import check_order
from benchmark.models.entries import is_vision_language
from benchmark.models.loading import load_model
from benchmark.suites.suite import Suite
from benchmark.training.data import TrainingSet
from detectors import did_you_mean

SharpnessCase = Literal["worst", "average"]
Norm = Literal["l2", "linf"]
Scaling = Literal["standard", "adaptive"]
Loss = Callable[[Tensor], Tensor]  # of weights (P,), a scalar

MOMENTUM = 0.75
SUCCESSES = 0.75  # where fewer than this share of the steps raise the loss, the step size is halved
SMALLEST_SPREAD = 1e-10  # of logits, as in the authors' code


class Definition(NamedTuple):
    """One of the definitions of sharpness. Its text is, for example, `worst-linf-adaptive-normalised`.

    case: the largest rise of the loss ("worst"), or the mean rise ("average").
    norm: the norm of the perturbation.
    scaling: whether each weight is perturbed in proportion to its size ("adaptive"), or all alike ("standard").
    normalise_logits: whether logits are divided by their standard deviation before the loss.
    """

    case: SharpnessCase
    norm: Norm
    scaling: Scaling
    normalise_logits: bool

    def __str__(self) -> str:
        return "-".join([*self[:3], *(["normalised"] if self.normalise_logits else [])])

    @property
    def radius(self) -> float:
        """The smallest radius that the paper tries with this definition on CIFAR-10 (tables 3 and 4).

        No radius of standard sharpness is right for all networks. The paper's radii for its ViT are a tenth to a
        fiftieth of those for its ResNet. At the radii for its ResNet, the small networks of the digits suite no longer
        classify.
        """
        return _RADII[self.case, self.norm, self.scaling]


_RADII = {
    ("average", "l2", "standard"): 0.005,
    ("average", "l2", "adaptive"): 0.05,
    ("average", "linf", "standard"): 0.01,
    ("average", "linf", "adaptive"): 0.1,
    ("worst", "l2", "standard"): 0.025,
    ("worst", "l2", "adaptive"): 0.25,
    ("worst", "linf", "standard"): 0.00001,
    ("worst", "linf", "adaptive"): 0.0005,
}


def definitions() -> tuple[Definition, ...]:
    """The paper's 12: average and worst, l2 and linf, each standard, adaptive, and adaptive of normalised logits."""
    scalings: list[tuple[Scaling, bool]] = [("standard", False), ("adaptive", False), ("adaptive", True)]
    cases: list[SharpnessCase] = ["average", "worst"]
    norms: list[Norm] = ["l2", "linf"]
    return tuple(Definition(case, norm, *scaling) for scaling, case, norm in product(scalings, cases, norms))


def definition_of(name: str) -> Definition:
    """The definition of that name. Raises ValueError where there is none."""
    known = {str(definition): definition for definition in definitions()}
    if name not in known:
        raise UserError(f"no definition is called {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class Sharpness:
    """The sharpness of a network.

    value: the mean over the batches, in nats.
    per_batch: the value of each batch, in nats.
    base_loss: the mean loss at the unperturbed weights, in nats.
    seconds: how long the computation took.
    """

    value: float
    per_batch: tuple[float, ...]
    base_loss: float
    seconds: float


@validate_call(config=ConfigDict(arbitrary_types_allowed=True))
def sharpness(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    case: SharpnessCase,
    norm: Norm,
    scaling: Scaling,
    normalise_logits: bool,
    rho: Annotated[float, Field(gt=0, allow_inf_nan=False)],
    batch: Annotated[int, Field(ge=1)] = 128,
    steps: Annotated[int, Field(ge=1)] = 20,
    draws: Annotated[int, Field(ge=1)] = 100,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Sharpness:
    """The sharpness of a network on training images. The network is not changed.

    network: a function from images (n, 3, H, W) to logits (n, C), in evaluation mode, so that BatchNorm uses its
        running statistics. Every parameter is perturbed, also biases, those of normalisation layers, and frozen ones.
        Buffers are not perturbed. With adaptive scaling, a parameter that is 0 stays 0.
    images: the training images, (N, 3, H, W).
    labels: their classes, (N,).
    case, norm, scaling: the definition of sharpness, see `Definition`.
    normalise_logits: whether the logits of an image are divided by their standard deviation over the classes (of the
        population) before the loss. Then a rescaling of the head does not change the value (the paper's equation 5).
    rho: the radius of the perturbation.
    batch: m, the number of images for which one perturbation is sought. The paper takes 8 batches of 128 (CIFAR) or of
        256. Images after the last full batch are not used.
    steps: steps of the search for the worst case, see `worst_rise`; 1 is one step to the boundary, see `one_step_rise`.
    draws: random perturbations of the average case.
    seed: the same seed on the same device gives the same value.

    Raises ValueError, which names the setting, for a setting out of its range, a network in training mode, labels or
    images of a wrong shape or number, and a loss that is not finite.

    The paper does not say in which mode BatchNorm is, nor which parameters are perturbed. Both are here as in the
    authors' published code (tml-epfl/sharpness-vs-generalization). That code differs from the paper in three things, in
    which we follow the paper: it divides logits by the norm of the centred logits, without the 1/sqrt(C); its commands
    start the search at the weights themselves, not at random; and they average 20 draws, not 100. That the last images
    are not used is our choice.
    """
    if any(module.training for module in network.modules()):
        raise UserError("network is in training mode; allowed: evaluation mode, as after network.eval()")
    if labels.shape != images.shape[:1]:
        raise UserError(f"labels have the shape {tuple(labels.shape)}; allowed: one for each of {len(images)} images")
    if len(images) < batch:
        raise UserError(f"batch is {batch}; allowed: up to the number of images, {len(images)}")
    started = time.perf_counter()
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    scale = weights.abs() if scaling == "adaptive" else torch.ones_like(weights)
    rises, losses = [], []
    numbers = range(len(images) // batch)
    for number in tqdm(numbers, desc=f"{case} {norm} sharpness", unit="batch", disable=None, leave=False):
        rows = slice(number * batch, (number + 1) * batch)
        loss = _loss_of_weights(network, images[rows].to(weights), labels[rows].to(weights.device), normalise_logits)
        with torch.no_grad():
            losses.append(loss(weights).item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss of the network is {losses[-1]} on batch {number}; allowed: a finite loss")
        random = Generator(weights.device).manual_seed(_batch_seed(seed, number))
        if case == "average":
            rises.append(average_rise(loss, weights, scale, norm, rho, draws, random))
        elif steps == 1:
            rises.append(one_step_rise(loss, weights, scale, norm, rho))
        else:
            rises.append(worst_rise(loss, weights, scale, norm, rho, steps, random))
    return Sharpness(float(np.mean(rises)), tuple(rises), float(np.mean(losses)), seconds=time.perf_counter() - started)


def _batch_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _loss_of_weights(network: nn.Module, images: Tensor, labels: Tensor, normalise_logits: bool) -> Loss:
    """The mean cross-entropy of a batch as a function of all parameters, which are joined into one vector (P,)."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(weights: Tensor) -> Tensor:
        pieces = zip(shapes.items(), weights.split(sizes), strict=True)
        parameters = {name: piece.view(shape) for (name, shape), piece in pieces}
        logits = functional_call(network, parameters, (images,))
        return cross_entropy(_normalised_logits(logits) if normalise_logits else logits, labels)

    return loss


def _normalised_logits(logits: Tensor) -> Tensor:
    """Logits (n, C), centred and divided by their standard deviation. Equal logits give zeros.

    Centring does not change the softmax.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread = centred.norm(dim=1, keepdim=True) / math.sqrt(logits.shape[1])
    return centred / spread.clamp_min(SMALLEST_SPREAD)


@torch.no_grad()
def average_rise(
    loss: Loss, weights: Tensor, scale: Tensor, norm: Norm, rho: float, draws: int, random: Generator
) -> float:
    """The mean rise of a loss over random perturbations of the weights. It can be negative.

    loss: a function of the weights.
    weights: the weights, (P,).
    scale: the scale of the perturbation of each weight, (P,).
    norm: "l2" draws perturbations from scale * N(0, rho^2), "linf" from scale * U(-rho, rho).
    rho: the radius.
    draws: the number of perturbations.
    random: the source of all random numbers.

    For a small rho and a loss with the Hessian H, the value approaches rho^2 / 2 * sum_i H_ii scale_i^2 for the normal
    distribution, and a third of that for the uniform one.
    """
    draw = torch.empty_like(weights)
    total = 0.0
    for _ in range(draws):
        draw = draw.normal_(generator=random) if norm == "l2" else draw.uniform_(-1, 1, generator=random)
        total += loss(weights + rho * scale * draw).item()
    return total / draws - loss(weights).item()


def one_step_rise(loss: Loss, weights: Tensor, scale: Tensor, norm: Norm, rho: float) -> float:
    """The rise of a loss after one step along its gradient, to the boundary of the ball |delta / scale|_p <= rho.

    loss, weights, scale, norm, rho: as in `average_rise`.

    Source: Müller, Vlaar, Rolnick, Hein, "Normalization Layers Are All That Sharpness-Aware Minimization Needs",
    NeurIPS 2023, section 5.2: the step of SAM, here with `scale`. It can be negative where rho is large.
    """
    here = _evaluate_point(loss, weights, scale, torch.zeros_like(weights))
    with torch.no_grad():
        return loss(weights + rho * scale * _ascent_direction(here.gradient, norm)).item() - here.loss


class _Point(NamedTuple):
    """A point of the search for the worst case.

    position: delta / scale, (P,).
    loss: the loss there, in nats.
    gradient: the gradient of the loss with respect to the position, (P,).
    """

    position: Tensor
    loss: float
    gradient: Tensor


def worst_rise(
    loss: Loss, weights: Tensor, scale: Tensor, norm: Norm, rho: float, steps: int, random: Generator
) -> float:
    """The largest rise of a loss that Auto-PGD finds in the ball |delta / scale|_p <= rho. It is at least 0.

    loss, weights, scale, norm, rho: as in `average_rise`.
    steps: the number of steps of the search.
    random: the source of the random start.

    For a small rho, the value approaches rho * |scale * gradient|_q with 1/p + 1/q = 1.

    Source: algorithm 1 of the paper's appendix C, on positions delta / scale. The paper does not repeat the constants
    of the algorithm but cites Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", ICML 2020. From there: the first step size of 2 rho, the momentum of 0.75, and the
    checkpoints and conditions at which the step size is halved and the search continues from the best position.

    Our reading of what is open:
    - For l2, the gradient with respect to the position is divided by its norm (as Croce and Hein do), and positions are
      projected on the ball. So a rescaling of weights that leaves the function as it is does not change the search.
    - The start for l2 is Gaussian with the expected squared norm rho^2, then projected.
    - The unperturbed weights count as a point of the search, as in the authors' code.

    The authors' code differs in other things. It takes alpha z + (1 - alpha) w_(k-1) for the step with momentum. It
    divides the l2 step by the norm of the gradient without the scale, and projects on the ellipsoid in delta. It counts
    rises above the best loss, where Croce and Hein count rises above the step before.
    """
    best = _evaluate_point(loss, weights, scale, torch.zeros_like(weights))
    base = best.loss
    here = _evaluate_point(loss, weights, scale, _start_position(weights, norm, rho, random))
    best = max(best, here, key=_comparable_loss)
    before = here.position
    step_size = checked_step_size = 2 * rho
    checked_loss, rises, checked = best.loss, 0, 0
    checkpoints = set(_checkpoints(steps))
    for step in range(1, steps + 1):
        momentum = 1.0 if step == 1 else MOMENTUM
        target = _project_on_ball(here.position + step_size * _ascent_direction(here.gradient, norm), norm, rho)
        moved = momentum * (target - here.position) + (1 - momentum) * (here.position - before)
        there = _evaluate_point(loss, weights, scale, _project_on_ball(here.position + moved, norm, rho))
        rises += there.loss > here.loss
        before, here = here.position, there
        best = max(best, here, key=_comparable_loss)
        if step in checkpoints:
            too_few = rises < SUCCESSES * (step - checked)
            stuck = step_size == checked_step_size and best.loss == checked_loss
            checked_step_size, checked_loss, rises, checked = step_size, best.loss, 0, step
            if too_few or stuck:
                step_size /= 2
                here = best
    return best.loss - base


def _comparable_loss(point: _Point) -> float:
    """The loss by which the best point is chosen. A point whose loss is NaN is never the best."""
    return -math.inf if math.isnan(point.loss) else point.loss


def _evaluate_point(loss: Loss, weights: Tensor, scale: Tensor, position: Tensor) -> _Point:
    """The loss and its gradient at a position (P,)."""
    position = position.detach().requires_grad_()
    value = loss(weights + scale * position)
    (gradient,) = torch.autograd.grad(value, position)
    return _Point(position.detach(), value.item(), gradient)


def _start_position(weights: Tensor, norm: Norm, rho: float, random: Generator) -> Tensor:
    """A random position (P,) in the ball, where the search starts."""
    position = torch.empty_like(weights)
    if norm == "linf":
        return position.uniform_(-rho, rho, generator=random)
    return _project_on_ball(position.normal_(0, rho / math.sqrt(len(weights)), generator=random), norm, rho)


def _ascent_direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent (P,), with length 1 in the norm. A gradient of zero gives zero."""
    if norm == "linf":
        return gradient.sign()
    tiny = torch.finfo(gradient.dtype).tiny
    gradient = gradient / gradient.abs().max().clamp_min(tiny)  # so that squares of small entries do not become 0
    return gradient / gradient.norm().clamp_min(tiny)


def _project_on_ball(position: Tensor, norm: Norm, rho: float) -> Tensor:
    """The nearest position (P,) in the ball."""
    if norm == "linf":
        return position.clamp(-rho, rho)
    return position * (rho / position.norm().clamp_min(rho))


def _checkpoints(steps: int) -> Iterator[int]:
    """The steps after which Auto-PGD checks its step size: ceil(p_j * steps), with p_1 = 0.22 and shrinking gaps."""
    percent = gap = 22
    while percent <= 100:
        yield math.ceil(percent * steps / 100)
        gap = max(gap - 3, 6)
        percent += gap


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a of two figures of M models: the mean of sign(a_i - a_j) sign(b_i - b_j) over the pairs of models.

    first, second: one figure of each model, (M,), in the same order.

    Raises ValueError where the lengths differ, there are fewer than two models, or a figure is not finite.

    Source: the paper's equation 4. A pair that is tied in one of the two counts as 0 and stays in the mean, so ties
    bring tau-a nearer to 0. SciPy's tau-b divides by the pairs that are not tied; without ties, both are the same.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise UserError(f"measurements have the shapes {a.shape} and {b.shape}; allowed: (M,) twice, M from 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("a measurement is not finite; allowed: finite numbers")
    signs = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(signs.sum() / (len(a) * (len(a) - 1)))


def kendall_tau_deviation(models: int) -> float:
    """The standard deviation of tau where the two figures are unrelated and have no ties.

    It is 0.22 for 12 models and 0.09 for 56. Raises ValueError for fewer than two models.
    """
    if models < 2:
        raise UserError(f"models is {models}; allowed: an integer from 2")
    return math.sqrt(2 * (2 * models + 5) / (9 * models * (models - 1)))


@dataclass(frozen=True)
class ModelSharpness:
    """The sharpness of a model beside an error of it.

    model: the id of the model.
    architecture: its architecture, such as `Model.architecture`.
    training_set: its training set, such as the `content_sha256` of an image set.
    sharpness: its sharpness, in nats.
    error: a figure that is larger where the model is worse: a test error, an FPR@95 or 1 - AUROC.
    """

    model: str
    architecture: str
    training_set: str
    sharpness: float
    error: float


def correlate_sharpness_with_error(models: Sequence[ModelSharpness]) -> float:
    """Kendall's tau of sharpness and error. It is positive where models with a smaller sharpness are better.

    Raises ValueError where the models have several architectures or training sets: their sharpness cannot be compared
    (the paper's section 3.1).
    """
    for name in ("architecture", "training_set"):
        values = sorted({getattr(model, name) for model in models})
        if len(values) > 1:
            raise UserError(f"{name} is {' and '.join(values)}; allowed: the same for all models that are compared")
    return kendall_tau([model.sharpness for model in models], [model.error for model in models])


def training_images(
    suite: Suite, model_id: str, device: torch.device, count: int, seed: int
) -> tuple[nn.Module, Tensor, Tensor]:
    """A model's network, and training images (n, 3, H, W) with labels (n,), which are the same for every model.

    suite: the suite that gives the images and knows the models.
    model_id: the id of the model.
    device: where the network runs.
    count: at most so many images.
    seed: the seed of their draw.

    Raises UserError for an unknown model, a vision-language model, and images without classes.
    """
    known = suite.known_models
    if model_id not in known:
        raise UserError(f"no model is called {model_id!r}{did_you_mean(model_id, known)}; known: {', '.join(known)}")
    if is_vision_language(model_id, known):
        raise UserError(
            f"model {model_id} was not trained on the suite's images; allowed: classifiers, not zero-shot ones"
        )
    image_set = load_image_set(suite.train, suite.image_sets)
    model = load_model(model_id, known, device, image_set.class_names)
    check_order(model.id, model.label_names, image_set.classes, image_set.class_names, model.classes)
    train = TrainingSet(model, image_set)
    if train.labels is None:
        raise UserError(f"image set {image_set.id} has no classes; allowed: images with labels")
    rows = torch.randperm(len(train), generator=Generator().manual_seed(seed))[:count]
    return model.network, train.images(rows), train.labels[rows]
