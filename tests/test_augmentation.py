"""How training images are varied."""

import pytest
import torch
from torch import Generator

from benchmark.training.augmentation import CROP_PIXELS, Augmentation, augment_affine, augment_images

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BLACK = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])[:, None, None]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["affine", "crop-flip"])
def test_what_enters_from_outside_is_the_models_black(kind: Augmentation) -> None:
    images = BLACK.expand(20, 3, 16, 16)
    torch.testing.assert_close(augment_images(images, kind, seeded(), IMAGENET), images)


@pytest.mark.parametrize("kind", ["none", "affine", "crop-flip"])
def test_the_generator_decides(kind: Augmentation) -> None:
    images = torch.rand(6, 3, 16, 16)
    first = augment_images(images, kind, seeded(), {})
    assert torch.equal(first, augment_images(images, kind, seeded(), {}))
    assert torch.equal(first, augment_images(images, kind, seeded(1), {})) == (kind == "none")


def test_affine_is_that_of_the_digits_trainings() -> None:
    images = torch.rand(6, 3, 32, 32)
    assert torch.equal(augment_images(images, "affine", seeded(), {}), augment_affine(images, seeded()))


def test_crops_are_shifts_by_up_to_four_pixels_and_half_are_mirrored() -> None:
    count, side = 400, 12
    images = torch.arange(3.0 * side * side).view(1, 3, side, side).expand(count, -1, -1, -1) + 100
    varied = augment_images(images, "crop-flip", seeded(), {})
    black = -torch.ones(3, side + 2 * CROP_PIXELS, side + 2 * CROP_PIXELS)
    black[:, CROP_PIXELS:-CROP_PIXELS, CROP_PIXELS:-CROP_PIXELS] = images[0]
    windows = {
        (down, right, mirrored): window.flip(2) if mirrored else window
        for down in range(2 * CROP_PIXELS + 1)
        for right in range(2 * CROP_PIXELS + 1)
        for mirrored in (False, True)
        for window in [black[:, down : down + side, right : right + side]]
    }
    found = [next(place for place, window in windows.items() if torch.equal(window, one)) for one in varied]
    assert {down for down, _, _ in found} == {right for _, right, _ in found} == set(range(9))
    assert 150 < sum(mirrored for _, _, mirrored in found) < 250
