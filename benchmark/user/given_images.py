"""Image sets that a Python caller gives as objects: data sets of Hugging Face and of torch, and sequences of images."""

import operator
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from benchmark.errors import UserError
from benchmark.images.decoding import to_rgb
from benchmark.images.entries import ImageSetEntry
from benchmark.images.readers import Images, formats_of_sample, number_rows
from benchmark.user.image_sets import IMAGE_COLUMNS, LABEL_COLUMNS, GivenImages, NamedSet

SAMPLE = 16  # labels that a data set lists are compared with those of so many of its items


def given_set(option: str, role: str, set_id: str, data: Any) -> NamedSet:
    """A data set as an image set; its images are read where they are needed.

    option: what the caller calls it, for messages.
    role: "test", "train", "val" or "ood", whose labels are left alone.
    data: a `datasets.Dataset` with a column of images, or a torch data set or a sequence of images or of (image,
        label), where an image is a PIL image or an array, uint8 (height, width) or (height, width, 3).

    Raises UserError, naming the option.
    """
    read = _of_table if _is_of_datasets(data) else _of_items
    try:
        given = read(set_id, data, role != "ood")
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    entry = ImageSetEntry.in_file(
        Path(option),
        Path("/"),
        title=option,
        licence="not stated",
        source=f"a {type(data).__name__} in memory",
        # Whoever compares places finds that this one is apart from all others.
        local=f"<{option}>",
    )
    return NamedSet(option, role, set_id, None, entry, given)


# --- Hugging Face data sets. ---


def _is_of_datasets(data: Any) -> bool:
    """Whether something is an object of `datasets`, which is slow to import and is loaded where one is there."""
    library = sys.modules.get("datasets")
    if library is None:
        return False
    return isinstance(
        data, (library.Dataset, library.DatasetDict, library.IterableDataset, library.IterableDatasetDict)
    )


def _of_table(set_id: str, data: Any, labelled: bool) -> GivenImages:
    import datasets  # here, since it is slow to import

    if not isinstance(data, datasets.Dataset):
        if isinstance(data, dict):
            raise UserError(f"a {type(data).__name__} has several splits: name one of {', '.join(map(repr, data))}")
        raise UserError(f"images are read in any order, which a {type(data).__name__} cannot do: give a Dataset")
    image = next((name for name in IMAGE_COLUMNS if name in data.column_names), None)
    if image is None:
        raise UserError(
            f"its columns are {', '.join(data.column_names)}; call that of the images {' or '.join(IMAGE_COLUMNS)}"
        )
    if not len(data):
        raise UserError("it has no rows")
    rows = data.with_format(None)
    label = next((name for name in LABEL_COLUMNS if name in data.column_names), None) if labelled else None
    names, classes = None, None
    if label is not None:
        declared = getattr(data.features[label], "names", None)
        names, classes = _classes(rows.select_columns([label])[:][label], declared)
    table = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def encoded(index: int) -> bytes:
        content = table[index][image] or {}
        if content.get("bytes") is not None:
            return bytes(content["bytes"])
        if content.get("path") is None:
            raise UserError("the row holds no image")
        return Path(content["path"]).read_bytes()

    has_ids = "id" in data.column_names
    ids = list(map(str, rows.select_columns(["id"])[:]["id"])) if has_ids else number_rows(set_id, len(data))
    return GivenImages(data, _images(ids, names, encoded, formats_of_sample(encoded, len(data))), classes)


# --- Torch data sets, and sequences. ---


def _of_items(set_id: str, data: Any, labelled: bool) -> GivenImages:
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, (dict, str, bytes)):
        raise UserError(
            f"a {type(data).__name__} is no image set: give a folder, a Parquet file, an id of image_sets.toml, a "
            "datasets.Dataset, a torch Dataset or a sequence of images or of (image, label)"
        )
    if not len(data):
        raise UserError("it has no images")
    lock = Lock()  # images are read by several threads, which a data set of torch need not allow

    def item(index: int) -> Any:
        try:
            with lock:
                return data[index]
        except Exception as error:  # it is somebody else's code
            raise UserError(f"item {index}: {type(error).__name__}: {error}") from error

    def pixels(index: int) -> np.ndarray:
        found = item(index)
        return _pixels(found[0] if isinstance(found, (tuple, list)) else found, index)

    if not np.array_equal(pixels(0), pixels(0)):
        raise UserError("it gives another image each time that one is read: leave random steps out")
    names, classes = None, None
    if labelled and isinstance(item(0), (tuple, list)) and len(item(0)) > 1:
        names, classes = _classes(_labels(data, item), getattr(data, "classes", None))
    return GivenImages(data, _images(number_rows(set_id, len(data)), names, pixels, "pixels"), classes)


def _pixels(image: Any, index: int) -> np.ndarray:
    """The pixels of an image, uint8 (height, width, 3)."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (1,), (3,)):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    what = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "shape") else ""
    raise UserError(
        f"item {index} is a {type(image).__name__} {what}".rstrip() + ", not a PIL image or an array, uint8 (height, "
        "width, 3): leave its transform out, since images are prepared by that of the model"
    )


def _labels(data: Any, item: Callable[[int], Any]) -> Sequence[Any]:
    """The labels of all items: the list that the data set keeps, if it is right about a sample, else from each item."""
    count = len(data)
    for name in ("targets", "labels"):
        listed = getattr(data, name, None)
        if listed is not None and hasattr(listed, "__len__") and len(listed) == count:
            sample = range(0, count, -(-count // SAMPLE))
            if all(_plain(listed[index]) == _plain(item(index)[1]) for index in sample):
                return [_plain(label) for label in listed]
    return [_plain(item(index)[1]) for index in range(count)]


def _plain(label: Any) -> Any:
    """A label as a number or a text of Python."""
    return label.item() if hasattr(label, "item") and getattr(label, "shape", None) == () else label


# --- What both have in common. ---


def _classes(labels: Sequence[Any], declared: Sequence[Any] | None) -> tuple[list[str], tuple[str, ...]]:
    """The name of the class of each image, and all classes: those declared, the texts in order, or the numbers."""
    if all(isinstance(label, str) for label in labels):
        classes = tuple(map(str, declared)) if declared is not None else tuple(sorted(set(labels)))
        if unknown := next(iter(set(labels).difference(classes)), None):
            raise UserError(f"the label {unknown!r} is none of its classes")
        return list(labels), classes
    indices = [_index(label, row) for row, label in enumerate(labels)]
    classes = tuple(map(str, declared if declared is not None else range(max(indices) + 1)))
    if max(indices) >= len(classes):
        raise UserError(f"the label {max(indices)} is none of its {len(classes)} classes, which count from 0")
    if len(set(classes)) < len(classes):
        raise UserError("two of its classes have one name")
    return [classes[index] for index in indices], classes


def _index(label: Any, row: int) -> int:
    try:
        index = -1 if isinstance(label, bool) else operator.index(label)
    except TypeError:
        index = -1
    if index < 0:
        raise UserError(f"the label of item {row} is {label!r}: a class is a text, or a number from 0")
    return index


def _images(
    ids: Sequence[str], names: Sequence[str] | None, encoded: Callable[[int], bytes | np.ndarray], coding: str
) -> Images:
    """names: of each image its class, None where they have none."""
    return Images(ids=ids, names=[(name,) for name in names or ()], encoded=encoded, coding=coding, files=list)
