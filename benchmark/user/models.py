"""Models that a user names: by the id of a built-in model, by a checkpoint, or by a function that makes one."""

from collections.abc import Iterable
from pathlib import Path

from benchmark.errors import UserError
from benchmark.models.entries import MODULE, OPEN_CLIP, ModelEntry
from benchmark.user.ids import COMMAND_LINE, Words, id_of, id_of_place, split_name
from detectors import did_you_mean

_KINDS = ("hf-hub:", "local-dir:", OPEN_CLIP, MODULE)


# --- Models. ---


def named_model(text: str, known: dict[str, ModelEntry], words: Words = COMMAND_LINE) -> tuple[str, ModelEntry]:
    """The id and the entry of what a text names: an id of a model file, or a source."""
    name, source = split_name(text)
    if source in known:
        return name or source, known[source]
    if ":" not in source:
        _check_timm_name(source, known, words)
    elif not source.startswith(_KINDS):
        source = f"{MODULE}{source}"
    if source.startswith("local-dir:") and not (_folder_of(source) / "config.json").is_file():
        missing = _folder_of(source) / "config.json"
        raise UserError(f"{words.model} {text}: there is no {missing}: name a folder in timm's hub format")
    return name or _id_of_source(source), ModelEntry.in_file(Path(words.model), title=source, source=source)


def _check_timm_name(source: str, known: Iterable[str], words: Words) -> None:
    import timm  # here, since it is slow to import

    if timm.is_model(source):
        return
    if Path(source).is_dir():
        raise UserError(f"{words.model} {source}: of a folder in timm's hub format, say local-dir:{source}")
    hint = did_you_mean(source, [*known, *timm.list_models()])
    raise UserError(
        f"{words.model} {source}: no model of benchmark/models/models.toml or of timm is called so{hint}; or name "
        "hf-hub:OWNER/NAME, local-dir:PATH, open-clip:NAME/TAG or a function of yours, MODULE:FUNCTION"
    )


def _folder_of(source: str) -> Path:
    return Path(source.partition("local-dir:")[2]).expanduser()


def _id_of_source(source: str) -> str:
    """The id of a model: the last part of a folder or of a Hub repository; of other sources the whole."""
    place = source.removeprefix(OPEN_CLIP).removeprefix(MODULE)
    if place.startswith("local-dir:"):
        return id_of_place(_folder_of(place))
    return id_of(place.rpartition("/")[2] if place.startswith("hf-hub:") else place)
