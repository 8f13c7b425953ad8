"""Every detector of a user's own file (`--detectors`) keeps the contract of `detectors/contract.py`."""

from functools import partial

import pytest

from detectors import create
from detectors.contract import ExpectedFailureError, run_check


def test_contract(user_detector: str, check: str) -> None:
    problem = expected = None
    try:
        run_check(check, partial(create, user_detector))
    except AssertionError as error:
        problem = str(error)
    except ExpectedFailureError as error:
        expected = str(error)
    if expected is not None:
        pytest.xfail(f"{user_detector}: {expected}")
    if problem is not None:  # outside of `except`, which would chain the tracebacks that nobody asked for
        pytest.fail(f"{user_detector}: {problem}", pytrace=False)
