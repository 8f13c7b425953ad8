"""Unleashing Mask: brings a trained classifier back to a larger training loss, at which its OOD detection was better.

Source: J. Zhu et al., Unleashing Mask: Explore the Intrinsic Out-of-Distribution Detection Capability, ICML 2023.

In the middle of a training, a classifier detects OOD images better than at the end. The paper explains this with
atypical images, which are memorised later. The loss of that stage is the target C. It is estimated as the loss of the
trained network after a small share of its weights was set to 0 (eq. 3, appendix F). The objective is |loss - C| + C:
where the loss is above C, a step lowers it; where it is below C, a step raises it. `UM` trains the weights with it.
`UMAP` trains a mask over weights that do not change. `LearnedPruning` is the paper's control: a mask that is trained
with the loss.

What the paper does not say is taken from the authors' code (github.com/tmlr-group/Unleashing-Mask, read, not run):
- Masks cover convolutional and linear weights. A rate is the share of weights that is kept.
- Learned scores start Kaiming-uniform (the paper says Gaussian). Their absolute values are ranked. A score gets the
  gradient of its mask value, the straight-through gradient (edge-popup, V. Ramanujan et al., CVPR 2020).
- C is measured in evaluation mode, on training images that are augmented as in training.
- The absolute value is that of the mean loss of a batch.
- Training uses BatchNorm's statistics of the batch, and updates the running ones.
- Outliers go through the network in one batch with as many training images.

No result was compared with the authors' results.
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
from benchmark.training.augmentation import Augmentation, augment_images
from benchmark.training.data import TrainingSet
from benchmark.training.optimisation import Progress, Schedule, optimise
from benchmark.variants.method import Method, TrainingData
from benchmark.variants.outliers import OutlierTerm

PASS_BATCH = 256


@dataclass(frozen=True)
class LossTarget:
    """The loss that a training aims at, and the losses that it comes from.

    losses: the mean cross-entropy of a network under each of some masks, in nats.
    """

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """C: the mean over the masks, in nats."""
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float:
        """The standard deviation over the masks (with n - 1), in nats; 0 for one mask."""
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
    """Estimates C: the loss of a network on training images after a share of its weights was set to 0 (appendix F).

    model: the network; it is not changed.
    train: the training images with their classes.
    kept: delta, the share of convolutional and linear weights that is kept. The text of appendix F says so, and the
        paper's numbers agree with it. Line 7 of both algorithm boxes says the opposite.
    seed: the seed of the masks and of the images.
    scope: whether the share is kept in each layer, or in the whole model.
    by: which weights are kept: those with the largest Gaussian random scores ("random"), or those with the largest
        absolute values ("magnitude", figure 18). "magnitude" has one mask only.
    masks: how many masks the loss is averaged over. The paper takes one. With several, the spread is known, too.
    batches: how many batches of 256 random images are used; None uses every image once.
    augmentation: how the images are augmented.
    progress: where the loss of each finished mask is saved; None saves nothing.

    Raises ValueError for a setting outside its range, for images without classes, and for a network without such
    weights.
    """
    _require_setting(0 < kept <= 1, "kept", kept, "a number above 0, up to 1")
    _require_setting(masks >= 1, "masks", masks, "an integer from 1")
    _require_setting(batches is None or batches >= 1, "batches", batches, "an integer from 1, or none")
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
    """The convolutional and linear weights of a network, by name. They are the tensors of the network itself.

    Raises ValueError where there are none, and for a vision-language model, because a mask would change its head, too.
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
    """Masks (bool) of the largest scores, each in the shape of its tensor.

    scores: the scores, by name.
    kept: the share of the scores that the masks keep.
    scope: whether this is the share of each tensor ("layer"), or of all tensors together ("model").

    Of n scores, round((1 - kept) * n) are not kept; the authors' code rounds down.
    """
    if scope == "model":
        everything = torch.cat([score.flatten() for score in scores.values()])
        pieces = _mask_of_largest(everything, kept).split([score.numel() for score in scores.values()])
        return {name: piece.view_as(scores[name]) for name, piece in zip(scores, pieces, strict=True)}
    return {name: _mask_of_largest(score, kept) for name, score in scores.items()}


def _mask_of_largest(scores: Tensor, kept: float) -> Tensor:
    removed = round((1 - kept) * scores.numel())
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(removed, largest=False, sorted=False).indices] = False
    return mask.view_as(scores)


def flooding_objective(target: float) -> Callable[[Tensor], Tensor]:
    """The objective |loss - C| + C as a function of the loss (eqs. 3 and 4).

    Above C, its gradient is that of the loss; below C, it is the negative of that.
    """
    return lambda loss: (loss - target).abs() + target


