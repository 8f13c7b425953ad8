"""What the pages show, computed from records: verdicts, means, unit tests, ranks. No files, no markup."""

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

# The published limit of a unit test, for cases whose run held them to no goal of its own.
UNIT_TEST_GOAL = 0.10
DEFAULT_SUITE = "digits"


@dataclass(frozen=True)
class Cell:
    """A place in the grid of a suite. standing: where its FPR@95 ranks among the detectors of its model and set."""

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
    """The unweighted mean FPR@95 over OOD sets; value is null unless all of `total` sets have a comparable figure."""

    value: Estimate | None
    measured: int
    total: int
    standing: Standing | None = None


@dataclass(frozen=True)
class UnitTests:
    """How many of the unit tests that have a comparable figure exceed their goal, and the worst of them."""

    failed: int
    measured: int
    total: int
    worst: Cell | None
    best: bool = False


@dataclass(frozen=True)
class Track:
    """One detector on the sets of a role that stands beside the near and the far one."""

    cells: list[Cell]
    mean: Mean


@dataclass(frozen=True)
class Row:
    """One detector on one model. tracks: by role. forward_ratio: score time over forward time, median of its cases."""

    detector: str
    ood: list[Cell]
    mean: Mean
    tracks: dict[str, Track]
    unit_cells: list[Cell]
    units: UnitTests
    forward_ratio: float | None

    @property
    def meets_unit_tests(self) -> bool:
        """Whether it ran on any of them; most suites spare all but a core of their detectors."""
        return any(cell.result for cell in self.unit_cells)

    @property
    def cells(self) -> list[Cell]:
        """All its cases, unit tests last."""
        return [*self.ood, *(cell for track in self.tracks.values() for cell in track.cells), *self.unit_cells]


@dataclass(frozen=True)
class ModelTable:
    """All detectors on one model: complete means first, the lowest on top, then the rest by name."""

    suite: SuiteResults
    model: str
    rows: list[Row]

    @property
    def by_detector(self) -> dict[str, Row]:
        return {row.detector: row for row in self.rows}


def verdict(case: Case) -> Verdict:
    """The status, in which an expected failure has its own name."""
    return "known failure" if case.status == "failed" and case.expected else case.status


def count_verdicts(results: Sequence[Result]) -> list[tuple[Verdict, int]]:
    """How often each verdict occurs, in a fixed order, without those that do not occur."""
    counts = Counter(verdict(result.case) for result in results)
    return [(name, counts[name]) for name in VERDICTS if counts[name]]


def model_tables(suite: SuiteResults) -> tuple[list[ModelTable], list[str]]:
    """A table for each model of a suite, and why detectors could not be compared where they could not."""
    tables, problems = [], []
    for model in suite.model_ids:
        comparisons = Comparisons(suite.id_set)
        tables.append(_model_table(suite, model, comparisons))
        problems += comparisons.problems
    return tables, problems


def _model_table(suite: SuiteResults, model: str, comparisons: Comparisons) -> ModelTable:
    grid = {
        detector: [Cell(set_id, suite.results.get((model, detector, set_id))) for set_id in suite.ood_set_ids]
        for detector in suite.detector_ids
    }
    means = {detector: _mean(cells) for detector, cells in grid.items()}
    complete = {detector: mean.value.value for detector, mean in means.items() if mean.value}
    mean_standings = comparisons.standings(complete, {detector: results_of(grid[detector]) for detector in complete})
    set_standings = [_set_standings(grid, column, comparisons) for column in range(len(suite.ood_set_ids))]
    unit_cells = {
        detector: [Cell(set_id, suite.results.get((model, detector, set_id))) for set_id in suite.set_ids("unit-test")]
        for detector in suite.detector_ids
    }
    units = {detector: _unit_tests(cells) for detector, cells in unit_cells.items()}
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
            tracks={role: _track(suite, model, detector, ids) for role, ids in suite.tracks.items()},
            unit_cells=unit_cells[detector],
            units=_mark_best(units[detector], fewest),
            forward_ratio=_forward_ratio(grid[detector] + unit_cells[detector]),
        )
        for detector, mean in means.items()
    ]
    rows = [row for row in rows if results_of(row.cells)]
    return ModelTable(suite, model, sorted(rows, key=_rank))


def _track(suite: SuiteResults, model: str, detector: str, sets: Sequence[str]) -> Track:
    cells = [Cell(set_id, suite.results.get((model, detector, set_id))) for set_id in sets]
    return Track(cells, _mean(cells))


def results_of(cells: Sequence[Cell]) -> list[Result]:
    return [cell.result for cell in cells if cell.result]


