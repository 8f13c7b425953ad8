"""Fetching the images of an entry: they are downloaded, put at their place, and compared with the entry."""

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
    """Fetches an image set, unless it is there, and gives the set and where it came from (None where unknown).

    set_id: the id of the set.
    entries: the entries by id.
    tell: is called with a line for each source that fails, and when another process must finish first.
    number: which source to take, counted from 1. None: all are tried in order.
    Raises DownloadError where no source gives what the entry says, ImageSetError where a set cannot be used that was
    not fetched, and OSError where the disk is full or read-only.
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
    """Does what `downloads.fetch` does, with one of the sources.

    number: which source to take, counted from 1. None: all are tried in order.
    Raises DownloadError where there is no source of that number, and what `downloads.fetch` raises.
    """
    if number is None:
        return fetch(sources, target, data_dir, tell)
    if not 1 <= number <= len(sources):
        raise DownloadError(f"there is no source {number}: it has {len(sources)} sources, the first of which is 1")
    return fetch(sources[number - 1 : number], target, data_dir, tell)
