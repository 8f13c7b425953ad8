"""Every detector of a user's own file (`--detectors`) keeps the contract of `detectors/contract.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest

from benchmark.errors import UserError
from detectors import create
from detectors.contract import ExpectedFailureError, run_check


def test_contract(user_detector: str, check: str, ood_one_line: Callable[[str], AbstractContextManager[None]]) -> None:
    expected = None
    with ood_one_line(user_detector):
        try:
            run_check(check, partial(create, user_detector))
        except ExpectedFailureError as failure:
            expected = str(failure)
        except AssertionError as error:
            raise UserError(str(error)) from error
    if expected is not None:
        pytest.xfail(f"{user_detector}: {expected}")
