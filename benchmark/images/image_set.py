"""Image sets: what they hold, where they come from, and how their images are decoded."""

import csv
import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmark.entries import Entry, read_entries
from benchmark.images.corruptions import Corruption
from benchmark.images.decoding import AS_PAPERS, Decoding, DecodingError, decode
from benchmark.images.downloads import is_there
from benchmark.images.hashes import KeptHashes, image_hashes
from benchmark.images.readers import Images, folders_of, in_folder, in_parquet, read_list, shards_of
from benchmark.images.sources import ManualSource, Source

BUILT_IN = Path(__file__).parent / "image_sets.toml"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Table):
    """The columns of a Parquet file. id: rows are numbered where there is none of that name."""

    image: str = "image"
    label: str = "label"
    id: str = "id"


class Part(_Table):
    """The first images of each class, in the set's order, or all the others."""

    per_class: int = Field(ge=1)
    others: bool = False


class Contamination(_Table):
    """The share of a set's images that show a class of some ID classes, as somebody found by looking at a sample."""

    of: str
    share: float = Field(ge=0, le=1)
    inspected: int = Field(ge=1)
    source: str


def listed_files(place: Path, listed: Path | None) -> set[str] | None:
    """The files of a list, None without one. A list that nobody has fetched names none."""
    if listed is None:
        return None
    place = place.resolve()
    return {f"{place}/{path}" for path, _ in read_list(listed)} if listed.is_file() else set()


class ImageSetEntry(Entry):
    """One entry of an image-set file. Its images lie in a `parquet` file or a `folder` beside the entry's own file, or
    at `local` under the data folder, as a Parquet file, a folder of them, or a folder of images.

    source: whose images these are, in words. sources: where `local` comes from, tried in order.
    list_id: which images of a set that exists in several forms. list_file: a file under the data folder with their
    paths below `local`, and perhaps their classes (see `image_files.read_list`).
    images: the expected count, or those of each form that is accepted.
    classes: as folders, lists or columns name them. class_names: a word for each where those are none, for
    vision-language models. class_list: a CSV file of both, with the columns class and name.
    labels: whether a class goes by its name or by its index in `classes`. class_groups: classes to be looked at
    together. rows: which rows of a Parquet file belong to the set, by column. leave_out: folders and classes that do
    not belong to it. redistributable: whether the licence lets anyone pass it on.
    corruption: what is done to the images once they are decoded.
    """

    title: str
    licence: str
    source: str
    images: int | tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    class_list: Path | None = None
    class_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    labels: Literal["name", "index"] = "name"
    parquet: Path | None = None
    folder: Path | None = None
    local: str | None = None
    sources: tuple[Source, ...] = ()
    list_id: str | None = None
    list_file: str | None = None
    columns: Columns = Columns()
    rows: dict[str, str] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    part: Part | None = None
    redistributable: bool | None = None
    contamination: tuple[Contamination, ...] = ()
    decoding: Decoding = AS_PAPERS
    corruption: Corruption | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.parquet, self.folder, self.local].count(None) != 2:
            raise ValueError("name where the images are: one of `parquet`, `folder` and `local`")
        if self.class_list and (self.classes or self.class_names):
            raise ValueError("name the classes once: in `class_list`, or in `classes` and `class_names`")
        if self.class_names and len(self.class_names) != len(self.classes):
            raise ValueError(f"{len(self.class_names)} `class_names` for {len(self.classes)} `classes`")
        if len({name.strip() for name in self.class_names} - {""}) < len(self.class_names):
            raise ValueError("`class_names` must differ from each other, and none be blank")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("`classes` must differ from each other")
        if self.corruption and self.corruption.changes_nothing:
            raise ValueError(f"`corruption`: {self.corruption.kind} of {self.corruption.amount} changes nothing")
        return self

    @property
    def place(self) -> Path:
        """The file or the folder of its images."""
        return self.parquet or self.folder or self.data_dir / str(self.local)

    @property
    def listed(self) -> Path | None:
        """The list of its images, if only some belong to it."""
        return None if self.list_file is None else self.data_dir / self.list_file

    def with_classes(self) -> Self:
        """The entry with the classes of its list. Raises ValueError where a line of it, or a group, is wrong."""
        entry = self.model_copy(update=_read_class_list(self.class_list)) if self.class_list else self
        for group, members in entry.class_groups.items():
            if unknown := [name for name in members if name not in entry.classes]:
                raise ValueError(f"class_groups.{group}: {unknown[0]!r} is no class of the set; correct {entry.file}")
        return entry

    def remedy(self, id: str) -> str:
        """What brings its images to their place, as the end of a message."""
        by_hand = [" ".join(source.manual.split()) for source in self.sources if isinstance(source, ManualSource)]
        if len(by_hand) == len(self.sources):
            return f"get it by hand{''.join(f': {todo}' for todo in by_hand)} (paths start from {self.data_dir})"
        suite = [] if self.file == BUILT_IN else ["--suite", str(self.file)]
        command = ["python", "-m", "benchmark", "fetch", id, *suite, "--data-dir", str(self.data_dir)]
        return f"get it with: {shlex.join(command)}"

    def may_overlap(
        self, other: "ImageSetEntry", files: Callable[[Path, Path | None], set[str] | None] = listed_files
    ) -> bool:
        """Whether both may hold the same image file or row, corrupted or not, as far as their entries and lists tell.

        files: `listed_files`, or the same with a memory for whoever compares many sets.
        """
        if any(other.rows.get(column, value) != value for column, value in self.rows.items()):
            return False
        if self._is_split_from(other):
            return False
        one, another = self.place.resolve(), other.place.resolve()
        if not (one.is_relative_to(another) or another.is_relative_to(one)):
            return False
        mine, theirs = (files(entry.place, entry.listed) for entry in (self, other))
        if mine is not None and theirs is not None:
            return not mine.isdisjoint(theirs)
        if mine is None and theirs is None:
            return True
        unlisted = one if mine is None else another
        return any(Path(file).is_relative_to(unlisted) for file in mine or theirs or ())

    def _is_split_from(self, other: "ImageSetEntry") -> bool:
        """Whether one is the first images of each class, and the other is of those that come later in the same set."""
        first, later = (self, other) if other.part and other.part.others else (other, self)
        if not (first.part and later.part) or first.part.others or not later.part.others:
            return False
        same = ("place", "rows", "listed", "columns", "labels", "classes", "class_list", "leave_out")
        return first.part.per_class <= later.part.per_class and all(
            getattr(first, name) == getattr(later, name) for name in same
        )


