"""Detectors of logits, and those that know nothing: against independent ones, and the laws of their formulas."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy import stats
from scipy.optimize import minimize_scalar

from detectors import Outputs, create
from detectors.contract import refusal
from detectors.logits import Weibulls, largest_of_each_class
from tests.references.data import DATA, agree, log_odds
from tests.references.logits import log_softmax, nll

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def random_logits(seed: int, rows: int = 200, classes: int = 6, spread: float = 3.0) -> np.ndarray:
    return spread * np.random.default_rng(seed).normal(size=(rows, classes))


def labels_of(logits: np.ndarray, seed: int) -> np.ndarray:
    """Right for some images and wrong for others."""
    noise = np.random.default_rng(seed + 1).gumbel(size=logits.shape)
    return (logits / 2 + noise).argmax(axis=1)


def scores(detector_id: str, logits: np.ndarray, **options: Any) -> np.ndarray:
    """Fitted and scored on the same images."""
    outputs = Outputs(logits=logits, labels=labels_of(logits, 0))
    return create(detector_id, **options).fit(outputs, None, val=outputs).score(outputs).numpy()


def calibrated(logits: np.ndarray, labels: np.ndarray) -> float:
    return create("temperature-scaling").fit(None, None, val=Outputs(logits=logits, labels=labels)).temperature


# --- Independent implementations. ---


def test_scores_agree_with_pytorch_ood() -> None:
    # Its entropy raises probabilities to 1e-7, its GEN keeps them 1e-7 away from 0 and 1 and takes a mean over M.
    logits = random_logits(0, spread=1.0)
    tensor = torch.from_numpy(logits)
    assert agree(-np.exp(-scores("entropy", logits)), (-peer.Entropy(None).predict_logits(tensor)).tolist())
    expected = -6 * peer.GEN(None, gamma=0.1).predict_logits(tensor)
    assert agree(-np.exp(-scores("gen", logits)), expected.tolist())
    expected = -2 * peer.GEN(None, gamma=0.7, M=2).predict_logits(tensor)
    assert agree(-np.exp(-scores("gen", logits, gamma=0.7, top=2)), expected.tolist())


def test_the_temperature_agrees_with_pytorch_ood() -> None:
    # It stops after 50 small steps, and in single precision; every fit goes on from where the last one ended.
    logits = random_logits(0)
    labels = labels_of(logits, 0)
    theirs = peer.TemperatureScaling(None)
    for _ in range(20):
        theirs.fit_logits(torch.from_numpy(logits), torch.from_numpy(labels))
    assert calibrated(logits, labels) == pytest.approx(float(theirs.t.detach()), rel=5e-3)


@pytest.mark.filterwarnings("ignore:overflow")
def test_openmax_agrees_with_pytorch_ood() -> None:
    # It fits to all training images, so it is given those that are classified correctly. The distances to a class that
    # no image of its batch has as the largest logit stay 0 there, so only alpha = 1 is safe from the rest of the batch.
    data = DATA["ReLU"]
    train, test = data.logits(data.train), data.logits(data.test)
    right = train.argmax(axis=1) == data.labels
    detector = create("openmax", tail=12, alpha=1, shift=10000.0)
    odds = detector.fit(Outputs(logits=train, labels=data.labels), None).score(Outputs(logits=test))
    theirs = peer.OpenMax(None, tailsize=12, alpha=1)
    theirs.fit_logits(torch.from_numpy(train[right]), torch.from_numpy(data.labels[right]))
    known = np.isin(test.argmax(axis=1), data.labels[right])
    unknown = theirs.predict_logits(torch.from_numpy(test)).numpy()
    np.testing.assert_allclose(torch.sigmoid(-odds).numpy()[known], unknown[known], rtol=2e-3, atol=1e-6)


def test_weibull_fits_agree_with_scipy() -> None:
    distances = np.random.default_rng(0).gamma(5.0, size=(4, 20))
    tails = torch.from_numpy(-np.sort(-distances))
    fitted = Weibulls.of(tails, 1.0, torch.full((4,), 1e-12, dtype=torch.float64))
    for c, tail in enumerate(distances):
        shape, _, scale = stats.weibull_min.fit(tail - tail.min() + 1, floc=0)
        assert float(fitted.shape[c]) == pytest.approx(shape, rel=1e-3)
        assert float(fitted.log_scale[c].exp()) == pytest.approx(scale, rel=1e-3)


@few
@given(seeds)
def test_no_other_weibull_is_likelier(seed: int) -> None:
    tail = np.sort(np.random.default_rng(seed).exponential(3.0, size=9))[::-1].copy()
    fitted = Weibulls.of(torch.from_numpy(tail)[None], 1.0, torch.tensor([1e-12]).double())
    shape, scale = float(fitted.shape), float(fitted.log_scale.exp())

    def likelihood(shape: float, scale: float) -> float:
        return stats.weibull_min.logpdf(tail - tail.min() + 1, shape, scale=scale).sum()

    best = likelihood(shape, scale)
    assert all(likelihood(shape * a, scale * b) < best for a in (0.99, 1, 1.01) for b in (0.99, 1, 1.01) if a * b != 1)


@pytest.mark.parametrize("kind", DATA)
def test_the_temperature_is_the_likeliest(kind: str) -> None:
    data = DATA[kind]
    logits = data.logits(data.train)
    detector = create("temperature-scaling")
    detector.batch_rows = 37
    detector.fit(None, None, val=Outputs(logits=logits, labels=data.labels))
    height = np.mean(logits.max(axis=1) - logits.mean(axis=1)) or 1.0
    bounds = -math.log(100 * height), -math.log(height / 100)
    best = minimize_scalar(nll, bounds=bounds, args=(logits, data.labels), method="bounded", options={"xatol": 1e-12})
    ours = -math.log(detector.temperature)
    assert nll(ours, logits, data.labels) <= best.fun * (1 + 1e-12) + 1e-12
    expected = [log_odds(row / detector.temperature) for row in data.logits(data.test)]
    assert agree(detector.score(Outputs(logits=data.logits(data.test))).numpy(), expected)


# --- Laws. ---

INVARIANT = ("msp", "entropy", "gen", "kl-matching", "temperature-scaling")


@few
@given(seeds, st.floats(-100, 100))
def test_a_shift_of_all_logits(seed: int, shift: float) -> None:
    logits = random_logits(seed)
    for detector_id in INVARIANT:
        np.testing.assert_allclose(
            scores(detector_id, logits + shift), scores(detector_id, logits), rtol=1e-9, atol=1e-11
        )
    for detector_id in ("energy", "max-logit"):
        np.testing.assert_allclose(
            scores(detector_id, logits + shift), scores(detector_id, logits) + shift, rtol=1e-12, atol=1e-12
        )


@few
@given(seeds)
def test_the_order_of_the_classes_does_not_matter(seed: int) -> None:
    logits = random_logits(seed)
    order = np.random.default_rng(seed).permutation(logits.shape[1])
    outputs = Outputs(logits=logits, labels=labels_of(logits, 0))
    permuted = Outputs(logits=logits[:, order], labels=np.argsort(order)[labels_of(logits, 0)])
    for detector_id in (*INVARIANT, "energy", "max-logit", "openmax"):
        here, there = (create(detector_id).fit(given, None, val=given).score(given) for given in (outputs, permuted))
        np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)


@few
@given(seeds)
def test_with_two_classes_the_probabilities_have_one_order(seed: int) -> None:
    logits = random_logits(seed, classes=2)
    order = np.argsort(scores("msp", logits))
    for detector_id in ("entropy", "gen", "temperature-scaling"):
        assert (np.diff(scores(detector_id, logits)[order]) >= 0).all()


@few
@given(seeds)
def test_entropy_is_between_a_certain_and_a_uniform_prediction(seed: int) -> None:
    found = scores("entropy", random_logits(seed))
    assert np.isfinite(found).all()
    assert (found > -math.log(math.log(6))).all()
    uniform = create("entropy").fit(None, None).score(Outputs(logits=np.full((1, 6), 3.3)))
    assert float(uniform) == pytest.approx(-math.log(math.log(6)), rel=1e-15)


@few
@given(seeds)
def test_a_confident_prediction_keeps_its_digits(seed: int) -> None:
    """Two classes with a gap g have r = exp(-g): H -> r (g + 1), GEN -> 2 r^gamma, also where 1 - r is 1."""
    gaps = np.sort(np.random.default_rng(seed).uniform(40, 10000, 20))
    logits = np.stack([gaps, np.zeros(20)], axis=1)
    np.testing.assert_allclose(scores("msp", logits), gaps, rtol=1e-15)
    np.testing.assert_allclose(scores("entropy", logits), gaps - np.log(gaps + 1), rtol=1e-14)
    np.testing.assert_allclose(scores("gen", logits), 0.1 * gaps - math.log(2), rtol=1e-12)


@few
@given(seeds)
def test_generalised_entropy_has_known_limits(seed: int) -> None:
    logits = random_logits(seed)
    p = np.exp([log_softmax(row).astype(float) for row in logits])
    np.testing.assert_allclose(scores("gen", logits, gamma=1.0), -np.log(1 - (p**2).sum(axis=1)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scores("gen", logits, gamma=1e-12), -math.log(6), rtol=1e-9)
    np.testing.assert_array_equal(scores("gen", logits, top=6), scores("gen", logits, top=100))
    assert (scores("gen", logits, top=6) < scores("gen", logits, top=5)).all()


@few
@given(seeds, st.floats(-6, 6))
def test_the_temperature_takes_up_the_scale_of_the_logits(seed: int, log_scale: float) -> None:
    logits = random_logits(seed)
    labels, scale = labels_of(logits, seed), math.exp(log_scale)
    assert calibrated(scale * logits, labels) == pytest.approx(scale * calibrated(logits, labels), rel=1e-9)
    small, large = Outputs(logits=logits, labels=labels), Outputs(logits=scale * logits, labels=labels)
    found, expected = (create("temperature-scaling").fit(None, None, val=val).score(val) for val in (large, small))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_the_temperature_of_a_calibrated_network_is_its_own() -> None:
    """Labels drawn from softmax(o / 2) ask for T = 2; the same images in both labels' proportions give it exactly."""
    logits = np.array([[math.log(3) * 2, 0.0]] * 4)
    assert calibrated(logits, np.array([0, 0, 0, 1])) == pytest.approx(2, rel=1e-12)


