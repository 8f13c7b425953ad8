"""Models: networks with their own preprocessing, named by entries of a TOML file, and the variants made of them."""

import copy
import hashlib
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from benchmark.entries import DATA_DIR, Entry
from benchmark.images.sources import Source
from benchmark.models.edits import Edit, EditError, load_edit
from benchmark.models.preprocessing import Preprocessing, Transform
from detectors import Head, did_you_mean

BUILT_IN = Path(__file__).parent / "models.toml"
OPEN_CLIP = "open-clip:"
STATE_DICT = "state-dict:"
MODULE = "module:"


class ModelEntry(Entry):
    """One entry of a model file: a checkpoint (`source`), or a base model with an edit (`base` and `edit`).

    source: a timm checkpoint, where `local-dir:PATH` is relative to the file; `open-clip:` and a vision-language one;
    `state-dict:` and the timm name of the architecture that `weights`, a file under the data folder, are of; or
    `module:NAME:FUNCTION`, a function of the user's that makes the network.
    weights_sha256: of that file. sources: where it comes from, tried in order.
    preprocessing: in place of the checkpoint's own; a state dict has none.
    base: the model that a variant is compared with. edit: the folder of what is changed in it.
    recipe: how it is made: a command, or of an edit the `method` and its settings.
    method, settings: of a checkpoint that was trained otherwise than its base, how.
    prompt: of a vision-language model, the sentence that makes a class of a word.
    papers: what papers call it, by paper.
    group, seed: models of one group differ in their seed alone.
    """

    title: str
    source: str = ""
    weights: str | None = None
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    sources: tuple[Source, ...] = ()
    preprocessing: Preprocessing | None = None
    base: str | None = None
    edit: Path | None = None
    family: str = ""
    pretraining: str = ""
    recipe: str | dict[str, Any] = ""
    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    prompt: str = "a photo of a {}"
    papers: dict[str, str] = Field(default_factory=dict)
    group: str | None = None
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.source) == (self.edit is not None):
            raise ValueError("name where the weights come from: either `source`, or `base` and `edit`")
        if self.edit is not None and self.base is None:
            raise ValueError("an `edit` needs the `base` that it changes")
        if self.edit is not None and self.edit == self.file.parent:
            raise ValueError("`edit` must name a folder of its own")
        if self.source.startswith(STATE_DICT) != (self.weights is not None):
            raise ValueError("`weights` name the file of a `state-dict:ARCHITECTURE` source, and of no other")
        if self.weights is not None and self.preprocessing is None:
            raise ValueError("a state dict does not say how images are prepared: name its `preprocessing`")
        if self.preprocessing is not None and (self.edit is not None or self.source.startswith(OPEN_CLIP)):
            raise ValueError("`preprocessing` is that of the base or of the vision-language model: leave it out")
        return self

    @property
    def weights_file(self) -> Path:
        return self.data_dir / str(self.weights)

    def remedy(self, id: str) -> str:
        """What to do where its files are missing or damaged, as the end of a message."""
        suite = [] if self.file == BUILT_IN else ["--suite", str(self.file)]
        if self.weights is not None:
            folder = [] if self.data_dir == DATA_DIR else ["--data-dir", str(self.data_dir)]
            return f"; get it with: {shlex.join(['python', '-m', 'benchmark', 'fetch', id, *suite, *folder])}"
        make = shlex.join(["python", "-m", "benchmark.variants", id, *suite])
        command = self.recipe if isinstance(self.recipe, str) else make
        return f"; make it again with: {command}" if command else ""


class ModelError(ValueError):
    """A checkpoint that cannot be used; the message names the model, the checkpoint and the remedy."""


class MissingWeightsError(ModelError):
    """Weights that nobody has fetched yet."""


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


def load_model(id: str, entries: Mapping[str, ModelEntry], device: torch.device, class_names: Sequence[str]) -> Model:
    """The model of that id, for these classes: a checkpoint, or its base with an edit.

    class_names: a word for each class, which a vision-language model makes its head of.
    Raises ModelError when a file is missing or damaged, or does not fit the classes, or an edit its base.
    """
    entry = entries[id]
    if entry.edit is None:
        # Imported here, since both build on this module, and open_clip is an extra.
        if entry.source.startswith(OPEN_CLIP):
            from benchmark.models.zero_shot import load_zero_shot

            return load_zero_shot(id, entry, device, class_names)
        from benchmark.models.classifier import load_classifier

        return load_classifier(id, entry, device, class_names)
    root_of(id, entries)  # which ends where bases go in a circle
    base = load_model(base_of(id, entries), entries, device, class_names)
    base_sha256 = base.weights_sha256
    try:
        edit = load_edit(entry.edit)
        if edit.about.get("base_sha256") not in (None, base_sha256):
            raise EditError(f"it was made for other weights than those of {base.id}")
        edit.apply(base.network)
    except EditError as error:
        raise ModelError(
            f"model {id}: cannot apply {entry.edit} (named in {entry.file}) to {base.id}: {error}{entry.remedy(id)}"
        ) from error
    return replace(base, id=id, entry=entry, edits=(*base.edits, edit), base_sha256=base_sha256)


def base_of(id: str, entries: Mapping[str, ModelEntry]) -> str:
    """The base of a variant. Raises ModelError where the entries lack it."""
    base = str(entries[id].base)
    if base not in entries:
        hint = did_you_mean(base, entries)
        raise ModelError(f"model {id}: no model is called {base!r}{hint}; correct `base` in {entries[id].file}")
    return base


def root_of(id: str, entries: Mapping[str, ModelEntry]) -> ModelEntry:
    """The entry of the checkpoint that a model is or, over all its edits, is made of."""
    met = [id]
    while entries[met[-1]].edit is not None:
        met.append(base_of(met[-1], entries))
        if met[-1] in met[:-1]:
            raise ModelError(
                f"model {id}: its bases go in a circle: {' -> '.join(met)}; correct `base` in {entries[id].file}"
            )
    return entries[met[-1]]


def is_vision_language(id: str, entries: Mapping[str, ModelEntry]) -> bool:
    return root_of(id, entries).source.startswith(OPEN_CLIP)
