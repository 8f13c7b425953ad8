"""The cases of the unit tests: each (model, detector, unit test) of a suite is one case."""

from collections.abc import Callable

import pytest

from benchmark.running.session import PreparedCase, Session
from benchmark.suites.suite import CaseId
from unit_tests_ood.image_sets import unit_test_set


@pytest.fixture
def prepared(
    unit_test_case: CaseId, ood_session: Session, prepare_ood_case: Callable[..., PreparedCase]
) -> PreparedCase:
    return prepare_ood_case(unit_test_case, lambda: unit_test_set(unit_test_case.set, ood_session.suite))


def test_case(prepared: PreparedCase, judge_ood_case: Callable[[PreparedCase], None]) -> None:
    judge_ood_case(prepared)
