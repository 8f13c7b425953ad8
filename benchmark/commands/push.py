"""`push`: runs to a dataset repository on the Hub."""

from typing import Annotated

import typer

from benchmark.commands import options

EXAMPLES = {
    "push me/ood-results": "all runs of results/",
    "push me/ood-results --newest --scores": "the newest run of each suite, with its scores",
    "push someone/ood-results --pull-request": "a submission; to read there is enough",
}

Repository = Annotated[
    str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="A dataset repository on the Hugging Face Hub.")
]


def push(
    repository: Repository,
    results: options.Results = options.RESULTS,
    run: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A run by its id (default: all).", show_default=False)
    ] = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest run of each suite alone.")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="With the score of each image.")] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request, for which read access is enough.")
    ] = False,
) -> None:
    """Push runs to the Hub, in one commit.

    Records go as they are, and as tables that the Hub shows. A run that is there stays as it is, so that the same
    command can be repeated. Where it fails, nothing is lost: it goes on with the next call.
    """
    from benchmark.hub.address import Address  # here, as the next: they load the client of the Hub
    from benchmark.hub.push import chosen_runs, push

    address = Address.parse(repository)
    done = push(results, address, chosen_runs(results, run, newest), scores=scores, pull_request=pull_request)
    for name, runs in (("pushed", done.new), ("there already", done.known)):
        for of in runs:
            print(f"{name}: {of.suite}/{of.run}")
    print(f"{done.url}: {done.files} files in one commit" if done.url else f"{address}: nothing to add")
    if pull_request and done.url:
        print(f"read it as {done.address}")
