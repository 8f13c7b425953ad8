"""A suite's published figures beside what was measured, as a table of text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.errors import UserError
from benchmark.limits.comparisons import Comparison, comparisons, counts, in_words
from benchmark.records import RecordError
from benchmark.run_records import read_folder
from benchmark.suites.suite import Suite


def compare_with_records(suite: Suite, results: Path) -> tuple[list[Comparison], list[str]]:
    """Every published figure of a suite beside what the runs in a folder of results measured, and notes on the runs.

    Raises ValueError where the suite has none, and where a record is damaged.
    """
    if not suite.entry.published:
        raise UserError(f"{suite.entry.file}: published: the suite names no file of published figures")
    found = read_folder(results, suite=suite.id)
    if found.damage:
        raise RecordError(f"{results}/{found.damage[0]}")
    runs = [run for run in found.runs if run.run.suite == suite.id]
    compared = comparisons(suite, [case for run in reversed(runs) for case in run.cases.values()])
    if not compared:
        raise UserError(f"{suite.entry.file}: published: none of the figures there is of a case of this suite")
    return compared, [f"{results}/{note}" for note in found.notes]


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
        in_words(comparison.value),
        f"{figure.source}; {figure.note}" if figure.note else figure.source,
    )
