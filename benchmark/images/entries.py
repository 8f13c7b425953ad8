"""Entries of `image_sets.toml`: what an image set holds and where it comes from. No image is read here."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmark.entries import Entry
from benchmark.errors import Remedy, UserError
from benchmark.images.corruptions import Corruption
from benchmark.images.decoding import AS_PAPERS, Decoding
from benchmark.images.readers import read_list
from benchmark.images.sources import ManualSource, Source

BUILT_IN = Path(__file__).parent / "image_sets.toml"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Table):
    """The names of the columns of a Parquet file.

    image: the column of the images: a struct of bytes and path, as `datasets` writes it.
    label: the column of the classes. It is read only where the entry names classes.
    id: the column of the images' ids. Where the file has no such column, the rows are numbered.
    """

    image: str = "image"
    label: str = "label"
    id: str = "id"


class ClassPart(_Table):
    """A part of an image set: the first images of each class, in the set's order, or all other images.

    per_class: how many images of each class are the first ones.
    others: whether the part is all images but the first ones.
    """

    per_class: int = Field(ge=1)
    others: bool = False


class Contamination(_Table):
    """The share of an OOD set's images that show an ID class, found by people who looked at a sample of the images.

    of: the image set whose classes are the ID classes, in words.
    share: the share, 0 to 1.
    inspected: how many images were looked at.
    source: who looked at them, and where that is published.
    """

    of: str
    share: float = Field(ge=0, le=1)
    inspected: int = Field(ge=1)
    source: str


def listed_files(place: Path, listed: Path | None) -> set[str] | None:
    """The paths of the files that a list names, below `place`; None where there is no list.

    A list that has not been fetched yet gives no paths. Raises UserError where the list is wrong (see `read_list`).
    """
    if listed is None:
        return None
    place = place.resolve()
    return {f"{place}/{path}" for path, _ in read_list(listed)} if listed.is_file() else set()


class ImageSetEntry(Entry):
    """One entry of a file of image sets. Exactly one of `parquet`, `folder` and `local` says where the images are.

    title: the name of the set, for people.
    licence: the licence of the images, in words.
    source: who made or collected the images, in words.
    images: how many images the set must have, or several counts where several forms of the set are accepted.
    classes: the classes in the order of their indices, as folders, lists or columns name them. Empty: no labels.
    class_names: a word for each class, for vision-language models. Empty: the words are `classes`.
    class_list: a CSV file in place of `classes` and `class_names`, with the columns class and name.
    class_groups: groups of classes by name. The figures of each group are computed, too.
    may_lack_classes: whether some of `classes` may have no images, as in a test set of some classes of a network.
    labels: whether the data name a class by its name, or by its index in `classes`.
    parquet: a Parquet file beside this file.
    folder: a folder of images beside this file.
    local: a path below the data folder: a Parquet file, a folder of Parquet files, or a folder of images.
    sources: where `local` can be fetched from. They are tried in this order.
    list_id: which list of images this is, where a set exists in several forms; in words.
    list_file: a file below the data folder that lists the images of the set, and perhaps their classes (see
        `benchmark.images.readers.read_list`). Its paths start from `local`.
    columns: the names of the columns of Parquet files.
    split: of a folder with the Parquet files of several splits, as on the Hub, the split that is the set.
    rows: values by column. Only the rows of a Parquet file that have all these values belong to the set.
    leave_out: folders and classes whose images do not belong to the set.
    part: which images of each class belong to the set. None: all.
    redistributable: whether the licence allows everyone to pass the images on. None: unknown.
    contamination: how many of the images show an ID class, for an OOD set.
    decoding: how image files are decoded where decoders differ.
    corruption: how the decoded images are changed. None: they are not.
    """

    title: str
    licence: str
    source: str
    images: int | tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    class_list: Path | None = None
    class_groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    may_lack_classes: bool = False
    labels: Literal["name", "index"] = "name"
    parquet: Path | None = None
    folder: Path | None = None
    local: str | None = None
    sources: tuple[Source, ...] = ()
    list_id: str | None = None
    list_file: str | None = None
    columns: Columns = Columns()
    split: str | None = None
    rows: dict[str, str] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    part: ClassPart | None = None
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
        """The file or the folder of the images."""
        return self.parquet or self.folder or self.data_dir / str(self.local)

    @property
    def listed(self) -> Path | None:
        """The list of the images that belong to the set; None where there is no list."""
        return None if self.list_file is None else self.data_dir / self.list_file

    def with_classes(self) -> Self:
        """The entry with the classes of its class list filled in.

        Raises UserError where a line of the class list is wrong, or a group names an unknown class.
        """
        entry = self.model_copy(update=_read_class_list(self.class_list)) if self.class_list else self
        for group, members in entry.class_groups.items():
            if unknown := [name for name in members if name not in entry.classes]:
                raise UserError(f"class_groups.{group}: {unknown[0]!r} is no class of the set; correct {entry.file}")
        return entry

    def remedy(self, set_id: str) -> Remedy | None:
        """How to get the images; None where there are only manual downloads."""
        if all(isinstance(source, ManualSource) for source in self.sources):
            return None
        return Remedy("fetch", set_id, None if self.file == BUILT_IN else self.file, self.data_dir)

    @property
    def by_hand(self) -> str:
        """How to get the images by hand, as the end of an error message; empty where they can be fetched."""
        todo = [f": {' '.join(source.manual.split())}" for source in self.sources if isinstance(source, ManualSource)]
        if len(todo) < len(self.sources):
            return ""
        return f"; get it by hand{''.join(todo)} (paths start from {self.data_dir})"

    def may_overlap(
        self, other: "ImageSetEntry", files: Callable[[Path, Path | None], set[str] | None] = listed_files
    ) -> bool:
        """Whether both sets may hold the same image file or row, corrupted or not. Only entries and lists are read.

        other: the other entry.
        files: gives the files of a list, as `listed_files` does. Pass a version with a cache to compare many sets.
        """
        if any(other.rows.get(column, value) != value for column, value in self.rows.items()):
            return False
        if self.split and other.split and self.split != other.split:
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
        """Whether both are parts of one set that share no image: the first of each class, and some that come later."""
        first, later = (self, other) if other.part and other.part.others else (other, self)
        if not (first.part and later.part) or first.part.others or not later.part.others:
            return False
        same = ("place", "rows", "split", "listed", "columns", "labels", "classes", "class_list", "leave_out")
        return first.part.per_class <= later.part.per_class and all(
            getattr(first, name) == getattr(later, name) for name in same
        )


def _read_class_list(file: Path) -> dict[str, tuple[str, ...]]:
    """The fields `classes` and `class_names` of an entry, from a CSV file with the columns class and name.

    Raises UserError, with the file and the line, where it is not such a file.
    """
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        raise UserError(f"there is no class list {file}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no class list: {error}") from None
    if not lines or lines[0] != ["class", "name"]:
        raise UserError(f"{file}:1: a class list begins with the line: class,name")
    seen: tuple[set[str], set[str]] = set(), set()
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != 2 or not all(value.strip() for value in line):
            raise UserError(f"{file}:{number}: a class and its name are expected, not {','.join(line)!r}")
        for value, before in zip(line, seen, strict=True):
            if value in before:
                raise UserError(f"{file}:{number}: {value!r} is there twice")
            before.add(value)
    if len(lines) < 2:
        raise UserError(f"{file} lists no class")
    return {"classes": tuple(line[0] for line in lines[1:]), "class_names": tuple(line[1] for line in lines[1:])}