def test_a_temperature_without_a_minimum_is_at_its_bound() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])  # the mean of max - mean is 1
    right = logits.argmax(axis=1)
    assert calibrated(logits, right) == pytest.approx(0.01, rel=1e-12)
    assert calibrated(logits, 1 - right) == pytest.approx(100, rel=1e-12)
    assert calibrated(np.full((3, 2), 0.7), right) == 1
    assert calibrated(np.zeros((3, 1)), np.zeros(3, dtype=int)) == 1


def test_temperature_scaling_needs_labels_of_the_val_images() -> None:
    val = Outputs(logits=random_logits(0))
    assert "labels" in refusal(ValueError, create("temperature-scaling").fit, None, None, val=val)


def openmax_on(train: list[list[float]], labels: list[int], test: list[list[float]], **options: Any) -> list[float]:
    detector = create("openmax", **options).fit(Outputs(logits=np.array(train), labels=np.array(labels)), None)
    return detector.score(Outputs(logits=np.array(test))).tolist()


def energy(*logits: float) -> float:
    return math.log(sum(math.exp(logit) for logit in logits))


def test_openmax_gives_up_the_logit_of_an_image_far_from_its_class() -> None:
    # Both classes have one distance, 0, beyond which an image is unknown: then its weights are 1 and 1/2.
    near, far = openmax_on([[3.0, 0.0], [0.0, 3.0]], [0, 1], [[3.0, 0.0], [4.0, 2.0]])
    assert near == pytest.approx(energy(3, 0))  # the smaller logit, far from its class, has nothing to give
    assert far == pytest.approx(energy(0, 1) - (4 + 1))