class _Training(Method):
    """How weights or masks are trained: by SGD with a momentum of 0.9, with a learning rate that falls along a cosine.

    schedule: the epochs, the batch size, the learning rates and the seed. The defaults are those of the paper's base
        training, to which its text refers for these trainings, too: 100 epochs from a rate of 0.1, batches of 256. 20
        epochs are enough (tables 17 and 18). There is no Nesterov momentum, as in the authors' settings of UM and UMAP.
    weight_decay: the factor of SGD's weight decay.
    augmentation: the augmentation of the training of the base, see benchmark/training/augmentation.py. With BatchNorm,
        another augmentation changes the loss under the statistics of a batch, but not C, which is measured with the
        running statistics. An example is a ResNet-20 on CIFAR-10 that was trained with crops: without crops, its loss
        starts above C, so that the training lowers the loss at first.
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
        """Trains, and returns the mean cross-entropy of each epoch.

        base: the base model.
        forward: a function from images (n, 3, H, W) to logits (n, C), which uses the parameters.
        objective: a function from the mean cross-entropy of a batch to what is minimised.
        outliers: the term of a training with outliers; None without outliers.
        data: the images to learn from.
        parameters: what the optimizer trains.
        trained: every tensor that a step changes, by name.
        progress: where the state of the training is saved.
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
            logits = forward(augment_images(images, self.augmentation, generator, base.preprocessing))
            cross_entropy_of_rows = cross_entropy(logits[: len(rows)], labels[rows])
            loss = objective(cross_entropy_of_rows)
            if outliers is not None:
                loss = loss + outliers(logits[: len(rows)], logits[len(rows) :])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return cross_entropy_of_rows.item()

        return optimise(optimizer, self.schedule, len(data.train), update, trained, progress, self.id)

    def _check_settings(self, base: Model, data: TrainingData, outliers: OutlierTerm | None = None) -> None:
        """Raises ValueError, before any computation, where a setting does not fit the network or the images."""
        maskable_weights(base)
        if data.train.labels is None:
            raise UserError(f"{self.id}: the training images have no labels; allowed: an image set with `classes`")
        if outliers is not None:
            allowed = "none, as the suite names no `outliers`"
            _require_setting(data.outliers is not None, "outliers", outliers.loss, allowed, self.id)
        batch, images = self.schedule.batch, len(data.train)
        if outliers is None and any(isinstance(module, _BatchNorm) for module in base.network.modules()):
            allowed = f"a size for which no batch of the {images} images has a single image, since BatchNorm needs two"
            _require_setting(batch > 1 and images % batch != 1, "schedule.batch", batch, allowed, self.id)


class _TargetedTraining(_Training):
    """A training towards a target of the loss.

    loss_target: C, in nats; None estimates it by `estimate_loss_target`, on images that are augmented as in training.
    target_kept: delta, the share of weights that is kept in the estimate of C. The paper has 0.975 on CIFAR-10, 0.97 on
        CIFAR-100 and 0.996 on ImageNet (G.10), chosen on a validation set of other data. It says that 0.96 to 0.99
        work.
    target_masks: how many random masks the estimate is averaged over.
    outliers: the term of a training with outliers, which is added to the objective; None adds nothing. A batch has as
        many outliers as training images. Section 3.3 gives no formula; |loss - C| + C + term is that of the authors'
        code. For the other order (UM first, then a training with outliers), name the UM variant as the `base` of the
        latter.
    """

    loss_target: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    target_kept: float = Field(default=0.975, gt=0, le=1)
    target_masks: int = Field(default=5, ge=1, le=1000)
    outliers: OutlierTerm | None = None

    @property
    def uses_outliers(self) -> bool:
        return self.outliers is not None

    def _find_loss_target(self, base: Model, train: TrainingSet, progress: Progress) -> LossTarget:
        """C, as it is set or estimated."""
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

    def _about_training(
        self, base: Model, data: TrainingData, target: LossTarget, losses: list[float]
    ) -> dict[str, Any]:
        """What the edit records about itself."""
        more: dict[str, Any] = {"loss_target": target.mean, "loss_target_spread": target.spread}
        if self.outliers is not None and data.outliers is not None:
            more |= self.about_outliers(data.outliers)
        return self.about(base, **more, losses=losses)