def _read_class_list(file: Path) -> dict[str, tuple[str, ...]]:
    """`classes` and `class_names` of a CSV file with these columns, class and name. Raises ValueError."""
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        raise ValueError(f"there is no class list {file}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is no class list: {error}") from None
    if not lines or lines[0] != ["class", "name"]:
        raise ValueError(f"{file}:1: a class list begins with the line: class,name")
    seen: tuple[set[str], set[str]] = set(), set()
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != 2 or not all(value.strip() for value in line):
            raise ValueError(f"{file}:{number}: a class and its name are expected, not {','.join(line)!r}")
        for value, before in zip(line, seen, strict=True):
            if value in before:
                raise ValueError(f"{file}:{number}: {value!r} is there twice")
            before.add(value)
    if len(lines) < 2:
        raise ValueError(f"{file} lists no class")
    return {"classes": tuple(line[0] for line in lines[1:]), "class_names": tuple(line[1] for line in lines[1:])}


class ImageSetError(ValueError):
    """An image set, or one of its images, that cannot be used; the message names the file and the remedy."""


class MissingImageSetError(ImageSetError):
    """An image set that nobody has fetched yet."""


@dataclass(frozen=True)
class ImageSet:
    """Images with their ids and, where they have classes, the index of each one's class and a word for it.

    `encoded(i)` gives the bytes of an image file or the pixels (height, width, 3) of an image that has none.
    about: what else a record says of it: its list, contamination, groups of classes and decoding.
    kept: where the hashes of its images are kept across runs, if they are.
    """

    id: str
    title: str
    licence: str
    source: str
    coding: str
    image_ids: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    encoded: Callable[[int], bytes | np.ndarray]
    class_names: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    decoding: Decoding = AS_PAPERS
    kept: KeptHashes | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Image.Image:
        """The image in RGB, decoded as `decoding` says. A damaged file raises ImageSetError."""
        content = self._content(index)
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        try:
            return decode(content, self.decoding)
        except DecodingError as error:
            raise ImageSetError(
                f"image set {self.id}: cannot decode {self.image_ids[index]}: {error}; "
                "replace the file, or leave it out (and correct the set's image count)"
            ) from None

    @cached_property
    def content_sha256(self) -> str:
        """A hash of every image's id, content and label, in order."""
        hashes, shapes = self._hashed
        digest = hashlib.sha256()
        for index, image_id in enumerate(self.image_ids):
            label = "" if self.labels is None else int(self.labels[index])
            digest.update(shapes.get(index, "").encode())
            digest.update(f"{image_id}\t{hashes[index].tobytes().hex()}\t{label}\n".encode())
        return digest.hexdigest()

    @cached_property
    def image_sha256s(self) -> dict[str, str]:
        """The ids of the images by the first 16 digits of the hash of each one's content."""
        starts = (row.tobytes().hex() for row in self._hashed[0][:, :8])
        return dict(zip(starts, self.image_ids, strict=True))

    @cached_property
    def _hashed(self) -> tuple[np.ndarray, dict[int, str]]:
        """The SHA-256 of each image's content, uint8 (N, 32), and the shape of each that has no file, by its index."""
        shapes: dict[int, str] = {}

        def hash_of(index: int) -> bytes:
            content = self._content(index)
            if isinstance(content, np.ndarray):
                shapes[index] = f"{content.shape}\n"
                content = content.tobytes()
            return hashlib.sha256(content).digest()

        try:
            return image_hashes(self.image_ids, hash_of, self.kept), shapes
        except OSError as error:  # of a link that leads nowhere, say
            raise ImageSetError(
                f"image set {self.id}: cannot read {error.filename}: {error.strerror}; replace the file, or remove it"
            ) from None

    def _content(self, index: int) -> bytes | np.ndarray:
        try:
            return self.encoded(index)
        except (OSError, ValueError) as error:
            raise ImageSetError(f"image set {self.id}: cannot read {self.image_ids[index]}: {error}") from None


