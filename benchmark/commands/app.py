"""The command line: all subcommands under the name of one program."""

from collections.abc import Mapping, Sequence

import typer

from benchmark.commands import (
    compare,
    fetch,
    published,
    pull,
    push,
    run,
    save,
    sets,
    sharpness,
    site,
    train,
    variant,
    versus,
)
from benchmark.commands.mistakes import INTERRUPTED, in_one_line

INSTALLED, MODULE = "ood-benchmark", "python -m benchmark"
EXAMPLES = {
    'run -k "digits-resnet and msp"': "some cases of the digits suite",
    "site": "their leaderboard",
    "sets textures": "all about one image set",
    "fetch svhn textures": "two image sets",
}


def main(arguments: Sequence[str] | None = None, program: str = MODULE) -> int:
    """Runs a command line, by default that of this process.

    Returns the exit code: 0 done, 1 not, 2 asked for in the wrong way, 130 interrupted; of `run`, that of pytest.
    """
    try:
        typer.main.get_command(make_app(program)).main(arguments, prog_name=program)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    raise AssertionError("typer ends with SystemExit")


def console() -> int:
    """The console command."""
    return main(program=INSTALLED)


def make_app(program: str) -> typer.Typer:
    """The subcommands, with examples in the name of that program."""
    app = typer.Typer(
        help="A test suite and a leaderboard for out-of-distribution detection.",
        epilog=_examples(program, EXAMPLES),
        no_args_is_help=True,
        add_completion=program == INSTALLED,  # a shell completes the names of programs alone
        rich_markup_mode=None,  # plain text: it is read in logs, too
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 100},
    )
    rest_to_pytest = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(
        epilog=_examples(program, run.EXAMPLES),
        options_metavar="[OPTIONS] [OPTIONS OF PYTEST] [PATH]...",
        context_settings=rest_to_pytest,
    )(in_one_line(run.run))
    app.command(epilog=_examples(program, sets.EXAMPLES))(in_one_line(sets.sets))
    app.command(epilog=_examples(program, fetch.EXAMPLES))(in_one_line(fetch.fetch))
    app.command(epilog=_examples(program, compare.EXAMPLES))(in_one_line(compare.compare))
    app.command(epilog=_examples(program, versus.EXAMPLES))(in_one_line(versus.versus))
    app.command(epilog=_examples(program, push.EXAMPLES))(in_one_line(push.push))
    app.command(epilog=_examples(program, pull.EXAMPLES))(in_one_line(pull.pull))
    app.command(epilog=_examples(program, published.EXAMPLES))(in_one_line(published.published))
    app.command(epilog=_examples(program, save.EXAMPLES))(in_one_line(save.save))
    app.command(epilog=_examples(program, train.EXAMPLES))(in_one_line(train.train))
    app.command(epilog=_examples(program, variant.EXAMPLES))(in_one_line(variant.variant))
    app.command(epilog=_examples(program, sharpness.EXAMPLES))(in_one_line(sharpness.sharpness))
    app.command(epilog=_examples(program, site.EXAMPLES))(in_one_line(site.site))
    return app


def _examples(program: str, examples: Mapping[str, str]) -> str:
    """Command lines with their meanings. The \\b keeps the lines of a paragraph as they are."""
    width = max(map(len, examples))
    lines = [f"  {program} {command:<{width}}  # {meaning}" for command, meaning in examples.items()]
    return "\n".join(["\b", "Examples:", *lines])
