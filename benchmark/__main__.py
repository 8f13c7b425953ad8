"""`python -m benchmark COMMAND`: what is done beside running the tests."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from benchmark.user.messages import one_line

# The module of each command. Its `add_command(commands)` adds the parser and sets `run`, which takes the options, may
# return an exit code, and raises ValueError or OSError for what a user can mend.
COMMANDS = {
    "sets": "benchmark.commands.catalogue",
    "fetch": "benchmark.commands.catalogue",
    "published": "benchmark.commands.published",
    "save": "benchmark.gate",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 not, 2 asked for in the wrong way, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmark")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asked = arguments[0] if arguments else ""
    needed = [COMMANDS[asked]] if asked in COMMANDS else dict.fromkeys(COMMANDS.values())  # some are slow to import
    for module in needed:
        import_module(module).add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        print(one_line(error) or error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
