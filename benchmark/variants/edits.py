"""Edits: what turns a base network into a variant, and how that is kept in files."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from benchmark.files import write_atomically
from benchmark.variants.low_rank import drop_minor_components


class EditError(ValueError):
    """An edit that cannot be read, or that does not fit the network; the message names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a network. What it does not name stays as it is in the base.

    weights: tensors that take the place of the network's of the same name, in whatever precision they are kept.
    masks: by the name of a weight, which of its entries stay (bool, of its shape); the others become zero.
    ratios: by the name of a weight, the share of its singular values that is dropped, the smallest first.
    about: what it is and how it was made, as JSON: `method`, `settings`, `base_sha256` and what the method adds.
    """

    about: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """A hash of what it changes."""
        digest = hashlib.sha256(json.dumps(self.ratios, sort_keys=True).encode())
        for kind, tensors in (("weight", self.weights), ("mask", self.masks)):
            for name, value in sorted(tensors.items()):
                digest.update(f"{kind}\t{name}\t{value.dtype}\t{tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def apply(self, network: nn.Module) -> None:
        """Changes a network in place. Raises EditError, and changes nothing, where a name or a shape is not its."""
        tensors = network.state_dict()
        self._check(tensors)
        with torch.no_grad():
            for name, value in self.weights.items():
                tensors[name].copy_(value)
            for name, ratio in self.ratios.items():
                tensors[name].copy_(drop_minor_components(tensors[name], ratio))
            for name, mask in self.masks.items():
                tensors[name].mul_(mask.to(tensors[name].device))

    def _check(self, tensors: dict[str, Tensor]) -> None:
        for name in (*self.weights, *self.masks, *self.ratios):
            if name not in tensors:
                raise EditError(f"the network has no tensor {name!r}; the edit is of another architecture")
        for name, value in (*self.weights.items(), *self.masks.items()):
            if value.shape != tensors[name].shape:
                raise EditError(f"{name}: the edit has shape {tuple(value.shape)}, not {tuple(tensors[name].shape)}")
            if not torch.isfinite(value).all():
                raise EditError(f"{name}: values of the edit are not finite")
        for name, ratio in self.ratios.items():
            if not 0 <= ratio <= 1:
                raise EditError(f"{name}: a ratio lies between 0 and 1, got {ratio}")
            if tensors[name].ndim not in (2, 4):
                raise EditError(
                    f"{name}: a ratio needs a matrix or a convolution's kernels, not {tensors[name].ndim} axes"
                )

    def save(self, folder: Path) -> None:
        """Writes edit.json and edit.safetensors, the latter first: a folder without the former holds no edit."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights/{name}": value.detach().cpu().contiguous() for name, value in self.weights.items()}
        tensors |= {f"masks/{name}": _pack(mask) for name, mask in self.masks.items()}
        content = save(tensors)
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        described = {
            "about": self.about,
            "ratios": self.ratios,
            "mask_shapes": shapes,
            "sha256": hashlib.sha256(content).hexdigest() if tensors else None,
        }
        if tensors:
            write_atomically(folder / "edit.safetensors", content)
        else:
            (folder / "edit.safetensors").unlink(missing_ok=True)
        write_atomically(folder / "edit.json", (json.dumps(described, indent=1) + "\n").encode())


def trained_weights(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """The weights and statistics that a training changed, as an edit keeps them: the rounded ones are the variant.

    Kernels and matrices in float16, where they fit into it; vectors as they are, since a BatchNorm variance may not.
    """
    old = before.state_dict()
    new = {name: value for name, value in after.state_dict().items() if value.is_floating_point()}
    changed = {name: value.detach().clone() for name, value in new.items() if not torch.equal(value, old[name])}
    largest = torch.finfo(torch.float16).max
    return {
        name: value.half() if value.ndim > 1 and value.abs().max() <= largest else value
        for name, value in changed.items()
    }


def load_edit(folder: Path) -> Edit:
    """The edit in a folder. Raises EditError where it is missing, damaged, or not of this form."""
    try:
        described = json.loads((folder / "edit.json").read_text(encoding="utf-8"))
        tensors = {}
        if described["sha256"] is not None:
            content = (folder / "edit.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != described["sha256"]:
                raise EditError(f"{folder / 'edit.safetensors'} is damaged: its SHA-256 is not that in edit.json")
            tensors = load(content)
        weights = {name[8:]: value for name, value in tensors.items() if name.startswith("weights/")}
        masks = {name: _unpack(tensors[f"masks/{name}"], shape) for name, shape in described["mask_shapes"].items()}
        ratios = {str(name): float(ratio) for name, ratio in described["ratios"].items()}
        return Edit(dict(described["about"]), weights, masks, ratios)
    except FileNotFoundError as error:
        raise EditError(f"there is no {error.filename}") from None
    except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        if isinstance(error, EditError):
            raise
        raise EditError(f"{folder} holds no edit: {type(error).__name__}: {error}") from None


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().astype(bool).ravel()))


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape))
    if len(bits) != -(-count // 8):
        raise ValueError(f"{len(bits)} bytes for a mask of shape {shape}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)
