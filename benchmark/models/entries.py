"""Entries of `models.toml`: checkpoints, and the variants that are made of them. Nothing is loaded here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from benchmark.entries import DATA_DIR, Entry
from benchmark.errors import Remedy, UserError
from benchmark.images.sources import Source
from detectors import did_you_mean

BUILT_IN = Path(__file__).parent / "models.toml"
OPEN_CLIP = "open-clip:"
STATE_DICT = "state-dict:"
MODULE = "module:"


class Preprocessing(BaseModel):
    """As timm names it.

    input_size: channels, height and width. mean, std: of each channel, for values from 0 to 1. crop_pct: the share of
    the resized image's side that is kept. interpolation: how it is resized.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: tuple[Literal[3], PositiveInt, PositiveInt]
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    crop_pct: float = Field(default=1.0, gt=0, le=1)
    crop_mode: Literal["center", "squash", "border"] = "center"
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"


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

    def remedy(self, model_id: str) -> Remedy | None:
        """What to do where its files are missing or damaged; None where nobody says."""
        file = None if self.file == BUILT_IN else self.file
        data_dir = None if self.data_dir == DATA_DIR else self.data_dir
        if self.weights is not None:
            return Remedy("fetch", model_id, file, data_dir)
        if isinstance(self.recipe, str):
            return Remedy("run", self.recipe) if self.recipe else None
        return Remedy("make", model_id, file, data_dir)


class ModelError(UserError):
    """A checkpoint that cannot be used; the message names the model, the checkpoint and the remedy."""


class MissingWeightsError(ModelError):
    """Weights that nobody has fetched yet."""


def base_of(model_id: str, entries: Mapping[str, ModelEntry]) -> str:
    """The base of a variant. Raises ModelError where the entries lack it."""
    base = str(entries[model_id].base)
    if base not in entries:
        hint = did_you_mean(base, entries)
        raise ModelError(
            f"model {model_id}: no model is called {base!r}{hint}; correct `base` in {entries[model_id].file}"
        )
    return base


def root_of(model_id: str, entries: Mapping[str, ModelEntry]) -> ModelEntry:
    """The entry of the checkpoint that a model is or, over all its edits, is made of."""
    met = [model_id]
    while entries[met[-1]].edit is not None:
        met.append(base_of(met[-1], entries))
        if met[-1] in met[:-1]:
            raise ModelError(
                f"model {model_id}: its bases go in a circle: {' -> '.join(met)}; correct `base` in "
                f"{entries[model_id].file}"
            )
    return entries[met[-1]]


def is_vision_language(model_id: str, entries: Mapping[str, ModelEntry]) -> bool:
    return root_of(model_id, entries).source.startswith(OPEN_CLIP)
