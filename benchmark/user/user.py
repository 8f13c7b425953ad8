"""A user's own: suites of models and images that the command line names, and detectors of a file of theirs."""

import importlib.util
import json
import os
import re
import statistics
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from benchmark.entries import read_entries, read_toml
from benchmark.images.image_set import BUILT_IN as IMAGE_SETS
from benchmark.images.image_set import Columns, ImageSet, ImageSetEntry, Part, load_image_set
from benchmark.images.readers import shards_of
from benchmark.models.model import BUILT_IN as MODELS
from benchmark.models.model import MODULE, OPEN_CLIP, ModelEntry
from benchmark.records import ID_LENGTH, ID_PATTERN, ModelRecord
from benchmark.suites.suite import Suite, SuiteEntry, Variants, load_suite, make_suite
from detectors import available, describe, did_you_mean

FILE = Path(__file__).with_suffix(".toml")
DEFAULT_SUITE = "digits"
_KINDS = ("hf-hub:", "local-dir:", OPEN_CLIP, MODULE)
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")

# Of each class, one ID image in so many is held out as val where nobody names one, and at most so many.
VAL_SHARE, VAL_PER_CLASS = 5, 50
SIZED_IMAGES = 20
SHOWN = 8
CHANCE_MARGIN = 0.1  # of the way from chance to a perfect accuracy


