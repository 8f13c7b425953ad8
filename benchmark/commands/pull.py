"""`pull`: the runs of a dataset repository on the Hub, into a results folder."""

import sys
from typing import Annotated

import typer

from benchmark.commands import options
from benchmark.commands.mistakes import FAILED
from benchmark.commands.push import Repository

EXAMPLES = {
    "pull someone/ood-results": "all runs, into results/",
    "pull someone/ood-results@refs/pr/3 --results theirs": "those of a pull request, into theirs/",
}


def pull(
    repository: Repository,
    results: options.Results = options.RESULTS,
    scores: Annotated[bool, typer.Option(help="With the score of each image, where it is there.")] = True,
) -> int:
    """Pull runs from the Hub, byte for byte.

    What is in the folder stays. A file that is not what its hash or its record says is left out and named. Exit codes:
    0 all is there; 1 something was refused, or nothing could be read.
    """
    from benchmark.hub.address import Address  # here, as the next: they load the client of the Hub
    from benchmark.hub.pull import pull

    done = pull(Address.parse(repository), results, scores=scores)
    for line in done.refused:
        print(f"refused: {line}", file=sys.stderr)
    print(
        f"{results}: {len(done.new)} runs added, {len(done.known)} there already, {done.score_files} files of scores "
        f"added; from commit {done.commit}"
    )
    return FAILED if done.refused else 0
