"""Entries of `models.toml`: checkpoints, and the variants that are made from them. No weights are loaded here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from benchmark.entries import DATA_DIR, Entry
from benchmark.errors import Remedy, UserError
from benchmark.images.sources import Source
from detectors import did_you_mean

BUILT_IN = Path(__file__).parent / "models.toml"
OPEN_CLIP = "open-clip:"
STATE_DICT = "state-dict:"
MODULE = "module:"
TORCHVISION = "torchvision:"
TRANSFORMERS = "transformers:"
LONGEST_SIDE = 4096  # of what a network takes, in pixels
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]


class Preprocessing(BaseModel):
    """How images are prepared, in the words of timm.

    input_size: channels, height and width, in pixels. A side is at most LONGEST_SIDE.
    mean: is subtracted from each channel, for values from 0 to 1.
    std: divides each channel after that.
    crop_pct: the share of the resized image's side that the crop keeps, above 0 and up to 1.
    crop_mode: how an image that is not square is cropped.
    interpolation: how the image is resized.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: tuple[Literal[3], Side, Side]
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    crop_pct: float = Field(default=1.0, gt=0, le=1)
    crop_mode: Literal["center", "squash", "border"] = "center"
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"


class ModelEntry(Entry):
    """One entry of a file of models: a checkpoint (`source`), or a base model with an edit (`base` and `edit`).

    title: the name of the model, for people.
    source: the checkpoint, in one of these forms:
        a timm checkpoint: a tagged timm name, `hf-hub:OWNER/NAME`, or `local-dir:PATH` from this file;
        `open-clip:CHECKPOINT`: a vision-language model of open_clip (see `benchmark.models.zero_shot`);
        `state-dict:ARCHITECTURE`: the weights in the file `weights`, for an architecture of timm;
        `torchvision:NAME` or `transformers:PLACE`: see `benchmark.models.library_networks`;
        `module:NAME:FUNCTION`: a function of the user that makes the network (see `benchmark.models.user_network`).
    weights: the file of a state dict, below the data folder.
    weights_sha256: the SHA-256 of that file, 64 hexadecimal digits.
    sources: where that file can be fetched from. They are tried in this order.
    preprocessing: how images are prepared, in place of what the checkpoint says. A state dict needs it.
    base: the model that a variant is made from, and is compared with.
    edit: the folder that holds the edit of the base.
    family: the family of architectures.
    pretraining: the data that the network was trained on first.
    recipe: how the model is made: a command; for an edit, the `method` and its settings.
    method: the training method of a checkpoint, which is compared with a base that was trained with another one.
    settings: the settings of that method.
    prompt: of a vision-language model, the text of a class. `{}` stands for the class's word.
    papers: the name of the model in papers, by paper.
    group: the name of a group of models that differ only in their seeds.
    seed: the seed of the model in that group.
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
        """The file of the state dict."""
        return self.data_dir / str(self.weights)

    def remedy(self, model_id: str) -> Remedy | None:
        """How to get missing or damaged files again; None where that is unknown."""
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
    """Weights that have not been fetched yet."""


def base_of(model_id: str, entries: Mapping[str, ModelEntry]) -> str:
    """The id of a variant's base. Raises ModelError where `entries` do not have it."""
    base = str(entries[model_id].base)
    if base not in entries:
        hint = did_you_mean(base, entries)
        raise ModelError(
            f"model {model_id}: no model is called {base!r}{hint}; correct `base` in {entries[model_id].file}"
        )
    return base


def root_of(model_id: str, entries: Mapping[str, ModelEntry]) -> ModelEntry:
    """The entry of the checkpoint that a model is made from, over all its edits; its own entry where it has none.

    Raises ModelError where a base is missing, or the bases go in a circle.
    """
    chain = [model_id]
    while entries[chain[-1]].edit is not None:
        chain.append(base_of(chain[-1], entries))
        if chain[-1] in chain[:-1]:
            raise ModelError(
                f"model {model_id}: its bases go in a circle: {' -> '.join(chain)}; correct `base` in "
                f"{entries[model_id].file}"
            )
    return entries[chain[-1]]


def is_vision_language(model_id: str, entries: Mapping[str, ModelEntry]) -> bool:
    """Whether a model is a vision-language model, or a variant of one. Raises ModelError as `root_of` does."""
    return root_of(model_id, entries).source.startswith(OPEN_CLIP)
