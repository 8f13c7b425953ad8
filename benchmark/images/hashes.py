"""Hashes of a set's images: read once in a process, and kept across runs for as long as the files look the same.

    DATA_DIR/.hashes/<image set>    key (32 bytes), SHA-256 of each image's content in order, SHA-256 of all before

The key is a hash of every file's path, size and time of change, of the images' ids, and of what chose them. What was
kept is not trusted blindly: a sample of the images is read and compared.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.files import write_atomically

SIZE = 32  # bytes of a SHA-256
SAMPLE = 16
_CHUNK = 256


@dataclass(frozen=True)
class KeptHashes:
    """Where the hashes of a set are kept. files: all that its images lie in. selection: what chose the images."""

    place: Path
    files: Callable[[], list[str]]
    selection: str

    def key(self, image_ids: Sequence[str]) -> bytes:
        digest = hashlib.sha256("\n".join([self.selection, *image_ids]).encode())
        for file in self.files():
            about = os.stat(file)
            digest.update(f"{file}\t{about.st_size}\t{about.st_mtime_ns}\n".encode())
        return digest.digest()


def image_hashes(image_ids: Sequence[str], hash_of: Callable[[int], bytes], kept: KeptHashes | None) -> np.ndarray:
    """The SHA-256 of each image's content, uint8 (N, 32). hash_of: reads one image."""
    images = len(image_ids)
    if kept is None:
        return _read_all(images, hash_of)
    key = kept.key(image_ids)  # before the files are read: one that is changed meanwhile makes another key
    known = _load(kept.place, key, images)
    sample = range(0, images, -(-images // SAMPLE))
    if known is not None and all(known[index].tobytes() == hash_of(index) for index in sample):
        return known
    hashes = _read_all(images, hash_of)
    _keep(kept.place, key + hashes.tobytes())
    return hashes


def _keep(place: Path, content: bytes) -> None:
    """Writes what the next run may use. A data folder that is not there, or not to be written, costs time alone."""
    folder = place.parent
    try:
        if not folder.parent.stat().st_mode & stat.S_IWUSR:  # root may write there nevertheless
            return
        folder.mkdir(exist_ok=True)
        write_atomically(place, content + hashlib.sha256(content).digest())
    except OSError:
        pass


def _read_all(images: int, hash_of: Callable[[int], bytes]) -> np.ndarray:
    def read(start: int) -> bytes:
        return b"".join(hash_of(index) for index in range(start, min(start + _CHUNK, images)))

    hash_of(0)  # alone, so that what is made for all images at once is not made by every thread
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        content = b"".join(pool.map(read, range(0, images, _CHUNK)))
    return np.frombuffer(content, dtype=np.uint8).reshape(images, SIZE)


def _load(place: Path, key: bytes, images: int) -> np.ndarray | None:
    """What was kept under that key; None where there is nothing of it, or where it is damaged."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    whole = len(content) == (images + 2) * SIZE and hashlib.sha256(content[:-SIZE]).digest() == content[-SIZE:]
    if not whole or content[:SIZE] != key:
        return None
    return np.frombuffer(content[SIZE:-SIZE], dtype=np.uint8).reshape(images, SIZE)
