"""Unleashing Mask: a finished classifier is taken back to a training loss at which its detection was better.

J. Zhu et al., Unleashing Mask: Explore the Intrinsic Out-of-Distribution Detection Capability, ICML 2023. While a
classifier trains, its detection of other data is best at a middle stage; the paper blames atypical images that are
memorised later. The loss of that stage, the target C, is taken to be what the finished network shows after a few of its
weights were knocked out (eq. 3, appendix F). With |loss - C| + C, descent above C and ascent below, `UM` trains the
weights, and `UMAP` a mask over weights that stay. `LearnedPruning` is the paper's control: a mask for the loss alone.

From the authors' code (github.com/tmlr-group/Unleashing-Mask, read and not used), where the paper leaves it open: masks
are of convolutional and linear weights; a rate is the share that is kept; learned scores start Kaiming-uniform (the
paper: Gaussian), their absolute values are ranked, and they get the gradient straight through (edge-popup,
V. Ramanujan et al., CVPR 2020); C is measured in evaluation mode, on training images augmented as for training; the
absolute value is taken of a batch's mean loss; trainings use the batch's BatchNorm statistics and renew the running
ones; outliers go through the network in one batch with as many training images. No result was compared with theirs.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from benchmark.errors import UserError
from benchmark.models.classifier import Classifier
from benchmark.models.edits import Edit, trained_weights
from benchmark.models.model import Model
from benchmark.training.augmentation import Augmentation, augmented
from benchmark.training.data import TrainingSet
from benchmark.training.optimisation import Progress, Schedule, optimise
from benchmark.variants.method import Method, TrainingData
from benchmark.variants.outliers import OutlierTerm

PASS_BATCH = 256


@dataclass(frozen=True)
class LossTarget:
    """The mean cross-entropy (nats) of a network under each of some masks."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float:
        """The standard deviation over the masks (n - 1); 0 of a single one."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0


def estimate_loss_target(
    model: Model,
    train: TrainingSet,
    kept: float,
    *,
    seed: int = 0,
    scope: Literal["layer", "model"] = "layer",
    by: Literal["random", "magnitude"] = "random",
    masks: int = 5,
    batches: int | None = None,
    augmentation: Augmentation = "none",
    progress: Progress | None = None,
) -> LossTarget:
    """The loss that a network shows on its training images after a share of its weights was set to zero (appendix F).

    kept: delta, the share of the convolutional and linear weights that stays, in each layer or of the whole model. So
    says the prose of appendix F, and so fit the paper's numbers; line 7 of both algorithm boxes has it the other way.
    by: which stay: those with the largest of Gaussian scores, or of |weight| (figure 18), of which there is one mask.
    masks: the paper draws one; here the loss is averaged over several, and its spread is known.
    batches: how many batches of 256 random images are used; None is the whole set, once.
    progress: where the loss of each mask that is done is kept.
    Raises ValueError for a setting outside its range, and for a network without such weights.
    """
    _require(0 < kept <= 1, "kept", kept, "a number above 0, up to 1")
    _require(masks >= 1, "masks", masks, "an integer from 1")
    _require(batches is None or batches >= 1, "batches", batches, "an integer from 1, or none")
    masked = model.copy()
    weights = maskable_weights(masked)
    base = {name: weight.clone() for name, weight in weights.items()}
    done = progress.load() if progress else None
    losses: list[float] = done[1]["losses"] if done else []
    for index in range(len(losses), masks if by == "random" else 1):
        generator = Generator().manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
        if by == "random":
            scores = {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
        else:
            scores = {name: weight.abs() for name, weight in base.items()}
        for name, mask in keep_largest(scores, kept, scope).items():
            weights[name].copy_(base[name] * mask.to(base[name].device))
        count = len(train) if batches is None else min(len(train), batches * PASS_BATCH)
        rows = torch.randperm(len(train), generator=generator)[:count]
        losses.append(_mean_loss(masked, train, rows, augmentation, generator))
        if progress:
            progress.save({}, {"losses": losses})
    return LossTarget(tuple(losses))


def maskable_weights(model: Model) -> dict[str, Tensor]:
    """The convolutional and linear weights of a network by their names, to be read and changed in place.

    Raises ValueError where there are none, and for a vision-language model, whose head a mask would change too.
    """
    if not isinstance(model, Classifier):
        raise UserError(f"model {model.id}: a mask needs an image classifier, and this is a {type(model).__name__}")
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    modules = model.network.named_modules()
    weights = {f"{name}.weight": module.weight.data for name, module in modules if isinstance(module, kinds)}
    if not weights:
        raise UserError(f"model {model.id}: the network has no convolutional or linear weight to mask")
    return weights


def keep_largest(
    scores: Mapping[str, Tensor], kept: float, scope: Literal["layer", "model"] = "layer"
) -> dict[str, Tensor]:
    """Masks (bool) that keep the share `kept` of the scores, the largest: of each tensor, or of all together.

    Removed are round((1 - kept) * n) of n scores; the authors' code rounds down.
    """
    if scope == "model":
        everything = torch.cat([score.flatten() for score in scores.values()])
        parts = _keep_largest(everything, kept).split([score.numel() for score in scores.values()])
        return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}
    return {name: _keep_largest(score, kept) for name, score in scores.items()}


def _keep_largest(scores: Tensor, kept: float) -> Tensor:
    removed = round((1 - kept) * scores.numel())
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(removed, largest=False, sorted=False).indices] = False
    return mask.view_as(scores)


def flooded(target: float) -> Callable[[Tensor], Tensor]:
    """The objective |loss - C| + C (eqs. 3 and 4): its gradient is that of the loss above C, and its negative below."""
    return lambda loss: (loss - target).abs() + target


class _Training(Method):
    """How weights or masks are trained: SGD with momentum 0.9 along a cosine.

    schedule, weight_decay: by default the paper's base recipe, to which its text refers for these trainings too: 100
    epochs from a rate of 0.1 in batches of 256 (20 epochs suffice: tables 17 and 18). Without Nesterov's step, as in
    the authors' configurations of UM and UMAP.
    augmentation: see benchmark/training/augmentation.py; that with which the base was trained. With BatchNorm another
    one shifts the loss under a batch's statistics against C, which is measured with the running ones: a base trained
    with crops started above C without them, and was trained down first (a ResNet-20 on CIFAR-10).
    """

    schedule: Schedule = Schedule(epochs=100, batch=256, learning_rate=0.1)
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    augmentation: Augmentation = "none"

    def _train(
        self,
        base: Model,
        forward: Callable[[Tensor], Tensor],
        objective: Callable[[Tensor], Tensor],
        outliers: OutlierTerm | None,
        data: TrainingData,
        parameters: Iterable[Tensor],
        trained: Mapping[str, Tensor],
        progress: Progress,
    ) -> list[float]:
        """The mean, over the batches of each epoch, of their mean cross-entropy.

        forward: images (n, 3, H, W) to logits (n, C), by way of the parameters. objective: of the cross-entropy.
        """
        optimizer = torch.optim.SGD(parameters, momentum=0.9, weight_decay=self.weight_decay)
        labels = data.train.labels
        assert labels is not None  # as checked

        def update(rows: Tensor, generator: Generator) -> float:
            images = data.train.images(rows)
            if outliers is not None:
                assert data.outliers is not None  # as checked
                drawn = torch.randint(len(data.outliers), (len(rows),), generator=generator)
                images = torch.cat([images, data.outliers.images(drawn)])
            logits = forward(augmented(images, self.augmentation, generator, base.preprocessing))
            cross_entropy_of_rows = cross_entropy(logits[: len(rows)], labels[rows])
            loss = objective(cross_entropy_of_rows)
            if outliers is not None:
                loss = loss + outliers(logits[: len(rows)], logits[len(rows) :])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return cross_entropy_of_rows.item()

        return optimise(optimizer, self.schedule, len(data.train), update, trained, progress, self.id)

    def _check(self, base: Model, data: TrainingData, outliers: OutlierTerm | None = None) -> None:
        """Raises ValueError, before any work, for what does not fit the network or the data."""
        maskable_weights(base)
        if data.train.labels is None:
            raise UserError(f"{self.id}: the training images have no labels; allowed: an image set with `classes`")
        if outliers is not None:
            allowed = "none, as the suite names no `outliers`"
            _require(data.outliers is not None, "outliers", outliers.loss, allowed, self.id)
        batch, images = self.schedule.batch, len(data.train)
        if outliers is None and any(isinstance(module, _BatchNorm) for module in base.network.modules()):
            allowed = f"a size that leaves no batch of a single one of the {images} images, which BatchNorm cannot take"
            _require(batch > 1 and images % batch != 1, "schedule.batch", batch, allowed, self.id)


class _Targeted(_Training):
    """What has a target for its loss.

    loss_target: C in nats; None is to estimate it by `estimate_loss_target`, on images augmented as for training.
    target_kept: delta, the share of weights that stays where C is estimated: 0.975 on CIFAR-10, 0.97 on CIFAR-100 and
    0.996 on ImageNet (G.10), chosen on a validation set of other data; 0.96 to 0.99 are said to do.
    target_masks: over how many random masks it is averaged.
    outliers: the term of a training with outliers, added to the objective; a batch has as many of them as of training
    images (section 3.3 gives no formula; |loss - C| + C + term is that of the authors' code). To go the other way, from
    UM's result on to such a training, name the variant as the `base` of that.
    """

    loss_target: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    target_kept: float = Field(default=0.975, gt=0, le=1)
    target_masks: int = Field(default=5, ge=1)
    outliers: OutlierTerm | None = None

    @property
    def uses_outliers(self) -> bool:
        return self.outliers is not None

    def _target(self, base: Model, train: TrainingSet, progress: Progress) -> LossTarget:
        if self.loss_target is not None:
            return LossTarget((self.loss_target,))
        return estimate_loss_target(
            base,
            train,
            self.target_kept,
            seed=self.schedule.seed,
            masks=self.target_masks,
            augmentation=self.augmentation,
            progress=progress,
        )

    def _about(self, base: Model, data: TrainingData, target: LossTarget, losses: list[float]) -> dict[str, Any]:
        more: dict[str, Any] = {"loss_target": target.mean, "loss_target_spread": target.spread}
        if self.outliers is not None and data.outliers is not None:
            more |= self.about_outliers(data.outliers)
        return self.about(base, **more, losses=losses)


class UM(_Targeted):
    """Unleashing Mask: all weights are trained so that the loss comes up to C and stays there (algorithm 1).

    The edit holds what changed, BatchNorm's buffers included, rounded (see `trained_weights`); `losses` are those of
    the training, before that.
    """

    id: ClassVar[str] = "um"

    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        self._check(base, data, self.outliers)
        target = self._target(base, data.train, _beside(progress))
        model = base.copy()
        network = model.network.requires_grad_(True).train()
        losses = self._train(
            base, model, flooded(target.mean), self.outliers, data, network.parameters(), network.state_dict(), progress
        )
        return Edit(self._about(base, data, target, losses), trained_weights(base.network, network))


class _MaskLearning(_Training):
    """Edge-popup: every weight of a layer has a score, the largest |score| stay, and a score gets its mask's gradient.

    The weights stay as they are. BatchNorm's running statistics become those under the mask.
    kept: p, the share of each layer's weights that stays; 0.8 in the authors' code, not stated in the paper.
    """

    classified_by_base: ClassVar[bool] = True

    kept: float = Field(default=0.8, gt=0, le=1)

    def _learn_mask(
        self,
        base: Model,
        data: TrainingData,
        progress: Progress,
        objective: Callable[[Tensor], Tensor],
        outliers: OutlierTerm | None,
    ) -> tuple[Edit, list[float]]:
        """An edit that says nothing about itself yet, and the training loss of each epoch."""
        model = base.copy()
        network = model.network.train()
        weights = maskable_weights(model)
        scores = _first_scores(weights, self.schedule.seed)

        def forward(images: Tensor) -> Tensor:
            sizes = {name: score.abs() for name, score in scores.items()}
            masks = keep_largest({name: size.detach() for name, size in sizes.items()}, self.kept)
            # Worth the mask, with the gradient of the size.
            through = {name: masks[name] + (size - size.detach()) for name, size in sizes.items()}
            masked = {name: weight * through[name] for name, weight in weights.items()}
            return functional_call(network, masked, images.to(model.device)).to(images.device)

        buffers = dict(network.named_buffers())
        trained = buffers | {f"score of {name}": score.detach() for name, score in scores.items()}
        losses = self._train(base, forward, objective, outliers, data, scores.values(), trained, progress)
        masks = keep_largest({name: score.detach().abs() for name, score in scores.items()}, self.kept)
        return Edit({}, trained_weights(base.network, network), masks), losses


class UMAP(_MaskLearning, _Targeted):
    """Unleashing Mask Adopts Pruning: a mask is learned under which the loss is C (algorithm 2)."""

    id: ClassVar[str] = "umap"

    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        self._check(base, data, self.outliers)
        target = self._target(base, data.train, _beside(progress))
        edit, losses = self._learn_mask(base, data, progress, flooded(target.mean), self.outliers)
        return replace(edit, about=self._about(base, data, target, losses))


class LearnedPruning(_MaskLearning):
    """A mask that is learned with the plain cross-entropy: the control of UMAP (figures 4e and 12)."""

    id: ClassVar[str] = "learned-pruning"

    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        self._check(base, data)
        edit, losses = self._learn_mask(base, data, progress, lambda loss: loss, None)
        return replace(edit, about=self.about(base, losses=losses))


def _mean_loss(model: Model, train: TrainingSet, rows: Tensor, augmentation: Augmentation, draw: Generator) -> float:
    if train.labels is None:
        raise UserError("loss target: the training images have no labels; allowed: an image set with `classes`")
    total = 0.0
    with torch.inference_mode():
        for part in tqdm(rows.split(PASS_BATCH), desc="loss target", unit="batch", disable=None, leave=False):
            logits = model(augmented(train.images(part), augmentation, draw, model.preprocessing))
            total += cross_entropy(logits.double(), train.labels[part], reduction="sum").item()
    return total / len(rows)


def _first_scores(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Kaiming-uniform scores, as a layer's own weights start in torch: up to 1 / sqrt(fan-in) in size."""
    generator = Generator().manual_seed(seed)
    starts = {name: torch.empty(weight.shape) for name, weight in weights.items()}
    for start in starts.values():
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    return {name: start.to(weights[name].device).requires_grad_() for name, start in starts.items()}


def _beside(progress: Progress) -> Progress:
    """Where the estimate of the target is kept while the training keeps its own state."""
    file = None if progress.file is None else progress.file.with_name(f"{progress.file.stem}-target.safetensors")
    return Progress(file, {**progress.key, "part": "loss target"})


def _require(ok: bool, setting: str, value: Any, allowed: str, method: str = "loss target") -> None:
    if not ok:
        raise UserError(f"{method}: {setting} is {value!r}; allowed: {allowed}")
