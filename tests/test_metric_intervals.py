"""The intervals of the metrics against references that share no code with them.

A reference derives how a metric moves with the weight of each image by changing that weight, solves Wilson's equation
in place of its formula, and takes exact distributions, or plain draws one by one, in place of draws over arrays.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm
from scipy.stats import t as student

from benchmark import metrics
from benchmark.metrics import accepted, accuracy, fpr_at_tpr, mean, measure, paired_fpr_difference, threshold_at_tpr
from benchmark.records import Estimate

Floats = np.ndarray
# A metric of positive and negative images with weights, each of which sum to 1.
Weighted = Callable[[Floats, Floats], float]


def drawn(seed: int, id_images: int, ood_images: int, levels: float | None = None) -> tuple[Floats, Floats]:
    """Scores of ID and OOD images; with levels they tie."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(1, 1, id_images), generator.normal(0, 1.5, ood_images)
    return scores if levels is None else (np.round(scores[0] * levels), np.round(scores[1] * levels))


SAMPLES = {
    "more ID": drawn(0, 40, 15),
    "more OOD": drawn(1, 14, 45),
    "tied": drawn(2, 30, 26, levels=2.0),
    "apart": (np.arange(20.0) + 100, np.arange(33.0)),
    "the wrong way round": (np.arange(17.0), np.arange(12.0) + 10),
}


def variance_by_weights(metric: Weighted, positives: int, negatives: int) -> tuple[float, float]:
    """The variance that each side adds: how the metric moves as one image takes a little of the weight of all."""
    step = 1e-6
    uniform = np.full(positives, 1 / positives), np.full(negatives, 1 / negatives)
    base = metric(*uniform)
    found = []
    for side, images in enumerate((positives, negatives)):
        moved = []
        for image in range(images):
            weights = [part.copy() for part in uniform]
            weights[side] *= 1 - step
            weights[side][image] += step
            moved.append((metric(weights[0], weights[1]) - base) / step)
        found.append(float(np.mean(np.square(moved))) / images)
    return found[0], found[1]


def wilson(share: float, images: float, quantile: float = norm.ppf(0.975)) -> tuple[float, float]:
    """The shares from which this one is just so many standard errors away."""

    def too_far(truth: float) -> float:
        return abs(share - truth) - quantile * math.sqrt(truth * (1 - truth) / images)

    hair = 1e-12  # at 0 and 1 the equation has a second solution, which is the share itself
    low = 0.0 if share <= 0 else brentq(too_far, 0, min(share, 1 - hair))
    return low, 1.0 if share >= 1 else brentq(too_far, max(share, hair), 1)


def with_variance(value: float, variance: float, positives: int, negatives: int) -> tuple[float, float]:
    """Wilson's interval at the number of images that have this variance, with half an image of a random rank."""
    fewest = min(positives, negatives)
    smoothed = (fewest * value + 0.5 * 0.5) / (fewest + 0.5)
    variance += (0.5 / positives) ** 2 / 4 + (0.5 / negatives) ** 2 / 4
    return wilson(value, smoothed * (1 - smoothed) / variance)


def ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def weighted_auroc(id_scores: Floats, ood_scores: Floats) -> Weighted:
    wins = (id_scores[:, None] > ood_scores) + 0.5 * (id_scores[:, None] == ood_scores)
    return lambda of_id, of_ood: float(of_id @ wins @ of_ood)


def weighted_average_precision(positives: Floats, negatives: Floats) -> Weighted:
    """The sets keep their sizes, which precision depends on."""

    def metric(of_positives: Floats, of_negatives: Floats) -> float:
        total = 0.0
        for score, weight in zip(positives, of_positives, strict=True):
            right = len(positives) * of_positives[positives >= score].sum()
            wrong = len(negatives) * of_negatives[negatives >= score].sum()
            total += weight * right / (right + wrong)
        return total

    return metric


