"""`site`: the leaderboard, from the records."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands import options

EXAMPLES = {
    "site": "results/ -> site/index.html",
    "site --results elsewhere --output public": "other folders",
}


def site(
    results: options.AnyResults = str(options.RESULTS),
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the site goes.")] = Path("site"),
) -> int:
    """Build the leaderboard of your records.

    Exit codes: 0 built; 1 built, damaged files left out and named; 2 nothing built.
    """
    # By its name, since imports point from the leaderboard to the benchmark. It loads matplotlib.
    code: int = import_module("leaderboard.__main__").main(["build", "--results", results, "--output", str(output)])
    return code
