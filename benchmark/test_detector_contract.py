"""Every detector of a user's own file (`--detectors`) keeps the contract of `detectors/contract.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from benchmark.errors import UserError
from detectors import create
from detectors.contract import checks


def test_contract(user_detector: str, check: str, ood_one_line: Callable[[str], AbstractContextManager[None]]) -> None:
    with ood_one_line(user_detector):
        try:
            checks()[check](partial(create, user_detector))
        except AssertionError as error:
            raise UserError(str(error)) from error