def weighted_aurc(id_scores: Floats, wrong: Floats, ood_scores: Floats | None) -> Weighted:
    """The area level by level: of a level from coverage a to b, errors / coverage integrated over the coverage."""

    def metric(of_id: Floats, of_ood: Floats) -> float:
        images = [(score, weight, error) for score, weight, error in zip(id_scores, of_id, wrong, strict=True)]
        if ood_scores is not None:
            images = [(score, weight / 2, error) for score, weight, error in images]
            images += [(score, weight / 2, True) for score, weight in zip(ood_scores, of_ood, strict=True)]
        coverage = errors = area = 0.0
        for level in sorted({score for score, _, _ in images}, reverse=True):
            width = sum(weight for score, weight, _ in images if score == level)
            more = sum(weight for score, weight, error in images if score == level and error)
            slope = more / width
            area += more
            if coverage:
                area += (errors - slope * coverage) * math.log((coverage + width) / coverage)
            coverage, errors = coverage + width, errors + more
        return area

    return metric


@pytest.mark.parametrize("name", SAMPLES)
def test_auroc_and_average_precision_vary_as_they_do_with_the_weights_of_images(name: str) -> None:
    id_scores, ood_scores = SAMPLES[name]
    found = measure(id_scores, ood_scores)
    for estimate, metric, positives, negatives in (
        (found.auroc, weighted_auroc(id_scores, ood_scores), id_scores, ood_scores),
        (found.aupr_id, weighted_average_precision(id_scores, ood_scores), id_scores, ood_scores),
        (found.aupr_ood, weighted_average_precision(-ood_scores, -id_scores), ood_scores, id_scores),
    ):
        sizes = len(positives), len(negatives)
        assert estimate.value == pytest.approx(metric(np.full(sizes[0], 1 / sizes[0]), np.full(sizes[1], 1 / sizes[1])))
        variance = sum(variance_by_weights(metric, *sizes))
        assert ends(estimate) == pytest.approx(with_variance(estimate.value, variance, *sizes), abs=1e-4)


