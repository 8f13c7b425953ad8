"""Edits: the change that makes a variant out of a base network, in memory and in files."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.files import write_atomically
from benchmark.models.checksums import ChecksumError, check_checksums, with_checksums
from benchmark.models.low_rank import drop_minor_components


class EditError(UserError):
    """An edit that cannot be read, or that does not fit the network; the message names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a network. Tensors that it does not name stay as they are in the base.

    about: what the edit is and how it was made, as JSON: `method`, `settings`, `base_sha256` and what the method adds.
    weights: tensors that replace those of the network, by name. Their dtype may be another one than the network's.
    masks: by the name of a weight, which of its values stay: bool, of the weight's shape. The others become zero.
    ratios: by the name of a weight, the share of its singular values that is dropped, the smallest first; 0 to 1.
    """

    about: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """A hash of all that the edit changes."""
        digest = hashlib.sha256(json.dumps(self.ratios, sort_keys=True).encode())
        for kind, tensors in (("weight", self.weights), ("mask", self.masks)):
            for name, value in sorted(tensors.items()):
                digest.update(f"{kind}\t{name}\t{value.dtype}\t{tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def apply(self, network: nn.Module) -> None:
        """Changes a network in place. Raises EditError, and changes nothing, where the edit does not fit to it."""
        tensors = network.state_dict()
        self._check_fit(tensors)
        with torch.no_grad():
            for name, value in self.weights.items():
                tensors[name].copy_(value)
            for name, ratio in self.ratios.items():
                tensors[name].copy_(drop_minor_components(tensors[name], ratio))
            for name, mask in self.masks.items():
                tensors[name].mul_(mask.to(tensors[name].device))

    def _check_fit(self, tensors: dict[str, Tensor]) -> None:
        """Raises EditError where a name, a shape or a value does not fit the tensors of the network."""
        for name in (*self.weights, *self.masks, *self.ratios):
            if name not in tensors:
                raise EditError(f"the network has no tensor {name!r}; the edit is of another architecture")
        for name, value in (*self.weights.items(), *self.masks.items()):
            if value.shape != tensors[name].shape:
                raise EditError(f"{name}: the edit has shape {tuple(value.shape)}, not {tuple(tensors[name].shape)}")
            if value.is_complex() or not torch.isfinite(value.to(tensors[name].dtype)).all():
                raise EditError(f"{name}: values of the edit are not finite numbers of {tensors[name].dtype}")
        for name, ratio in self.ratios.items():
            if not 0 <= ratio <= 1:
                raise EditError(f"{name}: a ratio lies between 0 and 1, got {ratio}")
            if tensors[name].ndim not in (2, 4):
                raise EditError(
                    f"{name}: a ratio needs a matrix or a convolution's kernels, not {tensors[name].ndim} axes"
                )

    def save(self, folder: Path) -> None:
        """Writes edit.json and edit.safetensors into a folder.

        edit.json is written last, so that an interrupted run leaves no damaged edit.
        Raises EditError, and leaves the folder as it was, where a value is not finite.
        """
        for name, value in self.weights.items():
            if not torch.isfinite(value).all():
                raise EditError(f"{name} is not finite after the training; allowed: settings that change it less")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights/{name}": value.detach().cpu().contiguous() for name, value in self.weights.items()}
        tensors |= {f"masks/{name}": _mask_to_bits(mask) for name, mask in self.masks.items()}
        content = save(tensors)
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        described = {
            "about": self.about,
            "ratios": self.ratios,
            "mask_shapes": shapes,
            "sha256": hashlib.sha256(content).hexdigest() if tensors else None,
        }
        with with_checksums(folder):
            (folder / "edit.json").unlink(missing_ok=True)
            if tensors:
                write_atomically(folder / "edit.safetensors", content)
            else:
                (folder / "edit.safetensors").unlink(missing_ok=True)
            write_atomically(folder / "edit.json", (json.dumps(described, indent=1) + "\n").encode())


def trained_weights(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """The weights and statistics that a training changed, by name, rounded as an edit stores them.

    before: the network before the training.
    after: the network after the training.
    Kernels and matrices become float16, where their values are not too large for it. Vectors keep their dtype, since
    the variances of batch normalisation may be too large. The variant is the network with the rounded values.
    """
    old = before.state_dict()
    new = {name: value for name, value in after.state_dict().items() if value.is_floating_point()}
    changed = {name: value.detach().clone() for name, value in new.items() if not torch.equal(value, old[name])}
    largest = torch.finfo(torch.float16).max
    return {
        name: value.half() if value.ndim > 1 and value.abs().max() <= largest else value
        for name, value in changed.items()
    }


class _About(BaseModel):
    """The fields of `Edit.about` that have a fixed type; a method may add more."""

    model_config = ConfigDict(extra="allow")

    method: str | None = None
    settings: dict[str, Any] = {}
    base_sha256: str | None = None
    classified_by_base: bool = False
    outliers: str | None = None
    outliers_sha256: list[str] = []
    losses: list[float] = []
    trace: list[dict[str, Any]] = []


class _EditFile(BaseModel):
    """The content of edit.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    about: _About
    ratios: dict[str, Annotated[float, Field(ge=0, le=1)]]
    mask_shapes: dict[str, list[Annotated[int, Field(ge=1)]]]
    sha256: str | None


def load_edit(folder: Path) -> Edit:
    """The edit in a folder. Raises EditError where it is missing, damaged, or not of this form."""
    try:
        described = _EditFile.model_validate_json((folder / "edit.json").read_bytes())
        tensors = _read_tensors(folder / "edit.safetensors", described.sha256)
        weights = {name[8:]: value for name, value in tensors.items() if name.startswith("weights/")}
        masks = {name[6:]: value for name, value in tensors.items() if name.startswith("masks/")}
        if len(weights) + len(masks) < len(tensors) or masks.keys() != described.mask_shapes.keys():
            raise EditError(f"{folder}: edit.safetensors holds other tensors than edit.json says")
        masks = {name: _bits_to_mask(masks[name], shape) for name, shape in described.mask_shapes.items()}
        check_checksums(folder)  # after what says more of a damaged file
    except ChecksumError as error:
        raise EditError(str(error)) from None
    except FileNotFoundError as error:
        raise EditError(f"there is no {error.filename}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise EditError(f"{folder / 'edit.json'} holds no edit: {place}: {first['msg']}") from None
    except (OSError, SafetensorError) as error:
        raise EditError(f"{folder} cannot be read: {error}") from None
    return Edit(described.about.model_dump(exclude_unset=True), weights, masks, described.ratios)


def _read_tensors(file: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of edit.safetensors; empty where the edit has none. Raises EditError where it has another SHA-256."""
    if sha256 is None:
        if file.exists():
            raise EditError(f"{file} belongs to no edit: edit.json gives no SHA-256 of it")
        return {}
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EditError(f"{file} is damaged: its SHA-256 is not that in edit.json")
    return load(content)


def _mask_to_bits(mask: Tensor) -> Tensor:
    """A mask as bits, uint8 (bytes,): eight values of the mask in a byte."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().astype(bool).ravel()))


def _bits_to_mask(bits: Tensor, shape: list[int]) -> Tensor:
    """The mask of a shape, bool, of its bits. Raises EditError where there are more or fewer bits."""
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise EditError(f"a mask of shape {shape} is kept as {bits.dtype} {tuple(bits.shape)}; its file is damaged")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)
