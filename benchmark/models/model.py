"""Models: networks with their own preprocessing."""

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
from detectors import Head


@dataclass(frozen=True, eq=False)
class Model(ABC):
    """A network in evaluation mode on a device, with the preprocessing that its checkpoint asks for.

    edits: what was changed in the checkpoint's network, first to last. base_sha256: the weights hash of the last one's
    base.
    """

    id: str
    entry: ModelEntry
    network: nn.Module
    transform: Transform
    preprocessing: dict[str, Any]
    device: torch.device
    edits: tuple[Edit, ...] = ()
    base_sha256: str | None = None

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W), on the device of the images; torch can differentiate it."""

    @abstractmethod
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All that is stored of images (N, 3, H, W), in one forward pass, on the model's device.

        features (N, D), pooled, before the head; logits (N, C); of a vision-language model with local features also
        patches (N, P, D).
        """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, 3, H, W), on their device; torch can differentiate them."""

    @property
    @abstractmethod
    def head(self) -> Head: ...

    @property
    @abstractmethod
    def architecture(self) -> str: ...

    @property
    def classes(self) -> int:
        return self.head.weight.shape[0]

    @property
    def feature_dimensions(self) -> int:
        return self.head.weight.shape[1]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    def copy(self) -> Self:
        """The same model with a network of its own, to be changed."""
        return replace(self, network=copy.deepcopy(self.network))

    @property
    def classified_by_base(self) -> bool:
        """Whether the base goes on classifying, this network's outputs serving detection alone."""
        return bool(self.edits and self.edits[-1].about.get("classified_by_base"))

    @cached_property
    def weights_sha256(self) -> str:
        """A hash of the network's structure and of every parameter and buffer; of an edited one, of base and edit.

        Low-rank weights may differ in their last bit on another processor, and yet be the same variant.
        """
        if self.edits:
            return hashlib.sha256(f"{self.base_sha256} {self.edits[-1].sha256}".encode()).hexdigest()
        digest = hashlib.sha256(str(self.network).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name}\t{value.dtype}\t{tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
