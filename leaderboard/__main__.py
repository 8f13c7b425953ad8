"""`python -m leaderboard build`: turns a folder of results into a site."""

import argparse
import runpy
import sys
from pathlib import Path

try:
    from benchmark.errors import UserError
    from benchmark.hub.address import results_folder
    from leaderboard.results import read_results
    from leaderboard.site import OutputError, build_site
except ImportError:  # perhaps of another `benchmark`; ours lies beside this package
    ours = runpy.run_path(str(Path(__file__).parents[1] / "benchmark" / "packages.py"))
    if problem := ours["foreign_package"]("benchmark"):
        sys.exit(problem)
    raise

BUILT, LEFT_OUT, NOTHING_BUILT = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Exit codes: 0: built; 1: built, without some damaged files; 2: nothing built."""
    parser = argparse.ArgumentParser(prog="python -m leaderboard", description="Turns benchmark records into a site.")
    build = parser.add_subparsers(dest="command", required=True).add_parser(
        "build",
        help="write the site",
        description="Writes the site. Exit codes: 0: built; 1: built, without the damaged files that are named; "
        "2: nothing built.",
    )
    build.add_argument(
        "--results", default="results", help="where the records lie: a folder, or hf://datasets/ORG/NAME (%(default)s)"
    )
    build.add_argument("--output", type=Path, default=Path("site"), help="where the site goes (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        folder = results_folder(options.results, lambda line: print(f"refused: {line}", file=sys.stderr))
    except UserError as error:
        print(error, file=sys.stderr)
        return NOTHING_BUILT
    return _build(folder, options.output)


def _build(results_folder: Path, output: Path) -> int:
    results = read_results(results_folder)
    _report(f"left out of the site, in {results_folder}", results.damage)
    if not results.suites:
        print(
            f"no records to show in {results_folder}: `python -m benchmark run` writes some; "
            "`--results FOLDER` names another folder",
            file=sys.stderr,
        )
        return NOTHING_BUILT
    try:
        notes = build_site(results, output)
    except (OutputError, OSError) as error:
        print(f"the site was not written: {error}", file=sys.stderr)
        return NOTHING_BUILT
    _report(f"note, in {results_folder}", [*results.notes, *notes])
    cases = sum(len(suite.results) for suite in results.suites)
    print(f"{output / 'index.html'}: {results.record_count} records, {cases} cases, {len(results.runs)} runs")
    return LEFT_OUT if results.damage else BUILT


def _report(what: str, messages: list[str]) -> None:
    for message in messages:
        print(f"{what}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
