"""Image sets: images with their ids and classes, read and decoded as their entry says."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark.entries import read_entries
from benchmark.errors import UserError
from benchmark.images.corruptions import Corruption
from benchmark.images.decoding import AS_PAPERS, Decoding, DecodingError, decode
from benchmark.images.entries import BUILT_IN, ClassPart, ImageSetEntry
from benchmark.images.hashes import KeptHashes, image_hashes
from benchmark.images.origins import is_there
from benchmark.images.readers import Images, folders_of, in_folder, in_parquet, read_list, shards_of
from detectors import did_you_mean


class ImageSetError(UserError):
    """An image set, or one of its images, that cannot be used; the message names the file and the remedy."""


class MissingImageSetError(ImageSetError):
    """An image set whose images have not been fetched yet."""


@dataclass(frozen=True)
class ImageSet:
    """N images with their ids and, where they have classes, their labels.

    id: the id of the set.
    title: the name of the set, for people.
    licence: the licence of the images, in words.
    source: who made or collected the images, in words.
    coding: the formats of the image files, such as "jpeg, png"; "pixels" where there are no files.
    image_ids: the id of each image.
    labels: the index of each image's class, int64 (N,); None where the images have no classes.
    classes: the C classes in the order of their indices.
    encoded: gives the image at an index: the bytes of its file or, where it has none, its pixels, uint8
        (height, width, 3). A function that pickle can take makes a set that pickle can take.
    class_names: a word for each of the C classes.
    about: what else a record says of the set: its list, contamination, groups of classes and decoding.
    decoding: how image files are decoded where decoders differ.
    kept: where the hashes of the images are stored for later runs; None: nowhere.
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
        """The image at an index, in RGB. Raises ImageSetError where its file cannot be read or decoded."""
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
        """A hash of every image's id, content and label, in order. Raises ImageSetError where a file is missing."""
        hashes, shapes = self._hashed
        digest = hashlib.sha256()
        for index, image_id in enumerate(self.image_ids):
            label = "" if self.labels is None else int(self.labels[index])
            digest.update(shapes.get(index, "").encode())
            digest.update(f"{image_id}\t{hashes[index].tobytes().hex()}\t{label}\n".encode())
        return digest.hexdigest()

    @cached_property
    def image_sha256s(self) -> dict[str, str]:
        """The id of each image, by the first 16 hexadecimal digits of the SHA-256 of its content.

        Raises ImageSetError where a file is missing.
        """
        starts = (row.tobytes().hex() for row in self._hashed[0][:, :8])
        return dict(zip(starts, self.image_ids, strict=True))

    @cached_property
    def _hashed(self) -> tuple[np.ndarray, dict[int, str]]:
        """The SHA-256 of each image's content, uint8 (N, 32), and by index the shape of each image without a file."""
        shapes: dict[int, str] = {}

        def hash_of(index: int) -> bytes:
            content = self._content(index)
            if isinstance(content, np.ndarray):
                shapes[index] = f"{content.shape}\n"
                content = content.tobytes()
            return hashlib.sha256(content).digest()

        try:
            return image_hashes(self.image_ids, hash_of, self.kept), shapes
        except OSError as error:  # for example of a link to a file that does not exist
            raise ImageSetError(
                f"image set {self.id}: cannot read {error.filename}: {error.strerror}; replace the file, or remove it"
            ) from None

    def _content(self, index: int) -> bytes | np.ndarray:
        try:
            return self.encoded(index)
        except (OSError, ValueError) as error:
            raise ImageSetError(f"image set {self.id}: cannot read {self.image_ids[index]}: {error}") from None


def load_image_set(set_id: str, entries: dict[str, ImageSetEntry] | None = None) -> ImageSet:
    """The image set of an id.

    set_id: the id.
    entries: the entries by id. None: the built-in ones, of `image_sets.toml`.
    Raises MissingImageSetError where the images have not been fetched yet. Raises ImageSetError where the files do not
    fit the entry: no images, another number of images than expected, or a class without images.
    """
    entries = read_entries(BUILT_IN, ImageSetEntry) if entries is None else entries
    if set_id not in entries:
        raise ImageSetError(
            f"no image set is called {set_id!r}{did_you_mean(set_id, entries)}; known: {', '.join(entries)}"
        )
    entry = entries[set_id]
    with _named(set_id):
        _check_is_there(set_id, entry)
        entry = entry.with_classes()
        image_set = _select_images(set_id, entry, _read_images(set_id, entry))
        return _corrupt_images(image_set, entry.corruption) if entry.corruption else image_set