def test_openmax_without_a_correct_image_is_the_energy() -> None:
    test = random_logits(0, classes=2)
    found = openmax_on([[3.0, 0.0], [0.0, 3.0]], [1, 0], test.tolist())
    np.testing.assert_allclose(found, scores("energy", test), rtol=1e-12)


@few
@given(seeds)
def test_openmax_is_less_sure_the_farther_an_image_is(seed: int) -> None:
    """Along a line away from the class mean, on which the largest logit stays and no other grows."""
    train = np.array([9.0, 0, 0, 0]) + np.random.default_rng(seed).normal(size=(40, 4))
    line = np.array([[9.0, -step, -step, 0] for step in np.linspace(0, 5, 11)])
    detector = create("openmax", alpha=1).fit(Outputs(logits=train, labels=np.zeros(40, dtype=int)), None)
    found = detector.score(Outputs(logits=line)).numpy()
    assert (np.diff(found) < 0).all()
    assert found[0] > 8
    assert found[-1] < -7  # the unknown class has all of 9, and 9 - 9 and 0 are left


@pytest.mark.parametrize(("images", "tail"), [(10, 1), (11, 2), (95, 10), (240, 20)])
def test_the_default_tail_is_a_tenth_of_a_class_and_at_most_20(images: int, tail: int) -> None:
    labels = np.arange(2 * images) % 2
    logits = np.random.default_rng(0).normal(size=(2 * images, 2)) + 9 * np.eye(2)[labels]
    outputs = Outputs(logits=logits, labels=labels)
    default, named, other = (
        create("openmax", tail=value).fit(outputs, None).score(outputs) for value in (None, tail, tail + 1)
    )
    assert torch.equal(default, named)
    assert not torch.equal(default, other)


