"""What is there of an image set, and how the rest gets here. No image is read for it."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.images.downloads import fetched, is_there
from benchmark.images.entries import ImageSetEntry
from benchmark.images.readers import read_list
from benchmark.images.sources import HubSource, ManualSource

# Images beyond which the files of a set are not counted to see whether it is complete: that would take many seconds.
_COUNTED = 100_000


def describe_image_set(set_id: str, entry: ImageSetEntry) -> dict[str, Any]:
    """What is known of an image set, for JSON.

    state: see `state_of`. place: the file or the folder of its images. list: which images, of a set in several forms.
    get: "shipped", "fetch", "gated" or "by hand". fetched: where it was fetched from, or null.
    """
    state = state_of(entry)
    origin = fetched(entry.place, entry.data_dir) if entry.local and state != "missing" else None
    return {
        "id": set_id,
        "title": entry.title,
        "state": state,
        "place": str(entry.place),
        "images": entry.images,
        "list": entry.list_id,
        "licence": entry.licence,
        "redistributable": entry.redistributable,
        "contamination": [found.model_dump() for found in entry.contamination],
        "source": entry.source,
        "sources": [str(source) for source in entry.sources],
        "get": _how(entry),
        "fetched": origin.model_dump() if origin else None,
    }


def state_of(entry: ImageSetEntry) -> str:
    """Of an image set: "fetched" and loaded once; "there", by hand; "incomplete"; or "missing"."""
    if not is_there(entry.place):
        return "missing"
    if entry.listed and not _has_listed(entry.place, entry.listed):
        return "incomplete"
    expected = min(entry.images) if isinstance(entry.images, tuple) else entry.images or 0
    if not entry.listed and expected <= _COUNTED and _count(entry.place) < expected:
        return "incomplete"
    origin = fetched(entry.place, entry.data_dir) if entry.local else None
    return "fetched" if origin and origin.verified else "there"


def _has_listed(place: Path, listed: Path) -> bool:
    """Whether the files of a list are there: all of them, or of a long list a sample."""
    try:
        files = [path for path, _ in read_list(listed)]
        return all((place / path).is_file() for path in files[:: -(-len(files) // _COUNTED)])
    except (ValueError, OSError):
        return False


def _count(place: Path) -> int:
    """The rows of Parquet files, or else the files, of which a set may be a part."""
    shards = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    try:
        if shards:
            return sum(pq.read_metadata(shard).num_rows for shard in shards)
    except (pa.ArrowException, OSError):
        return 0
    return sum(not name.startswith(".") for _, _, names in os.walk(place, followlinks=True) for name in names)


def _how(entry: ImageSetEntry) -> str:
    if not entry.local:
        return "shipped"
    automatic = [source for source in entry.sources if not isinstance(source, ManualSource)]
    if not automatic:
        return "by hand"
    return "gated" if all(isinstance(source, HubSource) and source.gated for source in automatic) else "fetch"
