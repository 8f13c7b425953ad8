"""Fetching the weights of a model whose entry names a file of weights."""

import hashlib

from benchmark.images.downloads import DownloadError, Fetched, mark_verified
from benchmark.images.fetching import Tell, fetch_from
from benchmark.models.entries import ModelEntry


def fetch_weights(entry: ModelEntry, tell: Tell, number: int | None = None) -> Fetched | None:
    """Fetches the weights of a model, unless they are there, and gives where they came from (None where unknown).

    entry: the entry of the model.
    tell: is called with a line for each source that fails, and when another process must finish first.
    number: which source to take, counted from 1. None: all are tried in order.
    Raises DownloadError where no source gives the file with the hash of the entry, and OSError where the disk is full
    or read-only.
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
