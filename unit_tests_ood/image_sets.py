"""The unit tests as image sets of a suite."""

from functools import lru_cache, partial

import numpy as np

from benchmark.images.image_set import ImageSet, image_set_of_pixels
from benchmark.running.loaded_suite import LoadedSuite
from unit_tests_ood import generate


class UnitTestSets:
    """The unit tests at the size and count that a suite asks for, each made once.

    The permutation tests permute the suite's in-distribution test images, as the paper permutes ImageNet's.
    """

    def __init__(self, suite: LoadedSuite) -> None:
        self._suite = suite
        self._made: dict[str, ImageSet] = {}
        self._pixels = lru_cache(maxsize=2)(self._generate)  # at 224 x 224 one set takes 60 MB

    def __call__(self, name: str) -> ImageSet:
        """The unit test of that name."""
        if name not in self._made:
            self._made[name] = self._image_set(name)
        return self._made[name]

    def _image_set(self, name: str) -> ImageSet:
        settings = self._suite.suite.entry.unit_tests
        return image_set_of_pixels(
            name,
            name.replace("-", " "),
            settings.images,
            partial(self._image, name),
            licence="Apache-2.0",
            source=f"unit_tests_ood.generate({name!r}, {settings.images}, {settings.size})",
        )

    def _image(self, name: str, index: int) -> np.ndarray:
        return self._pixels(name)[index]

    def _generate(self, name: str) -> np.ndarray:
        settings = self._suite.suite.entry.unit_tests
        source = self._suite.image_set(self._suite.suite.entry.in_distribution.test)
        return generate(name, settings.images, settings.size, source)


@lru_cache(maxsize=1)  # a session has one suite
def _sets_of(suite: LoadedSuite) -> UnitTestSets:
    return UnitTestSets(suite)


def unit_test_set(name: str, suite: LoadedSuite) -> ImageSet:
    """A unit test at the size and count that the suite asks for; it is made once."""
    return _sets_of(suite)(name)
