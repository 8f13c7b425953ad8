"""Every (model, detector, OOD set) of the suite holds FPR@95 and its time to their limits."""

from collections.abc import Callable

import pytest

from benchmark.running.session import PreparedCase, Session
from benchmark.suites.suite import CaseId


@pytest.fixture
def prepared(ood_case: CaseId, ood_session: Session, prepare_ood_case: Callable[..., PreparedCase]) -> PreparedCase:
    return prepare_ood_case(ood_case, lambda: ood_session.suite.image_set(ood_case.set))


def test_case(prepared: PreparedCase, judge_ood_case: Callable[[PreparedCase], None]) -> None:
    judge_ood_case(prepared)
