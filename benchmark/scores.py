"""Scores: what a detector said of each image, as a run keeps it, and the figures that follow from it.

A table of scores is of one model, one detector and one image set. A row is an image, in the order of the set:

    set               the id of the image set
    image             the id of the image in it
    label             the index of its class among the `classes` of the set's record. Null in a set without classes.
    score             float64; higher means more in-distribution
    correct           whether the network that classifies is right about it. Null where the image is not
                      in-distribution, and where nothing says what it shows.
    network_correct   the same of the network that detects, where the base of a variant goes on classifying

The metadata of the table say under METADATA, in JSON, which run, suite, model, detector and set it is of, and in which
schema. Runs that are older than schema 3 wrote `set`, `image` and `score` alone, of all sets in one table.

All figures of a case, and the accuracies of its model, follow from these tables and the records of the image sets. What
does not is what a clock measured, and what options a tuning tried.

This module needs neither torch nor timm.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from benchmark.errors import UserError
from benchmark.metrics import accepted, accuracy, measure
from benchmark.public import public_ids
from benchmark.records import SCHEMA, Case, Estimate, Metrics, ScoresFile
from benchmark.results import Backend, RunId, scores_path

METADATA = b"ood_benchmark"
SCORES = pa.schema(
    {
        "set": pa.string(),
        "image": pa.string(),
        "label": pa.int32(),
        "score": pa.float64(),
        "correct": pa.bool_(),
        "network_correct": pa.bool_(),
    }
)
_ALWAYS = ("set", "image", "score")


class ScoresError(UserError):
    """Scores are missing, damaged, or not those of their record. The message names the file, or the case."""


@dataclass(frozen=True)
class ScoresOf:
    """Which scores a table holds.

    suite, run, model, detector, set: their ids.
    """

    suite: str
    run: str
    model: str
    detector: str
    set: str

    @property
    def path(self) -> str:
        """The path of the table in its run, as a record has it."""
        return scores_path(self.run, self.model, self.detector, self.set)


def scores_table(
    of: ScoresOf,
    images: Sequence[str],
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    correct: np.ndarray | None = None,
    network_correct: np.ndarray | None = None,
) -> pa.Table:
    """The table of some scores.

    of: which scores these are.
    images: the ids of the images, N of them. Of ids that are absolute paths, the common folder is left out.
    scores: (N,) float64.
    labels: the index of each image's class, (N,) integers. None for a set without classes.
    correct: whether the network that classifies is right about each, (N,) booleans. None where that is not known.
    network_correct: the same of the network that detects. None where it is the network that classifies, too.
    """
    columns = [[of.set] * len(images), public_ids(images), labels, scores, correct, network_correct]
    arrays = [
        pa.nulls(len(images), kind.type) if values is None else pa.array(values, kind.type)
        for values, kind in zip(columns, SCORES, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=SCORES.with_metadata({METADATA: about_scores(of)}))


def about_scores(of: ScoresOf) -> str:
    """What the metadata of a table say under METADATA."""
    return json.dumps({"schema": SCHEMA} | vars(of))


def which_scores(table: pa.Table) -> ScoresOf:
    """Which scores a table holds, as `scores_table` wrote it."""
    about = json.loads(table.schema.metadata[METADATA])
    return ScoresOf(about["suite"], about["run"], about["model"], about["detector"], about["set"])


@dataclass(frozen=True)
class CaseScores:
    """The scores of a case.

    test: those of the ID test images, as a table.
    ood: those of the OOD set.
    shifted: those of each shifted set, by set.
    """

    test: pa.Table
    ood: pa.Table
    shifted: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The hash that a record has of the scores of the case."""
        return scores_sha256(self.test, self.ood)

    def metrics(self, classes: Sequence[str]) -> Metrics:
        """The metrics of the case. `classes`: the names of the classes of the OOD set."""
        return self._metrics([self.test], classes)

    def full_spectrum(self, classes: Sequence[str]) -> Metrics:
        """The metrics where the images of the shifted sets count as in-distribution too."""
        return self._metrics([self.test, *self.shifted.values()], classes)

    @property
    def shifted_accepted(self) -> dict[str, Estimate]:
        """The share of each shifted set that the threshold of the test images accepts."""
        test = self.test["score"].to_numpy()
        return {set_id: accepted(test, table["score"].to_numpy()) for set_id, table in self.shifted.items()}

    def _metrics(self, tables: Sequence[pa.Table], classes: Sequence[str]) -> Metrics:
        id_scores = np.concatenate([table["score"].to_numpy() for table in tables])
        correct = [_known(table, "correct") for table in tables]
        known = [of_table for of_table in correct if of_table is not None]
        return measure(
            id_scores,
            self.ood["score"].to_numpy(),
            _known(self.ood, "label"),
            classes,
            id_correct=np.concatenate(known) if len(known) == len(correct) else None,
        )


