"""The metrics against closed forms, hand-made cases, scikit-learn, a naive count, and their own laws.

Golden cases are chosen so that the field's usual mistakes fail them: squashing scores through a sigmoid, comparing
strictly, interpolating the threshold. `test_golden_cases_catch_broken_twin` shows that they do.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmark import metrics
from benchmark.metrics import (
    accepted,
    accuracy,
    aupr,
    aurc,
    auroc,
    fpr_at_tpr,
    fpr_at_tpr_ood_positive,
    measure,
    oscr,
    paired_fpr_difference,
    threshold_at_tpr,
)
from benchmark.records import Estimate
from tests.coverage_of_intervals import Sample, Scene
from tests.coverage_of_intervals import coverage as coverage_in

few_examples = settings(deadline=None, max_examples=40)


def gaussian(mean: float, deviation: float, count: int = 20_000) -> np.ndarray:
    """The quantiles of a normal distribution: a sample without sampling error."""
    return norm.ppf((np.arange(count) + 0.5) / count, mean, deviation)


class Golden(NamedTuple):
    id_scores: np.ndarray
    ood_scores: np.ndarray
    fpr: float
    fpr_ood_positive: float
    auroc: float
    tolerance: float = 1e-12


def gaussians(mean: float, id_deviation: float, ood_deviation: float, unit: float = 1.0) -> Golden:
    """ID N(mean, id_deviation), OOD N(0, ood_deviation), both in some unit; the truth in closed form."""
    z = norm.ppf(0.95)
    return Golden(
        gaussian(mean, id_deviation) * unit,
        gaussian(0, ood_deviation) * unit,
        fpr=norm.sf((mean - z * id_deviation) / ood_deviation),
        fpr_ood_positive=norm.cdf((z * ood_deviation - mean) / id_deviation),
        auroc=norm.cdf(mean / np.hypot(id_deviation, ood_deviation)),
        tolerance=2e-4,
    )


LEVELS = np.repeat(np.arange(20.0), 50)

GOLDEN = {
    "equal variances": gaussians(2, 1, 1),
    "unequal variances": gaussians(2, 0.5, 2),  # the two conventions: 27.8 % and 99.5 %
    "scale of Mahalanobis distances": gaussians(2, 1, 1, unit=1000.0),
    "MSP close to 1": Golden(
        1 - np.arange(1000) * 1e-9, 1 - np.arange(500, 1500) * 1e-9, fpr=0.45, fpr_ood_positive=0.45, auroc=0.875
    ),
    "20 tied levels": Golden(LEVELS, LEVELS, fpr=0.95, fpr_ood_positive=0.95, auroc=0.5),
    "between two ID scores": Golden(np.arange(20.0), np.array([0.96]), fpr=0.0, fpr_ood_positive=0.05, auroc=0.95),
    "constant": Golden(np.full(100, 7.0), np.full(50, 7.0), fpr=1.0, fpr_ood_positive=1.0, auroc=0.5),
    "perfect split": Golden(
        100 + np.arange(1000.0), np.arange(-1000.0, 0) - 100, fpr=0.0, fpr_ood_positive=0.0, auroc=1.0
    ),
    "wrong way round": Golden(np.zeros(30), np.ones(40), fpr=1.0, fpr_ood_positive=1.0, auroc=0.0),
    "infinite": Golden(
        np.array([np.inf, np.inf, 0, -np.inf]), np.array([np.inf, -np.inf]), fpr=1.0, fpr_ood_positive=1.0, auroc=0.5625
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_case(name: str) -> None:
    case = GOLDEN[name]
    assert fpr_at_tpr(case.id_scores, case.ood_scores) == pytest.approx(case.fpr, abs=case.tolerance)
    other = fpr_at_tpr_ood_positive(case.id_scores, case.ood_scores)
    assert other == pytest.approx(case.fpr_ood_positive, abs=case.tolerance)
    assert auroc(case.id_scores, case.ood_scores) == pytest.approx(case.auroc, abs=case.tolerance)


def with_sigmoid(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    return fpr_at_tpr(*(expit(scores.astype(np.float32)) for scores in (id_scores, ood_scores)))


def with_strict_comparison(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    return float((ood_scores > threshold_at_tpr(id_scores)).mean())


def with_interpolation(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    return float((ood_scores >= np.quantile(id_scores, 0.05)).mean())


def with_the_other_convention(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    return fpr_at_tpr_ood_positive(id_scores, ood_scores)


@pytest.mark.parametrize(
    ("twin", "caught_by"),
    [
        (with_sigmoid, "scale of Mahalanobis distances"),
        (with_sigmoid, "MSP close to 1"),
        (with_strict_comparison, "20 tied levels"),
        (with_strict_comparison, "constant"),
        (with_interpolation, "between two ID scores"),
        (with_the_other_convention, "unequal variances"),
    ],
)
def test_golden_cases_catch_broken_twin(twin: Callable[[np.ndarray, np.ndarray], float], caught_by: str) -> None:
    case = GOLDEN[caught_by]
    assert twin(case.id_scores, case.ood_scores) != pytest.approx(case.fpr, abs=max(case.tolerance, 1e-3))


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 39, 40, 100, 140, 1000, 1001, 45_000])
def test_threshold_is_the_largest_that_accepts_enough(count: int) -> None:
    scores = np.random.default_rng(count).permutation(count).astype(float)
    threshold = threshold_at_tpr(scores)
    assert (scores >= threshold).mean() >= 0.95
    assert (scores >= threshold + 1).mean() < 0.95


@pytest.mark.parametrize("tpr", [0.07, 0.55, 0.56, 0.57, 0.58, 0.9, 0.99, 1.0])
def test_threshold_holds_at_other_shares(tpr: float) -> None:
    scores = np.arange(100.0)
    threshold = threshold_at_tpr(scores, tpr)
    assert (scores >= threshold).mean() >= tpr > (scores >= threshold + 1).mean()


# Scores as the field produces them: unbounded, tied, tiny, huge, infinite, signed zeros.
numbers = st.one_of(
    st.floats(allow_nan=False),
    st.floats(-100, 100),
    st.integers(-3, 3).map(float),
    st.sampled_from([np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1e308, 1.0, 1 - 2**-53, 1 + 2**-52]),
)
samples = st.lists(numbers, min_size=1, max_size=40).map(np.array)


@few_examples
@given(samples, samples)
def test_equal_naive_counts(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    wins = (id_scores[:, None] > ood_scores).sum() + 0.5 * (id_scores[:, None] == ood_scores).sum()
    assert auroc(id_scores, ood_scores) == wins / (len(id_scores) * len(ood_scores))
    enough = [t for t in id_scores if (id_scores >= t).mean() >= 0.95]
    assert threshold_at_tpr(id_scores) == max(enough)
    assert fpr_at_tpr(id_scores, ood_scores) == (ood_scores >= max(enough)).mean()
    flags = [t for t in ood_scores if (ood_scores <= t).mean() >= 0.95]
    assert fpr_at_tpr_ood_positive(id_scores, ood_scores) == (id_scores <= min(flags)).mean()


@few_examples
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_equal_scikit_learn(id_scores: list[float], ood_scores: list[int]) -> None:
    id_scores = [*id_scores, float(ood_scores[0])]
    is_id = np.repeat([1, 0], [len(id_scores), len(ood_scores)])
    scores = np.concatenate([id_scores, ood_scores])
    assert auroc(id_scores, ood_scores) == pytest.approx(roc_auc_score(is_id, scores))
    assert aupr(id_scores, ood_scores, positive="id") == pytest.approx(average_precision_score(is_id, scores))
    assert aupr(id_scores, ood_scores, positive="ood") == pytest.approx(average_precision_score(1 - is_id, -scores))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_equal_scikit_learn_on_many_scores(dtype: type) -> None:
    generator = np.random.default_rng(0)
    count = 3 * metrics._CHUNK // 2  # more than one step of the count
    id_scores, ood_scores = generator.normal(1, 2, count).astype(dtype), generator.normal(0, 1, count).astype(dtype)
    is_id = np.repeat([1, 0], count)
    scores = np.concatenate([id_scores, ood_scores])
    assert auroc(id_scores, ood_scores) == pytest.approx(roc_auc_score(is_id, scores), abs=1e-12)
    ap = aupr(id_scores, ood_scores, positive="id")
    assert ap == pytest.approx(average_precision_score(is_id, scores), abs=1e-12)


@few_examples
@given(samples, samples)
def test_auroc_of_both_orders_sums_to_one(a: np.ndarray, b: np.ndarray) -> None:
    assert auroc(a, b) + auroc(b, a) == pytest.approx(1, abs=1e-15)


@few_examples
@given(samples, samples, st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(id_scores: np.ndarray, ood_scores: np.ndarray, random: Random) -> None:
    generator = np.random.default_rng(random.randrange(1 << 30))
    shuffled = measure(generator.permutation(id_scores), generator.permutation(ood_scores))
    assert shuffled == measure(id_scores, ood_scores)


@few_examples
@given(samples, samples)
def test_only_the_order_of_scores_matters(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    ranks = np.unique(np.concatenate([id_scores, ood_scores]), return_inverse=True)[1].astype(float)
    for increasing in (np.exp2(ranks / 8), ranks * 1e-300, ranks**3 - 500, np.where(ranks == 0, -np.inf, ranks)):
        mapped = measure(increasing[: len(id_scores)], increasing[len(id_scores) :])
        assert mapped.model_dump(exclude={"threshold"}) == measure(id_scores, ood_scores).model_dump(
            exclude={"threshold"}
        )


def estimates(result: metrics.Metrics) -> list[Estimate]:
    return [
        result.fpr_at_95,
        result.fpr_at_95_pooled,
        result.fpr_at_95_ood_positive,
        result.auroc,
        result.aupr_id,
        result.aupr_ood,
        *(value.fpr_at_95 for value in result.classes),
    ]


@few_examples
@given(samples, st.lists(st.tuples(numbers, st.integers(0, 4)), min_size=1, max_size=40))
def test_measure(id_scores: np.ndarray, ood: list[tuple[float, int]]) -> None:
    ood_scores, classes = (np.array(column) for column in zip(*ood, strict=True))
    result = measure(id_scores, ood_scores, classes, ["a", "b", "c", "d", "e"])
    by_class = {name: ood_scores[classes == index] for index, name in enumerate("abcde") if index in classes}

    assert {value.name: value.images for value in result.classes} == {name: len(s) for name, s in by_class.items()}
    for value in result.classes:
        accepted = value.fpr_at_95.value * value.images
        assert accepted == pytest.approx(round(accepted))
        assert value.fpr_at_95.value == fpr_at_tpr(id_scores, by_class[value.name])
    mean = np.mean([value.fpr_at_95.value for value in result.classes])
    assert result.fpr_at_95.value == pytest.approx(mean)
    assert result.fpr_at_95_pooled.value == fpr_at_tpr(id_scores, ood_scores)
    assert result.fpr_at_95_ood_positive.value == fpr_at_tpr_ood_positive(id_scores, ood_scores)
    assert result.auroc.value == auroc(id_scores, ood_scores)
    assert result.aupr_id.value == aupr(id_scores, ood_scores, positive="id")
    assert result.aupr_ood.value == aupr(id_scores, ood_scores, positive="ood")
    assert (result.id_images, result.ood_images) == (len(id_scores), len(ood_scores))
    threshold = threshold_at_tpr(id_scores)
    assert result.threshold == (threshold if np.isfinite(threshold) else None)
    for estimate in estimates(result):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
    assert metrics.Metrics.model_validate_json(result.model_dump_json()) == result


# Errors of the classifier: OSCR and AURC.

BEST_AURC = (1 - np.log(2)) / 2  # of a detector and a classifier without a fault, half of the weight being OOD
answered = st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=40).map(
    lambda pairs: (np.array([score for score, _ in pairs]), np.array([right for _, right in pairs]))
)


def naive_aurc(id_scores: np.ndarray, correct: np.ndarray, ood_scores: np.ndarray | None = None) -> float:
    """The risk at the middle of each of many equal steps of coverage, within a level of scores as at random."""
    masses: dict[float, list[float]] = {}
    id_weight = 1.0 if ood_scores is None else 0.5
    images = [(score, id_weight / len(id_scores), not right) for score, right in zip(id_scores, correct, strict=True)]
    images += [] if ood_scores is None else [(score, 0.5 / len(ood_scores), True) for score in ood_scores]
    for score, weight, is_error in images:
        mass = masses.setdefault(score + 0.0, [0.0, 0.0])
        mass[0] += weight
        mass[1] += weight * is_error
    levels = np.cumsum([[0.0, 0.0], *(masses[score] for score in sorted(masses, reverse=True))], axis=0)
    coverage = (np.arange(200_000) + 0.5) / 200_000
    return float(np.mean(np.interp(coverage, *levels.T) / coverage))


@few_examples
@given(answered, samples)
def test_errors_of_the_classifier_equal_naive_counts(id_images: tuple, ood_scores: np.ndarray) -> None:
    id_scores, correct = id_images
    pairs = correct[:, None] * ((id_scores[:, None] > ood_scores) + 0.5 * (id_scores[:, None] == ood_scores))
    assert oscr(id_scores, correct, ood_scores) == pytest.approx(pairs.mean(), abs=1e-12)
    assert aurc(id_scores, correct) == pytest.approx(naive_aurc(id_scores, correct), abs=1e-4)
    assert aurc(id_scores, correct, ood_scores) == pytest.approx(naive_aurc(id_scores, correct, ood_scores), abs=1e-4)


@few_examples
@given(samples, samples)
def test_a_classifier_without_errors_leaves_auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
    all_right = np.ones(len(id_scores), bool)
    result = measure(id_scores, ood_scores, id_correct=all_right)
    assert result.oscr.value == oscr(id_scores, all_right, ood_scores) == auroc(id_scores, ood_scores)
    assert result.oscr.high == pytest.approx(result.auroc.high)
    assert result.oscr.low <= result.auroc.low  # that no error was seen does not say that there is none
    assert result.aurc_id.value == aurc(id_scores, all_right) == 0
    assert BEST_AURC - 1e-12 <= aurc(id_scores, all_right, ood_scores) <= 1


@few_examples
@given(answered, samples, st.integers(2, 5), st.randoms(use_true_random=False))
def test_neither_order_nor_set_sizes_nor_scale_move_them(
    id_images: tuple, ood_scores: np.ndarray, copies: int, random: Random
) -> None:
    id_scores, correct = id_images
    oscr_, aurc_ = oscr(id_scores, correct, ood_scores), aurc(id_scores, correct, ood_scores)
    order = np.random.default_rng(random.randrange(1 << 30)).permutation(len(id_scores))
    assert measure(id_scores[order], ood_scores, id_correct=correct[order]) == measure(
        id_scores, ood_scores, id_correct=correct
    )
    more = np.repeat(ood_scores, copies)
    assert oscr(id_scores, correct, more) == pytest.approx(oscr_, abs=1e-12)
    assert aurc(id_scores, correct, more) == pytest.approx(aurc_, abs=1e-9)
    ranks = np.unique(np.concatenate([id_scores, ood_scores]), return_inverse=True)[1].astype(float)
    mapped = np.exp2(ranks / 8)
    assert oscr(mapped[: len(order)], correct, mapped[len(order) :]) == oscr_
    assert aurc(mapped[: len(order)], correct, mapped[len(order) :]) == aurc_


@few_examples
@given(answered, samples)
def test_measure_gives_them_with_intervals(id_images: tuple, ood_scores: np.ndarray) -> None:
    id_scores, correct = id_images
    result = measure(id_scores, ood_scores, id_correct=correct)
    assert result.oscr.value == pytest.approx(oscr(id_scores, correct, ood_scores), abs=1e-12)
    assert result.aurc.value == aurc(id_scores, correct, ood_scores)
    assert result.aurc_id.value == aurc(id_scores, correct)
    assert result.oscr.value <= correct.mean() + 1e-12
    for estimate in (result.oscr, result.aurc, result.aurc_id):
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.low < estimate.high
    without = measure(id_scores, ood_scores)
    assert without == result.model_copy(update={"oscr": None, "aurc": None, "aurc_id": None})


def test_errors_by_hand() -> None:
    id_scores, ood_scores = [4.0, 3.0, 2.0, 1.0], [2.5, 0.0]
    right = [True, False, True, True]
    assert oscr(id_scores, right, ood_scores) == (2 + 0 + 1 + 1) / 8
    assert aurc([2.0, 1.0], [True, False]) == pytest.approx(1 / 2 - np.log(2) / 2)
    assert aurc([2.0, 1.0], [False, True]) == pytest.approx(1 / 2 + np.log(2) / 2)
    assert aurc([7.0] * 4, right) == 1 / 4
    assert aurc([7.0] * 4, right, [7.0] * 9) == pytest.approx((1 / 4 + 1) / 2)
    assert aurc(id_scores, [True] * 4, [0.0, -1.0]) == pytest.approx(BEST_AURC)
    assert aurc(id_scores, [True] * 4, [0.0, 0.0]) == pytest.approx(BEST_AURC)  # equal OOD images cost nothing


def test_aurc_is_near_the_mean_over_images_of_the_literature() -> None:
    generator = np.random.default_rng(0)
    scores, right = generator.normal(size=5000), generator.random(5000) < 0.8
    wrong = ~right[np.argsort(-scores)]
    mean_over_images = np.mean(np.cumsum(wrong) / np.arange(1, 5001))
    assert aurc(scores, right) == pytest.approx(mean_over_images - wrong.mean() / 10_000, abs=2e-5)


def test_a_share_accepted_has_the_interval_of_fpr() -> None:
    generator = np.random.default_rng(0)
    id_scores, shifted = generator.normal(2, 1, 300), generator.normal(1, 1, 200)
    assert accepted(id_scores, shifted) == measure(id_scores, shifted).fpr_at_95


def test_headline_is_the_mean_over_classes_not_over_images() -> None:
    id_scores = np.arange(100.0)
    result = measure(id_scores, np.array([50.0, 0, 0, 0]), np.array([2, 0, 0, 0]), ["easy", "absent", "hard"])
    assert result.fpr_at_95.value == 0.5
    assert result.fpr_at_95_pooled.value == 0.25
    assert [value.name for value in result.classes] == ["easy", "hard"]


def test_lists_arrays_and_tensors_give_python_floats() -> None:
    id_scores, ood_scores = [3.0, 2.0, 1.0], [0.0, 2.0]
    for convert in (list, np.array, torch.tensor):
        values = [metric(convert(id_scores), convert(ood_scores)) for metric in (fpr_at_tpr, auroc)]
        assert values == [0.5, 0.75]
        assert all(type(value) is float for value in values)


@pytest.mark.parametrize("inputs", ["id", "ood"])
@pytest.mark.parametrize(
    ("bad", "complaint"), [([1.0, np.nan], "NaN in 1 of 2"), ([], "n > 0"), ([[1.0], [2.0]], "shape"), (1.0, "shape")]
)
@pytest.mark.parametrize(
    "metric",
    [
        fpr_at_tpr,
        fpr_at_tpr_ood_positive,
        auroc,
        measure,
        lambda a, b: aupr(a, b, positive="id"),
        lambda a, b: oscr(a, [True, False], b),
        lambda a, b: aurc(a, [True, False], b),
        accepted,
        lambda a, b: paired_fpr_difference([1.0, 2.0], [1.0, 2.0], a, b),
    ],
)
def test_bad_scores_are_refused(metric: Callable, bad: object, complaint: str, inputs: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        metric(*((bad, [1.0, 2.0]) if inputs == "id" else ([1.0, 2.0], bad)))


def test_bad_options_are_refused() -> None:
    scores = [1.0, 2.0]
    with pytest.raises(ValueError, match="tpr is 95"):
        threshold_at_tpr(scores, 95)
    with pytest.raises(ValueError, match="'id' or 'ood'"):
        aupr(scores, scores, positive="ID")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index the 1 class_names"):
        measure(scores, scores, [0, 1], ["only"])
    with pytest.raises(ValueError, match="one integer for each of the 2 OOD images"):
        measure(scores, scores, [0], ["only"])
    with pytest.raises(ValueError, match="same images"):
        paired_fpr_difference(scores, scores, scores, [1.0])
    for correct in ([1, 0], [True], [[True, False]]):
        with pytest.raises(ValueError, match="one boolean for each of the 2 ID images"):
            oscr(scores, correct, scores)
    with pytest.raises(ValueError, match="0 <= correct <= total"):
        accuracy(3, 2)


def test_accuracy_has_wilsons_interval() -> None:
    # Published example: 15 of 148 by Wilson's method without continuity correction (Newcombe 1998): 6.24 to 16.05 %.
    estimate = accuracy(15, 148)
    assert estimate.value == 15 / 148
    assert (estimate.low, estimate.high) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert accuracy(0, 20).low == 0 < accuracy(0, 20).high
    assert accuracy(20, 20).high == 1 > accuracy(20, 20).low


# Coverage: how often a 95 % interval over fresh samples holds the truth. With 300 repetitions the count itself strays
# by 1.3 points, so [0.92, 0.985] holds a correct interval and refuses one that leaves a source of variation out.

REPETITIONS = 300
COVERAGE = (0.92, 0.985)


def coverage(draw: Callable[[np.random.Generator], bool]) -> float:
    generator = np.random.default_rng(0)
    return float(np.mean([draw(generator) for _ in range(REPETITIONS)]))


@pytest.mark.parametrize("case", ["equal variances", "unequal variances"])
@pytest.mark.parametrize(("id_images", "ood_images"), [(200, 200), (1000, 300)])
def test_intervals_cover_the_truth(case: str, id_images: int, ood_images: int) -> None:
    golden = GOLDEN[case]
    generator = np.random.default_rng(1)
    results = [
        measure(generator.choice(golden.id_scores, id_images), generator.choice(golden.ood_scores, ood_images))
        for _ in range(REPETITIONS)
    ]

    def covered(name: str, truth: float) -> float:
        found = [getattr(result, name) for result in results]
        return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))

    assert COVERAGE[0] <= covered("fpr_at_95", golden.fpr) <= COVERAGE[1]
    assert COVERAGE[0] <= covered("fpr_at_95_ood_positive", golden.fpr_ood_positive) <= 0.995
    assert COVERAGE[0] <= covered("auroc", golden.auroc) <= COVERAGE[1]
    for positive in ("id", "ood"):
        repeated = (np.repeat(golden.id_scores, id_images // 50), np.repeat(golden.ood_scores, ood_images // 50))
        truth = aupr(*repeated, positive=positive)
        assert 0.91 <= covered(f"aupr_{positive}", truth) <= COVERAGE[1]


@pytest.mark.parametrize(("mean", "accuracy"), [(2.0, 0.9), (1.0, 0.6), (4.0, 0.98)])
def test_intervals_with_errors_cover_the_truth(mean: float, accuracy: float) -> None:
    """A right answer goes with a score one standard deviation higher than a wrong one."""

    def draw(generator: np.random.Generator, id_images: int, ood_images: int) -> tuple:
        right = generator.random(id_images) < accuracy
        return mean - 1 + right + generator.normal(size=id_images), right, generator.normal(size=ood_images)

    generator = np.random.default_rng(0)
    many = draw(generator, 1_000_000, 1_000_000)
    truths = {"oscr": oscr(*many), "aurc": aurc(*many), "aurc_id": aurc(*many[:2])}
    results = []
    for _ in range(REPETITIONS):
        id_scores, right, ood_scores = draw(generator, 400, 200)
        results.append(measure(id_scores, ood_scores, id_correct=right))
    for name, truth in truths.items():
        found = [getattr(result, name) for result in results]
        covered = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
        assert 0.91 <= covered <= 0.995, name


# Few images on one side or both: with many or few errors, and with so few that often none is seen. What was measured,
# by `python -m tests.coverage_of_intervals`, stands in the docstring of benchmark/metrics.py.
FEW_IMAGES = [(50, 3000), (3000, 50), (50, 50)]
FEW_ERRORS = Scene(4.0, 0.98)


@pytest.mark.parametrize("scene", [Scene(0.3, 0.3), Scene(3.0, 0.95), FEW_ERRORS], ids=str)
@pytest.mark.parametrize(("id_images", "ood_images"), FEW_IMAGES)
def test_intervals_with_errors_cover_the_truth_with_few_images_too(
    scene: Scene, id_images: int, ood_images: int
) -> None:
    found = coverage_in(scene, id_images, ood_images, ["oscr", "aurc", "aurc_id"], REPETITIONS)
    assert all(share >= 0.88 for share in found.values()), found


def test_coverage_refuses_intervals_that_take_errors_not_seen_for_impossible() -> None:
    """OSCR by the variance among the images that were drawn, as AUROC has it, and AURC without its half errors."""

    def estimate(sample: Sample) -> dict[str, Estimate]:
        id_scores, right, ood_scores = sample
        wins = np.where(right, np.searchsorted(np.sort(ood_scores), id_scores) / len(ood_scores), 0.0)
        losses = np.searchsorted(np.sort(id_scores[right]), ood_scores) / len(id_scores)
        variance = wins.var() / len(wins) + losses.var() / len(losses)
        curve = metrics._risk_curve(id_scores, right, ood_scores)
        sides = curve.influence_id, curve.influence_ood
        reach = 1.96 * sum(side.var() / len(side) for side in sides) ** 0.5
        return {
            "oscr": metrics._with_variance(float(wins.mean()), variance, len(wins), len(losses)),
            "aurc": Estimate(value=curve.area, low=max(0.0, curve.area - reach), high=curve.area + reach),
        }

    found = coverage_in(FEW_ERRORS, 50, 3000, ["oscr", "aurc"], REPETITIONS, estimate)
    assert all(share < 0.85 for share in found.values()), found


def test_coverage_refuses_an_interval_that_takes_the_threshold_for_known() -> None:
    golden = GOLDEN["equal variances"]

    def covers(generator: np.random.Generator) -> bool:
        fpr = fpr_at_tpr(generator.choice(golden.id_scores, 200), generator.choice(golden.ood_scores, 400))
        estimate = accuracy(round(fpr * 400), 400)
        return estimate.low <= golden.fpr <= estimate.high

    assert coverage(covers) < COVERAGE[0]


def test_interval_of_the_mean_over_classes_covers_the_truth() -> None:
    means = np.linspace(-2, 1.5, 12)  # classes from easy, where no image is accepted, to hard
    truth = norm.sf(2 - norm.ppf(0.95) - means).mean()
    classes = np.repeat(np.arange(12), 30)
    names = list("abcdefghijkl")

    def covers(generator: np.random.Generator) -> bool:
        found = measure(generator.normal(2, 1, 500), generator.normal(means[classes], 1), classes, names).fpr_at_95
        return found.low <= truth <= found.high

    assert COVERAGE[0] <= coverage(covers) <= COVERAGE[1]


def test_many_small_classes_do_not_widen_the_interval() -> None:
    """With classes of one size the mean over classes is the pooled share, and has its interval, at 0 too."""
    generator = np.random.default_rng(0)
    classes = np.arange(1280) % 64
    names = [str(index) for index in range(64)]
    for mean in (2, 8):
        id_scores, ood_scores = generator.normal(mean, 1, 2000), generator.normal(0, 1, 1280)
        result = measure(id_scores, ood_scores, classes, names)
        macro, pooled = result.fpr_at_95, result.fpr_at_95_pooled
        assert (macro.low, macro.high) == pytest.approx((pooled.low, pooled.high), abs=0.006)
        tied = paired_fpr_difference(id_scores, ood_scores, id_scores, ood_scores, classes)
        assert -0.006 < tied.low < tied.high < 0.006


def test_perfect_separation_does_not_claim_certainty() -> None:
    few, many = (measure(np.arange(n) + 1.0, -np.arange(n) - 1.0) for n in (100, 3000))
    assert few.fpr_at_95.value == 0 == few.fpr_at_95.low
    assert 0.02 < few.fpr_at_95.high < 0.1
    assert 0.0001 < many.fpr_at_95.high < 0.003
    assert 0.9 < few.auroc.low < 0.99 < many.auroc.low < 1 == many.auroc.high


def test_few_id_images_cannot_bound_the_threshold() -> None:
    assert measure(np.arange(30) + 1.0, -np.arange(1000.0)).fpr_at_95.high > 0.99


def paired_scores(generator: np.random.Generator, images: int, mean: float, shared: float = 0.9) -> tuple:
    """ID and OOD scores of two detectors with correlated errors."""
    own = np.sqrt(1 - shared**2)
    id_part, ood_part = generator.normal(size=images), generator.normal(size=images)
    return tuple(
        shared * part + own * generator.normal(size=images) + offset
        for part, offset in ((id_part, 2), (ood_part, 0), (id_part, mean), (ood_part, 0))
    )


@pytest.mark.parametrize("mean", [2, 2.3])
def test_paired_interval_covers_the_truth(mean: float) -> None:
    truth = norm.sf(2 - norm.ppf(0.95)) - norm.sf(mean - norm.ppf(0.95))

    def covers(generator: np.random.Generator) -> bool:
        difference = paired_fpr_difference(*paired_scores(generator, 400, mean))
        return difference.low <= truth <= difference.high

    assert COVERAGE[0] <= coverage(covers) <= 0.995  # wider than need be where the two are strongly correlated


@pytest.mark.parametrize("class_count", [None, 5])
def test_paired_interval_agrees_with_resampling_images(class_count: int | None) -> None:
    generator = np.random.default_rng(3)
    images = 600
    id_a, ood_a, id_b, ood_b = paired_scores(generator, images, mean=2.3)
    classes = None if class_count is None else np.arange(images) % class_count

    def mean_fpr(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
        parts = [ood_scores] if classes is None else [ood_scores[classes == c] for c in range(class_count)]
        return float(np.mean([fpr_at_tpr(id_scores, part) for part in parts]))

    resampled = []
    for _ in range(1000):
        i, j = generator.integers(images, size=(2, images))
        if classes is not None:
            j = np.concatenate(
                [generator.choice(np.flatnonzero(classes == c), images // 5) for c in range(class_count)]
            )
            j = j.reshape(class_count, -1).T.ravel()  # back to the order of `classes`
        resampled.append(mean_fpr(id_a[i], ood_a[j]) - mean_fpr(id_b[i], ood_b[j]))
    difference = paired_fpr_difference(id_a, ood_a, id_b, ood_b, classes)
    assert difference.value == pytest.approx(mean_fpr(id_a, ood_a) - mean_fpr(id_b, ood_b))
    expected_width = np.subtract(*np.quantile(resampled, [0.975, 0.025]))
    assert difference.high - difference.low == pytest.approx(expected_width, rel=0.25)
    assert difference.low == pytest.approx(np.quantile(resampled, 0.025), abs=0.25 * expected_width)


def test_pairing_tells_apart_what_separate_intervals_cannot() -> None:
    id_a, ood_a, id_b, ood_b = paired_scores(np.random.default_rng(0), 2000, mean=2.15, shared=0.999)
    a, b = measure(id_a, ood_a).fpr_at_95, measure(id_b, ood_b).fpr_at_95
    assert b.high > a.low  # separately, they overlap
    assert paired_fpr_difference(id_a, ood_a, id_b, ood_b).low > 0
    unpaired = np.random.default_rng(1).permutation(2000)
    assert paired_fpr_difference(id_a, ood_a, id_b[unpaired], ood_b[unpaired]).low < 0


@few_examples
@given(st.lists(st.tuples(numbers, numbers), min_size=1), st.lists(st.tuples(numbers, numbers), min_size=1))
def test_paired_interval_holds_its_estimate(id_pairs: list, ood_pairs: list) -> None:
    (id_a, id_b), (ood_a, ood_b) = (np.array(pairs).T for pairs in (id_pairs, ood_pairs))
    difference = paired_fpr_difference(id_a, ood_a, id_b, ood_b)
    assert difference.value == pytest.approx(fpr_at_tpr(id_a, ood_a) - fpr_at_tpr(id_b, ood_b))
    assert -1 <= difference.low <= difference.value <= difference.high <= 1


def test_equal_detectors_are_tied_and_swapping_changes_the_sign() -> None:
    id_a, ood_a, id_b, ood_b = paired_scores(np.random.default_rng(0), 400, mean=2.5)
    same = paired_fpr_difference(id_a, ood_a, 10 * id_a, 10 * ood_a)
    assert same.value == 0
    assert same.low <= 0 <= same.high < 0.05
    forth, back = paired_fpr_difference(id_a, ood_a, id_b, ood_b), paired_fpr_difference(id_b, ood_b, id_a, ood_a)
    assert forth.value == -back.value
    assert forth.low == pytest.approx(-back.high, abs=0.01)


def test_paired_difference_at_the_size_of_imagenet_with_classes() -> None:
    generator = np.random.default_rng(0)
    id_a, ood_a, id_b, ood_b = paired_scores(generator, 50_000, mean=2.05)
    difference = paired_fpr_difference(id_a, ood_a[:5879], id_b, ood_b[:5879], np.arange(5879) % 64)
    assert -0.02 < difference.low <= difference.value <= difference.high < 0.06
    assert difference.high - difference.low < 0.03
