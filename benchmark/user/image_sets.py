"""Image sets that a user names: by a folder, by Parquet files, or by the id of a built-in set."""

import json
import os
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import UserError
from benchmark.images.entries import ClassPart, Columns, ImageSetEntry
from benchmark.images.image_set import ImageSet, load_image_set, select_images
from benchmark.images.readers import Images, is_image_file, printable, shards_of
from benchmark.public import public_parts
from benchmark.user.ids import COMMAND_LINE, Words, id_of, id_of_place, split_name
from detectors import did_you_mean

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")

# Where the user names no val images, one ID image in VAL_SHARE of each class is held out, but at most VAL_PER_CLASS.
VAL_SHARE, VAL_PER_CLASS = 5, 50
MOST_CLASSES = 1_000_000  # an index above it is no index: the names of all classes below it would fill the memory
SIZED_IMAGES = 20  # so many ID images are opened to find the size of the unit tests


@dataclass(frozen=True, eq=False)
class GivenImages:
    """Images that a Python caller gives as an object.

    origin: that object.
    images: what it holds.
    classes: the names of its classes in the order of their indices, None where its images have no labels.
    """

    origin: Any
    images: Images
    classes: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class NamedSet:
    """An image set that a caller names, or gives.

    option: what the caller calls it, for messages.
    role: what it is for: "test", "train", "val" or "ood".
    id: its id.
    path: where it lies, None of an id of image_sets.toml and of a given object.
    entry: its entry.
    given: the object that it is, None where it lies somewhere.
    """

    option: str
    role: str
    id: str
    path: Path | None
    entry: ImageSetEntry
    given: GivenImages | None = None

    def __str__(self) -> str:
        return f"{self.option} {self.path or self.id}" if self.given is None else self.option

    @property
    def has_entry(self) -> bool:
        """Whether it is an id of image_sets.toml, which names its classes."""
        return self.path is None and self.given is None

    def with_classes(self, classes: tuple[str, ...]) -> "NamedSet":
        """The set with the classes of all, of which the test and the val images may lack some."""
        if self.has_entry:
            return self
        folders = self.path is not None and not _shards(
            self.path, self.entry.split
        )  # an empty folder of a class is a mistake
        may_lack = self.role in ("test", "val") and not (folders and {*_class_names(self)} == {*classes})
        changes = {"classes": classes, "may_lack_classes": may_lack}
        return replace(self, entry=self.entry.model_copy(update=changes))

    def load(self, known: dict[str, ImageSetEntry]) -> ImageSet:
        """Its images; known: the entries of image_sets.toml."""
        if self.given is not None:
            return select_images(self.id, self.entry, self.given.images)
        return load_image_set(self.id, known | {self.id: self.entry})


def named_set(
    role: str, text: str, known: dict[str, ImageSetEntry], data_dir: Path, words: Words = COMMAND_LINE
) -> NamedSet:
    """What a text names: a folder, a Parquet file, a folder of those or FOLDER:SPLIT, or an id of image_sets.toml."""
    option = getattr(words, role)
    name, place = split_name(text)
    path, split = Path(place).expanduser(), None
    if not path.exists():
        folder, colon, last = place.rpartition(":")
        if colon and Path(folder).expanduser().is_dir():
            path, split = Path(folder).expanduser(), last
    if not path.exists():
        if place not in known:
            hint = did_you_mean(place, known)
            raise UserError(f"{option} {place}: there is no such folder or file, and no image set of that id{hint}")
        return NamedSet(option, role, place, None, known[place])
    set_id = name or (id_of(f"{id_of_place(path)}-{split}") if split else id_of_place(path))
    try:
        shards = _shards(path, split)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    with _readable(option, path):
        columns = _parquet_columns(option, role, path, shards) if shards else {}
    if not columns and not any(
        is_image_file(name) for _, _, names in os.walk(path, followlinks=True) for name in names
    ):
        raise UserError(f"{option} {place}: no images there, neither files that Pillow can read nor Parquet files")
    entry = ImageSetEntry.in_file(
        Path(option),
        data_dir,
        title=next(reversed(public_parts(path.resolve())), set_id),
        licence="not stated",
        source=place,
        local=str(path.resolve()),
        split=split,
        **columns,
    )
    return NamedSet(option, role, set_id, path, entry)


