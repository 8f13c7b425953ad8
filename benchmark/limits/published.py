"""Published figures: what papers report of a suite's cases, and whether a run says the same.

A suite names CSV files of them with these columns; `benchmark/limits/published/` holds those of the seed papers, which
`python -m benchmark.limits.curate_published` makes.

* model, detector: ids of ours.
* set: an image set; a mean of the suite's table `means`; or `SET:GROUP`, a group of classes of a set.
* fpr_at_95_percent: as printed, in percent. Two papers that print different values for a cell are two lines.
* tolerance_points: how many percentage points a measured value may be away and still say the same. It has to hold all
  that is known to differ (rounding, other images of the same kind, another checkpoint, other releases of libraries).
  The interval of the measured value is shown beside the verdict and does not enter it: a small sample would otherwise
  reproduce everything.
* source: paper and table. note: what was different there, or nothing.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark.metrics import mean
from benchmark.records import Case, Estimate, Metrics, PublishedRecord, PublishedValue, read_records
from detectors import did_you_mean

if TYPE_CHECKING:  # suites read their published figures with this module
    from benchmark.suites.suite import Suite

Status = Literal["reproduced", "differs", "not run"]
COLUMNS = ("model", "detector", "set", "fpr_at_95_percent", "tolerance_points", "source", "note")


@dataclass(frozen=True)
class PublishedFigure:
    """An FPR@95 that somebody published; fpr_at_95 and tolerance are fractions. note: "" where there is none."""

    model: str
    detector: str
    set: str
    fpr_at_95: float
    tolerance: float
    source: str
    note: str

    @property
    def cell(self) -> str:
        return f"{self.model}/{self.detector}/{self.set}"


Figures = Mapping[str, tuple[PublishedFigure, ...]]


@dataclass(frozen=True)
class Comparison:
    """A published figure beside what was measured, None where nothing was."""

    figure: PublishedFigure
    measured: Estimate | None

    @property
    def value(self) -> PublishedValue:
        return compare(self.figure, self.measured)


def read_published(
    files: Iterable[Path], models: Collection[str], detectors: Collection[str], sets: Collection[str]
) -> dict[str, tuple[PublishedFigure, ...]]:
    """The figures of files by cell (`model/detector/set`), in their order.

    models, detectors, sets: what is known, of which a suite may use a part.
    Raises ValueError naming file and line for what is not known, for a value that is none, and for a line twice.
    """
    cells: dict[str, tuple[PublishedFigure, ...]] = {}
    for file in files:
        for place, figure in _read(file, {"model": models, "detector": detectors, "set": sets}):
            earlier = cells.get(figure.cell, ())
            if figure.source in {other.source for other in earlier}:
                raise ValueError(f"{place}: {figure.cell} of {figure.source} stands there twice; remove one")
            cells[figure.cell] = (*earlier, figure)
    return cells


def _read(file: Path, known: Mapping[str, Collection[str]]) -> Iterator[tuple[str, PublishedFigure]]:
    """The figures of a file, each with its place; known: the names that each column may have."""
    if not file.is_file():
        raise ValueError(f"there is no file {file} of published figures; correct the suite's `published`")
    with file.open(newline="", encoding="utf-8") as lines:
        table = csv.DictReader(lines)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{file}:1: the columns are {table.fieldnames}, not {list(COLUMNS)}; correct the line")
        for row in table:
            place = f"{file}:{table.line_num}"
            if None in row.values() or None in row:
                raise ValueError(f"{place}: {len(COLUMNS)} fields are needed: {', '.join(COLUMNS)}")
            for column, names in known.items():
                if row[column] not in names:
                    hint = did_you_mean(row[column], names)
                    raise ValueError(f"{place}: no {column} is called {row[column]!r}{hint}; correct the line")
            yield place, _figure(row, place)


def _figure(row: Mapping[str, str], place: str) -> PublishedFigure:
    """The figure of a line whose names are known."""
    model, detector, set = row["model"], row["detector"], row["set"]
    cell = f"{model}/{detector}/{set}"
    try:
        percent, points = float(row["fpr_at_95_percent"]), float(row["tolerance_points"])
    except ValueError:
        raise ValueError(f"{place}: fpr_at_95_percent and tolerance_points of {cell} must be numbers") from None
    if not 0 <= percent <= 100:
        raise ValueError(f"{place}: fpr_at_95_percent of {cell} must lie in 0..100")
    if not 0 < points <= 100:
        raise ValueError(f"{place}: tolerance_points of {cell} must lie above 0, and up to 100")
    if not row["source"].strip():
        raise ValueError(f"{place}: {cell} needs a source: the paper and the table")
    return PublishedFigure(model, detector, set, percent / 100, points / 100, row["source"], row["note"])


def compare(figure: PublishedFigure, measured: Estimate | None) -> PublishedValue:
    """The verdict: reproduced where the measured value is no further from the figure than its tolerance."""
    difference = None if measured is None else measured.value - figure.fpr_at_95
    status: Status
    if difference is None:
        status = "not run"
    else:
        # A difference of exactly the tolerance, in decimal, is within it, whatever the last bits say.
        status = "reproduced" if abs(difference) <= figure.tolerance + 1e-9 else "differs"
    return PublishedValue(
        fpr_at_95=figure.fpr_at_95,
        tolerance=figure.tolerance,
        source=figure.source,
        note=figure.note or None,
        difference=difference,
        status=status,
    )


def comparisons(suite: "Suite", cases: Iterable[Case]) -> list[Comparison]:
    """Every published figure that the suite can measure beside what these cases did, the later of two of one cell."""
    possible = {str(case) for case in suite.whole().ood_cases()}
    measured = {f"{case.model}/{case.detector}/{case.set}": case.metrics for case in cases if case.metrics}
    figures = [figure for figures in suite.published.values() for figure in figures]
    return [
        Comparison(figure, _measured(suite, figure, measured))
        for figure in figures
        if possible.issuperset(_cells(suite, figure))
    ]


def published_records(run: str, suite: "Suite", cases: Sequence[Case]) -> Iterator[PublishedRecord]:
    """What is published of means and of groups of classes, as far as this run had a case of it.

    The record of a case has what is published of that case.
    """
    met = {f"{case.model}/{case.detector}/{case.set}" for case in cases}
    for comparison in comparisons(suite, cases):
        figure = comparison.figure
        if figure.set not in suite.image_sets and not met.isdisjoint(_cells(suite, figure)):
            yield PublishedRecord(
                run=run,
                suite=suite.id,
                model=figure.model,
                detector=figure.detector,
                name=figure.set,
                sets=_sets(suite, figure),
                measured=comparison.measured,
                published=comparison.value,
            )


def _sets(suite: "Suite", figure: PublishedFigure) -> list[str]:
    """The image sets that a figure is of: one, or those of a mean."""
    set, _, _ = figure.set.partition(":")
    return list(suite.entry.means.get(set, (set,)))


def _cells(suite: "Suite", figure: PublishedFigure) -> list[str]:
    return [f"{figure.model}/{figure.detector}/{set}" for set in _sets(suite, figure)]


def _measured(suite: "Suite", figure: PublishedFigure, measured: Mapping[str, Metrics]) -> Estimate | None:
    """What was measured of a figure's set, its group of classes, or all sets of its mean; None where one is missing."""
    metrics = [measured.get(cell) for cell in _cells(suite, figure)]
    set, _, group = figure.set.partition(":")
    if group:
        classes = {value.name: value.fpr_at_95 for value in metrics[0].classes} if metrics[0] else {}
        return _mean([classes.get(name) for name in suite.image_sets[set].class_groups[group]])
    return _mean([value.fpr_at_95 if value else None for value in metrics])


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The unweighted mean, as papers take it; None where one is missing."""
    there = [estimate for estimate in estimates if estimate is not None]
    return mean(there) if there and len(there) == len(estimates) else None


def counts(compared: Iterable[Comparison]) -> str:
    """How many figures were reproduced, differ and were not run, in words."""
    number = Counter(comparison.value.status for comparison in compared)
    return ", ".join(f"{number[status]} {words}" for status, words in _IN_WORDS.items())


_IN_WORDS: dict[Status, str] = {"reproduced": "reproduced", "differs": "differ", "not run": "not run"}


def verdict(value: PublishedValue) -> str:
    """'reproduced', 'differs by +2.3 points', or 'not run'."""
    return value.status if value.status != "differs" else f"differs by {100 * (value.difference or 0):+.1f} points"


def add_command(commands: Any) -> None:
    """Adds `published` to the subcommands of `python -m benchmark`."""
    parser = commands.add_parser("published", help="what papers report of a suite, beside what was measured")
    parser.add_argument("--suite", required=True, help="a suite by name, or the path of its TOML file")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
    parser.set_defaults(run=_print_table)


def _print_table(arguments: argparse.Namespace) -> None:
    from benchmark.suites.suite import load_suite  # here, since it reads published figures with this module

    suite = load_suite(arguments.suite)
    if not suite.entry.published:
        raise ValueError(f"{suite.entry.file}: published: the suite names no file of published figures")
    compared = comparisons(suite, newest_cases(arguments.results / suite.id))
    if not compared:
        raise ValueError(f"{suite.entry.file}: published: none of the figures there is of a case of this suite")
    for line in table(compared):
        print(line)


def newest_cases(folder: Path) -> Iterator[Case]:
    """The cases of all runs of a suite that were not skipped, the oldest run first."""
    for file in sorted(folder.glob("*.jsonl")):
        cases = (record for record in read_records(file) if isinstance(record, Case))
        yield from (case for case in cases if case.status != "skipped")


def table(compared: Sequence[Comparison]) -> Iterator[str]:
    """Lines: a row a figure, in percent, and the counts."""
    rows = [("cell", "published", "measured (95 % interval)", "verdict", "source"), *map(_row, compared)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
    yield f"FPR@95 in %: {counts(compared)}"


def _row(comparison: Comparison) -> tuple[str, ...]:
    figure, measured = comparison.figure, comparison.measured
    return (
        figure.cell,
        f"{100 * figure.fpr_at_95:.2f} ± {100 * figure.tolerance:.2f}",
        f"{100 * measured.value:.2f} ({100 * measured.low:.2f} to {100 * measured.high:.2f})" if measured else "-",
        verdict(comparison.value),
        f"{figure.source}; {figure.note}" if figure.note else figure.source,
    )
