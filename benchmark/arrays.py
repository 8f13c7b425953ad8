"""Arrays in .npz files: what they declare is compared with what is there, before memory is taken for it."""

import lzma
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from benchmark.memory import in_words, too_large

# What numpy, zipfile and the decoders below them raise where a file is damaged, or is no such file.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def load_npz(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, without any pickle.

    Raises ValueError, which says what is wrong, where the file is damaged, where an array declares more or less than
    the file holds, and where all arrays do not fit into memory.
    """
    try:
        _check_sizes(file)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except MemoryError as error:
        raise ValueError(f"there is not enough memory for it: {error}") from None
    except _DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _check_sizes(file: Path) -> None:
    """Raises ValueError where the arrays declare other sizes than the file has, or do not fit into memory."""
    total = 0
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename} in it is no array")
            with archive.open(member) as content:
                shape, dtype, header_bytes = _read_header(content)
            declared = math.prod(shape) * dtype.itemsize
            held = member.file_size - header_bytes
            name = member.filename.removesuffix(".npy")
            if declared != held and not dtype.hasobject:  # which numpy refuses as a pickle
                raise ValueError(f"{name} declares {in_words(declared)} and holds {in_words(held)}: it is damaged")
            total += declared
    if problem := too_large(total):
        raise ValueError(f"its arrays take {problem}; take fewer rows, or save it as .safetensors")


def _read_header(content: IO[bytes]) -> tuple[tuple[int, ...], "np.dtype[Any]", int]:
    """The shape and the type of an array, and how many bytes its header has."""
    version = npy.read_magic(content)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(content)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(content)
    else:
        raise ValueError(f"an array is of the unknown version {version[0]}.{version[1]}")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array has the shape {shape}")
    return shape, dtype, content.tell()
