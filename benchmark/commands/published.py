"""`published`: what papers report of a suite, beside what was measured."""

import sys
from typing import Annotated

import typer

from benchmark.commands import completion, options

EXAMPLES = {
    "published --suite ninco": "every figure of that suite",
    "published --suite my-suite.toml --results elsewhere": "of a suite and records of your own",
}


def published(
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="A suite by name, or the path of its TOML file.",
            autocompletion=completion.suites,
        ),
    ],
    results: options.Results = options.RESULTS,
) -> None:
    """Compare published figures with what you measured.

    A line a figure: what a paper prints, what your newest run of that case measured, and whether both agree.
    """
    from benchmark.limits.comparison_table import compare_with_records, table  # here, as the next: they load torch
    from benchmark.suites.loading import load_suite

    compared, notes = compare_with_records(load_suite(suite), results)
    for line in table(compared):
        print(line)
    for note in notes:
        print(note, file=sys.stderr)
