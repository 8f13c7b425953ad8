"""The recorded hashes of the seventeen sets. They show when a machine or a change of the code alters a pixel."""

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
    """The SHA-256 of the shape (in decimal, on one line) and of the pixels in C order."""
    digest = hashlib.sha256(" ".join(map(str, images.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def compute_hashes(size: tuple[int, int], wanted: Iterable[str] = names) -> Hashes:
    """The hash of each wanted set as this machine generates it, with as many images as the manifest has.

    size: (height, width) in pixels.
    wanted: the ids of the sets.
    """
    return {name: fingerprint(generate(name, COUNT, size)) for name in wanted}


def recorded_hashes(size: tuple[int, int], manifest: Path = MANIFEST) -> Hashes:
    """The hash of each set in the manifest. Raises ValueError where the manifest has no sets of this size."""
    sets = json.loads(manifest.read_text())["sha256"]
    if (key := _key(size)) not in sets:
        raise ValueError(f"{manifest} has no hashes for the size {key}, only for {', '.join(sets)}")
    return sets[key]


def differing_sets(computed: Hashes, expected: Hashes) -> list[str]:
    """The ids of the sets whose hashes differ, and of those that only one of the two has."""
    return sorted(name for name in computed.keys() | expected.keys() if computed.get(name) != expected.get(name))


def rewrite_manifest(manifest: Path = MANIFEST) -> None:
    """Writes a manifest with the hashes of the sets that this machine generates."""
    content = {"count": COUNT, "sha256": {_key(size): compute_hashes(size) for size in SIZES}}
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(manifest)


def _key(size: tuple[int, int]) -> str:
    height, width = size
    return f"{height}x{width}"
