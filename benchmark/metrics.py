"""Metrics: how well scores part in-distribution (ID) images from out-of-distribution (OOD) ones, and how sure that is.

A higher score means more in-distribution, and an image is accepted when its score is at or above the threshold. Scores
are anything that numpy can view as a 1-D array; they are computed with in float64. Infinite scores are legal; NaN, an
empty array or another shape raises ValueError. Metrics are fractions in [0, 1] and depend on the order of the scores
alone: no squashing, no interpolation between scores, ties treated exactly.

Intervals are 95 % and let both samples vary: the ID images, which set the threshold, and the OOD images. They are
deterministic, contain their estimate, and never have zero width. Where one side has fewer than some 200 images they
cover less than they say. With 50 images against 50 or 3,000 the lowest coverage of eight kinds of scores and accuracies
is 94 % for FPR@95, 93 % for AUROC and OSCR, 92 % for average precision and 91 % for AURC; of 1,000 against 300 it is
92 % or more for all (`python -m tests.coverage_of_intervals`). With fewer than some 60 ID
images the threshold may well lie below all of them, and the interval of FPR@95 then reaches to about 1.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from benchmark.records import ClassValue, Estimate, Metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TPR = 0.95
_Z = 1.959963984540054  # the standard normal's 97.5 % quantile
_TAILS = (0.025, 0.975)
_DRAWS = 2000
_PRIOR = 0.5  # images added to either side (Jeffreys' prior), shared between classes so that their mean is not biased
_CHUNK = 1 << 15  # scores a step of `auroc` works on, few enough to stay in the processor's cache
_LARGEST_SCALED = 2.0**1000
_SMALLEST_NORMAL_KEY = 2 << 52  # of the scores that `auroc` scales, those of smaller keys may have lost bits


def threshold_at_tpr(id_scores: ArrayLike, tpr: float = _TPR) -> float:
    """The largest observed ID score from which on at least a share of the ID images is accepted.

    id_scores: (n_id,).
    tpr: the share, above 0 and at most 1.
    """
    scores = _scores("id_scores", id_scores)
    rejected = _most_rejected(len(scores), tpr)
    return float(np.partition(scores, rejected)[rejected])


def fpr_at_tpr(id_scores: ArrayLike, ood_scores: ArrayLike, tpr: float = _TPR) -> float:
    """The share of OOD images accepted at the threshold that accepts a given share of ID images. Lower is better.

    id_scores: (n_id,).
    ood_scores: (n_ood,).
    tpr: the share of ID images, above 0 and at most 1.
    """
    return _share_accepted(_scores("ood_scores", ood_scores), threshold_at_tpr(id_scores, tpr))


def fpr_at_tpr_ood_positive(id_scores: ArrayLike, ood_scores: ArrayLike, tpr: float = _TPR) -> float:
    """The other convention: the share of ID images that are flagged when at least a share of the OOD images is.

    Images at or below the smallest OOD score that suffices are flagged.

    id_scores: (n_id,).
    ood_scores: (n_ood,).
    tpr: the share of OOD images, above 0 and at most 1.
    """
    return fpr_at_tpr(-_scores("ood_scores", ood_scores), -_scores("id_scores", id_scores), tpr)


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """The probability that an ID image scores above an OOD image, a tie counting half. Higher is better.

    id_scores: (n_id,).
    ood_scores: (n_ood,).
    """
    id_scores, ood_scores = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    half_wins = _half_wins(_ranking_keys(id_scores, ood_scores), len(id_scores))
    return half_wins / (2 * len(id_scores) * len(ood_scores))


def aupr(id_scores: ArrayLike, ood_scores: ArrayLike, positive: Literal["id", "ood"]) -> float:
    """Average precision: the mean over positive images of the precision at their score. Higher is better.

    Nothing is interpolated, and tied images share one threshold. It depends on how many ID images there are for one OOD
    image.

    id_scores: (n_id,).
    ood_scores: (n_ood,).
    positive: which images are the positive class.
    """
    id_scores, ood_scores = np.sort(_scores("id_scores", id_scores)), np.sort(_scores("ood_scores", ood_scores))
    if positive == "id":
        retrieved = _retrieved(id_scores, ood_scores)
    elif positive == "ood":
        retrieved = _retrieved(-ood_scores[::-1], -id_scores[::-1])
    else:
        raise ValueError(f"positive is {positive!r}; it is 'id' or 'ood'")
    return float(retrieved.precision.mean())


def oscr(id_scores: ArrayLike, id_correct: ArrayLike, ood_scores: ArrayLike) -> float:
    """The probability that an ID image is classified right and scores above an OOD image, a tie counting half.

    It is the area under the share of ID images that are accepted and classified right, over the share of OOD images
    accepted. It is AUROC where every image is classified right, and at most the accuracy.

    id_scores: (n_id,).
    id_correct: whether each ID image is classified right, (n_id,) booleans.
    ood_scores: (n_ood,).

    Source: Dhamija, Günther and Boult, "Reducing network agnostophobia", NeurIPS 2018, who draw the curve.
    """
    id_scores, ood_scores = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    right = id_scores[_correct(id_correct, len(id_scores))]
    return int(_half_below(right, np.sort(ood_scores)).sum()) / (2 * len(id_scores) * len(ood_scores))


def aurc(id_scores: ArrayLike, id_correct: ArrayLike, ood_scores: ArrayLike | None = None) -> float:
    """The mean risk over all coverages: the area under the share of errors among the accepted. Lower is better.

    Images are accepted from the highest score down. Those that tie are accepted in random order, as at a threshold that
    is drawn. An error is a misclassified ID image and, with `ood_scores`, an accepted OOD image. ID and OOD images then
    have half of the weight each, however many there are. So a detector and a classifier without a fault reach
    (1 - ln 2) / 2 = 0.153, and constant scores reach the risk of accepting everything.

    id_scores: (n_id,).
    id_correct: whether each ID image is classified right, (n_id,) booleans.
    ood_scores: (n_ood,). None to look at ID images alone.

    Source: Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017. The mean of the
    risk at each image's own score, which is also in use, is larger by about risk / 2n.
    """
    id_scores = _scores("id_scores", id_scores)
    ood_scores = None if ood_scores is None else _scores("ood_scores", ood_scores)
    return _risk_curve(id_scores, _correct(id_correct, len(id_scores)), ood_scores).area


def accepted(id_scores: ArrayLike, other_scores: ArrayLike) -> Estimate:
    """The share of other images that is accepted at the threshold that accepts 95 % of the ID images.

    id_scores: (n_id,).
    other_scores: (n,).
    """
    return _fpr(np.sort(_scores("id_scores", id_scores)), _scores("other_scores", other_scores))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean over sets or classes.

    Its interval is the mean of the intervals. That is the widest that it can be, as if all erred together. They do so
    as far as the threshold errs, which they share.
    """
    value, low, high = (fmean(getattr(each, name) for each in estimates) for name in ("value", "low", "high"))
    return Estimate(value=value, low=low, high=high)


