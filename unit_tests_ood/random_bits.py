"""Random numbers that are the same on every machine and with every version of numpy."""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

_Option = TypeVar("_Option")


class RandomBits:
    """The random numbers of one image. Each image has its own stream, so image 7 does not depend on the six before it.

    The stream is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Its key is a
    SHA-256 of the recipe's name and the image's index; it is read from counter 1 on. Only the raw 64-bit words come
    from numpy. numpy's `Generator` may turn them into other numbers in another version (NEP 19), so the few
    distributions that are needed are computed here, in integers. Each draw starts at a new word.
    """

    def __init__(self, name: str, index: int) -> None:
        """The stream of the image `index` of the recipe `name`."""
        digest = hashlib.sha256(f"{name} {index}".encode()).digest()
        self._stream = Philox(key=int.from_bytes(digest[:16], "little"))

    def levels(self, *shape: int) -> NDArray[np.uint8]:
        """Pixel values, uniform over 0..255."""
        return self._draw(np.dtype("u1"), shape)

    def shorts(self, *shape: int) -> NDArray[np.uint16]:
        """Integers, uniform over 0..65535."""
        return self._draw(np.dtype("<u2"), shape)

    def coins(self, *shape: int) -> NDArray[np.uint8]:
        """Zeros and ones, equally likely."""
        count = int(np.prod(shape))
        return np.unpackbits(self.levels(-(-count // 8)), count=count, bitorder="little").reshape(shape)

    def below(self, limit: int) -> int:
        """One integer, uniform over 0..limit - 1 up to a bias of limit / 2**64."""
        return int(self._draw(np.dtype("<u8"), (1,))[0]) * limit >> 64

    def choice(self, options: Sequence[_Option]) -> _Option:
        """One of the options, equally likely."""
        return options[self.below(len(options))]

    def permutation(self, count: int) -> NDArray[np.int64]:
        """The integers 0..count - 1 in random order."""
        places = np.arange(count, dtype=np.uint64)
        place_bits = np.uint64((1 << count.bit_length()) - 1)
        # No two keys are equal, since the low bits of each hold its place. So every sorting algorithm gives this order.
        keys = self._draw(np.dtype("<u8"), (count,)) & ~place_bits | places
        return (np.sort(keys) & place_bits).astype(np.int64)

    def _draw(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        count = int(np.prod(shape))
        words = self._stream.random_raw(-(-count * dtype.itemsize // 8)).astype("<u8")
        return words.view(dtype)[:count].reshape(shape)
