"""pytest options, and the fixtures that take a case from its images to its verdict and its record."""

import argparse
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmark.devices import choose_device, device_name, share_processor
from benchmark.evaluation import Workbench
from benchmark.image_sets import ImageSet, MissingImageSetError
from benchmark.records import Record, parse_record
from benchmark.session import Draft, Limits, PreparedCase, Recorder, Session, new_run_id, run_record
from benchmark.store import Store
from benchmark.suites import CaseId, Suite, load_suite
from benchmark.summary import summary
from benchmark.thresholds import read_baselines
from unit_tests_ood import names as unit_tests

if TYPE_CHECKING:
    import torch

DRAFT = pytest.StashKey[Draft]()
RUN = pytest.StashKey[str]()
SUITE = pytest.StashKey[Suite]()


# Options and their defaults; what differs from them is needed to run a case again.
OPTIONS = {
    "--suite": "digits",
    "--data-dir": "data",
    "--store": ".store",
    "--results": "results",
    "--device": None,
    "--fpr-limit": None,
    "--unit-test-limit": None,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ood", "out-of-distribution detection")

    def add(name: str, help: str, **how: Any) -> None:
        group.addoption(name, default=OPTIONS[name], help=help, **how)

    add("--suite", "a suite by name, or the path of its TOML file (default: digits)")
    add("--data-dir", "folder of downloaded images and weights (default: data)")
    add("--store", "folder for the outputs of networks (default: .store)")
    add("--results", "folder for records and scores (default: results)")
    add("--device", "where networks run, as torch names it (default: cuda where there is one, else cpu)")
    add("--fpr-limit", "hold OOD sets to this FPR@95 (0 to 1) instead of their thresholds", type=_fraction)
    add("--unit-test-limit", "FPR@95 above which a unit test fails (default: the suite's goal)", type=_fraction)
    group.addoption("--full", action="store_true", help="all detectors meet unit tests and changed networks")
    group.addoption("--record-baselines", action="store_true", help="write what this run measures to the thresholds")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is None:
        _check_options(config)
        config.stash[RUN] = new_run_id()
        config.pluginmanager.register(Controller(config), "ood-controller")
    else:
        config.stash[RUN] = worker["run"]
        share_processor(int(worker["workercount"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["run"] = node.config.stash[RUN]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from benchmark.scheduling import ByDetector  # here, since xdist may not be installed

    return None if config.getoption("dist") == "each" else ByDetector(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """pytest-benchmark knows the processor; the times of a GPU are not those of its host."""
    machine_info["device"] = device_name(_device(config))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `ood_case` or `unit_test_case` runs once for each of the suite's."""
    suite = suite_of(metafunc.config) if {"ood_case", "unit_test_case"} & {*metafunc.fixturenames} else None
    if suite and "ood_case" in metafunc.fixturenames:
        metafunc.parametrize("ood_case", list(suite.ood_cases()), ids=str)
    if suite and "unit_test_case" in metafunc.fixturenames:
        metafunc.parametrize("unit_test_case", list(suite.unit_test_cases(unit_tests)), ids=str)


def suite_of(config: pytest.Config) -> Suite:
    """The suite that the command line names, read once."""
    if SUITE not in config.stash:
        suite = load_suite(config.getoption("--suite"), config.rootpath / config.getoption("--data-dir"))
        config.stash[SUITE] = suite.whole() if config.getoption("--full") else suite
    return config.stash[SUITE]


def _check_options(config: pytest.Config) -> None:
    """Ends the run with a usage error where an option, the suite or its threshold file has a mistake."""
    try:
        read_baselines(suite_of(config).entry.thresholds, all_cases(config))
        _device(config)
        entry = suite_of(config).entry
        if twice := {set for set, _ in entry.ood.by_role()} & {*unit_tests}:
            raise ValueError(f"{entry.file}: {sorted(twice)} are names of unit tests; rename the sets")
        if config.getoption("--record-baselines") and entry.thresholds is None:
            raise ValueError(f"{entry.file}: thresholds: name the file that --record-baselines shall write")
    except (ValueError, OSError) as error:
        raise pytest.UsageError(str(error)) from None


def all_cases(config: pytest.Config) -> dict[str, CaseId]:
    """Every case that a run of the suite may have, whatever this one has: baselines and lost workers are looked up."""
    suite = suite_of(config).whole()
    return {str(case): case for case in (*suite.ood_cases(), *suite.unit_test_cases(unit_tests))}


def _device(config: pytest.Config) -> "torch.device":
    return choose_device(config.getoption("--device"))


def _results(config: pytest.Config) -> Path:
    return config.rootpath / str(config.getoption("--results")) / suite_of(config).id


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    """The suite at work in this process."""
    config = request.config
    suite = suite_of(config)
    option = config.getoption
    return Session(
        workbench=Workbench(suite, Store(config.rootpath / option("--store")), _device(config)),
        limits=Limits(
            suite,
            read_baselines(suite.entry.thresholds, all_cases(config)),
            option("--fpr-limit"),
            option("--unit-test-limit"),
            option("--record-baselines"),
        ),
        results=_results(config),
        run=config.stash[RUN],
    )


@pytest.fixture
def prepare(
    request: pytest.FixtureRequest, session: Session
) -> Callable[[CaseId, Callable[[], ImageSet]], PreparedCase]:
    """Makes all that a case needs before its scores: what goes wrong here is an error of the case, not a failure."""

    def prepare(case: CaseId, image_set: Callable[[], ImageSet]) -> PreparedCase:
        draft = request.node.stash[DRAFT] = Draft(case)
        with _uncaptured(request.config), _one_line(case):
            return session.prepare(draft, _found(image_set))

    return prepare


@pytest.fixture
def hold(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[PreparedCase], None]:
    """Scores a case under pytest-benchmark's clock and holds it to its limits."""

    def hold(prepared: PreparedCase) -> None:
        with _one_line(prepared.draft.case):
            scores = benchmark.pedantic(prepared.score, rounds=1, iterations=1)
            problem = prepared.judge(scores)
        if problem and prepared.expected:
            pytest.xfail(problem)
        if problem:
            pytest.fail(f"{problem}; alone: {_command(request)}", pytrace=False)

    return hold


def _found(image_set: Callable[[], ImageSet]) -> ImageSet:
    """An OOD set; a case whose set nobody has fetched is skipped, with what to do about it as the reason."""
    try:
        return image_set()
    except MissingImageSetError as error:
        missing = str(error)
    pytest.skip(f"data missing: {missing}")


def _command(request: pytest.FixtureRequest) -> str:
    """What runs this case alone, under the same options."""
    given = {name: request.config.getoption(name) for name in OPTIONS}
    options = [text for name, value in given.items() if value != OPTIONS[name] for text in (name, str(value))]
    full = ["--full"] if request.config.getoption("--full") else []
    return shlex.join(["pytest", request.node.nodeid, *options, *full])


@contextmanager
def _one_line(case: CaseId) -> Iterator[None]:
    """What goes wrong in a user's files, disks and settings fails the case with its message, without a traceback."""
    problem = None
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        problem = str(error).removeprefix(f"{case}: ")
    if problem is not None:  # outside of `except`, which would chain the tracebacks that nobody asked for
        pytest.fail(f"{case}: {problem}", pytrace=False)


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
        draft = item.stash.get(DRAFT, Draft(case))
        message = str(call.excinfo.value) if call.excinfo else ""
        skipped = report.skipped and not hasattr(report, "wasxfail")
        records = draft.finished(item.config.stash[RUN], suite_of(item.config).id, message, skipped=skipped)
        report.ood_records = [record.model_dump(mode="json") for record in records]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


class Controller:
    """In the process that the user started: writes the records of all cases, and the summary of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._recorder: Recorder | None = None

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            config, suite = self._config, suite_of(self._config)
            option = config.getoption("--suite")
            run = run_record(config.stash[RUN], suite.id, option, config.rootpath, _device(config))
            self._recorder = Recorder(_results(config) / f"{run.run}.jsonl", run)
        return self._recorder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if records := getattr(report, "ood_records", None):
            self._add([parse_record(record) for record in records])
        elif report.when == "???":  # what xdist says of a test whose process died
            case = all_cases(self._config).get(report.nodeid.partition("[")[2].rstrip("]"))
            if case:
                self._add(Draft(case).finished(self._config.stash[RUN], suite_of(self._config).id, "its process died"))

    def _add(self, records: list[Record]) -> None:
        try:
            self.recorder.add(records)
        except OSError as error:
            pytest.exit(
                f"cannot write the records {self.recorder.file}: {error.strerror}; free some space, or name another "
                "folder with --results (what is recorded so far stays)",
                returncode=1,
            )

    @pytest.hookimpl(trylast=True)  # after the tables of other plugins, where a reader looks first
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._recorder is None:
            if self._core_alone(terminalreporter):
                terminalreporter.line("the unit tests meet a core of the suite's detectors; --full adds all others")
            return
        for line in summary(self._recorder.cases, self._recorder.models):
            for text, bold in line:
                terminalreporter.write(text, bold=bold)
            terminalreporter.line("")
        terminalreporter.line(f"records: {self._recorder.file}")

    def _core_alone(self, terminalreporter: Any) -> bool:
        """Whether nothing was selected from unit tests, which may be there for other detectors."""
        deselected = {item.path.name for item in terminalreporter.stats.get("deselected", [])}
        none_left = not terminalreporter.stats.keys() - {"deselected", ""}
        return none_left and "test_unit_tests.py" in deselected and not self._config.getoption("--full")

    def pytest_sessionfinish(self) -> None:
        if self._recorder and self._config.getoption("--record-baselines"):
            thresholds = suite_of(self._config).entry.thresholds
            assert thresholds  # which _check_options saw to
            try:
                self._recorder.record_baselines(thresholds, all_cases(self._config))
            except OSError as error:
                pytest.exit(f"cannot write the baselines {thresholds}: {error.strerror}", returncode=1)