def accuracy(correct: int, total: int) -> Estimate:
    """The share of images that are classified right, with Wilson's interval.

    correct: how many are.
    total: how many images there are.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct of {total} is no share: it takes 0 <= correct <= total and total > 0")
    return _wilson(correct / total, total)


def measure(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    ood_classes: ArrayLike | None = None,
    class_names: Sequence[str] = (),
    id_correct: ArrayLike | None = None,
) -> Metrics:
    """Every metric of one detector on one OOD set, with its interval.

    id_scores: (n_id,).
    ood_scores: (n_ood,).
    ood_classes: for a set with classes, the index into class_names of each OOD image, (n_ood,) integers. FPR@95 is then
        the unweighted mean over the classes that have images.
    class_names: the names of the classes.
    id_correct: whether each ID image is classified right, (n_id,) booleans. Without them OSCR and AURC are None.
    """
    id_scores, ood_scores = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    with_errors = {} if id_correct is None else _measure_with_errors(id_scores, id_correct, ood_scores)
    id_scores = np.sort(id_scores)
    pooled = _fpr(id_scores, ood_scores)
    macro = pooled
    by_class: list[ClassValue] = []
    if ood_classes is not None:
        classes = _class_indices(ood_classes, len(ood_scores))
        if classes.min() < 0 or classes.max() >= len(class_names):
            raise ValueError(
                f"ood_classes hold {classes.min()} to {classes.max()}; they index the {len(class_names)} class_names"
            )
        macro, by_class = _fpr_by_class(id_scores, ood_scores, classes, class_names)
    ood_scores = np.sort(ood_scores)
    id_negated, ood_negated = -id_scores[::-1], -ood_scores[::-1]
    threshold = threshold_at_tpr(id_scores)
    return Metrics(
        fpr_at_95=macro,
        fpr_at_95_pooled=pooled,
        fpr_at_95_ood_positive=_fpr(ood_negated, id_negated),
        auroc=_auroc(id_scores, ood_scores),
        aupr_id=_aupr(id_scores, ood_scores),
        aupr_ood=_aupr(ood_negated, id_negated),
        threshold=threshold if math.isfinite(threshold) else None,
        id_images=len(id_scores),
        ood_images=len(ood_scores),
        classes=by_class,
        **with_errors,
    )


def _measure_with_errors(id_scores: Floats, id_correct: ArrayLike, ood_scores: Floats) -> dict[str, Estimate]:
    """The metrics to which a wrong answer on an ID image is an error too."""
    correct = _correct(id_correct, len(id_scores))
    return {
        "oscr": _oscr(id_scores, correct, ood_scores),
        "aurc": _aurc(id_scores, correct, ood_scores),
        "aurc_id": _aurc(id_scores, correct, None),
    }


class Difference(NamedTuple):
    """A difference of two fractions with its 95 % interval. The two are tied where the interval holds 0.

    value: the difference.
    low: the lower end of the interval.
    high: the upper end of the interval.
    """

    value: float
    low: float
    high: float


def paired_fpr_difference(
    id_a: ArrayLike,
    ood_a: ArrayLike,
    id_b: ArrayLike,
    ood_b: ArrayLike,
    ood_classes: ArrayLike | None = None,
) -> Difference:
    """FPR@95 of detector A minus that of B, both of which scored the same images in the same order.

    Images that are easy or hard for both cancel out. Both thresholds and both samples vary together, as they do over
    resamples of the images, but no image is resampled: to first order the spread depends only on how many ID images
    both reject, and on how many OOD images only one accepts. The interval is therefore cheap for 50,000 images too.

    id_a: the scores of A on the ID images, (n_id,).
    ood_a: the scores of A on the OOD images, (n_ood,).
    id_b: the scores of B on the ID images, (n_id,).
    ood_b: the scores of B on the OOD images, (n_ood,).
    ood_classes: the class of each OOD image, (n_ood,) integers. The FPRs are then unweighted means over classes.
    """
    id_a, id_b = _scores("id_a", id_a), _scores("id_b", id_b)
    ood_a, ood_b = _scores("ood_a", ood_a), _scores("ood_b", ood_b)
    if len(id_a) != len(id_b) or len(ood_a) != len(ood_b):
        raise ValueError(
            "both detectors have to score the same images, in the same order: "
            f"{len(id_a)} and {len(id_b)} ID scores, {len(ood_a)} and {len(ood_b)} OOD scores"
        )
    classes = _class_indices(np.zeros(len(ood_a), np.int64) if ood_classes is None else ood_classes, len(ood_a))
    sizes, classes = _present(classes)

    by_one = (ood_a >= threshold_at_tpr(id_a)).astype(np.float64) - (ood_b >= threshold_at_tpr(id_b))
    value = float((np.bincount(classes, by_one) / sizes).mean())

    generator = np.random.default_rng(0)
    places_a, places_b = _joint_threshold_places(id_a, id_b, generator)
    passed_a, draws_a = _thresholds_passed(np.sort(id_a), places_a, ood_a)
    passed_b, draws_b = _thresholds_passed(np.sort(id_b), places_b, ood_b)
    prior = _PRIOR / len(sizes)
    differences = np.zeros(_DRAWS)
    for index, size in enumerate(sizes):
        rows = classes == index
        only_a, only_b = _accepted_by_one(passed_a[rows], passed_b[rows], draws_a, draws_b)
        share_a, share_b = generator.gamma(only_a + prior), generator.gamma(only_b + prior)
        share_rest = generator.gamma(size - only_a - only_b + prior)
        differences += (share_a - share_b) / (share_a + share_b + share_rest)
    low, high = np.quantile(differences / len(sizes), _TAILS)
    return Difference(value, min(value, float(low)), max(value, float(high)))


def _scores(name: str, values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name} has shape {scores.shape}; metrics take one score an image, (n,) with n > 0")
    missing = np.count_nonzero(np.isnan(scores))
    if missing:
        raise ValueError(f"{name} holds NaN in {missing} of {scores.size} places; a detector has to score every image")
    return scores


def _correct(values: ArrayLike, images: int) -> NDArray[np.bool_]:
    correct = np.asarray(values)
    if correct.shape != (images,) or correct.dtype != np.bool_:
        raise ValueError(
            f"id_correct has shape {correct.shape} and type {correct.dtype}; it takes one boolean for each of the "
            f"{images} ID images"
        )
    return correct


def _class_indices(values: ArrayLike, images: int) -> Ints:
    classes = np.asarray(values)
    if classes.shape != (images,) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"ood_classes has shape {classes.shape} and type {classes.dtype}; it takes one integer for each of the "
            f"{images} OOD images"
        )
    return classes.astype(np.int64)


def _present(classes: Ints) -> tuple[Ints, Ints]:
    """The sizes of the classes that have images, in order, and the images' classes renumbered among them."""
    _, renumbered, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    return sizes, renumbered


