"""Every (model, detector, OOD set) of the suite holds FPR@95 and its time to their limits."""

from collections.abc import Callable

import pytest

from benchmark.running.session import PreparedCase, Session
from benchmark.suites.suite import CaseId


@pytest.fixture
def prepared(ood_case: CaseId, session: Session, prepare: Callable[..., PreparedCase]) -> PreparedCase:
    return prepare(ood_case, lambda: session.suite.image_set(ood_case.set))


def test_case(prepared: PreparedCase, hold: Callable[[PreparedCase], None]) -> None:
    hold(prepared)
