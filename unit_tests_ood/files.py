"""Writes the unit tests as image files, half of them JPEG and half PNG, as in the published sets."""

import errno
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmark.files import scratch_beside
from unit_tests_ood import generate, names

JPEG = {"format": "JPEG", "quality": 95, "subsampling": "4:2:0"}
PNG = {"format": "PNG"}


def write_sets(
    directory: Path, wanted: Sequence[str] = names, count: int = 400, size: tuple[int, int] = (224, 224)
) -> list[Path]:
    """Writes one folder for each unit test, and returns the folders. A folder appears when all of its files are
    written.

    directory: where the folders are written.
    wanted: the ids of the unit tests.
    count: images of each unit test.
    size: (height, width) in pixels.

    Images with an even index are JPEG files (quality 95, chroma subsampled 4:2:0), the others PNG files. The pixels are
    the same on every machine before they are coded. The bytes of a JPEG file and its decoded pixels depend on the
    version of the codec.

    Raises ValueError as `generate` does, and OSError with the path where a folder is not empty or cannot be written.
    Folders that were written before the error stay.
    """
    folders = [directory / name for name in dict.fromkeys(wanted)]
    for folder in folders:
        generate(folder.name, min(count, 1), size)  # raises an error, if any, before the first folder is written
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(
                errno.EEXIST, "the folder is not empty: remove it or choose another place", str(folder)
            )
    directory.mkdir(parents=True, exist_ok=True)
    with tqdm(total=count * len(folders), unit="image", disable=None) as progress:
        for folder in folders:
            progress.set_description(folder.name)
            with scratch_beside(folder, folder.name) as part:
                _write_images(generate(folder.name, count, size), part / folder.name, progress)
                if folder.exists():
                    folder.rmdir()
                (part / folder.name).rename(folder)
    return folders


def encode(image: NDArray[np.uint8], index: int) -> tuple[str, bytes]:
    """The name and the content of the file of one image.

    image: the pixels, (height, width, 3).
    index: the number of the image in its set; it decides between JPEG and PNG.
    """
    options, ending = (PNG, "png") if index % 2 else (JPEG, "jpg")
    file = io.BytesIO()
    Image.fromarray(image).save(file, **options)
    return f"{index:04d}.{ending}", file.getvalue()


def _write_images(images: NDArray[np.uint8], folder: Path, progress: tqdm) -> None:
    folder.mkdir()
    for index, image in enumerate(images):
        file_name, content = encode(image, index)
        try:
            (folder / file_name).write_bytes(content)
        except OSError as error:  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, str(folder / file_name)) from error
        progress.update()
