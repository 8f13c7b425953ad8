"""Readers of images: folders of files, lists of files, and Parquet files.

All functions raise UserError where the files are wrong; the message names the file.
"""

import csv
import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmark.errors import UserError
from benchmark.files import signature

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")  # as `datasets` and the Hub name the shards of a table
_SPLITS = {"train", "test", "validation", "valid", "val", "dev"}  # files of these names are splits of one set
_SAMPLE = 16  # so many images of a table are read to find their formats


@dataclass(frozen=True)
class Images:
    """The N images of a folder or a table, in order.

    ids: the id of each image.
    names: for each image the names that its class may have, the most likely first. Empty for a table without labels.
    encoded: reads the bytes of the image at an index.
    coding: the formats of the images, such as "jpeg, png".
    files: gives the paths of all files that hold the images.
    remark: what lies beside the images and was not read, in a sentence. Empty where there is nothing.
    integers: whether the names are integers of a Parquet file, which may be class indices.
    """

    ids: Sequence[str]
    names: Sequence[Sequence[str]]
    encoded: Callable[[int], bytes | np.ndarray]
    coding: str
    files: Callable[[], list[str]]
    integers: bool = False
    remark: str = ""


def in_folder(folder: Path, listed: Path | None = None) -> Images:
    """The image files below a folder. Their ids are their relative paths.

    folder: the folder.
    listed: a list of the images to take, in its order. None: all image files, sorted.
    The class of an image is the one that the list gives, or else one of the folders that the image is in.
    Raises UserError where there is no image, or an image of the list is missing.
    """
    labels: Sequence[str | None]
    remark = ""
    if listed is None:
        ids, others = _find_images(folder)
        remark = _left_out(folder, others, len(ids) + len(others))
        labels = [None] * len(ids)
    else:
        pairs = read_list(listed)
        ids, labels = [path for path, _ in pairs], [label for _, label in pairs]
        if missing := [path for path in ids if not os.path.isfile(f"{folder}/{path}")]:
            raise UserError(
                f"{len(missing)} of the {len(ids)} files in the list {listed} are not in {folder}, such as "
                f"{missing[0]}; complete the folder, or name the right list"
            )
    paths, ids = ids, list(map(printable, ids))
    return Images(
        ids=ids,
        names=[folders_of(path) if label is None else [label] for path, label in zip(ids, labels, strict=True)],
        encoded=_Files(folder, paths).read,
        coding=", ".join(sorted({PurePosixPath(path).suffix.lower().lstrip(".") for path in ids})),
        files=_Files(folder, paths).paths,
        remark=remark,
    )


@dataclass(frozen=True)
class _Files:
    """Image files of a folder, by their relative paths."""

    folder: Path
    ids: Sequence[str]

    def read(self, index: int) -> bytes:
        return (self.folder / self.ids[index]).read_bytes()

    def paths(self) -> list[str]:
        return [f"{self.folder}/{path}" for path in self.ids]


def read_list(file: Path) -> list[tuple[str, str | None]]:
    """The paths of a list, each with its class, or None where the list gives no class.

    file: a CSV file with a header, the paths in the first column and the classes in the second, if there is one; or a
        text file with one path a line, where a number after a space is the class, as in OpenOOD's lists. The number -1
        stands for OOD there, and is read as no class.
    Raises UserError where the list is empty, names a path twice, or names a path outside of its folder.
    """
    pairs: list[tuple[str, str | None]] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no list of paths: {error}") from None
    if file.suffix.lower() == ".csv":
        try:
            rows = [row for row in csv.reader(lines[1:]) if row]
        except csv.Error as error:
            raise UserError(f"{file} is no list of paths: {error}") from None
        pairs = [(row[0], row[1] if len(row) > 1 else None) for row in rows]
    else:
        for line in filter(None, map(str.strip, lines)):
            path, *label = line.rsplit(maxsplit=1)
            if not label or not label[0].removeprefix("-").isdecimal():
                pairs.append((line, None))
            else:
                pairs.append((path, None if label[0] == "-1" else label[0]))
    paths = [path for path, _ in pairs]
    if not paths:
        raise UserError(f"the list {file} is empty")
    if outside := [path for path in paths if path.startswith("/") or ".." in path.split("/")]:
        raise UserError(f"the list {file} leaves its folder: {outside[0]}")
    if len(set(paths)) < len(paths):
        twice = next(path for path, before in zip(sorted(paths)[1:], sorted(paths), strict=False) if path == before)
        raise UserError(f"the list {file} names {twice} twice")
    return pairs


