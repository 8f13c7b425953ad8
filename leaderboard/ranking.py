"""What cannot be told apart: paired comparisons of scores on the same images, of two detectors or of two models."""

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
    """Scores that are missing, or that do not belong to their record; the message names the file."""


class Comparisons:
    """Compares results on the same images, reading each file of scores at most once.

    id_set: the set of the ID test images, null where the run recorded none. problems: why comparisons were impossible.
    """

    def __init__(self, id_set: str | None) -> None:
        self.problems: list[str] = []
        self._id_set = id_set
        self._files: dict[Path, pa.Table] = {}

    def standings(self, fprs: Mapping[str, float], results: Mapping[str, list[Result]]) -> dict[str, Standing]:
        """Where each detector stands, given its FPR@95 and the results on the OOD sets that this is the mean over.

        'tied': the 95 % interval of the paired difference from the best includes 0. 'unknown': no scores to compare.
        """
        lowest = min(fprs.values(), default=0.0)
        best = next((detector for detector, fpr in fprs.items() if fpr == lowest), "")
        return {
            detector: "best" if fpr == lowest else self._against(results[best], results[detector])
            for detector, fpr in fprs.items()
        }

    def _against(self, best: list[Result], other: list[Result]) -> Standing:
        difference = self.difference(best, other)
        if difference is None:
            return "unknown"
        return "tied" if difference.low <= 0 <= difference.high else "worse"

    def difference(self, results: list[Result], others: list[Result]) -> Difference | None:
        """Mean FPR@95 of some results less that of others, which are of the same OOD sets in the same order.

        All images of a set count alike. Null, and a problem more, where they cannot be compared.
        """
        try:
            id_a, ood_a, images_a = self._scores(results)
            id_b, ood_b, images_b = self._scores(others)
            if images_a != images_b:
                raise ScoresError(f"{_name(others[0])}: its images are not those of {_name(results[0])}")
        except ScoresError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None
        sets = np.repeat(np.arange(len(results)), [len(images_a[result.case.set]) for result in results])
        return paired_fpr_difference(id_a, ood_a, id_b, ood_b, sets)

    def _scores(self, results: list[Result]) -> tuple[Any, Any, dict[str, pa.Array]]:
        """Scores of the ID test images and of the OOD images of all sets, and the image ids of each set."""
        id_scores, id_images = self._set(results[0], self._id_set or "")
        ood = [self._set(result, result.case.set) for result in results]
        for result, (scores, _) in zip(results, ood, strict=True):
            _check(result, id_scores, scores)
        images = {result.case.set: images for result, (_, images) in zip(results, ood, strict=True)}
        return id_scores, np.concatenate([scores for scores, _ in ood]), {"": id_images, **images}

    def _set(self, result: Result, set_id: str) -> tuple[Any, pa.Array]:
        table = self._table(result)
        rows = table.filter(pa.compute.equal(table["set"], set_id))
        if not len(rows):
            raise ScoresError(f"{_name(result)}: no scores of {set_id or 'a set of ID test images'}")
        return rows["score"].to_numpy(), rows["image"].combine_chunks()

    def _table(self, result: Result) -> pa.Table:
        if result.case.scores is None:
            raise ScoresError(f"{_name(result)}: its run recorded no scores")
        path = result.folder / result.case.scores.path
        if path not in self._files:
            self._files[path] = _read(path, _name(result))
        return self._files[path]


def _read(path: Path, name: str) -> pa.Table:
    try:
        return pa.parquet.read_table(path, partitioning=None).select(_COLUMNS.names).cast(_COLUMNS)
    except FileNotFoundError:
        raise ScoresError(f"{name}: not there") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ScoresError(f"{name}: {str(error).replace(str(path), name)}") from None


def _check(result: Result, id_scores: Any, ood_scores: Any) -> None:
    """Scores that do not give the FPR@95 of their record are another run's, or damaged."""
    metrics = result.case.metrics
    try:
        fpr = fpr_at_tpr(id_scores, ood_scores)
    except ValueError as error:
        raise ScoresError(f"{_name(result)}: {error}") from None
    if metrics is None or abs(fpr - metrics.fpr_at_95_pooled.value) > 1e-9:
        raise ScoresError(f"{_name(result)}: its scores on {result.case.set} do not give the FPR@95 of the record")


def _name(result: Result) -> str:
    case = result.case
    return (
        f"{case.suite}/{case.scores.path}" if case.scores else f"{case.suite}/{case.model}/{case.detector}/{case.set}"
    )
