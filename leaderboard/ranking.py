"""Paired comparisons of scores on the same images, of two detectors or of two models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from benchmark.errors import UserError
from benchmark.metrics import Difference, fpr_at_tpr, paired_fpr_difference
from leaderboard.results import Result

Standing = Literal["best", "tied", "worse", "unknown"]
_COLUMNS = pa.schema({"set": pa.string(), "image": pa.string(), "score": pa.float64()})


class ScoresError(UserError):
    """Scores are missing, or do not belong to their record. The message names the file."""


class Comparisons:
    """Compares results on the same images. Each file of scores is read at most once.

    id_set: the id of the set of the ID test images; None where the run recorded none.
    problems: why comparisons were not possible.
    """

    def __init__(self, id_set: str | None) -> None:
        self.problems: list[str] = []
        self._id_set = id_set
        self._files: dict[Path, pa.Table] = {}

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
            id_a, ood_a, images_a = self._scores(results)
            id_b, ood_b, images_b = self._scores(others)
            if images_a != images_b:
                raise ScoresError(f"{_name_of(others[0])}: its images are not those of {_name_of(results[0])}")
        except ScoresError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None
        sets = np.repeat(np.arange(len(results)), [len(images_a[result.case.set]) for result in results])
        return paired_fpr_difference(id_a, ood_a, id_b, ood_b, sets)

    def _scores(self, results: list[Result]) -> tuple[Any, Any, dict[str, pa.Array]]:
        """The scores of the ID test images, those of the OOD images of all sets, and the ids of the images of each set.

        Raises ScoresError where scores are missing or do not belong to their record.
        """
        id_scores, id_images = self._scores_of_set(results[0], self._id_set or "")
        ood = [self._scores_of_set(result, result.case.set) for result in results]
        for result, (scores, _) in zip(results, ood, strict=True):
            _check_scores(result, id_scores, scores)
        images = {result.case.set: images for result, (_, images) in zip(results, ood, strict=True)}
        return id_scores, np.concatenate([scores for scores, _ in ood]), {"": id_images, **images}

    def _scores_of_set(self, result: Result, set_id: str) -> tuple[Any, pa.Array]:
        table = self._scores_table(result)
        rows = table.filter(pa.compute.equal(table["set"], set_id))
        if not len(rows):
            raise ScoresError(f"{_name_of(result)}: no scores of {set_id or 'a set of ID test images'}")
        return rows["score"].to_numpy(), rows["image"].combine_chunks()

    def _scores_table(self, result: Result) -> pa.Table:
        if result.case.scores is None:
            raise ScoresError(f"{_name_of(result)}: its run recorded no scores")
        path = result.folder / result.case.scores.path
        if path not in self._files:
            self._files[path] = _read_scores(path, _name_of(result))
        return self._files[path]


def _read_scores(path: Path, name: str) -> pa.Table:
    try:
        return pa.parquet.read_table(path, partitioning=None).select(_COLUMNS.names).cast(_COLUMNS)
    except FileNotFoundError:
        raise ScoresError(f"{name}: not there") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ScoresError(f"{name}: {str(error).replace(str(path), name)}") from None


def _check_scores(result: Result, id_scores: Any, ood_scores: Any) -> None:
    """Raises ScoresError where scores do not give the FPR@95 of their record: they are of another run, or damaged."""
    metrics = result.case.metrics
    try:
        fpr = fpr_at_tpr(id_scores, ood_scores)
    except ValueError as error:
        raise ScoresError(f"{_name_of(result)}: {error}") from None
    if metrics is None or abs(fpr - metrics.fpr_at_95_pooled.value) > 1e-9:
        raise ScoresError(f"{_name_of(result)}: its scores on {result.case.set} do not give the FPR@95 of the record")


def _name_of(result: Result) -> str:
    case = result.case
    return (
        f"{case.suite}/{case.scores.path}" if case.scores else f"{case.suite}/{case.model}/{case.detector}/{case.set}"
    )