@dataclass(frozen=True)
class Named:
    """What the options of a command line name, as they were given. detectors: the ids that the user's files define."""

    suite: str
    data_dir: Path
    models: Sequence[str] = ()
    id: str | None = None
    train: str | None = None
    val: str | None = None
    ood: Sequence[str] = ()
    outputs: str | None = None
    detectors: Collection[str] = ()

    def make_suite(self) -> Suite:
        """The suite of it all. Raises ValueError, naming the option, for what is missing or does not fit."""
        self._check()
        if self.outputs is not None:
            from benchmark.user.outputs import suite_of_outputs  # here, since it builds on this module

            return suite_of_outputs(*split_name(self.outputs))
        if self.id is not None:
            suite = self._of_images(self.id)
        else:
            suite = load_suite(self.suite, self.data_dir)
            suite = self._with_models(suite) if self.models else suite
        return replace(
            suite,
            detectors=_joined(suite.detectors, self.detectors),
            unit_test_detectors=_joined(suite.unit_test_detectors, self.detectors),
        )

    def _check(self) -> None:
        if self.suite != DEFAULT_SUITE and (self.id or self.outputs):
            raise ValueError(f"--suite {self.suite}: it has images of its own: leave it out, or --id and --outputs")
        sets = {"--id": self.id, "--train": self.train, "--val": self.val, "--ood": self.ood}
        given = [option for option, value in {"--model": self.models, **sets}.items() if value]
        if self.outputs is not None and given:
            raise ValueError(f"--outputs: a run has either precomputed outputs or {' and '.join(given)}: leave one out")
        if self.id is not None and not self.models:
            raise ValueError(f"--id {self.id}: name the network that meets these images with --model")
        if self.id is None and (alone := [option for option in given if option != "--model"]):
            raise ValueError(f"{' and '.join(alone)}: name the in-distribution test images with --id, too")

    def _models(self, known: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        found: dict[str, ModelEntry] = {}
        for text in self.models:
            id, entry = _model(text, known)
            if id in found:
                raise ValueError(
                    f"--model {text}: two models are called {id}; name one: --model NAME={split_name(text)[1]}"
                )
            found[id] = entry
        return found

    def _with_models(self, suite: Suite) -> Suite:
        """A suite that was written for others, with these models, of which its baselines know nothing."""
        models = self._models(suite.known_models)
        entry = suite.entry.model_copy(
            update={
                "models": tuple(models),
                "variants": Variants(models=(), detectors=()),
                "thresholds": None,
                "published": suite.entry.published if {*self.models} <= suite.known_models.keys() else (),
            }
        )
        return make_suite(suite.id, entry, suite.known_models | models, suite.image_sets)

    def _of_images(self, id: str) -> Suite:
        known_models = read_entries(MODELS, ModelEntry, data_dir=self.data_dir)
        known_sets = read_entries(IMAGE_SETS, ImageSetEntry, data_dir=self.data_dir)
        models = self._models(known_models)
        find = partial(_set, known=known_sets, data_dir=self.data_dir)
        test, ood = find("--id", id), [find("--ood", text) for text in self.ood]
        named = {"train": self.train, "val": self.val}
        splits = {role: find(f"--{role}", text) for role, text in named.items() if text}
        _check_apart([test, *splits.values()], ood)
        classes = _classes(test, splits.values())
        test, *others = (given.with_classes(classes) for given in (test, *splits.values()))
        splits = dict(zip(splits, others, strict=True))

        images = load_image_set(test.id, known_sets | {test.id: test.entry})
        about = []
        if "val" not in splits:
            test, splits, told = _hold_out(test, splits, images)
            about.append(told)
        about += [left_out(available(), [role], f"--{role}") for role in ("train", "val") if role not in splits]
        table = read_toml(FILE)
        table |= {
            "title": f"{', '.join(models)} on {test.id}",
            "about": " ".join(filter(None, about)),
            "models": tuple(models),
            "in_distribution": {"test": test.id} | {role: given.id for role, given in splits.items()},
            "ood": {"far": [given.id for given in ood]},
            "unit_tests": table["unit_tests"] | {"size": _size(images, table["unit_tests"]["size"])},
        }
        sets = {given.id: given.entry for given in (test, *splits.values(), *ood)}
        entry = SuiteEntry.parse(table, FILE, "", self.data_dir)
        return make_suite(f"own-{_suite_name(id, test)}", entry, known_models | models, known_sets | sets)


def split_name(text: str) -> tuple[str | None, str]:
    """The two parts of NAME=WHAT, and no name where there is only WHAT."""
    name, equals, what = text.partition("=")
    return (name, what) if equals and re.fullmatch(ID_PATTERN, name) else (None, text)


def _suite_name(text: str, test: "_Set") -> str:
    """What tells a suite of these ID images from others: the name that they were given, or their folder and its own."""
    if test.path is None or split_name(text)[0]:
        return test.id
    return id_of("-".join(test.path.resolve().with_suffix("").parts[-2:]))


def id_of(text: str) -> str:
    """An id made of a text: each run of other characters becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip(".+_-") or "own"


def left_out(detectors: Iterable[str], needs: Collection[str], lacking: str) -> str:
    """A sentence on the detectors that have no cases because a run lacks something of what they need."""
    ids = [id for id in detectors if set(needs) & set(describe(id)["needs"])]
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} others" if len(ids) > SHOWN else "")
    return f"Without {lacking}, {len(ids)} detectors have no cases: {shown}." if ids else ""


def near_chance(models: Iterable[ModelRecord]) -> Iterator[str]:
    """A warning for each model that classifies ID images hardly better than chance."""
    for model in models:
        accuracy, chance = model.id_accuracy, 1 / model.classes
        if accuracy and accuracy.value <= chance + CHANCE_MARGIN * (1 - chance):
            yield (
                f"WARNING: {model.id} classifies {accuracy.value:.1%} of the ID images right, chance is {chance:.1%}: "
                "are the classes in the order that it was trained with? Folders are in alphabetical order, or in that "
                "of their numbers"
            )


# --- Models. ---


def _model(text: str, known: dict[str, ModelEntry]) -> tuple[str, ModelEntry]:
    """The id and the entry of what --model names: an id of a model file, or a source."""
    name, source = split_name(text)
    if source in known:
        return name or source, known[source]
    if ":" not in source:
        _check_timm_name(source, known)
    elif not source.startswith(_KINDS):
        source = f"{MODULE}{source}"
    if source.startswith("local-dir:") and not (_folder_of(source) / "config.json").is_file():
        raise ValueError(
            f"--model {text}: there is no {_folder_of(source) / 'config.json'}: name a folder in timm's hub format"
        )
    return name or _id_of_source(source), ModelEntry(title=source, source=source, file=Path("--model"))


def _check_timm_name(source: str, known: Iterable[str]) -> None:
    import timm  # here, since it is slow to import

    if timm.is_model(source):
        return
    if Path(source).is_dir():
        raise ValueError(f"--model {source}: of a folder in timm's hub format, say local-dir:{source}")
    hint = did_you_mean(source, [*known, *timm.list_models()])
    raise ValueError(
        f"--model {source}: no model of benchmark/models/models.toml or of timm is called so{hint}; or name "
        "hf-hub:OWNER/NAME, local-dir:PATH, open-clip:NAME/TAG or a function of yours, MODULE:FUNCTION"
    )


def _folder_of(source: str) -> Path:
    return Path(source.partition("local-dir:")[2])


def _id_of_source(source: str) -> str:
    """The last part of a folder or of a hub repository, and all of what is neither."""
    place = source.removeprefix(OPEN_CLIP).removeprefix(MODULE)
    if place.startswith("local-dir:"):
        place = _folder_of(place).resolve().name
    return id_of(place.rpartition("/")[2] if place.startswith("hf-hub:") else place)


# --- Image sets. ---


@dataclass(frozen=True, eq=False)
class _Set:
    """An image set that an option names. path: where it lies, None of an id of image_sets.toml."""

    option: str
    id: str
    path: Path | None
    entry: ImageSetEntry

    def __str__(self) -> str:
        return f"{self.option} {self.path or self.id}"

    def with_classes(self, classes: tuple[str, ...]) -> "_Set":
        return self if self.path is None else replace(self, entry=self.entry.model_copy(update={"classes": classes}))


def _set(option: str, text: str, known: dict[str, ImageSetEntry], data_dir: Path) -> _Set:
    """What an option names: a folder, a Parquet file or a folder of those, or an id of image_sets.toml."""
    name, place = split_name(text)
    path = Path(place)
    if not path.exists():
        if place not in known:
            hint = did_you_mean(place, known)
            raise ValueError(f"{option} {place}: there is no such folder or file, and no image set of that id{hint}")
        return _Set(option, place, None, known[place])
    id = name or id_of(path.resolve().name.removesuffix(".parquet"))
    columns = _parquet_columns(option, path) if _shards(path) else {}
    if not columns and not any(_is_image(name) for _, _, names in os.walk(path, followlinks=True) for name in names):
        raise ValueError(f"{option} {place}: no images there, neither files that Pillow can read nor Parquet files")
    entry = ImageSetEntry(
        title=path.resolve().name,
        licence="not stated",
        source=place,
        local=str(path.resolve()),
        file=Path(option),
        data_dir=data_dir,
        **columns,
    )
    return _Set(option, id, path, entry)


def _shards(path: Path) -> list[Path]:
    """The Parquet files at a path: itself, or those in the folder."""
    return [path] if path.suffix == ".parquet" and path.is_file() else shards_of(path)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in Image.registered_extensions()


def _parquet_columns(option: str, path: Path) -> dict[str, Any]:
    """How the columns of Parquet files are called, of an entry."""
    try:
        present = pq.read_schema(_shards(path)[0]).names
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {path}: cannot read {_shards(path)[0]}: {error}") from None
    image = next((name for name in _IMAGE_COLUMNS if name in present), None)
    label = next((name for name in _LABEL_COLUMNS if name in present), "label")
    if image is None:
        raise ValueError(
            f"{option} {path}: its columns are {', '.join(present)}; that of the images is "
            f"called {' or '.join(_IMAGE_COLUMNS)} here; a suite file can name another"
        )
    indexed = option != "--ood" and label in present and _label_values(path, label)[1]
    return {"columns": Columns(image=image, label=label), "labels": "index" if indexed else "name"}


def _label_values(path: Path, column: str) -> tuple[list[str], bool]:
    """The classes of Parquet files in the order of their indices, and whether rows hold indices, not names."""
    schema = pq.read_schema(_shards(path)[0])
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    if names := features.get(column, {}).get("names"):
        return names, True
    values = {
        value
        for shard in _shards(path)
        for value in pq.read_table(shard, columns=[column])[column].unique().to_pylist()
    }
    if None in values or any(isinstance(value, int) and value < 0 for value in values):
        raise ValueError(f"{path}: column {column}: each image needs a class, and one has none or a negative number")
    if all(isinstance(value, int) for value in values):
        return [str(index) for index in range(max(values) + 1)], True
    return _in_order(map(str, values)), False


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted, numerically where all are numbers."""
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _class_names(given: _Set) -> list[str]:
    """The classes that the files of an ID set name."""
    path = given.path
    assert path is not None
    if _shards(path):
        label = given.entry.columns.label
        if label not in pq.read_schema(_shards(path)[0]).names:
            raise ValueError(f"{given}: in-distribution images need their classes, in a column called label")
        return _label_values(path, label)[0]
    parts = sorted(path.iterdir())
    if loose := next((part for part in parts if _is_image(part.name)), None):
        raise ValueError(f"{given}: {loose.name} has no class: put the images of each class into a folder of its name")
    folders = [part for part in parts if part.is_dir() and not part.name.startswith(".")]
    for folder in folders:
        inside = list(folder.iterdir())
        if any(part.is_dir() for part in inside) and not any(_is_image(part.name) for part in inside):
            raise ValueError(
                f"{given}: {folder.name} holds folders, not images: name the folder whose folders are the classes"
            )
    return _in_order(folder.name for folder in folders)


def _classes(test: _Set, splits: Collection[_Set]) -> tuple[str, ...]:
    """The classes in the order of their indices: of an image set that has an entry, of train, or of the test images."""
    sets = sorted([test, *splits], key=lambda given: given.option != "--train")
    written = [listed for given in sets if given.path is None and (listed := given.entry.with_classes().classes)]
    own = {given: _class_names(given) for given in sets if given.path is not None}
    classes = tuple(written[0] if written else next(iter(own.values()), ()))
    for given, names in own.items():
        if unknown := [name for name in names if name not in classes]:
            raise ValueError(
                f"{given}: unknown classes {', '.join(unknown[:5])}: the {len(classes)} classes are those of "
                f"{sets[0]} ({', '.join(classes[:5])}, ...)"
            )
    return classes


def _check_apart(splits: Sequence[_Set], ood: Sequence[_Set]) -> None:
    """Raises ValueError where two sets are the same images, or share an id, as far as their places tell."""
    met: list[_Set] = []
    for given in (*splits, *ood):
        for other in met:
            if _same_place(given, other) and not (given in ood and other in ood):
                kind = "what is in-distribution cannot be OOD" if given in ood else "each split needs images of its own"
                raise ValueError(f"{given}: these are images of {other}: {kind}")
            if given.id == other.id:
                raise ValueError(
                    f"{given}: {other} is called {given.id}, too: name one, as in {given.option} NAME={given.path}"
                )
        met.append(given)


def _same_place(one: _Set, other: _Set) -> bool:
    if one.path is None or other.path is None:
        return one.id == other.id
    here, there = one.path.resolve(), other.path.resolve()
    return here.is_relative_to(there) or there.is_relative_to(here)


def _hold_out(test: _Set, splits: dict[str, _Set], images: ImageSet) -> tuple[_Set, dict[str, _Set], str]:
    """The test images without the first of each class, which become val, and what is to be said of that."""
    smallest = min(Counter([] if images.labels is None else images.labels.tolist()).values(), default=0)
    count = 0 if test.entry.part else min(VAL_PER_CLASS, smallest // VAL_SHARE)
    if not count:
        why = "it is a part of a set already" if test.entry.part else f"its smallest class has {smallest} images"
        return test, splits, f"Nothing of {test.id} is held out as val: {why}."
    first, others = (
        test.entry.model_copy(update={"part": Part(per_class=count, others=others), "images": None})
        for others in (False, True)
    )
    val = replace(test, id=f"{test.id}-val", entry=first)
    held_out = count * len(images.classes)
    told = (
        f"Without --val, the first {count} images of each class of {test.id}, {held_out} in all, are held out as val; "
        f"the other {len(images) - held_out} are the test images."
    )
    return replace(test, entry=others), splits | {"val": val}, told


def _size(images: ImageSet, most: Sequence[int]) -> tuple[int, int]:
    """Height and width of the unit tests: the median of some ID images, or `most` where those are larger."""
    sample = [images[index].size for index in range(0, len(images), -(-len(images) // SIZED_IMAGES))]
    width, height = (int(statistics.median(sides)) for sides in zip(*sample, strict=True))
    return (most[0], most[1]) if min(height, width) > min(most) else (height, width)


# --- Detectors. ---


def load_detectors(file: str) -> list[str]:
    """Runs a file that registers detectors, and gives their ids; a ValueError that names the file where that fails."""
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"--detectors {file}: there is no such file")
    before = set(available())
    specification = importlib.util.spec_from_file_location(str(path), path)
    if specification is None or specification.loader is None:
        raise ValueError(f"--detectors {file}: this is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[str(path)] = module  # where dataclasses, and whoever hashes the source, look it up
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is somebody else's code
        raise ValueError(f"--detectors {file}: {_place(error, path)}{type(error).__name__}: {error}") from error
    if not (new := sorted(set(available()) - before)):
        raise ValueError(f"--detectors {file}: it registers no detector; see `Add a detector` in CONTRIBUTING.md")
    if odd := [id for id in new if not re.fullmatch(ID_PATTERN, id) or len(id) > ID_LENGTH]:
        raise ValueError(
            f"--detectors {file}: {odd[0][:ID_LENGTH]!r} cannot be an id: take up to {ID_LENGTH} letters, digits and "
            ". + _ -, letter or digit first"
        )
    return new


def _place(error: BaseException, path: Path) -> str:
    """The line of a file in which an error came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"line {line}: " if line else ""


def _joined(some: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*some, *more)))
