"""The unit tests as image sets of a suite."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmark.images.image_set import ImageSet, image_set_of_pixels
from benchmark.running.loaded_suite import LoadedSuite
from unit_tests_ood import generate


class UnitTestSets:
    """The unit tests at the size and count that a suite states, each made once.

    suite: the suite. The two permutation tests permute its ID test images, as the paper permutes those of ImageNet.
    """

    def __init__(self, suite: LoadedSuite) -> None:
        self._suite = suite
        self._made: dict[str, ImageSet] = {}

    def __call__(self, name: str) -> ImageSet:
        """The unit test of that name."""
        if name not in self._made:
            settings = self._suite.suite.entry.unit_tests
            source = self._suite.image_set(self._suite.suite.entry.in_distribution.test)
            self._made[name] = image_set_of_pixels(
                name,
                name.replace("-", " "),
                settings.images,
                _Generated(name, settings.images, settings.size, source),
                licence="Apache-2.0",
                source=f"unit_tests_ood.generate({name!r}, {settings.images}, {settings.size})",
            )
        return self._made[name]


@lru_cache(maxsize=1)  # a session of pytest has one suite
def _sets_of(suite: LoadedSuite) -> UnitTestSets:
    return UnitTestSets(suite)


def unit_test_set(name: str, suite: LoadedSuite) -> ImageSet:
    """A unit test as an image set, with the size and the count that the suite states.

    name: the id of the unit test.
    suite: the suite.
    """
    return _sets_of(suite)(name)


@dataclass(frozen=True, eq=False)
class _Generated:
    """Gives image i of a unit test.

    name: the id of the unit test.
    images: how many images it has.
    size: height and width in pixels.
    source: the images that the permutation tests permute.
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