def select_images(set_id: str, entry: ImageSetEntry, images: Images) -> ImageSet:
    """The image set of images that a program holds, with the classes and the part that the entry says.

    Raises ImageSetError where they do not fit the entry.
    """
    with _named(set_id):
        return replace(_select_images(set_id, entry, images), kept=None)


@contextmanager
def _named(set_id: str) -> Iterator[None]:
    """Names the image set in what goes wrong with it."""
    try:
        yield
    except ImageSetError:
        raise
    except (UserError, OSError) as error:
        raise ImageSetError(f"image set {set_id}: {error}") from error


def image_set_of_pixels(
    set_id: str, title: str, images: int, pixels: Callable[[int], np.ndarray], *, licence: str, source: str
) -> ImageSet:
    """An image set without files.

    set_id: the id of the set.
    title: the name of the set, for people.
    images: how many images it has.
    pixels: gives the image at an index, uint8 (height, width, 3).
    licence: the licence of the images, in words.
    source: who made the images, in words.
    """
    ids = tuple(f"{set_id}-{index:05d}" for index in range(images))
    return ImageSet(set_id, title, licence, source, "pixels", ids, None, (), pixels)


def _check_is_there(set_id: str, entry: ImageSetEntry) -> None:
    """Raises MissingImageSetError, or ImageSetError where files are missing that lie beside the entry's file."""
    if entry.parquet and not entry.parquet.is_file():
        raise ImageSetError(f"image set {set_id}: there is no file {entry.parquet} (named in {entry.file})")
    if entry.folder and not entry.folder.is_dir():
        raise ImageSetError(f"image set {set_id}: there is no folder {entry.folder} (named in {entry.file})")
    missing = None
    if not is_there(entry.place):
        missing = f"there is no {entry.place}"
    elif entry.listed and not entry.listed.is_file():
        missing = f"there is no list {entry.listed}"
    elif entry.listed and entry.place.is_dir() and not _any_there(entry.place, entry.listed):
        missing = f"none of the images of {entry.listed} are in {entry.place}"
    if missing:
        raise MissingImageSetError(f"image set {set_id}: {missing}{entry.by_hand}", entry.remedy(set_id))


def _any_there(folder: Path, listed: Path) -> bool:
    """Whether a folder holds at least one file of a list."""
    return any((folder / path).is_file() for path, _ in read_list(listed))


def _read_images(set_id: str, entry: ImageSetEntry) -> Images:
    """All images at the entry's place, or those of its list. Raises UserError where they cannot be read."""
    place, columns = entry.place, entry.columns
    if place.is_dir() and (entry.folder or not shards_of(place, entry.split)):
        return in_folder(place, entry.listed)
    if entry.listed:
        raise UserError(f"`list_file` goes with a folder of images, and {place} holds Parquet files")
    label = columns.label if entry.classes else None
    return in_parquet(
        place,
        set_id,
        image=columns.image,
        label=label,
        id_column=columns.id,
        rows=entry.rows,
        split=entry.split,
    )


def _select_images(set_id: str, entry: ImageSetEntry, images: Images) -> ImageSet:
    """The images that belong to the set, with their labels. Raises UserError where they do not fit the entry."""
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
        chosen = _is_in_part(entry.part, np.zeros(len(rows), dtype=np.int64) if labels is None else labels, entry)
        rows, labels = rows[chosen], labels if labels is None else labels[chosen]
    _check_counts(entry, len(rows), labels)
    ids = tuple(images.ids[row] for row in rows.tolist())
    return ImageSet(
        id=set_id,
        title=entry.title,
        licence=entry.licence,
        source=entry.source,
        coding=images.coding,
        image_ids=ids,
        labels=labels,
        classes=entry.classes,
        encoded=_ChosenRows(images.encoded, rows),
        class_names=entry.class_names or entry.classes,
        about={
            "list_id": entry.list_id,
            "redistributable": entry.redistributable,
            "contamination": [found.model_dump() for found in entry.contamination],
            "class_groups": {group: list(members) for group, members in entry.class_groups.items()},
            "decoding": entry.decoding.described(),
            # What a published set has beside its images is known.
            "remarks": [images.remark] if images.remark and not entry.sources else [],
        },
        decoding=entry.decoding,
        kept=_kept_hashes(set_id, entry, images) if entry.local else None,
    )


@dataclass(frozen=True)
class _ChosenRows:
    """Reads image i of a set, which is image rows[i] of the place where it lies."""

    encoded: Callable[[int], bytes | np.ndarray]
    rows: np.ndarray

    def __call__(self, index: int) -> bytes | np.ndarray:
        return self.encoded(int(self.rows[index]))