def _set_standings(grid: Mapping[str, Sequence[Cell]], column: int, comparisons: Comparisons) -> dict[str, Standing]:
    cells = {detector: row[column] for detector, row in grid.items() if row[column].comparable}
    fprs = {detector: cell.fpr.value for detector, cell in cells.items() if cell.fpr}
    return comparisons.standings(fprs, {detector: results_of([cell]) for detector, cell in cells.items()})


def _mean(cells: Sequence[Cell]) -> Mean:
    """The sets share one ID threshold, so their errors go together: the ends of the interval are averaged, too."""
    fprs = [cell.fpr for cell in cells if cell.comparable and cell.fpr]
    if not fprs or len(fprs) < len(cells):
        return Mean(None, len(fprs), len(cells))
    return Mean(mean(fprs), len(fprs), len(cells))


def _unit_tests(cells: Sequence[Cell]) -> UnitTests:
    measured = [cell for cell in cells if cell.comparable]
    worst = max(measured, key=lambda cell: cell.fpr.value if cell.fpr else 0.0, default=None)
    return UnitTests(sum(exceeds_goal(cell) for cell in measured), len(measured), len(cells), worst)


def exceeds_goal(cell: Cell) -> bool:
    """Whether a figure is above the FPR@95 that its suite asks for; for a unit test that means failed."""
    limit = cell.result.case.limit if cell.result else None
    return cell.fpr is not None and cell.fpr.value > (limit.goal if limit else UNIT_TEST_GOAL)


def _mark_best(units: UnitTests, fewest: int | None) -> UnitTests:
    best = units.failed == fewest and units.measured == units.total
    return UnitTests(units.failed, units.measured, units.total, units.worst, best)


def _forward_ratio(cells: Sequence[Cell]) -> float | None:
    timings = [result.case.timing for result in results_of(cells) if result.case.timing]
    ratios = [timing.forward_ratio for timing in timings if timing.forward_ratio is not None]
    return median(ratios) if ratios else None


def _rank(row: Row) -> tuple[bool, float, str]:
    return row.mean.value is None, row.mean.value.value if row.mean.value else 0.0, row.detector


def rerun_command(result: Result) -> str:
    """The command that runs one case alone."""
    case = result.case
    test = "unit_tests_ood/test_unit_tests.py" if case.role == "unit-test" else "benchmark/test_ood_detection.py"
    option = result.run.suite_option
    if option.startswith("evaluate("):
        return f"# in Python: {' '.join(option.split())}"  # one line, which a shell takes for a comment
    suite = "" if option == DEFAULT_SUITE else f"{shlex.join(_suite_words(option))} "
    return f'pytest {suite}"{test}::test_case[{case.model}/{case.detector}/{case.set}]"'


def _suite_words(option: str) -> list[str]:
    """The words of a run's suite option, which somebody may copy into a shell: whoever wrote the record."""
    try:
        return shlex.split(option) if option.startswith("--") else ["--suite", option]
    except ValueError:  # a quotation mark without its other
        return [option]


@dataclass(frozen=True)
class ClassTable:
    """FPR@95 of every class of an OOD set (rows) for several columns. rows: class, images, and one value a column."""

    set: str
    columns: list[str]
    rows: list[tuple[str, int, list[Estimate | None]]]


def class_tables(columns: Mapping[str, Row], suite: SuiteResults) -> list[ClassTable]:
    """A table for each OOD set with classes, groups of them first; every row of results becomes a column."""
    tables = []
    for cells in zip(*(row.cells for row in columns.values()), strict=True):
        found = [{value.name: value for value in _classes(cell)} for cell in cells]
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
    """The unweighted mean, where all have a figure; the classes share one threshold, so the ends are averaged, too."""
    if not values or None in values:
        return None
    fprs = [value.fpr_at_95 for value in values if value]
    return mean(fprs)


@dataclass(frozen=True)
class PublishedRow:
    """What somebody published, beside what was measured: of a case, or of a mean or group of classes of these sets."""

    model: str
    detector: str
    name: str
    sets: list[str]
    case: Case | None
    measured: Estimate | None
    published: PublishedValue


def published_rows(suite: SuiteResults) -> list[PublishedRow]:
    """Every published figure, by model and detector: of cases in their order, then of means and groups of classes."""
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


def options_set(record: DetectorRecord) -> dict[str, Any]:
    """The options that a suite gave a detector, where they differ from the defaults."""
    return {name: value for name, value in record.options_used.items() if value != record.defaults.get(name)}


def _classes(cell: Cell) -> Sequence[ClassValue]:
    return cell.result.case.metrics.classes if cell.result and cell.result.case.metrics else []


def heat(fpr: Estimate) -> str:
    """The style class that shades a figure in tenths: the higher the FPR, the darker."""
    return f"heat-{round(10 * fpr.value)}"
