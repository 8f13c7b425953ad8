"""The unit tests as image sets of a suite."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmark.images.image_set import ImageSet, image_set_of_pixels
from benchmark.running.loaded_suite import LoadedSuite
from unit_tests_ood import generate


@lru_cache
def unit_test_set(name: str, suite: LoadedSuite) -> ImageSet:
    """A unit test as an image set, with the size and the count that the suite states.

    name: the id of the unit test.
    suite: the suite. The two permutation tests permute its ID test images, as the paper permutes those of ImageNet.
    """
    settings = suite.suite.entry.unit_tests
    source = suite.image_set(suite.suite.entry.in_distribution.test)
    return image_set_of_pixels(
        name,
        name.replace("-", " "),
        settings.images,
        _Generated(name, settings.images, settings.size, source),
        licence="Apache-2.0",
        source=f"unit_tests_ood.generate({name!r}, {settings.images}, {settings.size})",
    )


@dataclass(frozen=True, eq=False)
class _Generated:
    """A function from the number of an image of a unit test to its pixels, which can be pickled.

    name: the id of the unit test.
    images: the number of images.
    size: (height, width) in pixels.
    source: the images that the two permutation tests permute.
    """

    name: str
    images: int
    size: tuple[int, int]
    source: ImageSet

    def __call__(self, index: int) -> np.ndarray:
        return _pixels(self)[index]


@lru_cache(maxsize=2)  # at 224 x 224 one set takes 60 MB
def _pixels(of: _Generated) -> np.ndarray:
    return generate(of.name, of.images, of.size, of.source)
