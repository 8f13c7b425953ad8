"""The cases: which tests there are, and the fixtures that take a case from its images to its verdict and its record."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import benchmark
import unit_tests_ood
from benchmark.images.image_set import ImageSet
from benchmark.limits.baselines import read_baselines
from benchmark.limits.limits import Limits
from benchmark.models.devices import share_processor
from benchmark.plugin.alone import alone_command
from benchmark.plugin.errors import reason_of, skipped_without_data, told_in_one_line
from benchmark.plugin.suite import (
    begin_run,
    check_options,
    load_suite_of,
    recorded_cases,
    remove_litter,
    results_of,
    run_of,
    suite_of,
    user_detectors,
    user_models,
)
from benchmark.running.evaluation import Evaluation
from benchmark.running.session import Draft, PreparedCase, Session
from benchmark.suites.suite import CaseId
from benchmark.user.messages import on_command_line
from detectors.contract import checks

_DRAFT = pytest.StashKey[Draft]()


def pytest_configure(config: pytest.Config) -> None:
    begin_run(config)
    worker = getattr(config, "workerinput", None)
    if worker is None:
        _check_timer(config)
        check_options(config)
        remove_litter(config)
    else:
        share_processor(int(worker["workercount"]))


def _check_timer(config: pytest.Config) -> None:
    """Ends the run with a usage error where nobody can time the cases."""
    loaded = (getattr(plugin, "__name__", "") for plugin in config.pluginmanager.get_plugins())
    if "pytest_benchmark.plugin" not in loaded:
        raise pytest.UsageError(
            "pytest-benchmark, which times the cases, is not loaded: leave out `-p no:benchmark`, or name it with "
            "`-p pytest_benchmark.plugin` where pytest loads no plugins by itself"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out a module of cases where the suite, or the command line, has none for it."""
    ours, unit = Path(benchmark.__file__).parent, Path(unit_tests_ood.__file__).parent
    has_cases: dict[Path, Callable[[], Any]] = {
        ours / "test_detector_contract.py": lambda: user_detectors(config),
        ours / "test_ood_detection.py": lambda: next(suite_of(config).ood_cases(), None),
        unit / "test_unit_tests.py": lambda: next(suite_of(config).unit_test_cases(unit_tests_ood.names), None),
    }
    return True if not has_cases.get(collection_path, lambda: True)() else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `ood_case`, `unit_test_case` or `user_detector` runs once for each that there is."""
    config, names = metafunc.config, metafunc.fixturenames
    if "ood_case" in names:
        metafunc.parametrize("ood_case", list(suite_of(config).ood_cases()), ids=str)
    if "unit_test_case" in names:
        cases = list(suite_of(config).unit_test_cases(unit_tests_ood.names))
        metafunc.parametrize("unit_test_case", cases, ids=str)
    if "user_detector" in names:
        pairs = list(product(user_detectors(config), checks()))
        metafunc.parametrize(("user_detector", "check"), pairs, ids=["/".join(pair) for pair in pairs])


# The names of the fixtures say whose they are: a `session` of the user's conftest.py would replace ours.


@pytest.fixture(scope="session")
def ood_session(pytestconfig: pytest.Config) -> Session:
    """The suite at work in this process."""
    suite = suite_of(pytestconfig)
    option = pytestconfig.getoption
    return Session(
        evaluation=Evaluation(load_suite_of(pytestconfig)),
        limits=Limits(
            suite,
            read_baselines(suite.entry.baselines, recorded_cases(pytestconfig)),
            option("--fpr-limit"),
            option("--unit-test-limit"),
            option("--record-baselines"),
            user_detectors(pytestconfig),
            user_models(pytestconfig),
        ),
        results=results_of(pytestconfig),
        run=run_of(pytestconfig),
    )


@pytest.fixture
def ood_one_line(pytestconfig: pytest.Config) -> Callable[[str], AbstractContextManager[None]]:
    """Makes a context in which a test of that name fails in one line where a user can mend what goes wrong."""
    return partial(told_in_one_line, pytestconfig)


@pytest.fixture
def prepare_ood_case(
    request: pytest.FixtureRequest, ood_session: Session
) -> Callable[[CaseId, Callable[[], ImageSet]], PreparedCase]:
    """Makes all that a case needs before its scores: what goes wrong here is an error of the case, not a failure."""

    def prepare(case: CaseId, image_set: Callable[[], ImageSet]) -> PreparedCase:
        draft = request.node.stash[_DRAFT] = Draft(case)
        if getattr(request.node, "execution_count", 1) > 1:  # of pytest-rerunfailures
            ood_session.evaluation.forget_failures()
        with _uncaptured(request.config), told_in_one_line(request.config, str(case)), skipped_without_data():
            return ood_session.prepare(draft, image_set())

    return prepare


@pytest.fixture
def judge_ood_case(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[PreparedCase], None]:
    """Scores a case under pytest-benchmark's clock and holds it to its limits."""

    def judge(prepared: PreparedCase) -> None:
        with told_in_one_line(request.config, str(prepared.draft.case)):
            scores = benchmark.pedantic(prepared.score, rounds=1, iterations=1)
            problem = prepared.judge(scores)
        verdict = prepared.draft.verdict
        if problem and prepared.expected:
            pytest.xfail(problem)
        if problem:
            remedy = on_command_line(verdict.remedy if verdict else None)
            pytest.fail(f"{problem}{remedy}; alone: {alone_command(request.node)}", pytrace=False)

    return judge


def _uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """Lets progress bars through to the terminal."""
    manager = config.pluginmanager.getplugin("capturemanager")
    return manager.global_and_fixture_disabled() if manager else nullcontext()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Sends the case's records along with its report, which reaches the controller from a worker too."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    case = next((value for value in _parameters(item).values() if isinstance(value, CaseId)), None)
    if case and (report.when == "call" or (report.when == "setup" and not report.passed)):
        draft = item.stash.get(_DRAFT, Draft(case))
        message = reason_of(call.excinfo.value) if call.excinfo else ""
        skipped = report.skipped and not hasattr(report, "wasxfail")
        records = draft.finished(run_of(item.config), suite_of(item.config), message, skipped=skipped)
        report.ood_records = [record.model_dump(mode="json") for record in records]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