def printable(path: str) -> str:
    """A path as text. Bytes of a file name that are not UTF-8 become escapes, such as \\xff."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_image_file(name: str) -> bool:
    """Whether a file of this name is read as an image: Pillow can read files of its ending, and it is not hidden."""
    kind = Image.registered_extensions().get(_ending(name))
    return kind in Image.OPEN and not name.startswith(".")


def _is_litter(name: str) -> bool:
    """Whether a file is one that systems and programs leave behind, which nobody takes for an image."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _find_images(folder: Path) -> tuple[list[str], list[str]]:
    """The relative paths of the image files below a folder, sorted folder by folder, and those of other files.

    Hidden files, and what systems leave behind, are neither. Raises UserError for a folder that cannot be read.
    """
    found, others = [], []
    for prefix, names in _walk(folder):
        found += [prefix + name for name in names if is_image_file(name)]
        others += [prefix + name for name in names if not is_image_file(name) and not _is_litter(name)]
    if not found:
        known = sorted(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)
        raise UserError(
            f"no image files in {folder}; {_left_out(folder, others, len(others)) or 'it has no files'}; the known "
            f"endings are {', '.join(known)}"
        )
    return sorted(found, key=lambda path: path.split("/")), sorted(others)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The folders below a folder as prefixes of relative paths, each with the names of its files."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}; make it readable, or remove it")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__MACOSX" and not _leads_back(parent, name)
        ]
        prefix = Path(parent).relative_to(folder).as_posix() + "/"
        yield ("" if prefix == "./" else prefix), names


def _left_out(folder: Path, others: Sequence[str], files: int) -> str:
    """A sentence on the files that were not read, by their ending, with an example of each. Empty where all were."""
    if not others:
        return ""
    by_ending: dict[str, list[str]] = {}
    for path in others:
        by_ending.setdefault(_ending(path) or "no ending", []).append(printable(path))
    most = sorted(by_ending.items(), key=lambda item: -len(item[1]))
    kinds = [f"{ending} ({len(paths)}, such as {paths[0]})" for ending, paths in most[:3]]
    more = f" and {len(most) - 3} other kinds" if len(most) > 3 else ""
    told = ", ".join(kinds) + more
    return f"{len(others)} of the {files} files in {folder.name} were not read, since they are no images: {told}"


def _leads_back(parent: str, name: str) -> bool:
    """Whether a folder is a link to a folder that contains it. Following such a link would never end."""
    folder = os.path.join(parent, name)
    return os.path.islink(folder) and Path(parent).resolve().is_relative_to(Path(folder).resolve())


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def folders_of(path: str) -> tuple[str, ...]:
    """The folders of a path: first all of them as one path, then the name of each, from the outermost inwards.

    So an image belongs to the top folder that is called like a class, as with torchvision's ImageFolder, whatever the
    folders inside are called.
    """
    return _split_folders(path.rpartition("/")[0])


@lru_cache(maxsize=4096)  # the files of a folder share one tuple, which saves memory where there are a million files
def _split_folders(folder: str) -> tuple[str, ...]:
    return (folder, *folder.split("/"))


def in_parquet(
    place: Path,
    name: str,
    *,
    image: str,
    label: str | None,
    id_column: str,
    rows: dict[str, str],
    split: str | None = None,
) -> Images:
    """The rows of a Parquet file, or of all Parquet files of a folder as one table. The table is memory-mapped.

    place: the file or the folder.
    name: the start of the ids where the table has none. Then the rows are numbered.
    image: the column of the images, structs of bytes and path.
    label: the column of the classes; None: the images have none.
    id_column: the column of the ids.
    rows: values by column. Only the rows that have all these values are taken.
    split: of a folder with the files of several splits, the one that is taken.
    Raises UserError where the files cannot be read, a column is missing, or no row is left.
    """
    shards = shards_of(place, split) if place.is_dir() else [place]
    columns = _common_columns(shards, [image, *([label] if label else []), *rows])
    wanted = [name for name in dict.fromkeys((image, label, id_column)) if name in columns]
    source = _Table(place, tuple(shards), tuple(wanted), image, rows)
    table = source.table
    labels = _class_texts(table.column(label)) if label else []
    names = {value: (value,) for value in set(labels)}  # the rows of a class share one tuple
    count = table.num_rows
    return Images(
        ids=list(map(str, table.column(id_column).to_pylist())) if id_column in wanted else number_rows(name, count),
        names=[names[value] for value in labels],
        encoded=source.read,
        coding=formats_of_sample(source.read, count),
        files=source.paths,
        integers=label is not None and _are_indices(table.column(label).type),
    )


def _class_texts(column: Any) -> list[str]:
    """The classes of a column as texts. Truth values are the classes 0 and 1."""
    return [str(int(value) if isinstance(value, bool) else value) for value in column.to_pylist()]


