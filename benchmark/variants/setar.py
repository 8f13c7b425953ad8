"""SeTAR: a search that lowers the rank of weights, layer by layer, where that lowers a loss on training images."""

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
    """Removes the smallest singular values of one matrix in each layer, where that lowers the LoCoOp loss.

    Source: Li, Xiong, Chen & Chen, "SeTAR", NeurIPS 2024, Section 3 and Algorithm 1. What the paper does not say is
    taken from the authors' code.

    The search goes through the layers from the last block to the first, and visits each layer once. In a layer it tries
    every ratio, in ascending order, with all earlier decisions in place. A ratio is chosen if its loss is STRICTLY
    below the lowest loss so far. So of two ratios with the same loss, the smaller one is chosen. The components are
    always those of the original weights.

    ood_weight: lambda of the loss. The default (None) is the paper's for the base models on ImageNet (Table 12): 0.1
        for a vision-language model (CLIP ViT-B/16), 0.01 for other networks with local features (Swin v2), and 0 for
        networks without. The paper has 0.5 for CLIP ViT-L/14. On the 14 classes of Pascal-VOC it has 0.05 for ViT-B/16
        and 0.3 for ViT-L/14.
    rank: K of the loss, from 0 to the number of classes. The default (None) is 30 % of the classes, rounded, at least
        1. So the paper has 300 of 1 000 for CLIP, and 4 of 14 for ViT-B/16. It has 6 of 14 for ViT-L/14, and 700 of 1
        000 for Swin v2.
    ratios: the shares of singular values that may be removed; 0 is always possible. The default is the paper's.
    towers: which towers are searched, and in what order. "alternating" (MIS) takes a block of each tower in turn. For a
        network without a text tower, "vision" and "vision-then-text" both search its one tower.
    search: "greedy", or "best-pair" (LES). With "best-pair", each step tries every remaining layer and takes the best
        pair of layer and ratio. The search ends where no pair lowers the loss. Of two pairs with the same loss, the one
        that is earlier in the greedy order is taken.
    weight: which matrix of a block is changed. "up", the first one of the MLP, is the paper's choice. Its ablations are
        "query", "key", "value" and "output" (of the attention), and "down".
    prune: which components are removed: the smallest ("minor"), the largest ("principal"), or "random" ones, which the
        seed draws. A larger ratio removes all that a smaller one removes, and more.
    images_per_class: how many training images of each class are used; the seed draws them. 1 is the paper's on
        ImageNet. On Pascal-VOC the paper takes 10 %.
    batch: images, or class prompts, that go through a tower together. The loss depends on it slightly, since it is a
        mean over the patches of a batch. The authors' code has 512 for CLIP and 384 for Swin v2.
    seed: the seed of all draws.

    A network without local features (the paper's ResNet-50) is searched with the cross-entropy only. The paper does not
    say which convolutions it changes, in what order, and how a kernel becomes a matrix. Our reading: all ungrouped
    convolutions but the first, from the last to the first that the network defines, and each kernel position as a
    matrix of its own. The paper's search there is "combined with ASH", which it does not describe; ours is not.
    ConvNeXt is searched in its MLPs.

    It was not compared with the authors' search, because their losses on CLIP ViT-B/16 need its weights and ImageNet.
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
    def _check_ascending(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if any(first >= second for first, second in pairwise(ratios)):
            raise ValueError("allowed: numbers from 0 to 1, each larger than the one before")
        return ratios

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        """Makes the edit. It holds ratios where whole tensors lose minor components, else the changed weights.

        Its `about` has the settings that were used (`images`, `ood_weight`, `rank`), the losses of the base (`start`),
        and all decisions in their order (`trace`). A decision has its tower, its layer (from the input), its weight,
        and its ratio. It also has the figures of the network after it: the losses `total`, `id` and `ood`, the `share`
        of OOD patches, the `accuracy` on the search images, and the number of `evaluations` so far.
        """
        model = base.copy()
        towers = towers_of(model)
        layers = self._search_order(base, towers)
        rank = self._loss_rank(base.classes)
        rows = images_of_each_class(data.train.labels, base.classes, self.images_per_class, self.seed)
        with torch.no_grad():
            ood_weight = self._loss_ood_weight(base, towers, data.train.images(rows[:1]))
            images, labels = (
                tuple(part.to(base.device) for part in whole.split(self.batch))
                for whole in (data.train.images(rows), data.train.labels[rows])  # type: ignore[index]
            )
            loss = partial(locoop_loss, ood_weight=ood_weight, rank=rank)
            search = Search(self, layers, model, Evaluator(model, towers, images, labels, self.batch, loss))
            start, trace = search.run(progress, f"setar of {base.id}")
        ratios, weights = search.ratios_and_weights(trace)
        found = {"images": len(rows), "ood_weight": ood_weight, "rank": rank, "start": asdict(start), "trace": trace}
        return Edit(self.about(base, **found), weights=weights, ratios=ratios)

    def _search_order(self, base: Model, towers: Mapping[str, Tower]) -> list["Layer"]:
        """The layers in the order of the greedy search. Raises ValueError where `towers` or `weight` does not fit."""
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

    def _loss_rank(self, classes: int) -> int:
        """K of the loss, for a number of classes."""
        if self.rank is None:
            return max(1, round(RANK_SHARE * classes))
        if self.rank > classes:
            raise UserError(f"rank is {self.rank}; allowed: an integer from 0 to the number of classes, {classes}")
        return self.rank

    def _loss_ood_weight(self, base: Model, towers: Mapping[str, Tower], image: Tensor) -> float:
        """lambda of the loss, for a network; `image` (1, 3, H, W) shows whether it has local features."""
        has_local_features = towers["vision"](image.to(base.device))[1] is not None
        if self.ood_weight is None:
            return (0.1 if "text" in towers else 0.01) if has_local_features else 0.0
        if self.ood_weight and not has_local_features:
            raise UserError(f"ood_weight is {self.ood_weight}; allowed: 0, since {base.id} has no local features")
        return self.ood_weight

    def removed_indices(self, layer: "Layer", ratio: float, shape: Sequence[int]) -> Sequence[int]:
        """The indices of the components that a ratio removes, from 0 for the largest.

        layer: the layer, which decides what "random" draws.
        ratio: the share of the components that are removed.
        shape: the shape of the matrix.
        """
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
    """A matrix for which the search chooses a ratio.

    tower: the name of its tower.
    number: its place among the matrices of the tower, from the input.
    block: the number of its block.
    matrix: where its values are.
    """

    tower: str
    number: int
    block: int
    matrix: Matrix


@dataclass(frozen=True)
class Losses:
    """Means over the search images.

    total, id, ood, share: as in LoCoOpLoss.
    accuracy: the share of the images that are classified right.
    """

    total: float
    id: float
    ood: float
    share: float
    accuracy: float


def layers_of(tower: Tower, weight: str) -> list[Layer]:
    """The matrices of one type in a tower, from the input. A tower of one block may have many of them.

    tower: the tower.
    weight: the type, such as "up".
    """
    return [
        Layer(tower.name, number, min(number, tower.depth - 1), matrix)
        for number, matrix in enumerate(tower.matrices[weight])
    ]


class Evaluator:
    """Computes the loss of a network again and again, while the weights of one block change.

    To be fast, it keeps the inputs of that block and the outputs of the other tower, on the model's device. Inputs are
    kept for as many batches as KEPT_BYTES hold; the others are computed from the images each time. Inputs of two blocks
    are never kept at once. Kept tensors are those that a computation on the same batches gives, so no bit of the loss
    changes.

    model: the model; its weights are changed by the search.
    towers: its towers, by name.
    images: the search images, batch by batch, (n, 3, H, W) each.
    labels: their classes, batch by batch, (n,) each.
    batch: class prompts that go through the text tower together.
    loss: the loss of a batch, from logits, local logits and labels.
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
        self._kept_outputs: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self._kept_inputs: list[Tensor] = []
        self._tower, self._block = "", 0

    def select_block(self, layer: Layer) -> None:
        """Says that, until the next call of this method, only weights in the block of this layer change."""
        self._kept_inputs = []
        self._tower, self._block = layer.tower, layer.block
        self._kept_outputs.pop(layer.tower, None)
        for name in self._towers.keys() - {layer.tower} - self._kept_outputs.keys():
            self._kept_outputs[name] = list(self._tower_outputs(name))
        room = KEPT_BYTES
        for inputs in self._inputs[layer.tower]:
            hidden = self._block_input(inputs)
            room -= hidden.nbytes
            if room < 0:
                break
            self._kept_inputs.append(hidden)

    def discard_outputs(self, tower: str) -> None:
        """Discards the kept outputs of a tower, because its weights have changed."""
        self._kept_outputs.pop(tower, None)

    def __call__(self) -> Losses:
        """The losses of the network with its present weights."""
        head = self._head()
        count = sum(map(len, self._labels))
        means = dict.fromkeys(("total", "id", "ood", "share", "accuracy"), 0.0)
        for (features, local), labels in zip(self._tower_outputs("vision"), self._labels, strict=True):
            logits = head(features)
            loss = self._loss(logits, None if local is None else head(local), labels)
            right = (logits.argmax(dim=1) == labels).double().mean()
            for name in means:
                means[name] += float(right if name == "accuracy" else getattr(loss, name)) * len(labels) / count
        return Losses(**means)

    def _head(self) -> Callable[[Tensor], Tensor]:
        """A function from features to logits; for a vision-language model, with the factor of its cosines."""
        if not isinstance(self._model, ZeroShotClassifier):
            return self._model.network.get_classifier()  # type: ignore[operator]
        weight, bias = self._model.head_of(torch.cat([features for features, _ in self._tower_outputs("text")]))
        return partial(linear, weight=weight, bias=bias)

    def _tower_outputs(self, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The features and the local features of each batch."""
        if name in self._kept_outputs:
            yield from self._kept_outputs[name]
            return
        tower = self._towers[name]
        for index, inputs in enumerate(self._inputs[name]):
            if name != self._tower:
                yield tower(inputs)
                continue
            hidden = self._kept_inputs[index] if index < len(self._kept_inputs) else self._block_input(inputs)
            for block in range(self._block, tower.depth - 1):
                hidden = tower.block(block, hidden)
            yield tower.finish(inputs, hidden)

    def _block_input(self, inputs: Tensor) -> Tensor:
        """The input of the selected block, from the inputs of its tower."""
        tower = self._towers[self._tower]
        hidden = tower.start(inputs)
        for block in range(self._block):
            hidden = tower.block(block, hidden)
        return hidden


class Search:
    """Chooses the ratio of every layer, and changes the network of `model` accordingly.

    settings: the settings of the method.
    layers: the layers in the order of the greedy search.
    model: the model to change.
    evaluator: computes the losses of this model.
    """

    def __init__(self, settings: SeTAR, layers: Sequence[Layer], model: Model, evaluator: Evaluator) -> None:
        self._settings, self._layers, self._evaluator = settings, layers, evaluator
        self._ratios = [ratio for ratio in settings.ratios if ratio > 0]
        self._tensors = model.network.state_dict()
        self._components: dict[tuple[str, int], Components] = {}

    def run(self, progress: Progress, title: str) -> tuple[Losses, list[dict[str, Any]]]:
        """Runs the search, and returns the losses at its start and the trace of its decisions.

        progress: where the decisions are saved; a search that was stopped continues after the last saved one.
        title: what the progress bar calls the search.
        """
        start, trace = self._resume(progress)
        best = _losses_of_step(trace[-1]) if trace else start
        evaluations = trace[-1]["evaluations"] if trace else 1
        remaining = self._layers_without(trace)
        with tqdm(total=len(self._layers), initial=len(trace), desc=title, disable=None, leave=False) as bar:
            while remaining:
                tried = remaining[:1] if self._settings.search == "greedy" else remaining
                chosen, ratio, lowest = tried[0], 0.0, best
                for layer in tried:
                    bar.set_postfix(layer=f"{layer.tower} {layer.number}", loss=f"{best.total:.6f}")
                    for candidate, losses in self._losses_by_ratio(layer):
                        evaluations += 1
                        if losses.total < lowest.total:
                            chosen, ratio, lowest = layer, candidate, losses
                self._apply_decision(chosen, ratio)
                assert lowest.total <= best.total
                best = lowest
                # Where no ratio lowers the loss, all layers that were tried get 0: trying them again changes nothing.
                for layer in [chosen] if ratio else tried:
                    trace.append({**_trace_step(layer, ratio), **asdict(best), "evaluations": evaluations})
                    bar.update()
                remaining = self._layers_without(trace)
                progress.save({}, {"start": asdict(start), "trace": trace})
        return start, trace

    def ratios_and_weights(self, trace: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The ratios and the weights of the edit, by the names of the tensors; one of the two is empty."""
        layers = [self._layer(step) for step in trace]
        whole = all(layer.matrix.rows == slice(None) for layer in layers)
        if self._settings.prune == "minor" and whole:
            return {step["weight"]: step["ratio"] for step in trace}, {}
        changed = {step["weight"] for step in trace if step["ratio"]}
        return {}, {name: self._tensors[name].clone() for name in sorted(changed)}

    def _resume(self, progress: Progress) -> tuple[Losses, list[dict[str, Any]]]:
        """The losses at the start and the saved decisions, which are applied to the network again."""
        kept = progress.load()
        if kept is None:
            start = self._evaluator()
            if not math.isfinite(start.total):
                raise UserError(f"the loss of the network on the search images is {start.total}, so none is lower")
            return start, []
        trace = kept[1]["trace"]
        for step in trace:
            if step["ratio"]:
                self._apply_decision(self._layer(step), step["ratio"])
        return Losses(**kept[1]["start"]), trace

    def _losses_by_ratio(self, layer: Layer) -> Iterator[tuple[float, Losses]]:
        """Tries each ratio of a layer, and gives its losses. At the end, the weight is the original one again."""
        self._evaluator.select_block(layer)
        for ratio in self._ratios:
            self._set_ratio(layer, ratio)
            yield ratio, self._evaluator()
        self._set_ratio(layer, 0.0)

    def _apply_decision(self, layer: Layer, ratio: float) -> None:
        """Gives a layer its final ratio."""
        self._set_ratio(layer, ratio)
        self._evaluator.discard_outputs(layer.tower)
        self._components.pop((layer.tower, layer.number))

    def _set_ratio(self, layer: Layer, ratio: float) -> None:
        """Replaces the weight of a layer by the original one without the components that a ratio removes."""
        weight = self._tensors[layer.matrix.tensor][layer.matrix.rows]
        key = (layer.tower, layer.number)
        if key not in self._components:
            self._components[key] = decompose(weight)
        weight.copy_(self._components[key].without(self._settings.removed_indices(layer, ratio, weight.shape)))

    def _layer(self, step: Mapping[str, Any]) -> Layer:
        return next(layer for layer in self._layers if (layer.tower, layer.number) == (step["tower"], step["layer"]))

    def _layers_without(self, trace: Sequence[Mapping[str, Any]]) -> list[Layer]:
        fixed = [self._layer(step) for step in trace]
        return [layer for layer in self._layers if layer not in fixed]


def _trace_step(layer: Layer, ratio: float) -> dict[str, Any]:
    return {"tower": layer.tower, "layer": layer.number, "weight": layer.matrix.tensor, "ratio": ratio}


def _losses_of_step(step: Mapping[str, Any]) -> Losses:
    return Losses(**{field.name: step[field.name] for field in fields(Losses)})