@few
@given(seeds)
def test_the_largest_of_each_class_are_those_of_a_sort(seed: int) -> None:
    random = np.random.default_rng(seed)
    values, labels = random.normal(size=80), random.integers(0, 4, 80)
    counts = random.integers(0, 30, 5)
    rows = zip(torch.from_numpy(values).split(9), torch.from_numpy(labels).split(9), strict=True)
    found = largest_of_each_class(rows, torch.from_numpy(counts))
    for c in range(5):
        expected = np.sort(values[labels == c])[::-1][: counts[c]]
        assert found[c][found[c].isfinite()].tolist() == expected.tolist()


# --- Those that know nothing. ---


def test_random_scores_are_uniform_and_independent() -> None:
    logits = random_logits(0, rows=20_000)
    first, second = scores("random", logits), scores("random", logits, seed=1)
    for found in (first, second):
        assert found.min() >= 0
        assert found.max() < 1
        assert stats.kstest(found, "uniform").pvalue > 1e-3
    for other in (second, scores("max-logit", logits), np.roll(first, 1)):
        assert abs(stats.spearmanr(first, other).statistic) < 0.03
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_random_scores_are_uniform_for_any_precision(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(random_logits(1, rows=5000)).to(dtype)
    detector = create("random").fit(None, None)
    found = detector.score(Outputs(logits=logits))
    assert torch.equal(found, detector.score(Outputs(logits=logits.double())))
    assert stats.kstest(found.numpy(), "uniform").pvalue > 1e-3
    assert len(set(found.tolist())) == len(set(map(tuple, logits.tolist())))


@few
@given(seeds, st.integers(0, 5))
def test_the_smallest_change_of_one_logit_changes_a_random_score(seed: int, c: int) -> None:
    logits = random_logits(seed, rows=400)
    nudged = logits.copy()
    nudged[:, c] = np.nextafter(nudged[:, c], np.inf)
    before, after = scores("random", logits), scores("random", nudged)
    assert abs(stats.spearmanr(before, after).statistic) < 0.25
    assert abs(np.abs(before - after).mean() - 1 / 3) < 0.1  # as for two independent uniform numbers


def test_a_random_score_does_not_see_the_sign_of_zero() -> None:
    np.testing.assert_array_equal(scores("random", np.array([[0.0, 1.0]])), scores("random", np.array([[-0.0, 1.0]])))


# --- Options. ---


@pytest.mark.parametrize(
    ("detector_id", "option", "values"),
    [
        ("gen", "gamma", [0, -1.0, "1", True, math.nan, None]),
        ("gen", "top", [0, -1, 2.0, "3", True, None]),
        ("openmax", "tail", [0, 2.0, "3", True]),
        ("openmax", "alpha", [0, 2.0, "3", True]),
        ("openmax", "distance", ["cosine", None, 1]),
        ("openmax", "shift", [0, -1.0, "1", True, math.inf, None]),
        ("random", "seed", [-1, 2**63, 1.0, "1", True, None]),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any]) -> None:
    for value in values:
        text = refusal(ValueError, create, detector_id, **{option: value})
        assert f"{option} is {value!r}" in text
        assert "allowed" in text


def test_alpha_is_held_to_the_classes_and_never_rescaled() -> None:
    data = DATA["random"]  # 5 classes
    data.scores("openmax", alpha=5)
    assert "alpha is 6; allowed: up to 5" in refusal(ValueError, data.scores, "openmax", alpha=6)
    assert np.array_equal(data.scores("openmax"), data.scores("openmax", alpha=3))
    assert np.array_equal(DATA["one class"].scores("openmax"), DATA["one class"].scores("openmax", alpha=1))


@pytest.mark.parametrize("detector_id", ["openmax", "kl-matching"])
def test_training_outputs_without_logits_are_refused_by_name(detector_id: str) -> None:
    train = Outputs(features=np.ones((3, 2)), labels=np.zeros(3, dtype=int))
    assert "logits" in refusal(ValueError, create(detector_id).fit, train, None)
