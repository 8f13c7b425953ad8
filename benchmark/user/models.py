"""Models that a user names: by the id of a built-in model, by a checkpoint, or by a function that makes one."""

import json
from collections.abc import Iterable
from pathlib import Path

from benchmark.errors import UserError
from benchmark.models.entries import (
    MODULE,
    OPEN_CLIP,
    STATE_DICT,
    TORCHVISION,
    TRANSFORMERS,
    ModelEntry,
    Preprocessing,
)
from benchmark.user.ids import COMMAND_LINE, Words, id_of, id_of_place, split_name
from detectors import did_you_mean

_KINDS = ("hf-hub:", "local-dir:", OPEN_CLIP, MODULE, TORCHVISION, TRANSFORMERS)
_FORMS = (
    "name hf-hub:OWNER/NAME, local-dir:PATH, torchvision:NAME, transformers:PATH or OWNER/NAME, open-clip:NAME/TAG, "
    "state-dict:ARCHITECTURE:FILE or a function of yours, MODULE:FUNCTION"
)


# --- Models. ---


def named_model(text: str, known: dict[str, ModelEntry], words: Words = COMMAND_LINE) -> tuple[str, ModelEntry]:
    """The id and the entry of what a text names: an id of a model file, or a source."""
    name, source = split_name(text)
    if source in known:
        return name or source, known[source]
    _refuse_file(source, words)
    if source.startswith(STATE_DICT):
        return _named_weights(name, source, words)
    if ":" not in source:
        _check_timm_name(source, known, words)
    elif not source.startswith(_KINDS):
        source = f"{MODULE}{source}"
    if source.startswith("local-dir:"):
        _check_folder(text, source, words)
    return name or _id_of_source(source), ModelEntry.in_file(Path(words.model), title=source, source=source)


def _refuse_file(source: str, words: Words) -> None:
    """Raises UserError, with what to do, for a file of weights or of a whole network."""
    file = Path(source.removeprefix("local-dir:")).expanduser()
    if not file.is_file() or file.suffix == ".py":
        return
    if file.suffix == ".onnx":
        raise UserError(
            f"{words.model} {source}: networks in ONNX are not run: detectors need features and gradients. Name the "
            f"network in PyTorch, or give its features and logits with {words.outputs}"
        )
    if file.suffix not in (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors"):
        raise UserError(f"{words.model} {source}: this is a file of no kind that holds weights: {_FORMS}")
    raise UserError(
        f"{words.model} {source}: a file of weights does not say of which network they are. Of an architecture of "
        f"timm: {STATE_DICT}ARCHITECTURE:{source}. Of another: write a function that makes the network and loads them "
        f"(torch.load({file.name!r}, weights_only=True)) into my_nets.py, and name my_nets:FUNCTION. A whole network "
        "that torch.save wrote is code, which is run by your function alone"
    )


def _named_weights(name: str | None, source: str, words: Words) -> tuple[str, ModelEntry]:
    """The entry of `state-dict:ARCHITECTURE:FILE`, whose images are prepared as timm does for the architecture."""
    import timm  # here, since it is slow to import

    architecture, _, place = source.removeprefix(STATE_DICT).partition(":")
    file = Path(place).expanduser()
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise UserError(f"{words.model} {source}: timm has no architecture {architecture!r}{hint}")
    if not place or not file.is_file():
        missing = f"there is no file {place}" if place else "name the file of the weights"
        raise UserError(f"{words.model} {source}: {missing}: {STATE_DICT}ARCHITECTURE:FILE")
    config = timm.data.resolve_data_config(timm.models.get_pretrained_cfg(architecture).to_dict(), use_test_size=True)
    entry = ModelEntry.in_file(
        Path(words.model),
        title=source,
        source=f"{STATE_DICT}{architecture}",
        weights=str(file.resolve()),
        preprocessing={key: config[key] for key in Preprocessing.model_fields},
    )
    return name or id_of(f"{architecture}-{file.stem}"), entry


def _check_folder(text: str, source: str, words: Words) -> None:
    """Raises UserError where a folder is none that timm reads."""
    config = _folder_of(source) / "config.json"
    if not config.is_file():
        raise UserError(f"{words.model} {text}: there is no {config}: name a folder in timm's hub format")
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # whose error is told where it is loaded
    if isinstance(content, dict) and "model_type" in content and "architecture" not in content:
        raise UserError(
            f"{words.model} {text}: this is a folder of transformers: name {TRANSFORMERS}{source.partition(':')[2]}"
        )


def _check_timm_name(source: str, known: Iterable[str], words: Words) -> None:
    import timm  # here, since it is slow to import

    if timm.is_model(source):
        return
    if Path(source).is_dir():
        raise UserError(f"{words.model} {source}: of a folder in timm's hub format, say local-dir:{source}")
    hint = did_you_mean(source, [*known, *timm.list_models()])
    raise UserError(
        f"{words.model} {source}: no model of benchmark/models/models.toml or of timm is called so{hint}; or {_FORMS}"
    )


def _folder_of(source: str) -> Path:
    return Path(source.partition("local-dir:")[2]).expanduser()


def _id_of_source(source: str) -> str:
    """The id of a model: the last part of a folder or of a Hub repository; of other sources the whole."""
    place = source.removeprefix(OPEN_CLIP).removeprefix(MODULE)
    if place.startswith("local-dir:"):
        return id_of_place(_folder_of(place))
    if place.startswith(TRANSFORMERS) and Path(place.removeprefix(TRANSFORMERS)).expanduser().is_dir():
        return id_of_place(Path(place.removeprefix(TRANSFORMERS)).expanduser())
    return id_of(place.rpartition("/")[2] if place.startswith(("hf-hub:", TRANSFORMERS)) else place)