def _most_rejected(images: int, tpr: float) -> int:
    """How many ID images may lie below the threshold: the most that leave accepted / images >= tpr."""
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr is {tpr}; it is a share in (0, 1]")
    about = math.ceil(tpr * images)  # one too many where the product rounds up past a whole number
    return images - next(count for count in (about - 1, about, about + 1) if count / images >= tpr)


def _share_accepted(scores: Floats, threshold: float) -> float:
    return float(np.count_nonzero(scores >= threshold) / len(scores))


def _ranking_keys(id_scores: Floats, ood_scores: Floats) -> Ints:
    """An integer for each image, ascending: 2 * level + (1 if ID else 0), where levels are in the order of the scores.

    They rank all images and keep who is who, at the price of sorting plain numbers. As levels serve the bits of the
    scores, once a power of two has brought them into (-1, 1): there the highest bit of the exponent is free.
    """
    largest = float(max(id_scores.max(), -id_scores.min(), ood_scores.max(), -ood_scores.min()))
    if largest >= _LARGEST_SCALED:
        return _ranking_keys_by_rank(id_scores, ood_scores)
    up = 2.0 ** max(0, math.frexp(largest)[1])
    down = 1 / up
    keys = np.empty(len(ood_scores) + len(id_scores), dtype=np.int64)
    of_ood, of_id = keys[: len(ood_scores)], keys[len(ood_scores) :]
    for scores, part in ((ood_scores, of_ood), (id_scores, of_id)):
        for start in range(0, len(scores), _CHUNK):
            bits = part[start : start + _CHUNK]
            scaled = bits.view(np.float64)
            np.multiply(scores[start : start + _CHUNK], down, out=scaled)
            scaled += 0.0  # -0.0, whose bits differ, becomes 0.0
            sign = bits >> 62  # -2 or 0: it turns the bits of negative floats, which ascend with their magnitude, round
            bits <<= 1
            bits ^= sign
    of_id |= 1
    keys.sort()
    first, last = np.searchsorted(keys, [-_SMALLEST_NORMAL_KEY, _SMALLEST_NORMAL_KEY])
    underflow = first < last and any((scores * down * up != scores).any() for scores in (id_scores, ood_scores))
    return _ranking_keys_by_rank(id_scores, ood_scores) if underflow else keys