def accuracy_in(table: pa.Table, column: str = "correct") -> Estimate | None:
    """The accuracy of a network on the images of a table. None where nothing says what they show.

    column: "correct", or "network_correct" for the network that detects alone.
    """
    correct = _known(table, column)
    return None if correct is None else accuracy(int(correct.sum()), len(correct))


def scores_sha256(test: pa.Table, ood: pa.Table) -> str:
    """The hash of the scores of a case: see `ScoresFile.sha256`."""
    digest = hashlib.sha256()
    for table in (test, ood):
        pairs = zip(table["image"].to_pylist(), table["score"].to_pylist(), strict=True)
        digest.update("".join(f"{image}\t{score.hex()}\n" for image, score in pairs).encode())
    return digest.hexdigest()


def scores_of(results: Backend, of: ScoresOf, images: Sequence[str]) -> np.ndarray | None:
    """The scores of some images, in their order, (N,). None where they are not there, or are not of these images."""
    try:
        table = results.scores(RunId(of.suite, of.run), of.path)
    except (OSError, pa.ArrowException):
        return None
    if table is None or not {"image", "score"} <= {*table.column_names} or table["image"].to_pylist() != list(images):
        return None
    scores = table["score"].to_numpy()
    return None if np.isnan(scores).any() else scores


def read_case_scores(results: Backend, case: Case) -> CaseScores:
    """The scores of a case, from where its run keeps them.

    Raises ScoresError where they are gone, damaged, of a newer schema, or not those that the case was recorded with.
    """
    if case.scores is None:
        raise ScoresError(f"{case.suite}/{case.model}/{case.detector}/{case.set}: its run recorded no scores")
    file = case.scores
    test = _read(results, case, file.id_path)
    id_set = test["set"][0].as_py()
    scores = CaseScores(
        _of_set(test, id_set),
        _of_set(_read(results, case, file.path), case.set),
        {set_id: _of_set(_read(results, case, path), set_id) for set_id, path in file.shifted_paths.items()},
    )
    _check(case, file, scores)
    return scores


def _check(case: Case, file: ScoresFile, scores: CaseScores) -> None:
    for path, table in ((file.id_path, scores.test), (file.path, scores.ood)):
        if np.isnan(table["score"].to_numpy()).any():
            raise ScoresError(f"{case.suite}/{path}: a score is NaN")
    if scores.sha256 != file.sha256:
        raise ScoresError(
            f"{case.suite}/{file.path}: its scores on {case.set} are not those that were recorded; "
            "they are of another run, or damaged"
        )


def _read(results: Backend, case: Case, path: str) -> pa.Table:
    """The table at a path, with the columns of SCORES. Raises ScoresError that names it."""
    name = f"{case.suite}/{path}"
    try:
        table = results.scores(RunId(case.suite, case.run), path)
        if table is None:
            raise ScoresError(f"{name}: not there")
        _check_schema(name, table)
        for column in SCORES:
            if column.name not in table.column_names and column.name not in _ALWAYS:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        table = table.select(SCORES.names).cast(SCORES)
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ScoresError(f"{name}: {reason or ' '.join(str(error).split())}") from None
    if not len(table) or table["image"].null_count or table["score"].null_count:
        raise ScoresError(f"{name}: {'it lacks images or scores' if len(table) else 'it has no rows'}")
    return table


def _check_schema(name: str, table: pa.Table) -> None:
    about: Any = None
    try:
        about = json.loads((table.schema.metadata or {}).get(METADATA, b'{"schema": 2}'))
        schema = about["schema"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ScoresError(f"{name}: its metadata are damaged") from None
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ScoresError(f"{name}: of schema {schema!r}; this version reads 1 to {SCHEMA}: update it")


def _of_set(table: pa.Table, set_id: str) -> pa.Table:
    """The rows of a set. A table of today has no others."""
    return table.filter(pa.compute.equal(table["set"], set_id)).combine_chunks()


def _known(table: pa.Table, column: str) -> np.ndarray | None:
    """A column as an array. None where it is null in a row."""
    return None if table[column].null_count or not len(table) else table[column].to_numpy(zero_copy_only=False)
