"""Fetching the weights of a model that are a file."""

import hashlib

from benchmark.images.downloads import DownloadError, Fetched, mark_verified
from benchmark.images.fetching import Tell, fetch_from
from benchmark.models.entries import ModelEntry


def fetch_weights(entry: ModelEntry, tell: Tell, number: int | None = None) -> Fetched | None:
    """Puts the weights of a model in their place, unless they are there, and says where they came from, if known.

    tell: is told of the sources that fail, and of waiting.
    number: of the one source to take, from 1; by default all are tried in order.
    Raises DownloadError where no source delivers the file with the hash of the entry, and OSError for what is wrong
    with the disk.
    """
    file = entry.weights_file
    origin = fetch_from(entry.sources, number, file, entry.data_dir, tell)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if entry.weights_sha256 not in (None, sha256):
        raise DownloadError(
            f"{file} has the sha256 {sha256}, {entry.weights_sha256} expected: do not trust it; delete it to fetch it "
            f"again, or correct `weights_sha256` in {entry.file}"
        )
    mark_verified(file, entry.data_dir)
    return origin
