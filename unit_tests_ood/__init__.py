"""The seventeen OOD unit tests: images that no classifier should take for one of its classes.

    from unit_tests_ood import generate, names

    images = generate("black", count=400, size=(224, 224))  # uint8 (400, 224, 224, 3)

`recipes` says how each is made and where it comes from. `python -m unit_tests_ood write DIR` writes image files.
"""

import operator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from unit_tests_ood.random_bits import RandomBits
from unit_tests_ood.recipes import PERMUTATIONS, RECIPES, Recipe, Source

names: tuple[str, ...] = tuple(RECIPES)


def generate(
    name: str, count: int = 400, size: tuple[int, int] = (224, 224), source: Source | None = None
) -> NDArray[np.uint8]:
    """The first `count` images of a unit test, uint8 (count, height, width, 3): equal to the bit on every machine.

    size: (height, width), each at least 1. An image does not depend on `count`.
    source: the images that `pixel-permutation` and `smooth-pixel-permutation` draw from, which the others ignore: a
    sequence of PIL images or uint8 arrays (height, width, 3) of any size. By default the embedded photo patches.

    Raises ValueError on an unknown name, and on a count, size or source that is out of range.
    """
    recipe = _recipe(name, source)
    count = _positive(count, "count")
    height, width = _height_and_width(size)
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    with threadpool_limits(1, "blas"):  # its threads gain little on matrices this small, and on busy cores cost tenfold
        for index in range(count):
            images[index] = recipe(RandomBits(name, index), height, width)
    return images


def _recipe(name: str, source: Source | None) -> Recipe:
    if name not in RECIPES:
        from detectors import did_you_mean  # here, since it loads torch, which no image needs

        raise ValueError(
            f"no unit test is called {name!r}{did_you_mean(str(name), names)}; there are: {', '.join(names)}"
        )
    if name not in PERMUTATIONS:
        return RECIPES[name]
    return partial(RECIPES[name], source=_photo_patches() if source is None else _checked(source))


def _photo_patches() -> Any:
    from benchmark.images.image_set import load_image_set  # here, since only the two permutation tests read images

    return load_image_set("photo-patches")


def _checked(source: Any) -> Source:
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(f"source: expected a sequence of images, got {type(source).__name__}")
    if not len(source):
        raise ValueError("source: expected at least one image, got an empty sequence")
    return source


def _height_and_width(size: Any) -> tuple[int, int]:
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"size: expected (height, width) in pixels, got {size!r}") from None
    return _positive(height, "height"), _positive(width, "width")


def _positive(number: Any, what: str) -> int:
    try:
        integer = operator.index(number)
    except TypeError:
        raise ValueError(f"{what}: expected an integer of at least 1, got {number!r}") from None
    if integer < 1:
        raise ValueError(f"{what}: expected an integer of at least 1, got {number!r}")
    return integer
