"""Low-rank fine-tuning: SeTAR+FT, which trains the minor components of some weights, and LoRA, its baseline."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, linear
from torch.nn.utils.parametrize import register_parametrization

from benchmark.errors import UserError
from benchmark.models.classifier import Classifier
from benchmark.models.edits import Edit, EditError, load_edit
from benchmark.models.low_rank import decompose, removed_components
from benchmark.models.model import Model
from benchmark.models.zero_shot import ZeroShotClassifier
from benchmark.training.data import images_of_each_class
from benchmark.training.optimisation import Progress, Schedule, optimise
from benchmark.variants.locoop import locoop_loss
from benchmark.variants.method import Method, TrainingData
from benchmark.variants.network_towers import towers_of, vision_tower

LARGEST_STRETCH = 4 / 3  # of a crop's sides, either way, as torchvision's RandomResizedCrop has it


class Adapter(nn.Module):
    """What is added to a frozen weight (m, n): scaling * up @ down, of trained `up` (m, r) and `down` (r, n)."""

    def __init__(self, up: Tensor, down: Tensor, scaling: float = 1.0) -> None:
        super().__init__()
        self.up, self.down, self.scaling = nn.Parameter(up), nn.Parameter(down), scaling

    def forward(self, frozen: Tensor) -> Tensor:
        return frozen + self.scaling * (self.up @ self.down)


class LowRankTuning(Method):
    """Trains adapters of some weights by the LoCoOp loss of a few images a class, and merges them into the weights.

    All else stays frozen. Of a vision-language model both towers adapt, and the features of the class prompts are made
    anew in each step; of a classifier the head is fixed. SGD under a cosine, without warm-up. The paper (Section 4.1,
    Table 13) gives the learning rate and the epochs, its code's configuration the rest. The defaults are those for CLIP
    ViT-B/16 on ImageNet-1k; CLIP ViT-L/14 and Swin v2 take batches of 20 and 50.

    ood_weight, rank: lambda and K of the loss: 0.1 and 300 of the 1 000 classes for ViT-B/16, 0.5 and 300 for ViT-L/14,
    0.01 and 700 for Swin v2. 30 % of the classes is a good K for CLIP.
    images_per_class: drawn by the schedule's seed.
    smallest_crop: a random box of at least this share of an image's area is cut out and resized; 1 leaves it whole.
    flip: whether half of the images are mirrored, which suits no digits or letters.

    Deviations from the authors' code. They cut the box out of the whole photograph by bicubic interpolation, we out of
    the prepared image by bilinear interpolation. For Swin they also jitter colours, start crops at 0.08 and train with
    random depth; our network stays in evaluation mode. The merged weights are kept in float16.
    Not verified against the authors' results, which need CLIP's weights and ImageNet; the counts of trained parameters
    are theirs.
    """

    ood_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    rank: int = Field(ge=0)
    images_per_class: int = Field(default=1, ge=1)
    schedule: Schedule = Schedule(epochs=5, batch=100, learning_rate=0.01)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    smallest_crop: float = Field(default=0.9, gt=0, le=1)
    flip: bool = True

    @abstractmethod
    def adapters(self, base: Model) -> dict[str, Adapter]:
        """The adapter of each weight that is trained, by its name. Raises ValueError as `make` does."""

    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        """The edit: the merged weights.

        `about` says which weights were adapted with which rank (`ranks`), how many numbers were trained, and the mean
        loss of each epoch.
        """
        if self.rank > base.classes:
            raise UserError(f"rank is {self.rank}; allowed: an integer from 0 to the number of classes, {base.classes}")
        labels = data.train.labels
        rows = images_of_each_class(labels, base.classes, self.images_per_class, self.schedule.seed)
        assert labels is not None
        labels = labels[rows].to(base.device)
        adapters = self.adapters(base)
        tuned = adapted(base, adapters)
        parameters = {
            f"{name}/{part}": value for name, adapter in adapters.items() for part, value in adapter.named_parameters()
        }
        optimizer = torch.optim.SGD(
            parameters.values(),
            lr=self.schedule.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

        def update(indices: Tensor, generator: Generator) -> float:
            images = crop_and_flip(data.train.images(rows[indices]), self.smallest_crop, self.flip, generator)
            logits, local_logits = logits_of(tuned, images.to(base.device))
            loss = locoop_loss(logits, local_logits, labels[indices], self.ood_weight, self.rank).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        # The ranks hang on more than the settings: on what a SeTAR edit holds today.
        ranks = {name: adapter.down.shape[0] for name, adapter in adapters.items()}
        progress = Progress(progress.file, {**progress.key, "ranks": ranks})
        losses = optimise(optimizer, self.schedule, len(rows), update, parameters, progress, f"{self.id} of {base.id}")
        trained = sum(value.numel() for value in parameters.values())
        return Edit(
            self.about(base, losses=losses, ranks=ranks, trained_parameters=trained),
            {name: weight_of(tuned.network, name).detach().half() for name in adapters},
        )


class SeTARFineTuning(LowRankTuning):
    """SeTAR+FT (Li et al., NeurIPS 2024, Section 3.3): the components that a SeTAR edit drops are trained instead.

    ratios_of: the folder of that edit of the same base, relative to the file in which the base's entry stands. What it
    keeps of each weight stays frozen, and so do the weights with ratio 0. The training starts from the base itself.
    """

    id: ClassVar[str] = "setar-ft"

    ratios_of: str

    def adapters(self, base: Model) -> dict[str, Adapter]:
        try:
            edit = load_edit(base.entry.file.parent / self.ratios_of)
        except EditError as error:
            raise self._refused(str(error)) from None
        if edit.about.get("base_sha256") not in (None, base.weights_sha256):
            raise self._refused(f"its ratios were found on other weights than those of {base.id}")
        tensors = base.network.state_dict()
        adapters = {}
        for name, ratio in edit.ratios.items():
            if name not in tensors or tensors[name].ndim != 2:
                raise self._refused(f"{name} is no matrix of {base.id}")
            if removed_components(tensors[name].shape, ratio):
                adapters[name] = minor_adapter(tensors[name], ratio)
        if not adapters:
            raise self._refused("it drops no component of any weight")
        return adapters

    def _refused(self, reason: str) -> UserError:
        return UserError(f"ratios_of is {self.ratios_of!r}; allowed: the folder of a SeTAR edit: {reason}")


class LoRA(LowRankTuning):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) of the first matrix of every MLP, the baseline of SeTAR+FT.

    adapter_rank: the paper (Table 13) has 32 for CLIP ViT-B/16, 64 for ViT-L/14 and 112 for Swin v2, so that about as
    many parameters are trained as by SeTAR+FT.
    alpha: the adapter counts alpha / adapter_rank times. 16 in Table 13; the authors' code does not hand its 16 on to
    the peft library, so that its runs had the library's default, which is 8 (read in the code, not run).
    """

    id: ClassVar[str] = "lora"

    adapter_rank: int = Field(ge=1)
    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False)

    def adapters(self, base: Model) -> dict[str, Adapter]:
        tensors = base.network.state_dict()
        weights = {name: tensors[name] for name in up_matrices(base) if tensors[name].ndim == 2}
        if not weights:
            raise UserError(f"{base.id} has no MLPs; LoRA adapts the first matrix of each")
        largest = min(min(weight.shape) for weight in weights.values())
        if self.adapter_rank > largest:
            raise UserError(
                f"adapter_rank is {self.adapter_rank}; allowed: an integer from 1 to {largest}, the rank of the "
                f"smallest matrix of {base.id}"
            )
        generator = Generator().manual_seed(self.schedule.seed)
        return {
            name: lora_adapter(weight, self.adapter_rank, self.alpha, generator) for name, weight in weights.items()
        }


