"""Differences of two figures with their sampling error, and what many of them say together.

A difference is the new figure minus the base's. Where both are of the same images, what is easy or hard for both
cancels out: the difference is *paired*. This says how far the images alone may move a figure. It does not say how far
two equally good trainings of a network lie apart, which is usually further.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from benchmark.metrics import paired_fpr_difference
from benchmark.records import Estimate

Floats = NDArray[np.float64]
Z = float(norm.ppf(0.975))


class Change(NamedTuple):
    """A difference of two fractions.

    value: the new one minus the base's.
    low, high: the ends of its 95 % interval.
    error: its standard error.
    paired: whether both are of the same images.
    """

    value: float
    low: float
    high: float
    error: float
    paired: bool

    def p_above(self, margin: float) -> float:
        """How probable such a difference, or a larger one, is where the true one is `margin` (one side, normal)."""
        distance = self.value - margin
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(norm.sf(distance / self.error))

    def __neg__(self) -> "Change":
        return Change(-self.value, -self.high, -self.low, self.error, self.paired)


def fpr_change(
    test_base: ArrayLike, ood_base: ArrayLike, test_new: ArrayLike, ood_new: ArrayLike, labels: ArrayLike | None = None
) -> Change:
    """The change of FPR@95 on the same images: see `benchmark.metrics.paired_fpr_difference`.

    test_base, test_new: the scores of the ID test images, (n_id,), in the same order.
    ood_base, ood_new: those of the OOD images, (n_ood,), in the same order.
    labels: the class of each OOD image, (n_ood,) integers. FPR@95 is then the mean over the classes.
    """
    found = paired_fpr_difference(test_new, ood_new, test_base, ood_base, labels)
    return Change(found.value, found.low, found.high, (found.high - found.low) / (2 * Z), True)


def auroc_change(test_base: ArrayLike, ood_base: ArrayLike, test_new: ArrayLike, ood_new: ArrayLike) -> Change:
    """The change of AUROC on the same images, with the error of E. R. DeLong et al. (Biometrics 44, 1988).

    The arguments are those of `fpr_change`.
    """
    test_a, ood_a = _placements(np.asarray(test_base, float), np.asarray(ood_base, float))
    test_b, ood_b = _placements(np.asarray(test_new, float), np.asarray(ood_new, float))
    value = float(test_b.mean() - test_a.mean())
    return _normal(value, math.sqrt(_variance_of_mean(test_b - test_a) + _variance_of_mean(ood_b - ood_a)))


def _placements(test: Floats, ood: Floats) -> tuple[Floats, Floats]:
    """Of an ID image the share of OOD images below it, of an OOD image that of ID images above it; a tie is half."""
    ranks = rankdata(np.concatenate([test, ood]))
    of_test = (ranks[: len(test)] - rankdata(test)) / len(ood)
    of_ood = 1 - (ranks[len(test) :] - rankdata(ood)) / len(test)
    return of_test, of_ood


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def accuracy_change(base: ArrayLike, new: ArrayLike) -> Change:
    """The change of the accuracy on the same images, with the interval of A. Agresti and Y. Min (Statistics in Medicine
    24, 2005): half an image is added to each of the four cells.

    base, new: whether each image is classified right, (N,) booleans, in the same order.
    """
    before, after = np.asarray(base, bool), np.asarray(new, bool)
    images = len(before) + 2
    better, worse = int((after & ~before).sum()) + 0.5, int((before & ~after).sum()) + 0.5
    centre = (better - worse) / images
    error = math.sqrt((better + worse) - (better - worse) ** 2 / images) / images
    value = float(after.mean() - before.mean())
    return Change(value, min(value, centre - Z * error), max(value, centre + Z * error), error, True)


def unpaired_change(base: Estimate, new: Estimate) -> Change:
    """The change between two estimates of images of their own.

    The interval is Newcombe's (Statistics in Medicine 17, 1998): the squares of the parts of both intervals are added.
    """
    value = new.value - base.value
    down = math.hypot(new.value - new.low, base.high - base.value)
    up = math.hypot(new.high - new.value, base.value - base.low)
    return Change(value, value - down, value + up, (down if value > 0 else up) / Z, False)


def _normal(value: float, error: float) -> Change:
    return Change(value, value - Z * error, value + Z * error, error, True)


def holm(probabilities: Sequence[float]) -> list[float]:
    """The p-values of many tests, corrected for their number (S. Holm, Scandinavian Journal of Statistics 6, 1979).

    Of true hypotheses, whatever their dependence, one or more is rejected at the level of 5 % with a probability of at
    most 5 %.
    """
    order = np.argsort(probabilities, kind="stable")
    corrected, highest = [0.0] * len(probabilities), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(probabilities) - place) * probabilities[index]))
        corrected[index] = highest
    return corrected