def load_image_set(id: str, entries: dict[str, ImageSetEntry] | None = None) -> ImageSet:
    """The image set of that id, from `entries` (the built-in ones by default).

    Raises MissingImageSetError when nobody has fetched it, and ImageSetError when its files hold no image, not the
    expected number of them, or none of a class, or do not fit the entry.
    """
    entries = read_entries(BUILT_IN, ImageSetEntry) if entries is None else entries
    if id not in entries:
        from detectors import did_you_mean  # here, since it brings torch, which is slow to import

        raise ImageSetError(f"no image set is called {id!r}{did_you_mean(id, entries)}; known: {', '.join(entries)}")
    entry = entries[id]
    try:
        _check_is_there(id, entry)
        entry = entry.with_classes()
        image_set = _selected(id, entry, _read(id, entry))
        return _corrupted(image_set, entry.corruption) if entry.corruption else image_set
    except ImageSetError:
        raise
    except (ValueError, OSError) as error:
        raise ImageSetError(f"image set {id}: {error}") from error


def image_set_of_pixels(
    id: str, title: str, images: int, pixels: Callable[[int], np.ndarray], *, licence: str, source: str
) -> ImageSet:
    """An image set without files: pixels(i) gives image i as uint8 (height, width, 3)."""
    ids = tuple(f"{id}-{index:05d}" for index in range(images))
    return ImageSet(id, title, licence, source, "pixels", ids, None, (), pixels)


def _check_is_there(id: str, entry: ImageSetEntry) -> None:
    if entry.parquet and not entry.parquet.is_file():
        raise ImageSetError(f"image set {id}: there is no file {entry.parquet} (named in {entry.file})")
    if entry.folder and not entry.folder.is_dir():
        raise ImageSetError(f"image set {id}: there is no folder {entry.folder} (named in {entry.file})")
    missing = None
    if not is_there(entry.place):
        missing = f"there is no {entry.place}"
    elif entry.listed and not entry.listed.is_file():
        missing = f"there is no list {entry.listed}"
    elif entry.listed and entry.place.is_dir() and not _any_there(entry.place, entry.listed):
        missing = f"none of the images of {entry.listed} are in {entry.place}"
    if missing:
        raise MissingImageSetError(f"image set {id}: {missing}; {entry.remedy(id)}")


def _any_there(folder: Path, listed: Path) -> bool:
    return any((folder / path).is_file() for path, _ in read_list(listed))


def _read(id: str, entry: ImageSetEntry) -> Images:
    place, columns = entry.place, entry.columns
    if place.is_dir() and (entry.folder or not shards_of(place)):
        return in_folder(place, entry.listed)
    if entry.listed:
        raise ValueError(f"`list_file` goes with a folder of images, and {place} holds Parquet files")
    label = columns.label if entry.classes else None
    return in_parquet(place, id, image=columns.image, label=label, id=columns.id, rows=entry.rows)


def _selected(id: str, entry: ImageSetEntry, images: Images) -> ImageSet:
    """The images that belong to the set, with their labels."""
    folders = set(entry.leave_out) - set(entry.classes)
    rows = _outside_of(folders, images.ids) if folders else np.arange(len(images.ids))
    labels = _labels(entry, images, rows) if entry.classes else None
    classes = np.array([name not in entry.leave_out for name in entry.classes], dtype=bool)
    if labels is not None:
        rows, labels = rows[classes[labels]], labels[classes[labels]]
        labels = (np.cumsum(classes) - 1)[labels]
    entry = entry.model_copy(
        update={
            name: tuple(value for value, stays in zip(getattr(entry, name), classes, strict=False) if stays)
            for name in ("classes", "class_names")
        }
    )
    if entry.part:
        chosen = _part(entry.part, np.zeros(len(rows), dtype=np.int64) if labels is None else labels, entry)
        rows, labels = rows[chosen], labels if labels is None else labels[chosen]
    _check_counts(entry, len(rows), labels)
    ids = tuple(images.ids[row] for row in rows.tolist())
    return ImageSet(
        id=id,
        title=entry.title,
        licence=entry.licence,
        source=entry.source,
        coding=images.coding,
        image_ids=ids,
        labels=labels,
        classes=entry.classes,
        encoded=lambda index: images.encoded(int(rows[index])),
        class_names=entry.class_names or entry.classes,
        about={
            "list_id": entry.list_id,
            "redistributable": entry.redistributable,
            "contamination": [found.model_dump() for found in entry.contamination],
            "class_groups": {group: list(members) for group, members in entry.class_groups.items()},
            "decoding": entry.decoding.described(),
        },
        decoding=entry.decoding,
        kept=_kept(id, entry, images) if entry.local else None,
    )