def _ranking_keys_by_rank(id_scores: Floats, ood_scores: Floats) -> Ints:
    """The same for infinite scores and for scores too far apart to scale; several times slower."""
    _, ranks = np.unique(np.concatenate([ood_scores, id_scores]), return_inverse=True)
    keys = 2 * ranks.astype(np.int64)
    keys[len(ood_scores) :] += 1
    keys.sort()
    return keys


def _half_wins(keys: Ints, id_images: int) -> int:
    """Over all pairs of an ID and an OOD image: 2 where the ID image ranks higher, 1 where they tie."""
    id_places = 0
    boundaries = []
    steps = np.arange(_CHUNK)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK + 1]
        is_id = chunk[:_CHUNK] & 1
        id_places += start * int(is_id.sum()) + int(is_id @ steps[: len(is_id)])
        boundaries.append(start + 1 + np.flatnonzero((chunk[1:] ^ chunk[:-1]) == 1))
    not_below = id_places - id_images * (id_images - 1) // 2  # pairs whose ID image scores at least as high
    first_id = np.concatenate(boundaries)  # of each level that both kinds share; its last OOD image is just before
    levels = keys[first_id]
    tied_ood = first_id - np.searchsorted(keys, levels - 1, "left")
    tied_id = np.searchsorted(keys, levels, "right") - first_id
    return 2 * not_below - int(tied_ood @ tied_id)


