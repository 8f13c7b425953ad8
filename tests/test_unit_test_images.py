"""The seventeen unit tests against their recipes, and against every way to lose determinism."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Philox
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter

from unit_tests_ood import blur as blur_module
from unit_tests_ood import generate, manifest, names, recipes
from unit_tests_ood.__main__ import main
from unit_tests_ood.blur import KERNEL_SUM, UNIT, blur, exact_kernel, kernel
from unit_tests_ood.files import write_sets
from unit_tests_ood.random_bits import RandomBits
from unit_tests_ood.recipes import PERMUTATIONS, RECIPES, blur_width

Pixels = NDArray[np.uint8]

GAUSSIAN_SIGMAS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
PHOTOS = np.random.default_rng(0).integers(0, 256, (7, 30, 41, 3), dtype=np.uint8)
SIDE = st.integers(1, 40)
few_examples = settings(deadline=None, max_examples=15)


@lru_cache
def images_of(name: str, count: int = 40, side: int = 96) -> Pixels:
    return generate(name, count, (side, side), source=PHOTOS)


# ---------------------------------------------------------------------------------------------------- the contract


def test_the_names_are_those_of_the_contract() -> None:
    assert names == (
        "uniform-noise", "gaussian-noise", "rademacher-noise", "pixel-permutation", "black", "white", "grey",
        "monochrome", "tricolour", "primary-tricolour", "horizontal-stripes", "vertical-stripes", "smooth-noise",
        "smooth-noise-plus", "smooth-colour", "smooth-pixel-permutation", "blobs",
    )  # fmt: skip


@pytest.mark.parametrize("name", names)
@few_examples
@given(height=SIDE, width=SIDE, count=st.integers(1, 3))
def test_any_size_and_count(name: str, height: int, width: int, count: int) -> None:
    images = generate(name, count, (height, width), source=PHOTOS)
    assert images.shape == (count, height, width, 3)
    assert images.dtype == np.uint8
    assert images.flags.writeable


@pytest.mark.parametrize("name", names)
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 5)])
@pytest.mark.filterwarnings("error")
def test_extreme_sizes(name: str, size: tuple[int, int]) -> None:
    assert generate(name, 20, size, source=PHOTOS).shape == (20, *size, 3)


@pytest.mark.parametrize("name", names)
def test_an_image_does_not_depend_on_the_count(name: str) -> None:
    np.testing.assert_array_equal(generate(name, 3, (96, 96), source=PHOTOS), images_of(name)[:3])


@pytest.mark.parametrize("name", sorted(set(names) - {"black", "white"}))
def test_images_differ(name: str) -> None:
    different = {image.tobytes() for image in images_of(name)}
    assert len(different) >= 30  # of 40; two of 256 greys or of 2 * 8**3 primary tricolours may well coincide


def test_no_two_sets_share_their_noise() -> None:
    assert not np.array_equal(images_of("smooth-noise")[0], images_of("smooth-noise-plus")[0])
    first_words = [int(RandomBits(name, 0).below(2**64)) for name in names]
    assert len(set(first_words)) == len(names)


def test_the_defaults_are_those_of_the_paper() -> None:
    assert generate("grey").shape == (400, 224, 224, 3)


def test_an_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"'smooth-color' \(did you mean 'smooth-colour'\?\).*uniform-noise"):
        generate("smooth-color")


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", None])
def test_a_bad_count_is_refused(count: object) -> None:
    with pytest.raises(ValueError, match="count: expected an integer of at least 1"):
        generate("black", count)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [224, (224,), (224, 224, 3), (0, 8), (8, -1), (8.0, 8), "224x224", None])
def test_a_bad_size_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"(size|height|width): expected"):
        generate("black", 1, size)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ the recipes


def test_uniform_noise() -> None:
    values = images_of("uniform-noise")
    assert stats.chisquare(np.bincount(values.ravel(), minlength=256)).pvalue > 1e-4
    _assert_channels_independent(values)


def test_gaussian_noise_has_the_seven_widths_equally_often() -> None:
    images = generate("gaussian-noise", 700, (16, 16)).reshape(700, -1).astype(float)
    expected = {sigma: _clipped_normal_std(sigma) for sigma in GAUSSIAN_SIGMAS}
    nearest = [min(expected, key=lambda sigma: abs(expected[sigma] - std)) for std in images.std(axis=1)]
    assert stats.chisquare([nearest.count(sigma) for sigma in GAUSSIAN_SIGMAS]).pvalue > 1e-4
    assert max(abs(expected[sigma] - std) for sigma, std in zip(nearest, images.std(axis=1), strict=True)) < 7
    assert abs(images.mean() - 127.5) < 0.5


@pytest.mark.parametrize("sigma", GAUSSIAN_SIGMAS)
def test_gaussian_levels_follow_the_clipped_normal_distribution(sigma: float) -> None:
    shares = np.bincount(recipes.gaussian_levels(sigma), minlength=256) / 2**16
    edges = (np.arange(255) + 0.5) / 255
    expected = np.diff(stats.norm.cdf(edges, 0.5, sigma), prepend=0, append=1)
    assert np.abs(shares - expected).max() <= 1 / 2**16
    assert np.abs(stats.norm.cdf(edges, 0.5, 1.01 * sigma) - np.cumsum(shares)[:-1]).max() > 1 / 2**10  # the twin


def test_rademacher_noise() -> None:
    values = images_of("rademacher-noise")
    assert set(np.unique(values)) == {0, 255}
    assert abs((values == 255).mean() - 0.5) < 0.005
    colours = np.bincount((values // 255 @ np.array([4, 2, 1])).ravel())
    assert len(colours) == 8
    assert stats.chisquare(colours).pvalue > 1e-4
    _assert_channels_independent(values)


def test_black_and_white() -> None:
    assert (images_of("black") == 0).all()
    assert (images_of("white") == 255).all()


def test_grey_is_one_value() -> None:
    images = images_of("grey")
    assert (images == images[:, :1, :1, :1]).all()
    assert stats.kstest(generate("grey", 400, (1, 1))[:, 0, 0, 0] / 255, "uniform").pvalue > 1e-4


def test_monochrome_is_one_colour() -> None:
    images = images_of("monochrome")
    assert (images == images[:, :1, :1]).all()
    colours = generate("monochrome", 400, (1, 1))[:, 0, 0]
    assert stats.kstest(colours.ravel() / 255, "uniform").pvalue > 1e-4
    _assert_channels_independent(colours)


@pytest.mark.parametrize("name", ["tricolour", "primary-tricolour"])
def test_tricolours_have_three_equal_stripes_in_either_direction(name: str) -> None:
    images = images_of(name, count=200)
    vertical = [image for image in images if _is_vertical(image)]
    assert 70 < len(vertical) < 130
    for image in images:
        line = image[0] if _is_vertical(image) else image[:, 0]
        assert (image == (line if _is_vertical(image) else line[:, None])).all()
        assert (line.reshape(3, 32, 3) == line[::32, None]).all()


def test_tricolours_differ_in_their_colours() -> None:
    assert set(np.unique(images_of("primary-tricolour", count=200))) == {0, 255}
    corners = {tuple(image[0, 0]) for image in images_of("primary-tricolour", count=200)}
    assert len(corners) == 8
    values = np.concatenate([image[::32, ::32].ravel() for image in images_of("tricolour", count=200)])
    assert len(np.unique(values)) > 200


@pytest.mark.parametrize(("name", "size"), [("horizontal-stripes", (420, 3)), ("vertical-stripes", (3, 420))])
def test_stripes(name: str, size: tuple[int, int]) -> None:
    images = generate(name, 600, size)
    if name == "vertical-stripes":
        images = images.transpose(0, 2, 1, 3)
    assert (images == images[:, :, :1]).all()
    heights = [_stripe_heights(image) for image in images]
    assert set(map(tuple, heights)) == {(420 // count,) * count for count in (4, 5, 7, 10, 15, 20)}
    assert stats.chisquare(list(Counter(map(len, heights)).values())).pvalue > 1e-4


def test_stripes_of_a_side_that_they_do_not_divide_differ_by_at_most_a_pixel() -> None:
    heights = [_stripe_heights(image) for image in generate("horizontal-stripes", 60, (101, 2))]
    assert {len(each) for each in heights} == {4, 5, 7, 10, 15, 20}
    assert all(max(each) - min(each) <= 1 for each in heights)


def test_smooth_noise_spans_the_range_over_all_channels() -> None:
    images = images_of("smooth-noise").reshape(40, -1, 3)
    assert (images.min(axis=(1, 2)) == 0).all()
    assert (images.max(axis=(1, 2)) == 255).all()
    assert (images.max(axis=1) < 255).any()  # not in each channel: that is smooth-noise-plus


def test_smooth_noise_plus_spans_the_range_in_each_channel() -> None:
    images = images_of("smooth-noise-plus").reshape(40, -1, 3)
    assert (images.min(axis=1) == 0).all()
    assert (images.max(axis=1) == 255).all()


@pytest.mark.parametrize("index", range(6))
def test_smooth_noise_equals_a_floating_point_reference(index: int) -> None:
    bits = RandomBits("smooth-noise", index)
    sigma = bits.choice([10, 15, 25, 40, 60, 85]) * 150 / 375
    smooth = gaussian_filter(bits.levels(150, 180, 3).astype(float), (sigma, sigma, 0), mode="reflect")
    expected = 255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    image = generate("smooth-noise", index + 1, (150, 180))[index]
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize("index", range(6))
def test_smooth_colour_equals_a_floating_point_reference(index: int) -> None:
    bits = RandomBits("smooth-colour", index)
    delta, colour = (100 + bits.below(201)) / 1000, bits.levels(3) / 255
    sigma = bits.choice([10, 15, 25, 40, 60, 85]) * 150 / 375
    smooth = gaussian_filter(bits.levels(150, 180, 3).astype(float), (sigma, sigma, 0), mode="reflect")
    low, high = np.quantile(smooth, [0.025, 0.975], axis=(0, 1))
    expected = np.clip(colour - delta + 2 * delta * (smooth - low) / (high - low), 0, 1)
    image = generate("smooth-colour", index + 1, (150, 180))[index]
    assert np.abs(image - 255 * expected).max() <= 1


def test_smooth_colour_draws_colour_and_spread_uniformly() -> None:
    draws = [RandomBits("smooth-colour", index) for index in range(1000)]
    deltas = np.array([100 + bits.below(201) for bits in draws])
    assert deltas.min() < 103
    assert deltas.max() > 297
    assert stats.kstest((deltas - 100) / 200, "uniform").pvalue > 1e-4


def test_the_quantiles_of_smooth_colour_lie_delta_around_the_colour() -> None:
    low, high = np.quantile(images_of("smooth-colour").reshape(40, -1, 3), [0.025, 0.975], axis=1)
    unclipped = (low > 0) & (high < 255)
    assert unclipped.sum() > 30
    for index, channel in np.argwhere(unclipped):
        bits = RandomBits("smooth-colour", index)
        delta, colour = 255 * (100 + bits.below(201)) / 1000, bits.levels(3)
        assert abs(low[index, channel] - (colour[channel] - delta)) <= 1
        assert abs(high[index, channel] - (colour[channel] + delta)) <= 1


def test_blobs_are_zero_or_above_three_quarters() -> None:
    values = images_of("blobs")
    assert ((values == 0) | (values >= 191)).all()
    assert 0.15 < (values > 0).mean() < 0.4
    _assert_channels_independent(values)


@pytest.mark.parametrize("index", range(6))
def test_blobs_equal_a_floating_point_reference(index: int) -> None:
    bits = RandomBits("blobs", index)
    sigma = bits.choice([1.5, 2, 2.5, 3, 3.5, 4])
    on = bits.shorts(375, 380, 3) < 45875  # 0.7 of 65536
    smooth = gaussian_filter(on.astype(float), (sigma, sigma, 0), mode="reflect")
    image = generate("blobs", index + 1, (375, 380))[index]
    clear = np.abs(smooth - 0.75) > 1e-4
    assert clear.mean() > 0.99
    assert np.abs(image - 255 * np.where(smooth < 0.75, 0, smooth))[clear].max() <= 1


def test_small_blobs_are_more_than_noise() -> None:
    """At 32x32 the width is at its floor: neighbours must still agree more often than chance has it."""
    on = generate("blobs", 100, (32, 32)) > 0
    assert _neighbour_correlation(on) > 0.5
    noise = generate("rademacher-noise", 100, (32, 32)) > 0
    assert abs(_neighbour_correlation(noise)) < 0.02


@pytest.mark.parametrize("index", range(6))
def test_smooth_pixel_permutation_equals_a_floating_point_reference(index: int) -> None:
    bits = RandomBits("smooth-pixel-permutation", index)
    sigma = bits.choice([1, 1.5, 2, 3, 4, 6, 8])
    photo = np.random.default_rng(0).integers(0, 256, (375, 375, 3), dtype=np.uint8)
    bits.below(1)  # the choice of the photo
    shuffled = photo.reshape(-1, 3)[bits.permutation(375 * 375)].reshape(375, 375, 3)
    expected = gaussian_filter(shuffled.astype(float), (sigma, sigma, 0), mode="reflect")
    image = generate("smooth-pixel-permutation", index + 1, (375, 375), source=[photo])[index]
    assert np.abs(image - expected).max() <= 1


def test_smooth_pixel_permutation_keeps_the_mean_and_loses_contrast() -> None:
    photos = [np.full((50, 60, 3), (200, 30, 90), dtype=np.uint8)]
    photos[0][:, 30:] = 0
    image = generate("smooth-pixel-permutation", 1, (96, 96), source=photos)[0].astype(float)
    np.testing.assert_allclose(image.mean(axis=(0, 1)), [100, 15, 45], rtol=0.03)
    assert image.std(axis=(0, 1))[0] < 60  # 100 before the blur


# ------------------------------------------------------------------------------------------------------- the source


@few_examples
@given(height=SIDE, width=SIDE)
def test_pixel_permutation_keeps_every_pixel_of_a_photo_of_its_size(height: int, width: int) -> None:
    photo = PHOTOS[0].repeat(2, axis=0)[:height, :width]
    height, width, _ = photo.shape
    image = generate("pixel-permutation", 1, (height, width), source=[photo])[0]
    assert Counter(map(tuple, image.reshape(-1, 3).tolist())) == Counter(map(tuple, photo.reshape(-1, 3).tolist()))


def test_pixel_permutation_shuffles_every_place() -> None:
    photo = np.zeros((40, 41, 3), dtype=np.uint8)
    photo[:20] = 255
    images = generate("pixel-permutation", 200, (40, 41), source=[photo])
    assert abs(images[:, :20].mean() / 255 - 0.5) < 0.01
    assert abs(_neighbour_correlation(images > 0)) < 0.02
    assert abs(_neighbour_correlation(np.stack([photo] * 2) > 0)) > 0.9  # the twin: not shuffled


def test_pixel_permutation_draws_from_all_photos() -> None:
    photos = [np.full((4, 4, 3), value, dtype=np.uint8) for value in range(5)]
    drawn = generate("pixel-permutation", 200, (2, 2), source=photos)[:, 0, 0, 0]
    assert stats.chisquare(np.bincount(drawn)).pvalue > 1e-4


@few_examples
@given(height=SIDE, width=SIDE, factor=st.integers(1, 4))
def test_photos_are_resized_by_nearest_neighbour(height: int, width: int, factor: int) -> None:
    photo = np.arange(height * width * 3, dtype=np.int64).astype(np.uint8).reshape(height, width, 3)
    larger = recipes.nearest_neighbour(photo, factor * height, factor * width)
    np.testing.assert_array_equal(larger, photo.repeat(factor, axis=0).repeat(factor, axis=1))
    np.testing.assert_array_equal(recipes.nearest_neighbour(larger, height, width), photo)


def test_a_resized_pixel_takes_the_one_under_its_centre() -> None:
    photo = np.arange(9, dtype=np.uint8).reshape(3, 3, 1).repeat(3, axis=2)
    assert recipes.nearest_neighbour(photo, 2, 2)[..., 0].tolist() == [[0, 2], [6, 8]]
    assert recipes.nearest_neighbour(photo, 1, 1)[..., 0].tolist() == [[4]]


@pytest.mark.parametrize("name", sorted(PERMUTATIONS))
def test_arrays_and_pil_images_of_any_size_are_the_same_source(name: str) -> None:
    arrays = [PHOTOS[0], PHOTOS[1][:9, :5], PHOTOS[2][:1, :1]]
    from_arrays = generate(name, 9, (12, 10), source=arrays)
    np.testing.assert_array_equal(
        generate(name, 9, (12, 10), source=[Image.fromarray(array) for array in arrays]), from_arrays
    )
    grey = Image.fromarray(PHOTOS[0][..., 0])
    expected = generate(name, 2, (12, 10), source=[PHOTOS[0][..., :1].repeat(3, axis=2)])
    np.testing.assert_array_equal(generate(name, 2, (12, 10), source=[grey]), expected)


@pytest.mark.parametrize("name", sorted(PERMUTATIONS))
def test_the_embedded_photos_are_the_default_source(name: str) -> None:
    from benchmark.images.image_set import load_image_set

    expected = generate(name, 4, (32, 32), source=load_image_set("photo-patches"))
    np.testing.assert_array_equal(generate(name, 4, (32, 32)), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least one image"),
        (iter(PHOTOS), "expected a sequence of images, got"),
        (3, "expected a sequence of images, got int"),
        (PHOTOS[0], r"source image \d+: .* got ndarray of shape \(41, 3\)"),
        (PHOTOS / 255, "float64"),
        (PHOTOS[..., :2], r"source image \d+: expected"),
        (["a.png"], "source image 0: .* got str"),
    ],
)
def test_a_bad_source_is_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate("pixel-permutation", 1, (8, 8), source=source)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ random bits


def test_philox_gives_its_authors_known_answer() -> None:
    """First vector of Random123's kat_vectors for philox4x64-10; numpy counts up before it reads, hence the counter."""
    words = Philox(key=0, counter=2**256 - 1).random_raw(4)
    assert [f"{word:016x}" for word in words] == [
        "16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b",
    ]  # fmt: skip


