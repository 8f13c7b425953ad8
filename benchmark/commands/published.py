"""`published`: what papers report of a suite, beside what was measured."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark.limits.comparisons import Comparison, comparisons, counts, in_words
from benchmark.records import Case, read_records
from benchmark.suites.loading import load_suite


def add_command(commands: Any) -> None:
    """Adds `published` to the subcommands of `python -m benchmark`."""
    parser = commands.add_parser("published", help="what papers report of a suite, beside what was measured")
    parser.add_argument("--suite", required=True, help="a suite by name, or the path of its TOML file")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
    parser.set_defaults(run=_print_table)


def _print_table(arguments: argparse.Namespace) -> None:
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
        in_words(comparison.value),
        f"{figure.source}; {figure.note}" if figure.note else figure.source,
    )