def minor_adapter(weight: Tensor, ratio: float) -> Adapter:
    """An adapter whose up @ down is what `drop_minor_components` takes from a weight (m, n).

    A dropped component is shared out as sqrt(sigma) u and sqrt(sigma) v^T.
    """
    whole = decompose(weight)
    kept = whole.rank - removed_components(weight.shape, ratio)
    root = whole.values[kept:].sqrt()
    return Adapter((whole.left[:, kept:] * root).to(weight), (root[:, None] * whole.right[kept:]).to(weight))


def lora_adapter(weight: Tensor, rank: int, alpha: float, generator: Generator) -> Adapter:
    """An adapter of a weight (m, n) that adds nothing yet: `up` is zero, the scaling alpha / rank.

    `down` is uniform within 1/sqrt(n), as in LoRA's code and in peft; the paper (Section 4.1) says Gaussian, without a
    variance.
    """
    down = nn.init.kaiming_uniform_(torch.empty(rank, weight.shape[1]), a=math.sqrt(5), generator=generator)
    return Adapter(weight.new_zeros(weight.shape[0], rank), down.to(weight), alpha / rank)


def adapted(base: Model, adapters: Mapping[str, Adapter]) -> Model:
    """A copy of a model whose weights of these names are the sum of a frozen part and the adapter.

    The frozen part is the weight less what the adapter adds at first, so that the copy starts as the base.
    """
    tuned = base.copy()
    network = tuned.network
    for name, adapter in adapters.items():
        path, _, tensor = name.rpartition(".")
        module = network.get_submodule(path)
        with torch.no_grad():
            weight_of(network, name).sub_(adapter(torch.zeros_like(weight_of(network, name))))
        register_parametrization(module, tensor, adapter)
    return tuned


def weight_of(network: nn.Module, name: str) -> Tensor:
    """A weight as the network uses it, with what its adapter adds."""
    path, _, tensor = name.rpartition(".")
    return getattr(network.get_submodule(path), tensor)


def logits_of(model: Model, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (N, C) of images and (N, P, C) of their patches, where it has local features, through all its weights."""
    if isinstance(model, ZeroShotClassifier):
        features, patches = model.vision_tower()(images)
        weight, bias = model.linear_head
    else:
        assert isinstance(model, Classifier)
        features, patches = vision_tower(model.network)(images)
        weight, bias = model.linear_head
    return linear(features, weight, bias), None if patches is None else linear(patches, weight, bias)


def up_matrices(model: Model) -> list[str]:
    """The names of the first matrix of every MLP, of all towers."""
    return [matrix.tensor for tower in towers_of(model).values() for matrix in tower.matrices.get("up", ())]


def crop_and_flip(images: Tensor, smallest_crop: float, flip: bool, generator: Generator) -> Tensor:
    """Each image (N, 3, H, W) cut to a box of its own and resized to its size; with `flip`, half of them mirrored.

    The box has a share of the area that is uniform from `smallest_crop` to 1, and its sides are stretched against each
    other by a log-uniform factor of at most 4/3 that keeps it within the image.
    """
    count = len(images)
    area, stretch, right, down, side = torch.rand(5, count, generator=generator)
    area = smallest_crop + (1 - smallest_crop) * area
    largest = (-area.log()).clamp(max=math.log(LARGEST_STRETCH))
    stretch = (largest * (2 * stretch - 1)).exp()
    width, height = (area * stretch).sqrt(), (area / stretch).sqrt()
    mirror = torch.where(side < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    boxes = torch.zeros(count, 2, 3)
    boxes[:, 0, 0], boxes[:, 0, 2] = width * mirror, (1 - width) * (2 * right - 1)
    boxes[:, 1, 1], boxes[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    grid = affine_grid(boxes.to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
