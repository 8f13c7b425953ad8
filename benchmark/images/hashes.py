"""Hashes of the images of a set. They are computed once and stored, and used again while the files look the same.

    DATA_DIR/.hashes/<image set>    key (32 bytes), SHA-256 of each image's content in order, SHA-256 of all before

The key is a hash of the path, size and times of every file, of the images' ids, and of how they were selected.
Stored hashes are checked: a sample of the images is read and hashed again.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.files import signature, write_atomically

SIZE = 32  # bytes of a SHA-256
SAMPLE = 16  # so many images are hashed again before stored hashes are used
_CHUNK = 256  # images that one thread hashes in one go


@dataclass(frozen=True)
class KeptHashes:
    """Where the hashes of a set are stored, and what they depend on.

    place: the file that holds them.
    files: gives the paths of all files that hold the images.
    selection: which images of these files belong to the set, as a text.
    """

    place: Path
    files: Callable[[], list[str]]
    selection: str

    def key(self, image_ids: Sequence[str]) -> bytes:
        """The key (32 bytes) that stored hashes must have. Raises OSError where a file is missing."""
        digest = hashlib.sha256("\n".join([self.selection, *image_ids]).encode())
        digest.update(signature(self.files()).encode())
        return digest.digest()


def image_hashes(image_ids: Sequence[str], hash_of: Callable[[int], bytes], kept: KeptHashes | None) -> np.ndarray:
    """The SHA-256 of each image's content, uint8 (N, 32).

    image_ids: the ids of the N images.
    hash_of: reads the image of an index and gives its SHA-256, 32 bytes.
    kept: where hashes are stored; None computes all of them.
    Raises what `hash_of` raises, and OSError where a file is missing.
    """
    images = len(image_ids)
    if kept is None:
        return _compute_all(images, hash_of)
    key = kept.key(image_ids)  # before the files are read, so that a change during the reading changes the key
    known = _load_hashes(kept.place, key, images)
    sample = range(0, images, -(-images // SAMPLE))
    if known is not None and all(known[index].tobytes() == hash_of(index) for index in sample):
        return known
    hashes = _compute_all(images, hash_of)
    _store_hashes(kept.place, key + hashes.tobytes())
    return hashes


def _store_hashes(place: Path, content: bytes) -> None:
    """Writes key and hashes for the next run. Where the data folder is missing or read-only, nothing is written."""
    folder = place.parent
    try:
        if not folder.parent.stat().st_mode & stat.S_IWUSR:  # the mode counts, since root could write anyway
            return
        folder.mkdir(exist_ok=True)
        write_atomically(place, content + hashlib.sha256(content).digest())
    except OSError:
        pass


def _compute_all(images: int, hash_of: Callable[[int], bytes]) -> np.ndarray:
    def hash_chunk(start: int) -> bytes:
        return b"".join(hash_of(index) for index in range(start, min(start + _CHUNK, images)))

    hash_of(0)  # first, so that a cache for all images is filled once, and not by every thread
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        content = b"".join(pool.map(hash_chunk, range(0, images, _CHUNK)))
    return np.frombuffer(content, dtype=np.uint8).reshape(images, SIZE)


def _load_hashes(place: Path, key: bytes, images: int) -> np.ndarray | None:
    """The hashes that were stored under that key; None where there are none, or where they are damaged."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    whole = len(content) == (images + 2) * SIZE and hashlib.sha256(content[:-SIZE]).digest() == content[-SIZE:]
    if not whole or content[:SIZE] != key:
        return None
    return np.frombuffer(content[SIZE:-SIZE], dtype=np.uint8).reshape(images, SIZE)