def test_levels_shorts_and_coins_are_little_endian_views_of_the_stream() -> None:
    key = int.from_bytes(hashlib.sha256(b"any name 3").digest()[:16], "little")
    stream = b"".join(int(word).to_bytes(8, "little") for word in Philox(key=key).random_raw(2))
    assert RandomBits("any name", 3).levels(2, 5).tobytes() == stream[:10]
    assert RandomBits("any name", 3).shorts(3).tolist() == [
        int.from_bytes(stream[at : at + 2], "little") for at in (0, 2, 4)
    ]
    assert RandomBits("any name", 3).coins(9).tolist() == [stream[0] >> bit & 1 for bit in range(8)] + [stream[1] & 1]
    assert RandomBits("any name", 3).below(1000) == int.from_bytes(stream[:8], "little") * 1000 // 2**64


@few_examples
@given(count=st.integers(1, 5000), index=st.integers(0, 10**6))
def test_a_permutation_holds_each_place_once(count: int, index: int) -> None:
    assert sorted(RandomBits("permutation", index).permutation(count).tolist()) == list(range(count))


def test_all_permutations_are_equally_likely() -> None:
    orders = Counter(tuple(RandomBits("order", index).permutation(3).tolist()) for index in range(1200))
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > 1e-4


# ------------------------------------------------------------------------------------------------------------- blur