@contextmanager
def _readable(option: str, path: Path) -> Iterator[None]:
    """Names what cannot be read of Parquet files."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"{option} {path}: cannot read it: {type(error).__name__}: {error}") from None


def _shards(path: Path, split: str | None) -> list[Path]:
    """The Parquet files at a path: the file itself, or those of the folder. Empty where it is no such place."""
    return [path] if path.suffix == ".parquet" and path.is_file() else shards_of(path, split)


def _parquet_columns(option: str, role: str, path: Path, shards: Sequence[Path]) -> dict[str, Any]:
    """How the columns of Parquet files are called, of an entry."""
    try:
        present = pq.read_schema(shards[0]).names
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path}: cannot read {shards[0]}: {error}") from None
    image = next((name for name in IMAGE_COLUMNS if name in present), None)
    label = next((name for name in LABEL_COLUMNS if name in present), "label")
    if image is None:
        raise UserError(
            f"{option} {path}: its columns are {', '.join(present)}; that of the images is "
            f"called {' or '.join(IMAGE_COLUMNS)} here; a suite file can name another"
        )
    indexed = role != "ood" and label in present and _label_values(shards, label)[1]
    return {"columns": Columns(image=image, label=label), "labels": "index" if indexed else "name"}


def _label_values(shards: Sequence[Path], column: str) -> tuple[list[str], bool]:
    """The classes of Parquet files in the order of their indices, and whether the rows hold indices, not names.

    Raises UserError where a row has no class, or a negative number in its place.
    """
    path, schema = shards[0], pq.read_schema(shards[0])
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    if names := features.get(column, {}).get("names"):
        return names, True
    one_class = "each image needs one class, as a text or a number"
    if pa.types.is_nested(schema.field(column).type):
        raise UserError(f"{path}: column {column} holds {schema.field(column).type}: {one_class}")
    values = {
        value for shard in shards for value in pq.read_table(shard, columns=[column])[column].unique().to_pylist()
    }
    if None in values or any(isinstance(value, int) and value < 0 for value in values):
        raise UserError(f"{path}: column {column}: each image needs a class, and one has none or a negative number")
    if largest := next((value for value in values if isinstance(value, int) and value >= MOST_CLASSES), None):
        raise UserError(
            f"{path}: column {column}: {largest} is no index of a class; there may be {MOST_CLASSES} classes"
        )
    if all(isinstance(value, int) for value in values):  # of truth values, too: they are the classes 0 and 1
        return [str(index) for index in range(max(values) + 1)], True
    if all(isinstance(value, str) for value in values):
        return _sort_names(values), False
    try:
        return list(map(str, sorted(values))), False  # numbers and dates in their own order, not in that of their texts
    except TypeError:
        kinds = " and ".join(sorted({type(value).__name__ for value in values}))
        raise UserError(f"{path}: column {column}: its classes are {kinds}: {one_class}") from None


def _sort_names(names: Iterable[str]) -> list[str]:
    """The names in order; by their values where all of them are numbers."""
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _class_names(given: NamedSet) -> list[str]:
    """The classes that the files of an ID set name, or that a given object has."""
    if given.given is not None:
        if given.given.classes is None:
            raise UserError(f"{given}: in-distribution images need their classes, and these have no labels")
        return list(given.given.classes)
    path = given.path
    assert path is not None
    if shards := _shards(path, given.entry.split):
        label = given.entry.columns.label
        with _readable(given.option, path):
            if label not in pq.read_schema(shards[0]).names:
                raise UserError(f"{given}: in-distribution images need their classes, in a column called label")
            return list(_label_values(shards, label)[0])
    parts = sorted(path.iterdir())
    if loose := next((part for part in parts if is_image_file(part.name)), None):
        raise UserError(f"{given}: {loose.name} has no class: put the images of each class into a folder of its name")
    folders = [part for part in parts if part.is_dir() and not part.name.startswith(".")]
    for folder in folders:
        inside = list(folder.iterdir())
        if any(part.is_dir() for part in inside) and not any(is_image_file(part.name) for part in inside):
            raise UserError(
                f"{given}: {folder.name} holds folders, not images: name the folder whose folders are the classes"
            )
    return _sort_names(printable(folder.name) for folder in folders)


def classes_of(test: NamedSet, splits: Collection[NamedSet]) -> tuple[str, ...]:
    """The classes in the order of their indices: of an image set that has an entry, of train, or of the test images."""
    sets = sorted([test, *splits], key=lambda given: given.role != "train")
    written = [listed for given in sets if given.has_entry and (listed := given.entry.with_classes().classes)]
    own = {given: _class_names(given) for given in sets if not given.has_entry}
    classes = tuple(written[0] if written else next(iter(own.values()), ()))
    for given, names in own.items():
        if unknown := [name for name in names if name not in classes]:
            raise UserError(
                f"{given}: unknown classes {', '.join(unknown[:5])}: the {len(classes)} classes are those of "
                f"{sets[0]} ({', '.join(classes[:5])}, ...)"
            )
    return classes


def check_apart(splits: Sequence[NamedSet], ood: Sequence[NamedSet]) -> None:
    """Raises UserError where two sets have an id or a place in common. No image is read for that."""
    earlier: list[NamedSet] = []
    for given in (*splits, *ood):
        for other in earlier:
            if _same_place(given, other) and not (given in ood and other in ood):
                kind = "what is in-distribution cannot be OOD" if given in ood else "each split needs images of its own"
                raise UserError(f"{given}: these are images of {other}: {kind}")
            if given.id == other.id:
                how = f": name one, as in {given.option} NAME={given.path}" if given.path else "; rename one of them"
                raise UserError(f"{given}: {other} is called {given.id}, too{how}")
        earlier.append(given)


def _same_place(one: NamedSet, other: NamedSet) -> bool:
    if one.given is not None or other.given is not None:
        return one.given is not None and other.given is not None and one.given.origin is other.given.origin
    if one.path is None or other.path is None:
        return one.id == other.id
    if one.entry.split and other.entry.split and one.entry.split != other.entry.split:
        return False
    here, there = one.path.resolve(), other.path.resolve()
    return here.is_relative_to(there) or there.is_relative_to(here)


def hold_out(
    test: NamedSet, splits: dict[str, NamedSet], images: ImageSet, words: Words = COMMAND_LINE
) -> tuple[NamedSet, dict[str, NamedSet], str]:
    """Makes the first test images of each class val images, and keeps the others as test images.

    test: the test images.
    splits: the other splits by role.
    images: the test images, loaded.
    Returns the test images, the splits with val, and a sentence on it for the suite. Where nothing can be held out,
    test images and splits are returned as they are, and the sentence says why.
    """
    smallest = min(Counter([] if images.labels is None else images.labels.tolist()).values(), default=0)
    count = 0 if test.entry.part else min(VAL_PER_CLASS, smallest // VAL_SHARE)
    if not count:
        why = "it is a part of a set already" if test.entry.part else f"its smallest class has {smallest} images"
        return test, splits, f"Nothing of {test.id} is held out as val: {why}."
    first, others = (
        test.entry.model_copy(update={"part": ClassPart(per_class=count, others=others), "images": None})
        for others in (False, True)
    )
    val = replace(test, id=f"{test.id}-val", entry=first)
    held_out = count * len({*images.labels.tolist()} if images.labels is not None else ())
    told = (
        f"Without {words.val}, the first {count} images of each class of {test.id}, {held_out} in all, are held out "
        f"as val; the other {len(images) - held_out} are the test images."
    )
    return replace(test, entry=others), splits | {"val": val}, told


def median_size(images: ImageSet, most: Sequence[int]) -> tuple[int, int]:
    """Height and width of the unit tests, in pixels: the median over some ID images.

    images: the ID images.
    most: height and width to take where the ID images are larger.
    """
    sample = [images[index].size for index in range(0, len(images), -(-len(images) // SIZED_IMAGES))]
    width, height = (int(statistics.median(sides)) for sides in zip(*sample, strict=True))
    return (most[0], most[1]) if min(height, width) > min(most) else (height, width)
