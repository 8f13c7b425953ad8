"""Low-rank fine-tuning: SeTAR+FT, which trains the minor components of some weights, and LoRA, to compare it with."""

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

LARGEST_STRETCH = 4 / 3  # the largest ratio of a crop's sides, wide or high, as in torchvision's RandomResizedCrop


class Adapter(nn.Module):
    """A trained change of a frozen weight (m, n): scaling * up @ down is added to it.

    up: a trained matrix, (m, r).
    down: a trained matrix, (r, n).
    scaling: a fixed factor.
    """

    def __init__(self, up: Tensor, down: Tensor, scaling: float = 1.0) -> None:
        super().__init__()
        self.up, self.down, self.scaling = nn.Parameter(up), nn.Parameter(down), scaling

    def forward(self, frozen: Tensor) -> Tensor:
        return frozen + self.scaling * (self.up @ self.down)


class LowRankTuning(Method):
    """Trains adapters of some weights by the LoCoOp loss on a few images a class, and adds them to the weights.

    All other weights stay frozen. In a vision-language model both towers get adapters, and the features of the class
    prompts are computed again in each step. In a classifier the head does not change. The optimizer is SGD; the
    learning rate falls along a cosine, without warm-up. The learning rate and the epochs are the paper's (Section 4.1,
    Table 13), the other settings those of the authors' configuration. The defaults are those for CLIP ViT-B/16 on
    ImageNet-1k; CLIP ViT-L/14 takes batches of 20, and Swin v2 batches of 50.

    ood_weight: lambda of the loss: 0.1 for CLIP ViT-B/16, 0.5 for CLIP ViT-L/14, 0.01 for Swin v2.
    rank: K of the loss: 300 of the 1 000 classes for both CLIPs, 700 for Swin v2. 30 % of the classes is good for CLIP.
    images_per_class: training images of each class; the seed of the schedule draws them.
    schedule: the epochs, the batch size, the learning rates and the seed.
    momentum: the momentum of SGD.
    weight_decay: the factor of SGD's weight decay.
    smallest_crop: a random box of at least this share of an image's area is cut out and resized; 1 cuts nothing.
    flip: whether half of the images are mirrored; set it to false for digits and letters.

    Deviations from the authors' code: They cut the box out of the original photograph, with bicubic interpolation. Here
    it is cut out of the preprocessed image, with bilinear interpolation. For Swin they also change colours, take crops
    from a share of 0.08 on, and train with stochastic depth; here the network stays in evaluation mode. The resulting
    weights are stored in float16.

    The authors' results were not reproduced, because that needs CLIP's weights and ImageNet. The numbers of trained
    parameters are the same as theirs.
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
        """The adapter of each trained weight, by the name of the weight. Raises ValueError as `make_edit` does."""

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        """Makes the edit, which holds the changed weights.

        Its `about` has the rank of each adapter (`ranks`), the number of trained parameters (`trained_parameters`), and
        the mean loss of each epoch (`losses`).
        """
        if self.rank > base.classes:
            raise UserError(f"rank is {self.rank}; allowed: an integer from 0 to the number of classes, {base.classes}")
        labels = data.train.labels
        rows = images_of_each_class(labels, base.classes, self.images_per_class, self.schedule.seed)
        assert labels is not None
        labels = labels[rows].to(base.device)
        adapters = self.adapters(base)
        tuned = with_adapters(base, adapters)
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

        # The ranks depend not only on the settings, but also on the ratios in the folder of the SeTAR edit.
        ranks = {name: adapter.down.shape[0] for name, adapter in adapters.items()}
        progress = Progress(progress.file, {**progress.key, "ranks": ranks})
        losses = optimise(optimizer, self.schedule, len(rows), update, parameters, progress, f"{self.id} of {base.id}")
        trained = sum(value.numel() for value in parameters.values())
        return Edit(
            self.about(base, losses=losses, ranks=ranks, trained_parameters=trained),
            {name: weight_of(tuned.network, name).detach().half() for name in adapters},
        )


class SeTARFineTuning(LowRankTuning):
    """SeTAR+FT (Li et al., NeurIPS 2024, Section 3.3): it trains the components that a SeTAR edit removes.

    The components that the SeTAR edit keeps stay frozen, and so do the weights with ratio 0. The training starts from
    the base model.

    ratios_of: the folder of a SeTAR edit of the same base, relative to the file with the entry of the base.
    """

    id: ClassVar[str] = "setar-ft"

    ratios_of: str

    def adapters(self, base: Model) -> dict[str, Adapter]:
        try:
            edit = load_edit(base.entry.file.parent / self.ratios_of)
        except EditError as error:
            raise self._ratios_error(str(error)) from None
        if edit.about.get("base_sha256") not in (None, base.weights_sha256):
            raise self._ratios_error(f"its ratios were found on other weights than those of {base.id}")
        tensors = base.network.state_dict()
        adapters = {}
        for name, ratio in edit.ratios.items():
            if name not in tensors or tensors[name].ndim != 2:
                raise self._ratios_error(f"{name} is no matrix of {base.id}")
            if removed_components(tensors[name].shape, ratio):
                adapters[name] = minor_adapter(tensors[name], ratio)
        if not adapters:
            raise self._ratios_error("it drops no component of any weight")
        return adapters

    def _ratios_error(self, reason: str) -> UserError:
        return UserError(f"ratios_of is {self.ratios_of!r}; allowed: the folder of a SeTAR edit: {reason}")


class LoRA(LowRankTuning):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) of the first matrix of every MLP. SeTAR's paper compares SeTAR+FT with
    it.

    adapter_rank: the rank of each adapter. The paper (Table 13) has 32 for CLIP ViT-B/16, 64 for ViT-L/14 and 112 for
        Swin v2, which trains about as many parameters as SeTAR+FT.
    alpha: the adapter is multiplied by alpha / adapter_rank. Table 13 has 16. The authors' code does not pass its 16 on
        to the peft library, so its runs had the library's default of 8 (read in the code, not run).
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
    """An adapter whose up @ down is what `drop_minor_components` removes from a weight.

    weight: the weight, (m, n).
    ratio: the share of its singular values that are removed.

    A removed component sigma u v^T is split into sqrt(sigma) u and sqrt(sigma) v^T.
    """
    whole = decompose(weight)
    kept = whole.rank - removed_components(weight.shape, ratio)
    root = whole.values[kept:].sqrt()
    return Adapter((whole.left[:, kept:] * root).to(weight), (root[:, None] * whole.right[kept:]).to(weight))


def lora_adapter(weight: Tensor, rank: int, alpha: float, generator: Generator) -> Adapter:
    """An adapter that adds nothing at first: `up` is zero. Its scaling is alpha / rank.

    weight: the weight that it changes, (m, n).
    rank: r.
    alpha: the factor of the scaling.
    generator: the source of the random values of `down`.

    `down` is uniform in +-1/sqrt(n), as in LoRA's code and in peft. The paper (Section 4.1) says Gaussian, and gives no
    variance.
    """
    down = nn.init.kaiming_uniform_(torch.empty(rank, weight.shape[1]), a=math.sqrt(5), generator=generator)
    return Adapter(weight.new_zeros(weight.shape[0], rank), down.to(weight), alpha / rank)


def with_adapters(base: Model, adapters: Mapping[str, Adapter]) -> Model:
    """A copy of a model in which some weights are the sum of a frozen part and an adapter.

    base: the model.
    adapters: the adapters, by the names of the weights.

    The frozen part is the weight minus what the adapter adds at first. So the copy computes at first what the base
    does.
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
    """A weight as the network uses it: the frozen part plus what its adapter adds."""
    path, _, tensor = name.rpartition(".")
    return getattr(network.get_submodule(path), tensor)