class UM(_TargetedTraining):
    """Unleashing Mask: all weights are trained so that the loss rises to C and stays there (algorithm 1).

    The edit holds the weights that changed and the buffers of BatchNorm, rounded (see `trained_weights`). Its `losses`
    are those of the training, before the rounding.
    """

    id: ClassVar[str] = "um"

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        self._check_settings(base, data, self.outliers)
        target = self._find_loss_target(base, data.train, _target_progress(progress))
        model = base.copy()
        network = model.network.requires_grad_(True).train()
        losses = self._train(
            base,
            model,
            flooding_objective(target.mean),
            self.outliers,
            data,
            network.parameters(),
            network.state_dict(),
            progress,
        )
        return Edit(self._about_training(base, data, target, losses), trained_weights(base.network, network))


class _MaskLearning(_Training):
    """Edge-popup: learns a mask. Each weight has a score; the weights with the largest |score| in a layer are kept.

    A score gets the gradient of its mask value. The weights do not change. BatchNorm's running statistics become those
    of the masked network.

    kept: p, the share of the weights of each layer that is kept: 0.8 in the authors' code, not stated in the paper.
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
        """Learns a mask, and returns an edit without its `about`, and the mean cross-entropy of each epoch.

        base: the base model.
        data: the images to learn from.
        progress: where the state of the training is saved.
        objective: a function from the mean cross-entropy of a batch to what is minimised.
        outliers: the term of a training with outliers; None without outliers.
        """
        model = base.copy()
        network = model.network.train()
        weights = maskable_weights(model)
        scores = _initial_scores(weights, self.schedule.seed)

        def forward(images: Tensor) -> Tensor:
            sizes = {name: score.abs() for name, score in scores.items()}
            masks = keep_largest({name: size.detach() for name, size in sizes.items()}, self.kept)
            # The value is the mask, the gradient is that of the size.
            through = {name: masks[name] + (size - size.detach()) for name, size in sizes.items()}
            masked = {name: weight * through[name] for name, weight in weights.items()}
            return functional_call(network, masked, images.to(model.device)).to(images.device)

        buffers = dict(network.named_buffers())
        trained = buffers | {f"score of {name}": score.detach() for name, score in scores.items()}
        losses = self._train(base, forward, objective, outliers, data, scores.values(), trained, progress)
        masks = keep_largest({name: score.detach().abs() for name, score in scores.items()}, self.kept)
        return Edit({}, trained_weights(base.network, network), masks), losses


class UMAP(_MaskLearning, _TargetedTraining):
    """Unleashing Mask Adopts Pruning: learns a mask for which the loss is C (algorithm 2)."""

    id: ClassVar[str] = "umap"

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        self._check_settings(base, data, self.outliers)
        target = self._find_loss_target(base, data.train, _target_progress(progress))
        edit, losses = self._learn_mask(base, data, progress, flooding_objective(target.mean), self.outliers)
        return replace(edit, about=self._about_training(base, data, target, losses))


class LearnedPruning(_MaskLearning):
    """Learns a mask with the cross-entropy, without a target. It is the control of UMAP (figures 4e and 12)."""

    id: ClassVar[str] = "learned-pruning"

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        self._check_settings(base, data)
        edit, losses = self._learn_mask(base, data, progress, lambda loss: loss, None)
        return replace(edit, about=self.about(base, losses=losses))


def _mean_loss(model: Model, train: TrainingSet, rows: Tensor, augmentation: Augmentation, draw: Generator) -> float:
    """The mean cross-entropy of the images at the indices `rows`, in nats. Raises ValueError without labels."""
    if train.labels is None:
        raise UserError("loss target: the training images have no labels; allowed: an image set with `classes`")
    total = 0.0
    with torch.inference_mode():
        for part in tqdm(rows.split(PASS_BATCH), desc="loss target", unit="batch", disable=None, leave=False):
            logits = model(augment_images(train.images(part), augmentation, draw, model.preprocessing))
            total += cross_entropy(logits.double(), train.labels[part], reduction="sum").item()
    return total / len(rows)


def _initial_scores(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Kaiming-uniform scores, as torch initialises the weights of a layer: up to 1 / sqrt(fan-in) in size."""
    generator = Generator().manual_seed(seed)
    starts = {name: torch.empty(weight.shape) for name, weight in weights.items()}
    for start in starts.values():
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    return {name: start.to(weights[name].device).requires_grad_() for name, start in starts.items()}


def _target_progress(progress: Progress) -> Progress:
    """Where the estimate of the target is saved: in a file beside that of the training."""
    file = None if progress.file is None else progress.file.with_name(f"{progress.file.stem}-target.safetensors")
    return Progress(file, {**progress.key, "part": "loss target"})


def _require_setting(ok: bool, setting: str, value: Any, allowed: str, method: str = "loss target") -> None:
    """Raises ValueError, which names the setting, unless `ok`."""
    if not ok:
        raise UserError(f"{method}: {setting} is {value!r}; allowed: {allowed}")
