"""Fetching what an entry names: downloaded, put in its place, and compared with what the entry says."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.images.downloads import DownloadError, Fetched, fetch, mark_verified
from benchmark.images.entries import ImageSetEntry
from benchmark.images.image_set import ImageSet, ImageSetError, load_image_set
from benchmark.images.sources import Source

Tell = Callable[[str], None]


def fetch_image_set(
    set_id: str, entries: dict[str, ImageSetEntry], tell: Tell, number: int | None = None
) -> tuple[ImageSet, Fetched | None]:
    """An image set, fetched unless it is there, and where it came from, if that is known.

    tell: is told of the sources that fail, and of waiting.
    number: of the one source to take, from 1; by default all are tried in order.
    Raises DownloadError where no source delivers what the entry says, ImageSetError where a set that was not fetched
    cannot be used, and OSError for what is wrong with the disk.
    """
    entry = entries[set_id]
    origin = fetch_from(entry.sources, number, entry.place, entry.data_dir, tell) if entry.local else None
    if entry.listed and not entry.listed.is_file():
        raise DownloadError(f"the list of its images is missing: put it at {entry.listed} by hand")
    try:
        image_set = load_image_set(set_id, entries)
    except ImageSetError as error:
        if origin is None:
            raise
        raise DownloadError(
            f"what was fetched is not what its entry says, and does not count as fetched: "
            f"{str(error).removeprefix(f'image set {set_id}: ')}; delete {entry.place} to fetch it again"
        ) from None
    if origin:
        mark_verified(entry.place, entry.data_dir)
    return image_set, origin


def fetch_from(
    sources: Sequence[Source], number: int | None, target: Path, data_dir: Path, tell: Tell
) -> Fetched | None:
    """As `downloads.fetch`, from all sources in order, or from the one of that number alone, counted from 1."""
    if number is None:
        return fetch(sources, target, data_dir, tell)
    if not 1 <= number <= len(sources):
        raise DownloadError(f"there is no source {number}: it has {len(sources)} sources, the first of which is 1")
    return fetch(sources[number - 1 : number], target, data_dir, tell)