def _half_below(scores: Floats, others: Floats) -> Ints:
    """For each score, over the others, which are sorted: 2 for each that is lower, 1 for each that ties."""
    return np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")


class _Retrieved(NamedTuple):
    """For each positive image, ascending by score, how many images score at least as high.

    positives: how many positive ones, (n,).
    negatives: how many negative ones, (n,).
    """

    positives: Ints
    negatives: Ints

    @property
    def precision(self) -> Floats:
        return self.positives / (self.positives + self.negatives)


def _retrieved(positives: Floats, negatives: Floats) -> _Retrieved:
    """Both sorted ascending."""
    return _Retrieved(
        len(positives) - np.searchsorted(positives, positives, "left"),
        len(negatives) - np.searchsorted(negatives, positives, "left"),
    )


# Intervals of AUROC and average precision: the variance over resamples of both sides, to first order (influence
# functions; for AUROC this is DeLong's), then Wilson's interval for a share of that variance, which stays in [0, 1].


def _auroc(id_scores: Floats, ood_scores: Floats) -> Estimate:
    """Both sorted ascending."""
    id_images, ood_images = len(id_scores), len(ood_scores)
    ood_below, id_below = _half_below(id_scores, ood_scores), _half_below(ood_scores, id_scores)
    variance = (ood_below / (2 * ood_images)).var() / id_images + (id_below / (2 * id_images)).var() / ood_images
    return _with_variance(auroc(id_scores, ood_scores), variance, id_images, ood_images)


def _oscr(id_scores: Floats, correct: NDArray[np.bool_], ood_scores: Floats) -> Estimate:
    """The accuracy times the AUROC of the images that are classified right, of which each has its own interval.

    Each limit lies as far from the product as the two limits of the factors, times the other factor, lie together: the
    root of the sum of their squares (G. Y. Zou, A. Donner, "Construction of confidence limits about effect measures",
    Statistics in Medicine 27, 2008). A few ID images that are all right thus leave room for some that are wrong.
    """
    value, right = oscr(id_scores, correct, ood_scores), np.sort(id_scores[correct])
    share = accuracy(len(right), len(id_scores))
    if len(right) == 0:
        return _estimate(value, 0.0, share.high)
    above = _auroc(right, np.sort(ood_scores))
    down = math.hypot(above.value * (share.value - share.low), share.value * (above.value - above.low))
    up = math.hypot(above.value * (share.high - share.value), share.value * (above.high - above.value))
    return _estimate(value, value - down, value + up)


