"""SeTAR: low-rank approximation of weights, layer by layer, by a greedy search on a loss of in-distribution images."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Generator, Tensor
from torch.nn.functional import linear
from tqdm import tqdm

from benchmark.errors import UserError
from benchmark.models.edits import Edit
from benchmark.models.low_rank import Components, decompose, removed_components
from benchmark.models.model import Model
from benchmark.models.towers import Matrix, Tower
from benchmark.models.zero_shot import ZeroShotClassifier
from benchmark.training.data import images_of_each_class
from benchmark.training.optimisation import Progress
from benchmark.variants.locoop import locoop_loss
from benchmark.variants.method import Method, TrainingData
from benchmark.variants.network_towers import towers_of

RANK_SHARE = 0.3
KEPT_BYTES = 4 * 2**30


class SeTAR(Method):
    """Drops the smallest singular values of one matrix a layer, as many as lower the LoCoOp loss (Li, Xiong, Chen &
    Chen, "SeTAR", NeurIPS 2024, Section 3 and Algorithm 1; where the paper is silent, the authors' code).

    Layer by layer, from the last block to the first, each ratio is tried in ascending order with all earlier decisions
    in place; one that gives a loss STRICTLY below the lowest so far is taken, so that of equals the smaller wins. No
    layer is visited again. Components are those of the original weights.

    ood_weight: lambda of the loss. Left out, it is the paper's for the base models on ImageNet (Table 12): 0.1 for a
    vision-language model (CLIP ViT-B/16), 0.01 for other networks with local features (Swin v2), 0 for those without.
    It has 0.5 for CLIP ViT-L/14, and on Pascal-VOC's 14 classes 0.05 and 0.3.
    rank: K of the loss, from 0 to the number of classes; left out, 30 % of the classes, rounded, at least 1, as the
    paper has 300 of 1 000 for CLIP and 4 of 14 for ViT-B/16; it has 6 of 14 for ViT-L/14, 700 of 1 000 for Swin v2.
    ratios: shares of the singular values that may be dropped; 0 is always among them. Default: the paper's.
    towers: which are searched and in what order; "alternating" (MIS) takes a block of each in turn. Of a network
    without a text tower, "vision" and "vision-then-text" both search the one that is there.
    search: "greedy", or "best-pair" (LES): each step tries every remaining layer, fixes the best pair of layer and
    ratio, and ends where none lowers the loss (the earlier in the greedy order among equals).
    weight: the matrix of a block; "up", the first of the MLP, is the paper's choice and "query", "key", "value",
    "output" (of the attention) and "down" its ablations. prune: which components go, the smallest ("minor"), the
    largest ("principal"), or "random" ones, drawn by the seed, more of them at a larger ratio.
    images_per_class: of the training images, drawn by the seed; 1 as on ImageNet. On Pascal-VOC the paper takes 10 %.
    batch: images, or class prompts, at a time; the loss hangs on it a little, as it pools the patches of a batch. 512
    for CLIP and 384 for Swin v2 in the authors' code.

    Networks without local features (the paper's ResNet-50) have the cross-entropy alone. Which convolutions, in what
    order, and how a kernel is a matrix the paper does not say: our reading is every ungrouped one but the first, from
    the last to the first that the network defines, and each kernel position on its own. Its search is "combined with
    ASH", which it does not describe; ours is not. ConvNeXt is searched at its MLPs.

    Not verified against the authors' search: their losses on CLIP ViT-B/16, which need its weights and ImageNet.
    """

    id: ClassVar[str] = "setar"

    ood_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    rank: int | None = Field(default=None, ge=0)
    ratios: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.0, 0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40), min_length=1, strict=False
    )
    towers: Literal["vision-then-text", "text-then-vision", "vision", "text", "alternating"] = "vision-then-text"
    search: Literal["greedy", "best-pair"] = "greedy"
    weight: Literal["up", "query", "key", "value", "output", "down"] = "up"
    prune: Literal["minor", "principal", "random"] = "minor"
    images_per_class: int = Field(default=1, ge=1)
    batch: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("ratios")
    @classmethod
    def _ascending(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if any(first >= second for first, second in pairwise(ratios)):
            raise ValueError("allowed: numbers from 0 to 1, each larger than the one before")
        return ratios

    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        """The edit: ratios, where whole tensors lose their minor components, else the changed weights.

        `about` says what was searched with (`images`, `ood_weight`, `rank`), the loss of the base (`start`) and every
        decision (`trace`), in order, each with the tower, the layer (counted from the input), its weight, the ratio,
        and the network after it: total, id and ood (the losses), share (of the OOD patches), accuracy (on the search
        images) and the evaluations until then.
        """
        model = base.copy()
        towers = towers_of(model)
        layers = self._layers(base, towers)
        rank = self._rank(base.classes)
        rows = images_of_each_class(data.train.labels, base.classes, self.images_per_class, self.seed)
        with torch.no_grad():
            ood_weight = self._ood_weight(base, towers, data.train.images(rows[:1]))
            images, labels = (
                tuple(part.to(base.device) for part in whole.split(self.batch))
                for whole in (data.train.images(rows), data.train.labels[rows])  # type: ignore[index]
            )
            loss = partial(locoop_loss, ood_weight=ood_weight, rank=rank)
            search = Search(self, layers, model, Evaluator(model, towers, images, labels, self.batch, loss))
            start, trace = search.run(progress, f"setar of {base.id}")
        ratios, weights = search.result(trace)
        found = {"images": len(rows), "ood_weight": ood_weight, "rank": rank, "start": asdict(start), "trace": trace}
        return Edit(self.about(base, **found), weights=weights, ratios=ratios)

    def _layers(self, base: Model, towers: Mapping[str, Tower]) -> list["Layer"]:
        """The layers in the order of the greedy search."""
        if "text" not in towers and self.towers not in ("vision", "vision-then-text"):
            raise UserError(
                f"towers is {self.towers!r}; allowed: 'vision' or 'vision-then-text', since {base.id} has no text tower"
            )
        names = [name for name in _TOWERS[self.towers] if name in towers]
        for name in names:
            matrices = towers[name].matrices
            if not matrices.get(self.weight):
                allowed = " or ".join(repr(kind) for kind, found in matrices.items() if found) or "nothing"
                raise UserError(
                    f"weight is {self.weight!r}; allowed: {allowed}, which the {name} tower of {base.id} has"
                )
        columns = [layers_of(towers[name], self.weight)[::-1] for name in names]
        if self.towers != "alternating":
            return [layer for column in columns for layer in column]
        depths = [len(column) for column in columns]
        if len(set(depths)) > 1:
            raise UserError(
                f"towers is 'alternating'; allowed: any other, since the towers of {base.id} have "
                f"{' and '.join(map(str, depths))} blocks"
            )
        return [layer for pair in zip(*columns, strict=True) for layer in pair]

    def _rank(self, classes: int) -> int:
        if self.rank is None:
            return max(1, round(RANK_SHARE * classes))
        if self.rank > classes:
            raise UserError(f"rank is {self.rank}; allowed: an integer from 0 to the number of classes, {classes}")
        return self.rank

    def _ood_weight(self, base: Model, towers: Mapping[str, Tower], image: Tensor) -> float:
        has_local_features = towers["vision"](image.to(base.device))[1] is not None
        if self.ood_weight is None:
            return (0.1 if "text" in towers else 0.01) if has_local_features else 0.0
        if self.ood_weight and not has_local_features:
            raise UserError(f"ood_weight is {self.ood_weight}; allowed: 0, since {base.id} has no local features")
        return self.ood_weight

    def dropped(self, layer: "Layer", ratio: float, shape: Sequence[int]) -> Sequence[int]:
        """Which components a ratio takes from a matrix of that shape, counted from the largest."""
        rank, count = min(shape[:2]), removed_components(shape, ratio)
        if self.prune == "minor":
            return range(rank - count, rank)
        if self.prune == "principal":
            return range(count)
        digest = hashlib.sha256(f"{self.seed} {layer.matrix.tensor} {layer.matrix.rows.start}".encode()).digest()
        generator = Generator().manual_seed(int.from_bytes(digest[:7]))
        return torch.randperm(rank, generator=generator)[:count].tolist()


_TOWERS = {
    "vision-then-text": ("vision", "text"),
    "text-then-vision": ("text", "vision"),
    "vision": ("vision",),
    "text": ("text",),
    "alternating": ("vision", "text"),
}


@dataclass(frozen=True)
class Layer:
    """A matrix to decide on. number: its place in its tower, from the input, and block: the one that holds it."""

    tower: str
    number: int
    block: int
    matrix: Matrix


@dataclass(frozen=True)
class Losses:
    """Means over the search images: see LoCoOpLoss, and the share that is classified right."""

    total: float
    id: float
    ood: float
    share: float
    accuracy: float


def layers_of(tower: Tower, weight: str) -> list[Layer]:
    """The matrices of one type, from the input up; a tower of one block may hold many."""
    return [
        Layer(tower.name, number, min(number, tower.depth - 1), matrix)
        for number, matrix in enumerate(tower.matrices[weight])
    ]


class Evaluator:
    """The loss of a network with the weights that it has, when those of one block alone have changed.

    It keeps what enters that block, for as many batches as KEPT_BYTES hold (others are computed from the images each
    time), and what leaves the other tower: on the model's device, beside the images, and never of two blocks at once.
    What it computes again it computes as before, on the same batches, so that keeping changes no bit.
    """

    def __init__(
        self,
        model: Model,
        towers: Mapping[str, Tower],
        images: Sequence[Tensor],
        labels: Sequence[Tensor],
        batch: int,
        loss: Callable[..., Any],
    ) -> None:
        self._model, self._towers, self._labels, self._loss = model, towers, labels, loss
        self._inputs = {"vision": images}
        if isinstance(model, ZeroShotClassifier):
            prompts = [model.prompt.replace("{}", name) for name in model.class_names]
            self._inputs["text"] = model.tokenizer(prompts).to(model.device).split(batch)
        self._left: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self._entering: list[Tensor] = []
        self._tower, self._block = "", 0

    def focus(self, layer: Layer) -> None:
        """From here on the weights change in the block of that layer alone, until `focus` or `changed`."""
        self._entering = []
        self._tower, self._block = layer.tower, layer.block
        self._left.pop(layer.tower, None)
        for name in self._towers.keys() - {layer.tower} - self._left.keys():
            self._left[name] = list(self._leaving(name))
        room = KEPT_BYTES
        for inputs in self._inputs[layer.tower]:
            hidden = self._enter(inputs)
            room -= hidden.nbytes
            if room < 0:
                break
            self._entering.append(hidden)

    def changed(self, tower: str) -> None:
        """The weights of a tower have changed for good."""
        self._left.pop(tower, None)

    def __call__(self) -> Losses:
        head = self._head()
        count = sum(map(len, self._labels))
        means = dict.fromkeys(("total", "id", "ood", "share", "accuracy"), 0.0)
        for (features, local), labels in zip(self._leaving("vision"), self._labels, strict=True):
            logits = head(features)
            loss = self._loss(logits, None if local is None else head(local), labels)
            right = (logits.argmax(dim=1) == labels).double().mean()
            for name in means:
                means[name] += float(right if name == "accuracy" else getattr(loss, name)) * len(labels) / count
        return Losses(**means)

    def _head(self) -> Callable[[Tensor], Tensor]:
        """Logits of features, with the factor that the model itself gives its cosines."""
        if not isinstance(self._model, ZeroShotClassifier):
            return self._model.network.get_classifier()  # type: ignore[operator]
        weight, bias = self._model.head_of(torch.cat([features for features, _ in self._leaving("text")]))
        return partial(linear, weight=weight, bias=bias)

    def _leaving(self, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Features and local features of each batch."""
        if name in self._left:
            yield from self._left[name]
            return
        tower = self._towers[name]
        for index, inputs in enumerate(self._inputs[name]):
            if name != self._tower:
                yield tower(inputs)
                continue
            hidden = self._entering[index] if index < len(self._entering) else self._enter(inputs)
            for block in range(self._block, tower.depth - 1):
                hidden = tower.block(block, hidden)
            yield tower.finish(inputs, hidden)

    def _enter(self, inputs: Tensor) -> Tensor:
        tower = self._towers[self._tower]
        hidden = tower.start(inputs)
        for block in range(self._block):
            hidden = tower.block(block, hidden)
        return hidden


class Search:
    """Decides on the ratio of every layer, changing the network of `model`, and keeps each decision."""

    def __init__(self, settings: SeTAR, layers: Sequence[Layer], model: Model, evaluator: Evaluator) -> None:
        self._settings, self._layers, self._evaluator = settings, layers, evaluator
        self._ratios = [ratio for ratio in settings.ratios if ratio > 0]
        self._tensors = model.network.state_dict()
        self._components: dict[tuple[str, int], Components] = {}

    def run(self, progress: Progress, title: str) -> tuple[Losses, list[dict[str, Any]]]:
        """The losses at the start, and the trace of the decisions. A search that was killed goes on after the last."""
        start, trace = self._resume(progress)
        best = _losses(trace[-1]) if trace else start
        evaluations = trace[-1]["evaluations"] if trace else 1
        remaining = self._layers_without(trace)
        with tqdm(total=len(self._layers), initial=len(trace), desc=title, disable=None, leave=False) as bar:
            while remaining:
                tried = remaining[:1] if self._settings.search == "greedy" else remaining
                chosen, ratio, lowest = tried[0], 0.0, best
                for layer in tried:
                    bar.set_postfix(layer=f"{layer.tower} {layer.number}", loss=f"{best.total:.6f}")
                    for candidate, losses in self._try(layer):
                        evaluations += 1
                        if losses.total < lowest.total:
                            chosen, ratio, lowest = layer, candidate, losses
                self._fix(chosen, ratio)
                assert lowest.total <= best.total
                best = lowest
                # Where nothing that was tried lowers the loss, none of it ever will: nothing changes any more.
                for layer in [chosen] if ratio else tried:
                    trace.append({**_step(layer, ratio), **asdict(best), "evaluations": evaluations})
                    bar.update()
                remaining = self._layers_without(trace)
                progress.save({}, {"start": asdict(start), "trace": trace})
        return start, trace

    def result(self, trace: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Ratios and weights of the edit."""
        layers = [self._layer(step) for step in trace]
        whole = all(layer.matrix.rows == slice(None) for layer in layers)
        if self._settings.prune == "minor" and whole:
            return {step["weight"]: step["ratio"] for step in trace}, {}
        changed = {step["weight"] for step in trace if step["ratio"]}
        return {}, {name: self._tensors[name].clone() for name in sorted(changed)}

    def _resume(self, progress: Progress) -> tuple[Losses, list[dict[str, Any]]]:
        kept = progress.load()
        if kept is None:
            start = self._evaluator()
            if not math.isfinite(start.total):
                raise UserError(f"the loss of the network on the search images is {start.total}, so none is lower")
            return start, []
        trace = kept[1]["trace"]
        for step in trace:
            if step["ratio"]:
                self._fix(self._layer(step), step["ratio"])
        return Losses(**kept[1]["start"]), trace

    def _try(self, layer: Layer) -> Iterator[tuple[float, Losses]]:
        """The losses with each ratio of a layer, whose weight is the original again at the end."""
        self._evaluator.focus(layer)
        for ratio in self._ratios:
            self._put(layer, ratio)
            yield ratio, self._evaluator()
        self._put(layer, 0.0)

    def _fix(self, layer: Layer, ratio: float) -> None:
        self._put(layer, ratio)
        self._evaluator.changed(layer.tower)
        self._components.pop((layer.tower, layer.number))

    def _put(self, layer: Layer, ratio: float) -> None:
        weight = self._tensors[layer.matrix.tensor][layer.matrix.rows]
        key = (layer.tower, layer.number)
        if key not in self._components:
            self._components[key] = decompose(weight)
        weight.copy_(self._components[key].without(self._settings.dropped(layer, ratio, weight.shape)))

    def _layer(self, step: Mapping[str, Any]) -> Layer:
        return next(layer for layer in self._layers if (layer.tower, layer.number) == (step["tower"], step["layer"]))

    def _layers_without(self, trace: Sequence[Mapping[str, Any]]) -> list[Layer]:
        fixed = [self._layer(step) for step in trace]
        return [layer for layer in self._layers if layer not in fixed]


def _step(layer: Layer, ratio: float) -> dict[str, Any]:
    return {"tower": layer.tower, "layer": layer.number, "weight": layer.matrix.tensor, "ratio": ratio}


def _losses(step: Mapping[str, Any]) -> Losses:
    return Losses(**{field.name: step[field.name] for field in fields(Losses)})
