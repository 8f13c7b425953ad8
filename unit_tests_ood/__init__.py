"""The seventeen OOD unit tests: synthetic images that show none of the classes of any classifier.

    from unit_tests_ood import generate, names

    images = generate("black", count=400, size=(224, 224))  # uint8 (400, 224, 224, 3)

The module `recipes` says how the images of each are made, and which paper they come from. `python -m unit_tests_ood
write DIR` writes image files.
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
    """The first images of a unit test: uint8 (count, height, width, 3). They have the same bits on every machine.

    name: the id of the unit test.
    count: how many images, at least 1. An image does not depend on it.
    size: (height, width) in pixels, each at least 1.
    source: the images that `pixel-permutation` and `smooth-pixel-permutation` permute: a sequence of PIL images or of
        uint8 arrays (height, width, 3), of any size. None takes the photo patches of the digits suite. The other unit
        tests do not use it.

    Raises ValueError for an unknown name, and for a count, size or source that is not allowed.
    """
    recipe = _recipe_of(name, source)
    count = _positive_integer(count, "count")
    height, width = _height_and_width(size)
    from benchmark.memory import too_large  # here, where a command tells of another package called `benchmark`

    if problem := too_large(count * height * width * 3):
        raise ValueError(f"count: {count} images of {height} x {width} pixels take {problem}: ask for fewer at a time")
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    with threadpool_limits(1, "blas"):  # on such small matrices threads gain little, and on busy cores cost ten times
        for index in range(count):
            images[index] = recipe(RandomBits(name, index), height, width)
    return images


def _recipe_of(name: str, source: Source | None) -> Recipe:
    if name not in RECIPES:
        from detectors import did_you_mean  # here, since it loads torch, which no image needs

        raise ValueError(
            f"no unit test is called {name!r}{did_you_mean(str(name), names)}; available: {', '.join(names)}"
        )
    if name not in PERMUTATIONS:
        return RECIPES[name]
    return partial(RECIPES[name], source=_photo_patches() if source is None else _checked_source(source))


def _photo_patches() -> Any:
    from benchmark.images.image_set import load_image_set  # imported here, since only two unit tests need images

    return load_image_set("photo-patches")


def _checked_source(source: Any) -> Source:
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
    return _positive_integer(height, "height"), _positive_integer(width, "width")


def _positive_integer(number: Any, what: str) -> int:
    try:
        integer = operator.index(number)
    except TypeError:
        raise ValueError(f"{what}: expected an integer of at least 1, got {number!r}") from None
    if integer < 1:
        raise ValueError(f"{what}: expected an integer of at least 1, got {number!r}")
    return integer
