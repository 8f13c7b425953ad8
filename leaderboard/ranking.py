"""Paired comparisons of scores on the same images, of two detectors or of two models."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from benchmark.metrics import Difference, paired_fpr_difference
from benchmark.scores import ScoresError, read_case_scores
from leaderboard.results import Result

Standing = Literal["best", "tied", "worse", "unknown"]


class _Read(NamedTuple):
    """The scores of a case, without the names of its images, which would fill the memory.

    test: the scores of the ID test images.
    ood: those of the OOD set.
    images: a hash of the ids of both.
    """

    test: np.ndarray
    ood: np.ndarray
    images: str


class Comparisons:
    """Compares results on the same images. The scores of a case are read at most once.

    problems: why comparisons were not possible.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._read: dict[tuple[str, str, str, str], _Read] = {}

    def standings(self, fprs: Mapping[str, float], results: Mapping[str, list[Result]]) -> dict[str, Standing]:
        """How each detector compares with the best one.

        fprs: the mean FPR@95 of each detector.
        results: the results that it is the mean of, one for each OOD set.

        "tied": the 95 % interval of the paired difference from the best contains 0. "unknown": there are no scores to
        compare.
        """
        lowest = min(fprs.values(), default=0.0)
        best = next((detector for detector, fpr in fprs.items() if fpr == lowest), "")
        return {
            detector: "best" if fpr == lowest else self._standing_against(results[best], results[detector])
            for detector, fpr in fprs.items()
        }

    def _standing_against(self, best: list[Result], other: list[Result]) -> Standing:
        difference = self.difference(best, other)
        if difference is None:
            return "unknown"
        return "tied" if difference.low <= 0 <= difference.high else "worse"

    def difference(self, results: list[Result], others: list[Result]) -> Difference | None:
        """The mean FPR@95 of some results minus that of others. All images of a set weigh the same.

        results: results on some OOD sets.
        others: results on the same OOD sets, in the same order.

        Where they cannot be compared, it is None, and `problems` gets the reason.
        """
        try:
            read_a, read_b = [self._scores(result) for result in results], [self._scores(result) for result in others]
            for a, b, result, other in zip(read_a, read_b, results, others, strict=True):
                if a.images != b.images:
                    raise ScoresError(f"{_name_of(other)}: its images are not those of {_name_of(result)}")
        except ScoresError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None
        sets = np.repeat(np.arange(len(results)), [len(read.ood) for read in read_a])
        return paired_fpr_difference(read_a[0].test, _all_ood(read_a), read_b[0].test, _all_ood(read_b), sets)

    def _scores(self, result: Result) -> _Read:
        """The scores of a case. Raises ScoresError where they are missing or do not belong to their record."""
        case = result.case
        key = (case.run, case.model, case.detector, case.set)
        if key not in self._read:
            scores = read_case_scores(result.results, case)
            self._read[key] = _Read(
                scores.test["score"].to_numpy(), scores.ood["score"].to_numpy(), _sha256(scores.test, scores.ood)
            )
        return self._read[key]


def _all_ood(read: Sequence[_Read]) -> np.ndarray:
    return np.concatenate([of_case.ood for of_case in read])


def _sha256(*tables: pa.Table) -> str:
    """A hash of the ids of the images of some tables, in order."""
    return hashlib.sha256(repr([table["image"].to_pylist() for table in tables]).encode()).hexdigest()


def _name_of(result: Result) -> str:
    case = result.case
    return (
        f"{case.suite}/{case.scores.path}" if case.scores else f"{case.suite}/{case.model}/{case.detector}/{case.set}"
    )