def right_answers(id_scores: Floats, share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(len(id_scores)) < share


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("name", SAMPLES)
def test_aurc_varies_as_it_does_with_the_weights_of_images(name: str, share: float) -> None:
    id_scores, ood_scores = SAMPLES[name]
    right = right_answers(id_scores, share)
    found = measure(id_scores, ood_scores, id_correct=right)
    for estimate, others in ((found.aurc, ood_scores), (found.aurc_id, None)):
        sizes = [len(id_scores)] if others is None else [len(id_scores), len(others)]
        metric = weighted_aurc(id_scores, ~right, others)
        best = 0.0 if others is None else 0.5 - math.log(2) / 2
        reach = 1 - best
        assert estimate.value == pytest.approx(
            metric(np.full(len(id_scores), 1 / len(id_scores)), np.full(len(ood_scores), 1 / len(ood_scores)))
        )
        value = max(0.0, estimate.value - best) / reach
        halves = [0.5 / (len(sizes) * images) / reach for images in sizes]
        variances = variance_by_weights(metric, len(id_scores), len(ood_scores))[: len(sizes)]
        spread = [
            variance * images / (images - 1) / reach**2 + 2 * half**2
            for variance, images, half in zip(variances, sizes, halves, strict=True)
        ]
        smoothed = (value + sum(halves)) / (1 + 2 * sum(halves))
        freedom = sum(spread) ** 2 / sum(part**2 / (images - 1) for part, images in zip(spread, sizes, strict=True))
        quantile = float(student.ppf(0.975, freedom))
        low, high = wilson(value, smoothed * (1 - smoothed) / sum(spread), quantile)
        low, high = min(best + reach * low, estimate.value), max(best + reach * high, estimate.value)
        assert ends(estimate) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("name", SAMPLES)
def test_oscr_has_the_interval_of_a_product(name: str, share: float) -> None:
    """Zou and Donner (2008): the distances of both factors, times the other factor, at right angles."""
    id_scores, ood_scores = SAMPLES[name]
    right = right_answers(id_scores, share)
    found = measure(id_scores, ood_scores, id_correct=right).oscr
    share_right = accuracy(int(right.sum()), len(right))
    assert ends(share_right) == pytest.approx(wilson(right.mean(), len(right)), abs=1e-9)
    if not right.any():
        assert (found.value, found.low, found.high) == (0.0, 0.0, share_right.high)
        return
    above = measure(id_scores[right], ood_scores).auroc
    assert found.value == pytest.approx(share_right.value * above.value)
    down = math.dist((above.value * share_right.low, share_right.value * above.low), (found.value, found.value))
    up = math.dist((above.value * share_right.high, share_right.value * above.high), (found.value, found.value))
    assert ends(found) == pytest.approx((max(0.0, found.value - down), min(1.0, found.value + up)))


# --- FPR@95: which threshold all ID images would have, and which share all OOD images. ---

NOISE = 0.013  # of 2,000 draws: 3.7 standard deviations of the share below a quantile of 2.5 %


def share_below(value: float, id_scores: Floats, ood_scores: Floats) -> float:
    """The exact chance that the drawn share lies below a value: over all thresholds, each of two places as likely."""
    ascending = np.sort(id_scores)
    chance = 0.0
    for below in range(len(id_scores) + 1):
        for place in (below, min(below + 1, len(id_scores))):
            threshold = -math.inf if place == 0 else ascending[place - 1]
            passing = int((ood_scores >= threshold).sum())
            within = float(beta.cdf(value, passing + 0.5, len(ood_scores) - passing + 0.5))
            chance += 0.5 * float(binom.pmf(below, len(id_scores), 0.05)) * within
    return chance


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("copies", [1, 8])
def test_fpr_has_the_quantiles_of_its_distribution(name: str, copies: int) -> None:
    generator = np.random.default_rng(5)
    id_scores, ood_scores = (
        np.repeat(scores, copies) + (0 if name == "tied" else generator.normal(0, 1e-3, len(scores) * copies))
        for scores in SAMPLES[name]
    )
    for estimate, of_id, of_ood in (
        (measure(id_scores, ood_scores).fpr_at_95, id_scores, ood_scores),
        (measure(id_scores, ood_scores).fpr_at_95_ood_positive, -ood_scores, -id_scores),
        (accepted(id_scores, ood_scores), id_scores, ood_scores),
    ):
        assert estimate.value == fpr_at_tpr(of_id, of_ood)
        if estimate.low < estimate.value:
            assert share_below(estimate.low, of_id, of_ood) == pytest.approx(0.025, abs=NOISE)
        if estimate.high > estimate.value:
            assert share_below(estimate.high, of_id, of_ood) == pytest.approx(0.975, abs=NOISE)


def test_fpr_by_class_has_the_quantiles_of_its_distribution() -> None:
    """Of each class, and of their mean, where all share the threshold and half an image on each side."""
    generator = np.random.default_rng(6)
    sizes = (7, 30, 12)
    classes = np.repeat([0, 1, 3], sizes)
    id_scores, ood_scores = generator.normal(2, 1, 120), generator.normal(np.repeat([0.0, 0.5, 1.5], sizes), 1)
    order = generator.permutation(len(classes))
    found = measure(id_scores, ood_scores[order], classes[order], ["a", "b", "none", "c"])
    parts = [ood_scores[classes == index] for index in (0, 1, 3)]
    assert [(value.name, value.images) for value in found.classes] == [("a", 7), ("b", 30), ("c", 12)]
    for value, part in zip(found.classes, parts, strict=True):
        assert value.fpr_at_95.value == fpr_at_tpr(id_scores, part)
        assert share_below(value.fpr_at_95.low, id_scores, part) == pytest.approx(0.025, abs=NOISE)
        assert share_below(value.fpr_at_95.high, id_scores, part) == pytest.approx(0.975, abs=NOISE)

    ascending = np.append(-math.inf, np.sort(id_scores))
    means = []
    for _ in range(4000):
        place = min(int(generator.binomial(len(id_scores), 0.05)) + int(generator.integers(2)), len(id_scores))
        passing = [int((part >= ascending[place]).sum()) for part in parts]
        shares = [
            generator.beta(count + 0.5 / 3, len(part) - count + 0.5 / 3)
            for count, part in zip(passing, parts, strict=True)
        ]
        means.append(np.mean(shares))
    assert found.fpr_at_95.value == pytest.approx(np.mean([fpr_at_tpr(id_scores, part) for part in parts]))
    assert np.mean(np.array(means) < found.fpr_at_95.low) == pytest.approx(0.025, abs=1.3 * NOISE)
    assert np.mean(np.array(means) < found.fpr_at_95.high) == pytest.approx(0.975, abs=1.3 * NOISE)


@pytest.mark.parametrize("sizes", [(60,), (9, 25, 14)])
@pytest.mark.parametrize("shared", [0.0, 0.9, 1.0])
def test_a_paired_difference_has_the_quantiles_of_its_distribution(sizes: tuple[int, ...], shared: float) -> None:
    """ID images that both reject move both thresholds; OOD images that only one accepts are a share each."""
    generator = np.random.default_rng(7)
    classes = np.repeat(np.arange(len(sizes)), sizes)
    part = generator.normal(2, 1, 200), generator.normal(0, 1, sum(sizes))
    own = math.sqrt(1 - shared**2)
    id_a, ood_a = (shared * (scores - offset) + offset for scores, offset in zip(part, (2, 0), strict=True))
    id_a, ood_a = id_a + own * generator.normal(size=200), ood_a + own * generator.normal(size=sum(sizes))
    id_b, ood_b = part
    found = paired_fpr_difference(id_a, ood_a, id_b, ood_b, None if len(sizes) == 1 else classes)

    rejected = [set(np.argsort(scores)[: int((scores < threshold_at_tpr(scores)).sum())]) for scores in (id_a, id_b)]
    both = len(rejected[0] & rejected[1]) / 200
    chances = [both, 0.05 - both, 0.05 - both, 1 - 0.1 + both]
    places = np.append(-math.inf, np.sort(id_a)), np.append(-math.inf, np.sort(id_b))
    differences = []
    for _ in range(4000):
        of_both, of_a, of_b, _ = generator.multinomial(200, np.clip(chances, 0, 1))
        coin = int(generator.integers(2))
        passed_a = ood_a >= places[0][min(of_both + of_a + coin, 200)]
        passed_b = ood_b >= places[1][min(of_both + of_b + coin, 200)]
        shares = []
        for index, size in enumerate(sizes):
            only_a = int((passed_a & ~passed_b & (classes == index)).sum())
            only_b = int((passed_b & ~passed_a & (classes == index)).sum())
            prior = 0.5 / len(sizes)
            drawn = generator.dirichlet([only_a + prior, only_b + prior, size - only_a - only_b + prior])
            shares.append(drawn[0] - drawn[1])
        differences.append(np.mean(shares))
    values = [
        fpr_at_tpr(id_a, ood_a[classes == index]) - fpr_at_tpr(id_b, ood_b[classes == index])
        for index in range(len(sizes))
    ]
    assert found.value == pytest.approx(np.mean(values))
    assert np.mean(np.array(differences) < found.low) == pytest.approx(0.025, abs=1.3 * NOISE)
    assert np.mean(np.array(differences) < found.high) == pytest.approx(0.975, abs=1.3 * NOISE)


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_these_references_refuse_an_interval_that_is_too_narrow_or_too_wide(factor: float) -> None:
    """The broken twin: with ends that lie so much nearer, or further away."""
    id_scores, ood_scores = drawn(8, 400, 300)
    found = measure(id_scores, ood_scores)
    for end, quantile in ((found.fpr_at_95.low, 0.025), (found.fpr_at_95.high, 0.975)):
        moved = found.fpr_at_95.value + factor * (end - found.fpr_at_95.value)
        assert abs(share_below(end, id_scores, ood_scores) - quantile) < NOISE
        assert abs(share_below(moved, id_scores, ood_scores) - quantile) > NOISE
    variance = sum(variance_by_weights(weighted_auroc(id_scores, ood_scores), 400, 300))
    assert ends(found.auroc) == pytest.approx(with_variance(found.auroc.value, variance, 400, 300), abs=1e-4)
    other = with_variance(found.auroc.value, factor**2 * variance, 400, 300)
    assert ends(found.auroc) != pytest.approx(other, abs=1e-4)


def test_wilsons_equation_has_the_published_solution() -> None:
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # Newcombe 1998


# --- The mean of figures, and what belongs together. ---


def test_the_mean_of_figures_averages_values_and_ends() -> None:
    parts = [Estimate(value=0.2, low=0.1, high=0.6), Estimate(value=0.5, low=0.2, high=0.7)]
    found = mean([*parts, Estimate(value=0.8, low=0.6, high=0.8)])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.3, 0.7))
    assert mean(parts[:1]) == parts[0]


def test_numbers_of_images_and_the_threshold_are_told() -> None:
    found = measure(np.arange(40.0), np.arange(7.0))
    assert (found.id_images, found.ood_images, found.threshold) == (40, 7, 2.0)
    for ends_of_scores in (np.inf, -np.inf):
        assert measure(np.full(5, ends_of_scores), np.arange(3.0)).threshold is None
    assert metrics._TPR == 0.95