def _are_indices(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


@dataclass(frozen=True)
class _Table:
    """The rows of Parquet files as one table. Another process that unpickles it maps the same files anew.

    place: what errors name. columns: those that are read. image: the column of the images. rows: the value of each
    column that chooses rows.
    """

    place: Path
    shards: tuple[Path, ...]
    columns: tuple[str, ...]
    image: str
    rows: dict[str, str]

    @cached_property
    def table(self) -> Any:
        """The memory-mapped table, in which images are bytes. Raises ValueError where it cannot be read or is empty."""
        import datasets  # here, since it is slow to import

        datasets.disable_progress_bars()  # it would show one for reading a few kilobytes
        filters = [(column, "=", value) for column, value in self.rows.items()] or None
        try:
            read = datasets.Dataset.from_parquet(
                [glob.escape(str(shard)) for shard in self.shards],
                columns=list(self.columns),
                filters=filters,
                # Its own cache goes by size and time alone, and would serve the images of before.
                cache_dir=f"{datasets.config.HF_DATASETS_CACHE}/ood-benchmark/{signature(self.shards)[:32]}",
            )
            table = read.cast_column(self.image, datasets.Image(decode=False)).data if len(read) else None
        except Exception as error:  # `datasets` wraps what pyarrow says in exceptions of its own
            raise UserError(f"cannot read {self.place}: {error.__cause__ or error}") from error
        if table is None:
            raise UserError(f"{self.place} has no rows{f' with {self.rows}' if self.rows else ''}")
        return table

    @cached_property
    def _images(self) -> Any:
        return self.table.column(self.image)

    def read(self, index: int) -> bytes:
        content: dict[str, Any] = self._images[index].as_py() or {}
        if content.get("bytes") is None:
            raise UserError(
                f"the row holds no bytes, only the path {content.get('path')}; embed the images in {self.place}"
            )
        return bytes(content["bytes"])

    def paths(self) -> list[str]:
        return [str(shard) for shard in self.shards]

    def __getstate__(self) -> dict[str, Any]:
        """Without the table, which may be as large as ImageNet."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def shards_of(folder: Path, split: str | None = None) -> list[Path]:
    """The Parquet files of a folder, in order.

    A repository of the Hub keeps its splits side by side. Read as one table, training images would be test images.

    split: the split whose files are meant, where there are several.
    Raises UserError where a shard is missing, where the files are those of several splits and none is named, and where
    the split is not there.
    """
    shards = sorted(path for path in folder.glob("*.parquet") if path.is_file())
    splits = {name for shard in shards if (name := _split_of(shard))}
    if split is not None:
        shards = [shard for shard in shards if _split_of(shard) == split]
        if not shards:
            known = f"its splits are {', '.join(sorted(splits))}" if splits else "its files are of no named split"
            raise UserError(f"{folder} has no split {split!r}: {known}")
    elif len(splits) > 1:
        raise UserError(
            f"{folder} holds several splits: {', '.join(sorted(splits))}; name one of them, as in "
            f"{folder.name}:{min(splits)}, or the file of one"
        )
    of_several = [match.groups() for shard in shards if (match := _SHARD.fullmatch(shard.name))]
    for name, count in {(name, count) for name, _, count in of_several}:
        there = {int(number) for other, number, _ in of_several if other == name}
        if missing := sorted(set(range(int(count))) - there):
            raise UserError(
                f"{len(missing)} of the {int(count)} shards {name} are not in {folder}, such as "
                f"{name}-{missing[0]:05d}-of-{count}.parquet"
            )
    return shards


def _split_of(shard: Path) -> str | None:
    """The split that a file is of, by its name. None where the name says none."""
    if match := _SHARD.fullmatch(shard.name):
        return match[1]
    return shard.stem if shard.stem in _SPLITS else None


def _common_columns(shards: list[Path], needed: list[str]) -> list[str]:
    """The columns that all shards have. Raises UserError where a shard is damaged, or lacks a column of `needed`."""
    common: list[str] = []
    for shard in shards:
        try:
            columns = pq.read_schema(shard).names
            if pq.read_metadata(shard).num_rows == 0:
                raise UserError(f"{shard} has no rows")
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"cannot read {shard}: {error}") from None
        if lacking := [name for name in needed if name not in columns]:
            raise UserError(f"{shard} has no column {lacking[0]!r} but {', '.join(columns)}; name its `columns`")
        common = [name for name in common or columns if name in columns]
    return common


def number_rows(name: str, count: int) -> list[str]:
    """Ids of images that have none."""
    return [f"{name}-{row:07d}" for row in range(count)]


def formats_of_sample(encoded: Callable[[int], bytes], count: int) -> str:
    """The kinds of a sample of the images, since a table does not name them."""
    kinds = {_image_format(encoded(index)) for index in range(0, count, -(-count // _SAMPLE))}
    return ", ".join(sorted(kinds - {""})) or "unknown"


def _image_format(content: bytes) -> str:
    """The format of an image file in small letters; empty where the file is damaged."""
    try:
        return str(Image.open(io.BytesIO(content)).format).lower()
    except Exception:  # a damaged image raises its error when it is decoded
        return ""
