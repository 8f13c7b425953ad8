"""Models: networks with the preprocessing that they need."""

import copy
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from benchmark.models.edits import Edit
from benchmark.models.entries import ModelEntry
from benchmark.models.preprocessing import Transform
from benchmark.models.trial import trial_images, trial_sizes
from detectors import Head


@dataclass(frozen=True, eq=False)
class Model(ABC):
    """A network in evaluation mode on a device, with the preprocessing that its checkpoint asks for.

    id: the id of the model.
    entry: its entry.
    network: the network, without gradients for its weights.
    transform: makes the network's input (3, H, W) of a PIL image.
    preprocessing: what the transform does, as JSON. Its `input_size` is [3, H, W].
    device: where the network runs.
    edits: the edits of the checkpoint's network, in the order in which they were applied.
    base_sha256: of an edited model, the `weights_sha256` of the model that the last edit was applied to.
    label_names: the names that its checkpoint gives its outputs, in their order. It may say it several times, or never.
    """

    id: str
    entry: ModelEntry
    network: nn.Module
    transform: Transform
    preprocessing: dict[str, Any]
    device: torch.device
    edits: tuple[Edit, ...] = ()
    base_sha256: str | None = None
    label_names: tuple[tuple[str, ...], ...] = ()

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W), on the device of the images; torch can differentiate it."""

    @abstractmethod
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The tensors that are stored for images (N, 3, H, W), by name, on the model's device. One forward pass.

        features: (N, D), what the head takes.
        logits: (N, C).
        patches: local features (N, P, D), only of a vision-language model that has them.
        """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, 3, H, W), on the device of the images; torch can differentiate them."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """The linear layer that gives the logits: a copy of its weight (C, D) and bias (C,), on the processor."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The name of the network's architecture."""

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return self.head.weight.shape[0]

    @property
    def feature_dimensions(self) -> int:
        """The number of features, D."""
        return self.head.weight.shape[1]

    @property
    def parameters(self) -> int:
        """The number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def copy(self) -> Self:
        """The same model with a copy of the network, which the caller may change."""
        return replace(self, network=copy.deepcopy(self.network))

    @property
    def classified_by_base(self) -> bool:
        """Whether images are classified by the base, while this network's outputs serve only to detect OOD images."""
        return bool(self.edits and self.edits[-1].about.get("classified_by_base"))

    @cached_property
    def trial(self) -> list[float]:
        """What it gives for the trial images of `benchmark.models.trial`: features and logits, to five digits."""
        pixels = torch.stack([self.transform(image) for image in trial_images(trial_sizes(self.preprocessing))])
        with torch.inference_mode():
            outputs = self.outputs(pixels)
        values = torch.cat([outputs["features"].flatten(), outputs["logits"].flatten()]).double()
        return [float(f"{value:.5g}") for value in values.tolist()]

    @cached_property
    def weights_sha256(self) -> str:
        """A hash of the network: of its structure and of every parameter and buffer.

        Of an edited network, it is a hash of the base's hash and the edit's. Low-rank weights may differ in their last
        bit on another processor, and are still the same variant.
        """
        if self.edits:
            return hashlib.sha256(f"{self.base_sha256} {self.edits[-1].sha256}".encode()).hexdigest()
        digest = hashlib.sha256(str(self.network).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name}\t{value.dtype}\t{tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