def logits_of(model: Model, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits of images, and those of their patches where the model has local features; torch can differentiate
    them.

    model: the model.
    images: images after its preprocessing, (N, 3, H, W).

    Returns (N, C) and (N, P, C), or None in place of the second.
    """
    if isinstance(model, ZeroShotClassifier):
        features, patches = model.vision_tower()(images)
        weight, bias = model.linear_head
    else:
        assert isinstance(model, Classifier)
        features, patches = vision_tower(model.network)(images)
        weight, bias = model.linear_head
    return linear(features, weight, bias), None if patches is None else linear(patches, weight, bias)


def up_matrices(model: Model) -> list[str]:
    """The names of the first matrix of every MLP, in all towers of a model."""
    return [matrix.tensor for tower in towers_of(model).values() for matrix in tower.matrices.get("up", ())]


def crop_and_flip(images: Tensor, smallest_crop: float, flip: bool, generator: Generator) -> Tensor:
    """Cuts a random box out of each image, and resizes it to the size of the image.

    images: images after preprocessing, (N, 3, H, W).
    smallest_crop: the smallest share of the area. The share of each box is uniform from this to 1.
    flip: whether half of the images are also mirrored.
    generator: the source of all random numbers.

    The ratio of the sides of a box is changed by a log-uniform factor of at most 4/3, so that the box stays within the
    image.
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
