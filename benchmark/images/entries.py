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
                raise UserError(f"class_groups.{group}: {unknown[0]!r} is no class of the set; correct {entry.file}")
        return entry

    def remedy(self, set_id: str) -> Remedy | None:
        """What brings its images to their place; None where somebody has to get them by hand."""
        if all(isinstance(source, ManualSource) for source in self.sources):
            return None
        return Remedy("fetch", set_id, None if self.file == BUILT_IN else self.file, self.data_dir)

    @property
    def by_hand(self) -> str:
        """How to get its images by hand, as the end of a message; nothing where they can be fetched."""
        todo = [f": {' '.join(source.manual.split())}" for source in self.sources if isinstance(source, ManualSource)]
        if len(todo) < len(self.sources):
            return ""
        return f"; get it by hand{''.join(todo)} (paths start from {self.data_dir})"

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
