"""Image sets: what they hold, where they come from, and how their images are decoded."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmark.entries import Entry, read_entries
from benchmark.sources import Source
from detectors import did_you_mean

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


class Decoding(_Table):
    """What is decided about files that decoders treat differently.

    orientation: whether an EXIF orientation is applied. truncated: whether a JPEG's missing end is an error or grey.
    """

    orientation: Literal["as-stored", "exif"] = "as-stored"
    truncated: Literal["refuse", "grey"] = "refuse"


class ImageSetEntry(Entry):
    """One entry of an image-set file. Its images lie in a `parquet` file or a `folder` beside the entry's own file, or
    at `local` under the data folder, as a Parquet file, a folder of them, or a folder of images.

    source: whose images these are, in words. sources: where `local` comes from, tried in order.
    list_id: which images of a set that exists in several forms. list_file: their paths, a file under the data folder.
    images: the expected count, or those of each form that is accepted.
    classes: as the files name them. class_names: a word for each where those are none, for vision-language models.
    class_list: a CSV file of both, with the columns class and name. labels: whether files name a class or its index.
    class_groups: classes to be looked at together. rows: which rows of a Parquet file belong to the set, by column.
    leave_out: folders that do not belong to it. redistributable: whether the licence lets anyone pass it on.
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
    decoding: Decoding = Decoding()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.parquet, self.folder, self.local].count(None) != 2:
            raise ValueError("name where the images are: one of `parquet`, `folder` and `local`")
        if self.class_names and len(self.class_names) != len(self.classes):
            raise ValueError(f"{len(self.class_names)} `class_names` for {len(self.classes)} `classes`")
        if len({name.strip() for name in self.class_names} - {""}) < len(self.class_names):
            raise ValueError("`class_names` must differ from each other, and none be blank")
        return self

    def may_overlap(self, other: "ImageSetEntry") -> bool:
        """Whether both may hold the same image file or row, as far as their entries tell."""
        if self.parquet and other.parquet:
            same_rows = all(other.rows.get(column, value) == value for column, value in self.rows.items())
            return self.parquet.resolve() == other.parquet.resolve() and same_rows
        if self.folder and other.folder:
            one, another = self.folder.resolve(), other.folder.resolve()
            return one.is_relative_to(another) or another.is_relative_to(one)
        return False


class ImageSetError(ValueError):
    """An image set, or one of its images, that cannot be used; the message names the file and the remedy."""


class MissingImageSetError(ImageSetError):
    """An image set that nobody has fetched yet."""


@dataclass(frozen=True)
class ImageSet:
    """Images with their ids and, where they have classes, the index of each one's class and a word for it.

    `encoded(i)` gives the bytes of an image file or the pixels (height, width, 3) of an image that has none.
    about: what else a record says of it: its list, contamination, groups of classes and decoding.
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

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Image.Image:
        """The image in RGB, as stored: an EXIF orientation is not applied. A damaged file raises ImageSetError."""
        content = self.encoded(index)
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        try:
            return Image.open(io.BytesIO(content)).convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            problem = "the file is empty" if not content else str(error)
            raise ImageSetError(
                f"image set {self.id}: cannot decode {self.image_ids[index]}: {problem}; "
                "replace the file, or remove it and correct the set's image count"
            ) from None

    @cached_property
    def content_sha256(self) -> str:
        """A hash of every image's id, content and label, in order."""
        digest = hashlib.sha256()
        for index, image_id in enumerate(self.image_ids):
            content = self.encoded(index)
            if isinstance(content, np.ndarray):
                digest.update(f"{content.shape}\n".encode())
                content = content.tobytes()
            label = "" if self.labels is None else int(self.labels[index])
            digest.update(f"{image_id}\t{hashlib.sha256(content).hexdigest()}\t{label}\n".encode())
        return digest.hexdigest()

    @cached_property
    def image_sha256s(self) -> dict[str, str]:
        """The ids of the images by the first 16 digits of the hash of each one's content."""
        contents = ((image_id, self.encoded(index)) for index, image_id in enumerate(self.image_ids))
        return {hashlib.sha256(bytes(content)).hexdigest()[:16]: image_id for image_id, content in contents}