@dataclass(frozen=True)
class _CorruptedImages:
    """Gives the pixels of image i of a clean set, corrupted."""

    clean: ImageSet
    corruption: Corruption

    def __call__(self, index: int) -> np.ndarray:
        return self.corruption(np.asarray(self.clean[index]), self.clean.image_ids[index])


def _kept_hashes(set_id: str, entry: ImageSetEntry, images: Images) -> KeptHashes:
    chosen = f"{entry.place} {entry.rows} {entry.columns.image}"
    return KeptHashes(entry.data_dir / ".hashes" / set_id, images.files, chosen)


def _corrupt_images(clean: ImageSet, corruption: Corruption) -> ImageSet:
    """The set with each image corrupted when it is read."""
    return replace(
        clean,
        source=f"{clean.source}; with {corruption.kind}, amount {corruption.amount} (benchmark/images/corruptions.py)",
        coding="pixels",
        encoded=_CorruptedImages(clean, corruption),
        kept=None,
    )


def _outside_of(folders: set[str], ids: Sequence[str]) -> np.ndarray:
    """The rows of the images that are in none of the folders. Raises UserError where a folder holds no image."""
    within = [folders.intersection(folders_of(path)) for path in ids]
    if unmet := folders.difference(*within):
        raise UserError(f"`leave_out` names {min(unmet)!r}, which is neither a folder of its images nor a class")
    return np.array([row for row, found in enumerate(within) if not found], dtype=np.int64)


def _labels(entry: ImageSetEntry, images: Images, rows: np.ndarray) -> np.ndarray:
    """The class index of each image in `rows`, found by the names that the image's class may have.

    Integers in a table are indices, too, where no class has an integer as its name, as in the Hub's table of ImageNet.
    Raises UserError where an image has an unknown class.
    """
    known = {name: index for index, name in enumerate(entry.classes)}
    indices = {str(index): index for index in known.values()}
    if entry.labels == "index" or (images.integers and not known.keys() & indices.keys()):
        known = indices
    names = [images.names[row] for row in rows.tolist()]
    labels = np.array([next((known[name] for name in some if name in known), -1) for some in names], dtype=np.int64)
    if unknown := sorted({names[row][0] for row in np.flatnonzero(labels < 0).tolist()}):
        expected = f"0 to {len(known) - 1}" if known is indices else ", ".join(list(known)[:20])
        raise UserError(
            f"unknown classes {unknown[:5]} in {entry.listed or entry.place}; the classes in "
            f'{entry.class_list or entry.file} with `labels` = "{entry.labels}" allow {expected}'
        )
    return labels


def _is_in_part(part: ClassPart, labels: np.ndarray, entry: ImageSetEntry) -> np.ndarray:
    """Whether each of N images belongs to the part, bool (N,).

    labels: the class index of each image, (N,).
    Raises UserError where a class has fewer images than the part takes.
    """
    counts = np.bincount(labels, minlength=len(entry.classes))
    smallest = int(np.where(counts, counts, len(labels)).argmin() if entry.may_lack_classes else counts.argmin())
    if counts[smallest] < part.per_class:
        few = f"class {entry.classes[smallest]} has" if entry.classes else "it has"
        raise UserError(f"{few} only {counts[smallest]} images in {entry.place}, and `part` takes {part.per_class}")
    place_in_class = np.empty_like(labels)
    order = labels.argsort(kind="stable")
    place_in_class[order] = np.arange(len(labels)) - (counts.cumsum() - counts)[labels[order]]
    return (place_in_class < part.per_class) != part.others


def _check_counts(entry: ImageSetEntry, images: int, labels: np.ndarray | None) -> None:
    """Raises UserError where there is no image, another number of images than expected, or a class without images.

    Some classes may have no images where a count or a list shows that the set is complete, as in ImageNet-R.
    """
    accepted = (entry.images,) if isinstance(entry.images, int) else entry.images
    counts = np.bincount([] if labels is None else labels, minlength=len(entry.classes))
    missing = [] if labels is None else [name for name, count in zip(entry.classes, counts, strict=True) if not count]
    none = f"no image of class {missing[0]}" if missing else "no image" if not images else ""
    others = f" (and {len(missing) - 1} other classes)" if len(missing) > 1 else ""
    if accepted is not None and images not in accepted:
        raise UserError(
            f"{images} images in {entry.place}, {' or '.join(map(str, accepted))} expected"
            f"{f', and {none}{others}' if none else ''}; complete the set, or correct `images` in {entry.file}"
        )
    if not images or (missing and accepted is None and entry.listed is None and not entry.may_lack_classes):
        raise UserError(
            f"{none}{others} in {entry.place}; complete the set, remove the folders without images, or correct its "
            f"classes in {entry.class_list or entry.file}"
        )