@few_examples
@given(height=SIDE, width=SIDE, sigma=st.floats(0.5, 60), seed=st.integers(0, 99))
def test_blur_equals_scipy_to_less_than_a_grey_level(height: int, width: int, sigma: float, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="reflect")
    assert np.abs(blur(image, sigma) / UNIT - expected).max() < 0.1


@few_examples
@given(height=st.integers(1, 12), width=st.integers(1, 12), sigma=st.floats(0.5, 20))
def test_blur_is_exact(height: int, width: int, sigma: float) -> None:
    """Against Python's integers, which cannot round: then no order of summation can change the result."""
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(blur(image, sigma), _blur_in_python_integers(image, sigma))


def test_blur_with_rounded_sums_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: with weights too fine for float64 the same check must fail."""
    monkeypatch.setattr(blur_module, "KERNEL_SUM", 2**27)
    blur_module.blur_matrix.cache_clear()
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    differs = bool((blur(image, 3.7) != _blur_in_python_integers(image, 3.7)).any())
    blur_module.blur_matrix.cache_clear()
    assert differs


@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.97, 50.8])
def test_blur_keeps_a_constant_image(sigma: float) -> None:
    image = np.full((31, 8, 3), (0, 77, 255), dtype=np.uint8)
    np.testing.assert_array_equal(blur(image, sigma), image.astype(np.int64) * UNIT)
    assert sum(round(weight) for weight in exact_kernel(50.8, 203)) != KERNEL_SUM  # rounding alone would not keep it


def test_no_weight_or_limit_lies_so_near_a_half_that_another_maths_library_could_round_it_the_other_way() -> None:
    """exp and erf are within a few units in the last place everywhere: errors below 1e-8 after scaling."""
    widths = {
        blur_width(native, side, side)
        for native in (*recipes.SMOOTH_NOISE_SIGMAS, *recipes.SMOOTH_PERMUTATION_SIGMAS, *recipes.BLOB_SIGMAS)
        for side in (32, 64, 224, 384)
    }
    weights = [weight for sigma in widths for weight in exact_kernel(sigma, len(kernel(sigma)) // 2)]
    limits = [limit for sigma in GAUSSIAN_SIGMAS for limit in recipes.gaussian_limits(sigma)]
    for values in (np.array(weights), np.array(limits)):
        assert np.abs(values - np.floor(values) - 0.5).min() > 1e-6


@pytest.mark.parametrize(
    ("native", "height", "width", "pixels"),
    [(10, 375, 500, 10), (85, 500, 375, 85), (15, 224, 224, 8.96), (85, 32, 32, 85 * 32 / 375), (10, 750, 900, 20),
     (1, 32, 32, 1), (10, 32, 32, 1), (4, 1, 1000, 1)],
)  # fmt: skip
def test_blur_widths_follow_the_shorter_side_and_have_a_floor(
    native: float, height: int, width: int, pixels: float
) -> None:
    assert blur_width(native, height, width) == pytest.approx(pixels)


# --------------------------------------------------------------------------------------------------------- manifest


@pytest.mark.parametrize("size", manifest.SIZES, ids=["32x32", "224x224"])
@pytest.mark.parametrize("name", names)
def test_every_pixel_is_that_of_the_manifest(name: str, size: tuple[int, int]) -> None:
    assert manifest.compute_hashes(size, [name])[name] == manifest.recorded_hashes(size)[name]


def test_the_manifest_holds_these_sets_and_no_others() -> None:
    assert [list(manifest.recorded_hashes(size)) for size in manifest.SIZES] == [list(names)] * 2


def test_a_changed_recipe_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly_white(bits: RandomBits, height: int, width: int) -> Pixels:
        image = RECIPES["black"](bits, height, width) + np.uint8(255)
        image[-1, -1, -1] = 254
        return image

    monkeypatch.setitem(RECIPES, "white", nearly_white)
    measured = manifest.compute_hashes((32, 32), ["black", "white", "grey"])
    expected = {name: hash_ for name, hash_ in manifest.recorded_hashes((32, 32)).items() if name in measured}
    assert manifest.differing_sets(measured, expected) == ["white"]


def test_a_missing_and_an_unknown_set_are_noticed() -> None:
    assert manifest.differing_sets({"black": "1"}, {"black": "1", "white": "2"}) == ["white"]
    assert manifest.differing_sets({"black": "1", "white": "2"}, {"black": "1"}) == ["white"]


def test_the_fingerprint_sees_shape_and_pixels() -> None:
    images = images_of("tricolour", 2, 8)
    assert manifest.fingerprint(images) == hashlib.sha256(b"2 8 8 3\n" + images.tobytes()).hexdigest()
    assert manifest.fingerprint(images) != manifest.fingerprint(images.reshape(2, 4, 16, 3))


def test_a_size_that_the_manifest_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"manifest.json has no hashes for the size 9x9, only for 32x32, 224x224"):
        manifest.recorded_hashes((9, 9))


def test_rewriting_gives_the_manifest_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manifest, "SIZES", ((32, 32),))
    manifest.rewrite_manifest(tmp_path / "manifest.json")
    written = json.loads((tmp_path / "manifest.json").read_text())
    committed = json.loads(manifest.MANIFEST.read_text())
    assert written == {"count": committed["count"], "sha256": {"32x32": committed["sha256"]["32x32"]}}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


# ------------------------------------------------------------------------------------------------------------ files


def test_half_of_the_files_are_jpeg_and_half_png(tmp_path: Path) -> None:
    main(["write", str(tmp_path / "made"), "--size", "20x30", "--count", "6", "--names", "tricolour", "grey"])
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["grey", "tricolour"]
    files = sorted((tmp_path / "made" / "tricolour").iterdir())
    assert [path.name for path in files] == ["0000.jpg", "0001.png", "0002.jpg", "0003.png", "0004.jpg", "0005.png"]
    for path, pixels in zip(files, generate("tricolour", 6, (20, 30)), strict=True):
        with Image.open(path) as image:
            assert image.format == ("PNG" if path.suffix == ".png" else "JPEG")
            difference = np.abs(np.asarray(image).astype(int) - pixels)
        assert difference.mean() < (1e-9 if path.suffix == ".png" else 12)


def test_all_sets_are_written_by_default(tmp_path: Path) -> None:
    folders = write_sets(tmp_path, count=2, size=(8, 8))
    assert [folder.name for folder in folders] == list(names)
    assert all(len(list(folder.iterdir())) == 2 for folder in folders)
    assert len(list(tmp_path.iterdir())) == 17  # and no temporary folder


def test_a_folder_with_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "white").mkdir()
    (tmp_path / "white" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"not empty.*white"):
        write_sets(tmp_path, ["black", "white"], 2, (8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["white"]
    assert (tmp_path / "white" / "mine.txt").read_text() == "keep"


def test_an_empty_folder_and_a_repeated_name_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "black").mkdir()
    assert write_sets(tmp_path, ["black", "black"], 2, (8, 8)) == [tmp_path / "black"]
    assert len(list((tmp_path / "black").iterdir())) == 2


def test_a_full_disk_leaves_complete_sets_only_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def fill_up(path: Path, content: bytes) -> int:
        if path.parent.name == "white" and path.name == "0002.jpg":
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(SystemExit, match=r"error: .*white/0002.jpg: No space left on device"):
        main(["write", str(tmp_path), "--size", "8x8", "--count", "4", "--names", "black", "white"])
    assert [path.name for path in tmp_path.iterdir()] == ["black"]
    assert len(list((tmp_path / "black").iterdir())) == 4


def test_an_interrupted_run_leaves_complete_sets_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, content: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sets(tmp_path, ["black"], 2, (8, 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "below"])
def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"error: .*/file"):
        main(["write", str(tmp_path / "file" / below), "--size", "8x8", "--count", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "blak"], "did you mean 'black'"),
        (["--count", "0"], "count: expected"),
        (["--size", "0x8"], "height"),
    ],
)
def test_a_bad_option_writes_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["write", str(tmp_path / "made"), *arguments])
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- command line


def test_list_says_what_each_test_shows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names)
    assert all(len(line.split()) > 3 for line in lines)


def test_verify_tells_which_sets_differ(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(manifest, "SIZES", ((32, 32),))
    main(["verify"])
    assert "all 17 unit tests have the images" in capsys.readouterr().out
    monkeypatch.setitem(RECIPES, "black", RECIPES["white"])
    with pytest.raises(SystemExit, match=r"not the images of .*manifest.json: black at 32x32"):
        main(["verify"])


def test_the_module_runs_and_needs_no_torch() -> None:
    code = "import sys, unit_tests_ood.__main__ as m; m.main(['list']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# ---------------------------------------------------------------------------------------------------------- helpers


def _assert_channels_independent(values: Pixels) -> None:
    correlations = np.corrcoef(values.reshape(-1, 3).T.astype(float))[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(values.size / 3) + 0.01


def _clipped_normal_std(sigma: float) -> float:
    grid = np.clip(stats.norm.ppf((np.arange(20000) + 0.5) / 20000, 0.5, sigma), 0, 1)
    return float(255 * grid.std())


def _is_vertical(image: Pixels) -> bool:
    """Whether all rows are the same. (An image of three like stripes is so both ways.)"""
    return bool((image == image[0]).all())


def _stripe_heights(image: Pixels) -> list[int]:
    changes = np.flatnonzero((image[1:, 0] != image[:-1, 0]).any(axis=1)) + 1
    return np.diff([0, *changes, len(image)]).tolist()


def _neighbour_correlation(on: NDArray[np.bool_]) -> float:
    values = on.astype(float)
    return float(np.corrcoef(values[:, :, 1:].ravel(), values[:, :, :-1].ravel())[0, 1])


def _blur_in_python_integers(image: Pixels, sigma: float) -> NDArray[np.int64]:
    height, width, _ = image.shape
    down, across = (blur_module.blur_matrix(side, sigma).astype(np.int64).astype(object) for side in (height, width))
    channels = [down @ image[..., channel].astype(object) @ across.T for channel in range(3)]
    return np.stack(channels, axis=2).astype(np.int64)
