"""`python -m leaderboard`: `build` turns a folder of results into a site, `publish` shows it to others."""

import argparse
import runpy
import sys
from pathlib import Path

try:
    from benchmark.errors import UserError
    from benchmark.hub.address import Address
    from benchmark.hub.folder import results_folder
    from leaderboard.results import read_results
    from leaderboard.site import OutputError, build_site
except ImportError:  # perhaps of another `benchmark`; ours lies beside this package
    ours = runpy.run_path(str(Path(__file__).parents[1] / "benchmark" / "packages.py"))
    if problem := ours["foreign_package"]("benchmark"):
        sys.exit(problem)
    raise

BUILT, LEFT_OUT, NOTHING_BUILT = 0, 1, 2
PUBLISHED, NOT_PUBLISHED = 0, 1


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Exit codes: 0: built; 1: built, without some damaged files; 2: nothing built."""
    parser = argparse.ArgumentParser(prog="python -m leaderboard", description="Turns benchmark records into a site.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build",
        help="write the site",
        description="Writes the site. Exit codes: 0: built; 1: built, without the damaged files that are named; "
        "2: nothing built.",
    )
    build.add_argument(
        "--results", default="results", help="where the records lie: a folder, or hf://datasets/ORG/NAME (%(default)s)"
    )
    build.add_argument("--output", type=Path, default=Path("site"), help="where the site goes (%(default)s)")
    publish = commands.add_parser(
        "publish",
        help="put the built site where others see it",
        description="Publishes a built site. Exit codes: 0: published; 1: not.",
    )
    publish.add_argument("--site", type=Path, default=Path("site"), help="the built site (%(default)s)")
    where = publish.add_mutually_exclusive_group(required=True)
    where.add_argument("--space", metavar="ORG/NAME", help="a static Space on the Hub, which is made if need be")
    where.add_argument("--pages", type=Path, metavar="DIR", help="a folder that GitHub Pages is to serve")
    options = parser.parse_args(arguments)
    return _publish(options) if options.command == "publish" else _build_from(options.results, options.output)


def _publish(options: argparse.Namespace) -> int:
    from leaderboard.publish import publish_to_folder, publish_to_space  # here: it loads the client of the Hub

    try:
        if options.pages:
            print(f"{options.pages}: {publish_to_folder(options.site, options.pages)} files")
        else:
            commit = publish_to_space(options.site, Address.parse(options.space, "space"))
            print(commit.url or f"{commit.address}: nothing to change")
    except (UserError, OSError) as error:
        print(f"not published: {error}", file=sys.stderr)
        return NOT_PUBLISHED
    return PUBLISHED


def _build_from(results: str, output: Path) -> int:
    try:
        folder = results_folder(results, lambda line: print(f"refused: {line}", file=sys.stderr))
    except UserError as error:
        print(error, file=sys.stderr)
        return NOTHING_BUILT
    return _build(folder, output)


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