def _aupr(positives: Floats, negatives: Floats) -> Estimate:
    """Both sorted ascending."""
    retrieved = _retrieved(positives, negatives)
    precision, total = retrieved.precision, retrieved.positives + retrieved.negatives
    # One more positive raises, and one more negative lowers, the precision at every positive at or below its score.
    raised = np.concatenate([[0.0], np.cumsum(retrieved.negatives / total**2)])
    lowered = np.concatenate([[0.0], np.cumsum(retrieved.positives / total**2)])
    of_positives = precision + raised[np.searchsorted(positives, positives, "right")]
    of_negatives = lowered[np.searchsorted(positives, negatives, "right")] * (len(negatives) / len(positives))
    variance = of_positives.var() / len(positives) + of_negatives.var() / len(negatives)
    return _with_variance(float(precision.mean()), variance, len(positives), len(negatives))


class _RiskCurve(NamedTuple):
    """The area under the risk over the coverage, and what more weight on an image would do to it.

    area: the area.
    influence_id: the derivatives of the area by the weights of the ID images, (n_id,), ascending.
    influence_ood: the derivatives of the area by the weights of the OOD images, (n_ood,), ascending.
    """

    area: float
    influence_id: Floats
    influence_ood: Floats


def _risk_curve(id_scores: Floats, correct: NDArray[np.bool_], ood_scores: Floats | None) -> _RiskCurve:
    """Risk is errors / coverage, both being sums of weights; between two levels of the scores both grow in proportion.

    A level that takes coverage from a to b and errors from p to p + e adds the integral of (p + k (c - a)) / c, with
    k = e / (b - a): e + (p - k a) ln(b / a). The first level, where a = p = 0, adds e.
    """
    ood_scores = np.empty(0) if ood_scores is None else ood_scores
    id_weight = 0.5 if len(ood_scores) else 1.0
    _, levels = np.unique(-np.concatenate([id_scores, ood_scores]), return_inverse=True)
    of_id, of_ood = levels[: len(id_scores)], levels[len(id_scores) :]
    count = int(levels.max()) + 1
    id_images, wrong, ood_images = (np.bincount(of, minlength=count) for of in (of_id, of_id[~correct], of_ood))

    ood_weight = (1 - id_weight) / max(1, len(ood_scores))
    width = id_weight / len(id_scores) * id_images + ood_weight * ood_images
    error = id_weight / len(id_scores) * wrong + ood_weight * ood_images
    end, errors_at_end = np.cumsum(width), np.cumsum(error)
    start, errors_at_start = (np.concatenate([[0.0], at_end[:-1]]) for at_end in (end, errors_at_end))
    slope = error / width
    log = np.zeros(count)
    log[1:] = np.log1p(width[1:] / start[1:])
    offset = errors_at_start - slope * start
    area = float(np.sum(error + offset * log))

    # One more image widens its own level, where it may be an error, and moves all levels below it.
    by_width = slope * start / width * log + offset / end
    by_error = 1 - start / width * log
    moved = np.zeros(count)
    moved[1:] = offset[1:] * (1 / end[1:] - 1 / start[1:]) - slope[1:] * log[1:]
    right_influence = by_width + _sum_below(moved)
    wrong_influence = right_influence + by_error + _sum_below(log)
    influence_id = id_weight * np.where(correct, right_influence[of_id], wrong_influence[of_id])
    influence_ood = (1 - id_weight) * wrong_influence[of_ood]
    # Sorted, since the sums over them must not hang on the order of the images by a last bit.
    return _RiskCurve(min(1.0, max(0.0, area)), np.sort(influence_id), np.sort(influence_ood))


def _sum_below(levels: Floats) -> Floats:
    """For each level the sum over those after it."""
    return np.cumsum(levels[::-1])[::-1] - levels


