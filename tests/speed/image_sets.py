"""How long an image set takes to be listed, hashed and decoded, against the disk, a bare loop of Pillow, and peers.

    python tests/speed/image_sets.py

A folder of small JPEG files in class folders, as ImageNet's are; all is timed in turns in one run. Exits 1 above an
allowed ratio: the first hashing, to listing the files and a plain read and SHA-256 of each by as many threads; hashing
in a later run, to the first; decoding, to Pillow's `open` and `convert` of the same bytes.
"""

import hashlib
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).parents[2]))
from turns import medians_s

from benchmark.images.decoding import decode
from benchmark.images.entries import ImageSetEntry
from benchmark.images.image_set import ImageSet, load_image_set

IMAGES, CLASSES, ROUNDS = 20_000, 100, 3
DECODED = 2_000
ALLOWED_FIRST, ALLOWED_AGAIN, ALLOWED_DECODING = 2.0, 0.7, 1.2


def main() -> int:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        write_images(folder)
        files = sorted(folder.rglob("*.jpg"))
        contents = [file.read_bytes() for file in files[:DECODED]]

        def first() -> object:
            rmtree(Path(scratch) / ".hashes", ignore_errors=True)
            return image_set(Path(scratch)).content_sha256

        peer_s, list_s, read_s, first_s, again_s, pillow_s, decode_s = medians_s(
            ROUNDS,
            lambda: ImageFolder(folder),
            lambda: image_set(Path(scratch)),
            lambda: read_and_hash(files),
            first,
            lambda: image_set(Path(scratch)).content_sha256,
            lambda: [Image.open(io.BytesIO(content)).convert("RGB") for content in contents],
            lambda: [decode(content) for content in contents],
        )
    print(f"{IMAGES} files: listed in {list_s:.2f} s (torchvision's ImageFolder {peer_s:.2f} s)")
    print(f"hashed the first time in {first_s:.2f} s, later {again_s:.2f} s; reading and hashing alone {read_s:.2f} s")
    print(f"{DECODED} images decoded in {decode_s:.2f} s (Pillow alone {pillow_s:.2f} s)")
    ratios = {
        "first hashing / (listing + reading and hashing)": (first_s / (list_s + read_s), ALLOWED_FIRST),
        "later hashing / first hashing": (again_s / first_s, ALLOWED_AGAIN),
        "decoding / Pillow": (decode_s / pillow_s, ALLOWED_DECODING),
    }
    for what, (ratio, allowed) in ratios.items():
        print(f"{what}: {ratio:.2f} (at most {allowed})")
    return int(any(ratio > allowed for ratio, allowed in ratios.values()))


def write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        file = folder / f"n{index % CLASSES:08d}" / f"{index:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(file)


def image_set(data_dir: Path) -> ImageSet:
    classes = tuple(f"n{index:08d}" for index in range(CLASSES))
    about = {"title": "images", "licence": "none", "source": "this script", "images": IMAGES, "classes": classes}
    entry = ImageSetEntry.in_file(Path(__file__), data_dir, local="images", **about)
    return load_image_set("images", {"images": entry})


def read_and_hash(files: list[Path]) -> list[bytes]:
    def digests(start: int) -> list[bytes]:
        return [hashlib.sha256(file.read_bytes()).digest() for file in files[start : start + 256]]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [digest for part in pool.map(digests, range(0, len(files), 256)) for digest in part]


if __name__ == "__main__":
    sys.exit(main())
