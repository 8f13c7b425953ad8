"""What the pages show, computed from records: verdicts, means, unit tests, ranks. It reads and writes no files."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from benchmark.metrics import mean
from benchmark.records import Case, ClassValue, DetectorRecord, Estimate, PublishedValue
from leaderboard.ranking import Comparisons, Standing
from leaderboard.results import Result, SuiteResults

Verdict = Literal["passed", "known failure", "failed", "error", "skipped", "not run"]
VERDICTS: tuple[Verdict, ...] = ("passed", "known failure", "failed", "error", "skipped", "not run")

# The published goal of a unit test, for cases whose run recorded no limit.
UNIT_TEST_GOAL = 0.10
DEFAULT_SUITE = "digits"


# What a detector's record names under `invariances`, and what changes.
CHANGES: dict[str, str] = {
    "logit shift": "the same number is added to all logits, which leaves the softmax",
    "logit scale": "all logits are multiplied by the same positive number, which leaves the predicted class",
    "class order": "the classes are numbered in another order",
    "feature unit": "one feature is multiplied by a number and its weights in the head are divided by it",
    "feature scale": "all features are multiplied by the same positive number and the head is divided by it",
    "feature shift": "the same vector is added to the features of all images, and the head's bias makes up for it",
    "feature rotation": "the features are rotated, and the head with them",
}


@dataclass(frozen=True)
class Cell:
    """One case in the table of a model.

    set: the id of the OOD set.
    result: the newest result; None where the case was not run.
    standing: how its FPR@95 compares with the best detector on this model and set.
    """

    set: str
    result: Result | None
    standing: Standing | None = None

    @property
    def verdict(self) -> Verdict:
        return verdict(self.result.case) if self.result else "not run"

    @property
    def fpr(self) -> Estimate | None:
        return self.result.case.metrics.fpr_at_95 if self.result and self.result.case.metrics else None

    @property
    def comparable(self) -> bool:
        return self.fpr is not None and self.result is not None and self.result.stale is None


@dataclass(frozen=True)
class Mean:
    """The unweighted mean FPR@95 over OOD sets.

    value: the mean; None unless every set has a comparable figure.
    measured: the number of sets with a comparable figure.
    total: the number of sets.
    standing: how the mean compares with the best detector on this model.
    """

    value: Estimate | None
    measured: int
    total: int
    standing: Standing | None = None


@dataclass(frozen=True)
class UnitTests:
    """How a detector does on the unit tests.

    failed: the number of unit tests whose FPR@95 exceeds its goal.
    measured: the number of unit tests with a comparable figure.
    total: the number of unit tests.
    worst: the unit test with the highest FPR@95.
    best: whether all were measured and no other detector fails fewer.
    """

    failed: int
    measured: int
    total: int
    worst: Cell | None
    best: bool = False


@dataclass(frozen=True)
class Track:
    """One detector on the sets of a role other than near and far."""

    cells: list[Cell]
    mean: Mean


@dataclass(frozen=True)
class Row:
    """One detector on one model.

    detector: the id of the detector.
    ood: its cases on the near and the far OOD sets.
    mean: their mean FPR@95.
    tracks: its cases on other OOD sets, by role.
    unit_cells: its cases on the unit tests.
    units: how it does on them.
    forward_ratio: its score time divided by the forward time of the model, the median of its cases; None without times.
    """

    detector: str
    ood: list[Cell]
    mean: Mean
    tracks: dict[str, Track]
    unit_cells: list[Cell]
    units: UnitTests
    forward_ratio: float | None

    @property
    def ran_unit_tests(self) -> bool:
        """Whether it was run on any unit test. Most suites run only a core of their detectors on them."""
        return any(cell.result for cell in self.unit_cells)

    @property
    def cells(self) -> list[Cell]:
        """All of its cases, those of the unit tests last."""
        return [*self.ood, *(cell for track in self.tracks.values() for cell in track.cells), *self.unit_cells]


@dataclass(frozen=True)
class ModelTable:
    """All detectors on one model.

    suite: the newest results.
    model: the id of the model.
    rows: one row a detector: those with a mean first, the lowest first, then the others by name.
    """

    suite: SuiteResults
    model: str
    rows: list[Row]

    @property
    def by_detector(self) -> dict[str, Row]:
        return {row.detector: row for row in self.rows}


def verdict(case: Case) -> Verdict:
    """The status of a case; an expected failure is a "known failure"."""
    return "known failure" if case.status == "failed" and case.expected else case.status


def count_verdicts(results: Sequence[Result]) -> list[tuple[Verdict, int]]:
    """How often each verdict occurs, in a fixed order. Verdicts that do not occur are left out."""
    counts = Counter(verdict(result.case) for result in results)
    return [(name, counts[name]) for name in VERDICTS if counts[name]]


def model_tables(suite: SuiteResults) -> tuple[list[ModelTable], list[str]]:
    """A table for each model of a suite, and why some detectors could not be compared."""
    tables, problems = [], []
    for model in suite.model_ids:
        comparisons = Comparisons()
        tables.append(_model_table(suite, model, comparisons))
        problems += comparisons.problems
    return tables, problems


def _model_table(suite: SuiteResults, model: str, comparisons: Comparisons) -> ModelTable:
    grid = {
        detector: [Cell(set_id, suite.results.get((model, detector, set_id))) for set_id in suite.ood_set_ids]
        for detector in suite.detector_ids
    }
    means = {detector: _mean_of_cells(cells) for detector, cells in grid.items()}
    complete = {detector: mean.value.value for detector, mean in means.items() if mean.value}
    mean_standings = comparisons.standings(complete, {detector: results_of(grid[detector]) for detector in complete})
    set_standings = [_set_standings(grid, column, comparisons) for column in range(len(suite.ood_set_ids))]
    unit_cells = {
        detector: [Cell(set_id, suite.results.get((model, detector, set_id))) for set_id in suite.set_ids("unit-test")]
        for detector in suite.detector_ids
    }
    units = {detector: _count_unit_tests(cells) for detector, cells in unit_cells.items()}
    fewest = min(
        (tests.failed for tests in units.values() if tests.total and tests.measured == tests.total), default=None
    )
    rows = [
        Row(
            detector=detector,
            ood=[
                Cell(cell.set, cell.result, standings.get(detector))
                for cell, standings in zip(grid[detector], set_standings, strict=True)
            ],
            mean=Mean(mean.value, mean.measured, mean.total, mean_standings.get(detector)),
            tracks={role: _track_of(suite, model, detector, ids) for role, ids in suite.tracks.items()},
            unit_cells=unit_cells[detector],
            units=_mark_best(units[detector], fewest),
            forward_ratio=_forward_ratio(grid[detector] + unit_cells[detector]),
        )
        for detector, mean in means.items()
    ]
    rows = [row for row in rows if results_of(row.cells)]
    return ModelTable(suite, model, sorted(rows, key=_rank_key))


def _track_of(suite: SuiteResults, model: str, detector: str, sets: Sequence[str]) -> Track:
    cells = [Cell(set_id, suite.results.get((model, detector, set_id))) for set_id in sets]
    return Track(cells, _mean_of_cells(cells))


def results_of(cells: Sequence[Cell]) -> list[Result]:
    return [cell.result for cell in cells if cell.result]


def _set_standings(grid: Mapping[str, Sequence[Cell]], column: int, comparisons: Comparisons) -> dict[str, Standing]:
    cells = {detector: row[column] for detector, row in grid.items() if row[column].comparable}
    fprs = {detector: cell.fpr.value for detector, cell in cells.items() if cell.fpr}
    return comparisons.standings(fprs, {detector: results_of([cell]) for detector, cell in cells.items()})


def _mean_of_cells(cells: Sequence[Cell]) -> Mean:
    """The mean FPR@95 of cells. The ends of its interval are means, too: the sets share one threshold, so that their
    errors are not independent.
    """
    fprs = [cell.fpr for cell in cells if cell.comparable and cell.fpr]
    if not fprs or len(fprs) < len(cells):
        return Mean(None, len(fprs), len(cells))
    return Mean(mean(fprs), len(fprs), len(cells))


def _count_unit_tests(cells: Sequence[Cell]) -> UnitTests:
    measured = [cell for cell in cells if cell.comparable]
    worst = max(measured, key=lambda cell: cell.fpr.value if cell.fpr else 0.0, default=None)
    return UnitTests(sum(exceeds_goal(cell) for cell in measured), len(measured), len(cells), worst)


def exceeds_goal(cell: Cell) -> bool:
    """Whether the FPR@95 of a case is above the goal of its suite. A unit test above its goal counts as failed."""
    limit = cell.result.case.limit if cell.result else None
    return cell.fpr is not None and cell.fpr.value > (limit.goal if limit else UNIT_TEST_GOAL)


def _mark_best(units: UnitTests, fewest: int | None) -> UnitTests:
    best = units.failed == fewest and units.measured == units.total
    return UnitTests(units.failed, units.measured, units.total, units.worst, best)


def _forward_ratio(cells: Sequence[Cell]) -> float | None:
    timings = [result.case.timing for result in results_of(cells) if result.case.timing]
    ratios = [timing.forward_ratio for timing in timings if timing.forward_ratio is not None]
    return median(ratios) if ratios else None


def _rank_key(row: Row) -> tuple[bool, float, str]:
    return row.mean.value is None, row.mean.value.value if row.mean.value else 0.0, row.detector


def rerun_command(result: Result) -> str:
    """The command that runs only this case."""
    case = result.case
    test = "unit_tests_ood/test_unit_tests.py" if case.role == "unit-test" else "benchmark/test_ood_detection.py"
    option = result.run.suite_option
    if option.startswith("evaluate("):
        return f"# in Python: {' '.join(option.split())}"  # one line, which a shell takes for a comment
    suite = "" if option == DEFAULT_SUITE else f"{shlex.join(_suite_words(option))} "
    return f'pytest {suite}"{test}::test_case[{case.model}/{case.detector}/{case.set}]"'


def _suite_words(option: str) -> list[str]:
    """The words of the suite option of a run. They are quoted afterwards, since a record of unknown origin could hold
    shell commands, and a reader may paste the command into a shell.
    """
    try:
        return shlex.split(option) if option.startswith("--") else ["--suite", option]
    except ValueError:  # an opening quotation mark without a closing one
        return [option]


@dataclass(frozen=True)
class ClassTable:
    """FPR@95 of every class of an OOD set.

    set: the id of the OOD set.
    columns: the names of the columns, detectors or models.
    rows: for each class, its name, its number of images, and one value a column; None without a figure.
    """

    set: str
    columns: list[str]
    rows: list[tuple[str, int, list[Estimate | None]]]


def class_tables(columns: Mapping[str, Row], suite: SuiteResults) -> list[ClassTable]:
    """A table for each OOD set that has classes. Groups of classes come first.

    columns: a row of results for each column of the tables, by the name of the column.
    suite: the newest results.
    """
    tables = []
    for cells in zip(*(row.cells for row in columns.values()), strict=True):
        found = [{value.name: value for value in _class_values(cell)} for cell in cells]
        images = {name: value.images for of_column in found for name, value in of_column.items()}
        if images:
            record = suite.sets.get(cells[0].set)
            groups = record.class_groups if record else {}
            rows = [
                (
                    f"mean of {name}, {len(members)} classes",
                    sum(images.get(member, 0) for member in members),
                    [_mean_of_classes([of_column.get(member) for member in members]) for of_column in found],
                )
                for name, members in groups.items()
            ]
            rows += [
                (name, count, [of_column[name].fpr_at_95 if name in of_column else None for of_column in found])
                for name, count in images.items()
            ]
            tables.append(ClassTable(cells[0].set, list(columns), rows))
    return tables


def _mean_of_classes(values: Sequence[ClassValue | None]) -> Estimate | None:
    """The unweighted mean, where every class has a figure. The ends of its interval are means, too."""
    if not values or None in values:
        return None
    fprs = [value.fpr_at_95 for value in values if value]
    return mean(fprs)


@dataclass(frozen=True)
class PublishedRow:
    """A published figure beside the measured one.

    model: the id of the model.
    detector: the id of the detector.
    name: the id of the OOD set, or the name of a mean or of a group of classes.
    sets: the OOD sets that the figure comes from.
    case: the case, where the figure is that of a case.
    measured: the measured figure; None where it was not run.
    published: the published figure, with its tolerance and the result of the comparison.
    """

    model: str
    detector: str
    name: str
    sets: list[str]
    case: Case | None
    measured: Estimate | None
    published: PublishedValue


def published_rows(suite: SuiteResults) -> list[PublishedRow]:
    """Every published figure, by model and detector: first those of cases, then those of means and class groups."""
    of_cases = [
        PublishedRow(model, detector, set_id, [set_id], result.case, Cell(set_id, result).fpr, value)
        for (model, detector, set_id), result in suite.results.items()
        for value in result.case.published
    ]
    others = [
        PublishedRow(found.model, found.detector, found.name, found.sets, None, found.measured, found.published)
        for found in suite.published
    ]
    return sorted([*of_cases, *others], key=lambda row: (row.model, row.detector))


def count_published(rows: Sequence[PublishedRow]) -> list[tuple[str, int]]:
    counts = Counter(row.published.status for row in rows)
    return [(name, counts[name]) for name in ("reproduced", "differs", "not run") if counts[name]]


def changed_options(record: DetectorRecord) -> dict[str, Any]:
    """The options of a detector that differ from its defaults."""
    return {name: value for name, value in record.options_used.items() if value != record.defaults.get(name)}


def _class_values(cell: Cell) -> Sequence[ClassValue]:
    return cell.result.case.metrics.classes if cell.result and cell.result.case.metrics else []


def heat_class(fpr: Estimate) -> str:
    """The CSS class for the background of a figure, in ten steps: the higher the FPR, the darker."""
    return f"heat-{round(10 * fpr.value)}"