def _aurc(id_scores: Floats, correct: NDArray[np.bool_], ood_scores: Floats | None) -> Estimate:
    """Wilson's interval, with Student's quantile, on the part of [0, 1] that AURC can reach.

    A single error moves AURC by its weight times -ln of the coverage at which it comes, and few errors tell little of
    where they may come: to find the interval's width, half an error on each side is added at a place by chance, where
    the logarithm's mean is 1 and its mean square 2.
    """
    curve = _risk_curve(id_scores, correct, ood_scores)
    sides = [curve.influence_id] if ood_scores is None else [curve.influence_id, curve.influence_ood]
    lowest = 0.0 if ood_scores is None else (1 - math.log(2)) / 2
    reach = 1 - lowest
    value = max(0.0, curve.area - lowest) / reach
    halves = [0.5 / (len(sides) * len(influence) * reach) for influence in sides]
    variances = [
        float(influence.var()) / max(1, len(influence) - 1) / reach**2 + 2 * half**2
        for influence, half in zip(sides, halves, strict=True)
    ]
    smoothed = (value + sum(halves)) / (1 + 2 * sum(halves))
    quantile = _t_quantile([(variance, len(influence)) for variance, influence in zip(variances, sides, strict=True)])
    interval = _wilson(value, smoothed * (1 - smoothed) / sum(variances), quantile)
    return _estimate(curve.area, lowest + reach * interval.low, lowest + reach * interval.high)


def _with_variance(value: float, variance: float, positives: int, negatives: int) -> Estimate:
    """Wilson's interval at the number of images whose plain share would have the variance.

    Perfect separation shows a variance of 0, which no finite sample can vouch for: half an image whose rank is a coin
    toss is therefore added to value and variance, only to find that number.
    """
    images = min(positives, negatives)
    smoothed = (images * value + 0.25) / (images + 0.5)
    variance += (positives**-2 + negatives**-2) / 16
    return _wilson(value, smoothed * (1 - smoothed) / variance)


def _t_quantile(sides: Sequence[tuple[float, int]]) -> float:
    """Student's 97.5 % quantile where a variance is the sum of the sides', by Welch's and Satterthwaite's formula.

    sides: of each its part of the variance, above 0, and the number of images that it was found from.
    """
    total = sum(variance for variance, _ in sides)
    return float(stdtrit(total**2 / sum(variance**2 / max(1, images - 1) for variance, images in sides), _TAILS[1]))


def _wilson(share: float, images: float, quantile: float = _Z) -> Estimate:
    """For a share of so many images, which need not be a whole number; quantile: how many standard errors it spans."""
    middle = share + quantile**2 / (2 * images)
    reach = quantile * math.sqrt(share * (1 - share) / images + (quantile / (2 * images)) ** 2)
    shrink = 1 + quantile**2 / images
    return _estimate(share, (middle - reach) / shrink, (middle + reach) / shrink)


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=max(0.0, min(value, float(low))), high=min(1.0, max(value, float(high))))


# Intervals of FPR@95: how many ID images lie below the threshold that 95 % of all ID images would pass is binomial, and
# given a threshold the accepted share of all OOD images is beta distributed. Draws of both need no resampled arrays.


def _fpr(id_scores: Floats, ood_scores: Floats) -> Estimate:
    """id_scores sorted ascending."""
    generator = np.random.default_rng(0)
    accepted = _accepted(id_scores, ood_scores, np.zeros(len(ood_scores), np.int64), 1, generator)
    draws = _share_draws(accepted, np.array([len(ood_scores)]), _PRIOR, generator)
    return _with_draws(fpr_at_tpr(id_scores, ood_scores), draws)