def _kept(id: str, entry: ImageSetEntry, images: Images) -> KeptHashes:
    chosen = f"{entry.place} {entry.rows} {entry.columns.image}"
    return KeptHashes(entry.data_dir / ".hashes" / id, images.files, chosen)


def _corrupted(clean: ImageSet, corruption: Corruption) -> ImageSet:
    return replace(
        clean,
        source=f"{clean.source}; with {corruption.kind}, amount {corruption.amount} (benchmark/images/corruptions.py)",
        coding="pixels",
        encoded=lambda index: corruption(np.asarray(clean[index]), clean.image_ids[index]),
        kept=None,
    )


def _outside_of(folders: set[str], ids: Sequence[str]) -> np.ndarray:
    """The rows of the images that lie in none of the folders. Raises ValueError where one of them holds no image."""
    within = [folders.intersection(folders_of(path)) for path in ids]
    if unmet := folders.difference(*within):
        raise ValueError(f"`leave_out` names {min(unmet)!r}, which is neither a folder of its images nor a class")
    return np.array([row for row, found in enumerate(within) if not found], dtype=np.int64)


def _labels(entry: ImageSetEntry, images: Images, rows: np.ndarray) -> np.ndarray:
    """The index of the class of each image, from the names that may be it.

    The integers of a table are indices too where the classes have other names: the Hub's ImageNet has such a table.
    """
    known = {name: index for index, name in enumerate(entry.classes)}
    indices = {str(index): index for index in known.values()}
    if entry.labels == "index" or (images.integers and not known.keys() & indices.keys()):
        known = indices
    names = [images.names[row] for row in rows.tolist()]
    labels = np.array([next((known[name] for name in some if name in known), -1) for some in names], dtype=np.int64)
    if unknown := sorted({names[row][0] for row in np.flatnonzero(labels < 0).tolist()}):
        expected = f"0 to {len(known) - 1}" if known is indices else ", ".join(list(known)[:20])
        raise ValueError(
            f"unknown classes {unknown[:5]} in {entry.listed or entry.place}; the classes in "
            f'{entry.class_list or entry.file} with `labels` = "{entry.labels}" allow {expected}'
        )
    return labels


def _part(part: Part, labels: np.ndarray, entry: ImageSetEntry) -> np.ndarray:
    """Which images are the first of their class, or the others."""
    counts = np.bincount(labels, minlength=len(entry.classes))
    if counts.min() < part.per_class:
        few = f"class {entry.classes[int(counts.argmin())]} has" if entry.classes else "it has"
        raise ValueError(f"{few} only {counts.min()} images in {entry.place}, and `part` takes {part.per_class}")
    place_in_class = np.empty_like(labels)
    order = labels.argsort(kind="stable")
    place_in_class[order] = np.arange(len(labels)) - (counts.cumsum() - counts)[labels[order]]
    return (place_in_class < part.per_class) != part.others


def _check_counts(entry: ImageSetEntry, images: int, labels: np.ndarray | None) -> None:
    """Raises ValueError where there is no image at all, not the expected number of them, or none of a class.

    A set that is whole by its count or its list may be of some of the classes alone, as ImageNet-R is.
    """
    accepted = (entry.images,) if isinstance(entry.images, int) else entry.images
    counts = np.bincount([] if labels is None else labels, minlength=len(entry.classes))
    missing = [] if labels is None else [name for name, count in zip(entry.classes, counts, strict=True) if not count]
    none = f"no image of class {missing[0]}" if missing else "no image" if not images else ""
    others = f" (and {len(missing) - 1} other classes)" if len(missing) > 1 else ""
    if accepted is not None and images not in accepted:
        raise ValueError(
            f"{images} images in {entry.place}, {' or '.join(map(str, accepted))} expected"
            f"{f', and {none}{others}' if none else ''}; complete the set, or correct `images` in {entry.file}"
        )
    if not images or (missing and accepted is None and entry.listed is None):
        raise ValueError(
            f"{none}{others} in {entry.place}; complete the set, or correct its classes in "
            f"{entry.class_list or entry.file}"
        )
