"""Corruptions: they give the same pixels on every machine, and change an image as much as they say."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import uniform_filter

from benchmark.images.corruptions import Corruption
from benchmark.images.entries import BUILT_IN, ImageSetEntry
from benchmark.images.image_set import load_image_set, read_entries

KINDS = ["noise", "blur", "contrast"]
SHIFTED = ["digits-noise", "digits-blur", "digits-contrast"]
few_examples = settings(deadline=None, max_examples=30)
images = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.uint8, (*size, 3)))


def gradient() -> np.ndarray:
    return np.add.outer(np.arange(0, 160, 10), np.arange(0, 80, 2))[..., None].repeat(3, 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "amount", "sha256"),
    [
        ("noise", 30, "20394a268245aa48"),
        ("blur", 3, "05f55bb25aff9bfe"),
        ("contrast", 40, "5e77e50b31efb872"),
    ],
)
def test_pixels_are_the_same_everywhere(kind: str, amount: int, sha256: str) -> None:
    corrupted = Corruption(kind=kind, amount=amount)(gradient(), "an-image")
    assert corrupted.shape == (16, 40, 3)
    assert hashlib.sha256(corrupted.tobytes()).hexdigest()[:16] == sha256


@few_examples
@given(images, st.sampled_from(KINDS))
def test_an_amount_that_means_no_change_changes_nothing(pixels: np.ndarray, kind: str) -> None:
    amount = 100 if kind == "contrast" else 0
    np.testing.assert_array_equal(Corruption(kind=kind, amount=amount)(pixels, "a"), pixels)


@few_examples
@given(images, st.integers(0, 6))
def test_blur_is_the_mean_over_a_square(pixels: np.ndarray, radius: int) -> None:
    expected = uniform_filter(pixels.astype(float), (2 * radius + 1, 2 * radius + 1, 1), mode="nearest")
    assert np.abs(Corruption(kind="blur", amount=radius)(pixels, "a") - expected).max() <= 0.5 + 1e-9


@few_examples
@given(images, st.integers(0, 100))
def test_contrast_is_a_share_of_the_distance_from_the_mean(pixels: np.ndarray, per_cent: int) -> None:
    mean = pixels.mean(axis=(0, 1))
    expected = mean + per_cent / 100 * (pixels - mean)
    assert np.abs(Corruption(kind="contrast", amount=per_cent)(pixels, "a") - expected).max() <= 0.5 + 1e-9


def test_noise_is_normal_with_the_stated_deviation_and_different_for_each_image() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = Corruption(kind="noise", amount=30)(grey, "a") - 128.0
    assert abs(noise.mean()) < 0.3
    assert noise.std() == pytest.approx(30, rel=0.01)
    assert np.abs(np.quantile(noise, [0.025, 0.975]) / 30).tolist() == pytest.approx([1.96, 1.96], abs=0.05)
    other = Corruption(kind="noise", amount=30)(grey, "b") - 128.0
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("set_id", SHIFTED)
def test_the_corrupted_digits_are_changed_images_of_the_test_digits(set_id: str) -> None:
    shifted, clean = load_image_set(set_id), load_image_set("digits-test")
    assert np.bincount(shifted.labels).tolist() == [25] * 8
    place = {image_id: index for index, image_id in enumerate(clean.image_ids)}
    for index in (0, 77, 199):
        at = place[shifted.image_ids[index]]
        assert shifted.labels[index] == clean.labels[at]
        assert shifted[index].size == clean[at].size
        assert np.abs(np.asarray(shifted[index], float) - np.asarray(clean[at], float)).mean() > 3
    assert shifted.coding == "pixels"
    assert "benchmark/images/corruptions.py" in shifted.source
    assert not shifted.image_sha256s.keys() & clean.image_sha256s.keys()


def test_a_corrupted_set_overlaps_with_its_clean_set() -> None:
    entries = read_entries(BUILT_IN, ImageSetEntry)
    noise, train, clean = entries["digits-noise"], entries["digits-train"], entries["digits-test"]
    assert noise.may_overlap(clean)
    assert clean.may_overlap(noise)
    assert not noise.may_overlap(train)


@pytest.mark.parametrize(("kind", "amount"), [("noise", 0), ("blur", 0), ("contrast", 100)])
def test_a_corruption_says_whether_it_changes_nothing(kind: str, amount: int) -> None:
    assert Corruption(kind=kind, amount=amount).changes_nothing
    assert not Corruption(kind=kind, amount=amount + 1).changes_nothing
