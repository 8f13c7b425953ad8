"""The hashes of the seventeen sets, so that a machine or a change of code that alters one pixel is noticed."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unit_tests_ood import generate, names

MANIFEST = Path(__file__).with_name("manifest.json")
COUNT = 400
SIZES = ((32, 32), (224, 224))

Hashes = dict[str, str]


def fingerprint(images: NDArray[np.uint8]) -> str:
    """SHA-256 of the shape (in decimal, one line) and the pixels in C order."""
    digest = hashlib.sha256(" ".join(map(str, images.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def measure(size: tuple[int, int], wanted: Iterable[str] = names) -> Hashes:
    """The hash of each wanted set as this machine makes it, at the manifest's count."""
    return {name: fingerprint(generate(name, COUNT, size)) for name in wanted}


def recorded(size: tuple[int, int], manifest: Path = MANIFEST) -> Hashes:
    """The hash of each set according to the manifest. Raises ValueError when it has none of that size."""
    sets = json.loads(manifest.read_text())["sha256"]
    if (key := _key(size)) not in sets:
        raise ValueError(f"{manifest} has no hashes for the size {key}, only for {', '.join(sets)}")
    return sets[key]


def differing(measured: Hashes, expected: Hashes) -> list[str]:
    """The sets whose hashes differ, and those that only one side has."""
    return sorted(name for name in measured.keys() | expected.keys() if measured.get(name) != expected.get(name))


def rewrite(manifest: Path = MANIFEST) -> None:
    """Records what this machine makes now."""
    content = {"count": COUNT, "sha256": {_key(size): measure(size) for size in SIZES}}
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(manifest)


def _key(size: tuple[int, int]) -> str:
    height, width = size
    return f"{height}x{width}"