def _fpr_by_class(
    id_scores: Floats, ood_scores: Floats, classes: Ints, class_names: Sequence[str]
) -> tuple[Estimate, list[ClassValue]]:
    """The mean over the classes present and each one's value. id_scores sorted ascending."""
    names = [class_names[index] for index in np.unique(classes)]
    sizes, classes = _present(classes)
    values = np.bincount(classes, ood_scores >= threshold_at_tpr(id_scores)) / sizes
    generator = np.random.default_rng(0)
    accepted = _accepted(id_scores, ood_scores, classes, len(sizes), generator)
    mean_draws = _share_draws(accepted, sizes, _PRIOR / len(sizes), generator).mean(axis=0)
    class_draws = _share_draws(accepted, sizes, _PRIOR, generator)
    by_class = [
        ClassValue(name=name, fpr_at_95=_with_draws(float(value), draws), images=int(size))
        for name, value, draws, size in zip(names, values, class_draws, sizes, strict=True)
    ]
    return _with_draws(float(values.mean()), mean_draws), by_class


def _with_draws(value: float, draws: Floats) -> Estimate:
    low, high = np.quantile(draws, _TAILS)
    return _estimate(value, float(low), float(high))


def _share_draws(accepted: Ints, sizes: Ints, prior: float, generator: np.random.Generator) -> Floats:
    return generator.beta(accepted + prior, sizes[:, None] - accepted + prior)


def _accepted(
    id_scores: Floats, ood_scores: Floats, classes: Ints, class_count: int, generator: np.random.Generator
) -> Ints:
    """How many OOD images of each class pass each of the drawn thresholds: (class_count, _DRAWS)."""
    below = generator.binomial(len(id_scores), 1 - _TPR, _DRAWS)
    places = _place(below, len(id_scores), generator.integers(0, 2, _DRAWS))
    passed, draws = _thresholds_passed(id_scores, places, ood_scores)
    levels = int(draws.max()) + 2
    counts = np.bincount(classes * levels + passed, minlength=class_count * levels).reshape(class_count, levels)
    return _at_least(counts)[:, draws + 1]


def _place(below: Ints, images: int, coin: Ints) -> Ints:
    """A threshold with `below` ID images under it lies between two of them: a coin toss puts it at either."""
    return np.minimum(below + coin, images)


def _thresholds_passed(id_scores: Floats, places: Ints, ood_scores: Floats) -> tuple[Ints, Ints]:
    """How many of the drawn thresholds, each counted once, an OOD image passes; and the draws as places among those.

    id_scores are sorted ascending; place 0 stands for a threshold below them all, place i for the i-th of them.
    """
    lowest = int(places.min())
    thresholds = np.concatenate([[-np.inf], id_scores])[lowest : int(places.max()) + 1]
    return np.searchsorted(thresholds, ood_scores, "right"), places - lowest


def _at_least(counts: Ints) -> Ints:
    """From how many there are of each level, how many at it or higher; along the last axis."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


def _joint_threshold_places(id_a: Floats, id_b: Floats, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """Draws of both detectors' thresholds, which move together as far as both reject the same ID images."""
    images = len(id_a)
    rejected = _most_rejected(images, _TPR)
    lowest_a, lowest_b = (np.argsort(scores, kind="stable")[:rejected] for scores in (id_a, id_b))
    share_both = len(np.intersect1d(lowest_a, lowest_b, assume_unique=True)) / images
    share_one = max(0.0, 1 - _TPR - share_both)
    chances = [share_both, share_one, share_one, 1 - share_both - 2 * share_one]
    both, only_a, only_b, _ = generator.multinomial(images, chances, _DRAWS).T
    coin = generator.integers(0, 2, _DRAWS)
    return _place(both + only_a, images, coin), _place(both + only_b, images, coin)


def _accepted_by_one(passed_a: Ints, passed_b: Ints, draws_a: Ints, draws_b: Ints) -> tuple[Ints, Ints]:
    """How many OOD images A alone and B alone accepts at each pair of drawn thresholds."""
    shape = (int(draws_a.max()) + 2, int(draws_b.max()) + 2)
    counts = np.bincount(passed_a * shape[1] + passed_b, minlength=shape[0] * shape[1]).reshape(shape)
    passing = _at_least(_at_least(counts).T).T
    both = passing[draws_a + 1, draws_b + 1]
    return passing[draws_a + 1, 0] - both, passing[0, draws_b + 1] - both
