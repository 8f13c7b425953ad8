"""The unit tests as image sets of a suite."""

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
    return image_set_of_pixels(
        name,
        name.replace("-", " "),
        settings.images,
        lambda index: _pixels(name, suite)[index],
        licence="Apache-2.0",
        source=f"unit_tests_ood.generate({name!r}, {settings.images}, {settings.size})",
    )


@lru_cache(maxsize=2)  # at 224 x 224 one set takes 60 MB
def _pixels(name: str, suite: LoadedSuite) -> np.ndarray:
    settings = suite.suite.entry.unit_tests
    source = suite.image_set(suite.suite.entry.in_distribution.test)
    return generate(name, settings.images, settings.size, source)
