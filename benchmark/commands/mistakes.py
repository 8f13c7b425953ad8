"""The one place where what goes wrong in a command becomes a message and an exit code."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from benchmark.packages import foreign_package
from benchmark.user.messages import one_line

FAILED, INTERRUPTED = 1, 130


def in_one_line(command: Callable[..., int | None]) -> Callable[..., None]:
    """A command whose mistakes are a line on stderr; it ends with the exit code that it returns, by default 0."""

    @functools.wraps(command)
    def guarded(*arguments: object, **options: object) -> None:
        try:
            code = command(*arguments, **options) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            raise  # typer ends quietly where nobody reads the output any more
        except Exception as error:
            problem = (foreign_package() if isinstance(error, ImportError) else None) or one_line(error)
            if problem is None:  # a bug of ours, which keeps its traceback
                raise
            print(problem, file=sys.stderr)
            code = FAILED
        except KeyboardInterrupt as interruption:
            print("\ninterrupted", *interruption.args, sep="; ", file=sys.stderr)
            code = INTERRUPTED
        raise typer.Exit(code)

    return guarded


@contextmanager
def interruption_says(message: str) -> Iterator[None]:
    """Gives a Ctrl-C that comes meanwhile a message on what was finished until then."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None