def load_image_set(id: str, entries: dict[str, ImageSetEntry] | None = None) -> ImageSet:
    """The image set of that id, from `entries` (the built-in ones by default).

    Raises ImageSetError when its files are missing, hold no image, or not the expected number of them.
    """
    entries = read_entries(BUILT_IN, ImageSetEntry) if entries is None else entries
    if id not in entries:
        raise ImageSetError(f"no image set is called {id!r}{did_you_mean(id, entries)}; known: {', '.join(entries)}")
    entry = entries[id]
    image_set = _from_parquet(id, entry) if entry.parquet else _from_folder(id, entry)
    if entry.images is not None and len(image_set) != entry.images:
        raise ImageSetError(
            f"image set {id}: {len(image_set)} images in {entry.parquet or entry.folder}, {entry.images} expected; "
            f"complete the set, or correct `images` in {entry.file}"
        )
    return image_set


def image_set_of_pixels(
    id: str, title: str, images: int, pixels: Callable[[int], np.ndarray], *, licence: str, source: str
) -> ImageSet:
    """An image set without files: pixels(i) gives image i as uint8 (height, width, 3)."""
    ids = tuple(f"{id}-{index:05d}" for index in range(images))
    return ImageSet(id, title, licence, source, "pixels", ids, None, (), pixels)


def _from_parquet(id: str, entry: ImageSetEntry) -> ImageSet:
    import datasets  # here, since it is slow to import

    datasets.disable_progress_bars()  # it would show one for reading a few kilobytes

    if not entry.parquet or not entry.parquet.is_file():
        raise ImageSetError(f"image set {id}: there is no file {entry.parquet} (named in {entry.file})")
    filters = [(column, "=", value) for column, value in entry.rows.items()] or None
    try:
        table = datasets.Dataset.from_parquet(str(entry.parquet), filters=filters, keep_in_memory=True)
    except Exception as error:  # `datasets` wraps what pyarrow says in exceptions of its own
        raise ImageSetError(f"image set {id}: cannot read {entry.parquet}: {error.__cause__ or error}") from error
    if not len(table):
        raise ImageSetError(f"image set {id}: {entry.parquet} has no rows with {entry.rows} (see {entry.file})")
    table = table.cast_column("image", datasets.Image(decode=False))
    ids = table["id"] if "id" in table.column_names else [f"{id}-{row:07d}" for row in range(len(table))]
    names = table["label"] if entry.classes else None
    return _image_set(id, entry, ids, names, lambda index: table[index]["image"]["bytes"], "png")


def _from_folder(id: str, entry: ImageSetEntry) -> ImageSet:
    folder = entry.folder
    if not folder or not folder.is_dir():
        raise ImageSetError(f"image set {id}: there is no folder {folder} (named in {entry.file})")
    known = Image.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not files:
        raise ImageSetError(f"image set {id}: no image files in {folder}; the known endings are {', '.join(known)}")
    ids = [path.relative_to(folder).as_posix() for path in files]
    names = [path.parent.relative_to(folder).as_posix() for path in files] if entry.classes else None
    codings = sorted({path.suffix.lower().lstrip(".") for path in files})
    return _image_set(id, entry, ids, names, lambda index: files[index].read_bytes(), ", ".join(codings))


def _image_set(
    id: str,
    entry: ImageSetEntry,
    image_ids: Sequence[str],
    class_names: Sequence[Any] | None,
    encoded: Callable[[int], bytes],
    coding: str,
) -> ImageSet:
    labels = None
    if class_names is not None:
        index = {name: position for position, name in enumerate(entry.classes)}
        if unknown := sorted(set(map(str, class_names)) - index.keys()):
            raise ImageSetError(
                f"image set {id}: unknown classes {unknown} in {entry.parquet or entry.folder}; "
                f"`classes` in {entry.file} lists {list(entry.classes)}"
            )
        labels = np.array([index[str(name)] for name in class_names], dtype=np.int64)
    return ImageSet(
        id=id,
        title=entry.title,
        licence=entry.licence,
        source=entry.source,
        coding=coding,
        image_ids=tuple(image_ids),
        labels=labels,
        classes=entry.classes,
        encoded=encoded,
        class_names=entry.class_names or entry.classes,
    )
