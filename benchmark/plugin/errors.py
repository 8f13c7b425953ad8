"""What becomes of an error in a case: one line where a user can mend it, or where it is of their own code."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmark.errors import place_in_user_code
from benchmark.images.image_set import MissingImageSetError
from benchmark.models.entries import MissingWeightsError
from benchmark.user.messages import one_line, told


@contextmanager
def told_in_one_line(config: pytest.Config, case: str) -> Iterator[None]:
    """Fails a case in one line, which starts with its name, where somebody can mend what goes wrong inside.

    A bug goes on as it is. So does an error in the user's own code where they ask for its traceback.
    """
    problem = None
    try:
        yield
    except (Exception, SystemExit) as error:
        problem = one_line(error)
        if problem is None or (_traceback_is_wanted(config) and place_in_user_code(error)):
            raise
    if problem is not None:  # outside of `except`, which would chain the tracebacks that nobody asked for
        raise pytest.fail.Exception(f"{case}: {problem.removeprefix(f'{case}: ')}", pytrace=False) from None


@contextmanager
def skipped_without_data() -> Iterator[None]:
    """Skips a case whose images or weights nobody has fetched, with what to do about it as the reason."""
    missing = None
    try:
        yield
    except (MissingImageSetError, MissingWeightsError) as error:
        missing = told(error)
    if missing is not None:  # outside of `except`, as above
        pytest.skip(f"data missing: {missing}")


def reason_of(error: BaseException) -> str:
    """What a record says of how a case ended."""
    if isinstance(error, (pytest.fail.Exception, pytest.skip.Exception)):
        return str(error)
    return one_line(error) or f"{type(error).__name__}: {error}"


def _traceback_is_wanted(config: pytest.Config) -> bool:
    """Whether a style of tracebacks was asked for that has any, or the debugger, which needs one."""
    # With `-p no:terminal` pytest has none of these options.
    style, full, debugger = (config.getoption(name, None) for name in ("tbstyle", "fulltrace", "usepdb"))
    return style in ("long", "short", "native") or bool(full or debugger)
