"""pytest options, and the fixtures that take a case from its images to its verdict and its record."""

import argparse
import shlex
import sysconfig
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmark.images.image_set import ImageSet, MissingImageSetError
from benchmark.limits.baselines import read_baselines
from benchmark.limits.comparisons import comparisons, published_records
from benchmark.limits.limits import Limits
from benchmark.models.devices import choose_device, device_name, share_processor
from benchmark.models.entries import MissingWeightsError
from benchmark.records import Record, parse_record
from benchmark.results import ResultsFolder
from benchmark.running.evaluation import Evaluation
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.recorder import Recorder, new_run_id, run_record
from benchmark.running.session import Draft, PreparedCase, Session
from benchmark.running.store import Store
from benchmark.running.summary import near_chance, summary
from benchmark.suites.suite import CaseId, Suite
from benchmark.user.command_line import DEFAULT_SUITE, Named
from benchmark.user.detectors import load_detectors
from benchmark.user.ids import split_name
from benchmark.user.outputs import LoadedOutputs, OutputsFolder
from benchmark.user.suite_table import FILE as USER_SUITE
from detectors.contract import checks
from unit_tests_ood import names as unit_tests

if TYPE_CHECKING:
    import torch

DRAFT = pytest.StashKey[Draft]()
USER_DETECTORS = pytest.StashKey[tuple[str, ...]]()
RUN = pytest.StashKey[str]()
SUITE = pytest.StashKey[Suite]()


# Options and their defaults; what differs from them is needed to run a case again.
OPTIONS: dict[str, Any] = {
    "--suite": DEFAULT_SUITE,
    **dict.fromkeys(USER := ("--model", "--id", "--train", "--val", "--ood", "--outputs", "--detectors")),
    "--data-dir": "data",
    "--store": ".store",
    "--results": "results",
    "--device": None,
    "--fpr-limit": None,
    "--unit-test-limit": None,
}
MANY = {"action": "append"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ood", "out-of-distribution detection")

    def add(name: str, meaning: str, **how: Any) -> None:
        group.addoption(name, default=OPTIONS[name], help=meaning, **how)

    add("--suite", "a suite by name, or the path of its TOML file (default: digits)")
    add("--model", "an id, hf-hub:.., a timm name, local-dir:.., open-clip:.. or MODULE:FUNCTION", **MANY)
    add("--id", "in-distribution test images: a folder of class folders, Parquet, or an id of image_sets.toml")
    add("--train", "in-distribution training images, for the detectors that learn")
    add("--val", "in-distribution images that are neither (default: a part of --id)")
    add("--ood", "out-of-distribution images: a folder, Parquet, or an id of image_sets.toml", **MANY)
    add("--outputs", "a folder of precomputed outputs in place of a network and images (docs/your-own.md)")
    add("--detectors", "a Python file that registers detectors of yours", **MANY)
    add("--data-dir", "folder of downloaded images and weights (default: data)")
    add("--store", "folder for the outputs of networks (default: .store)")
    add("--results", "folder for records and scores (default: results)")
    add("--device", "where networks run, as torch names it (default: cuda where there is one, else cpu)")
    add("--fpr-limit", "hold OOD sets to this FPR@95 (0 to 1) instead of their limits", type=_fraction)
    add("--unit-test-limit", "FPR@95 above which a unit test fails (default: the suite's goal)", type=_fraction)
    group.addoption("--full", action="store_true", help="all detectors meet unit tests and changed networks")
    group.addoption(
        "--record-baselines", action="store_true", help="write what this run measures to the suite's baselines"
    )


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
    from benchmark.running.scheduling import ByDetector  # here, since xdist may not be installed

    return None if config.getoption("dist") == "each" else ByDetector(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """pytest-benchmark knows the processor; the times of a GPU are not those of its host."""
    machine_info["device"] = device_name(_device(config))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out a module of cases where the suite, or the command line, has none for it."""
    has_cases: dict[str, Callable[[], Any]] = {
        "test_detector_contract.py": lambda: user_detectors(config),
        "test_ood_detection.py": lambda: next(suite_of(config).ood_cases(), None),
        "test_unit_tests.py": lambda: next(suite_of(config).unit_test_cases(unit_tests), None),
    }
    return True if not has_cases.get(collection_path.name, lambda: True)() else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `ood_case`, `unit_test_case` or `user_detector` runs once for each that there is."""
    config, names = metafunc.config, metafunc.fixturenames
    if "ood_case" in names:
        metafunc.parametrize("ood_case", list(suite_of(config).ood_cases()), ids=str)
    if "unit_test_case" in names:
        metafunc.parametrize("unit_test_case", list(suite_of(config).unit_test_cases(unit_tests)), ids=str)
    if "user_detector" in names:
        pairs = list(product(user_detectors(config), checks()))
        metafunc.parametrize(("user_detector", "check"), pairs, ids=["/".join(pair) for pair in pairs])


def user_detectors(config: pytest.Config) -> tuple[str, ...]:
    """The detectors of the user's files, which are run once."""
    if USER_DETECTORS not in config.stash:
        files = dict.fromkeys(config.getoption("--detectors") or ())
        config.stash[USER_DETECTORS] = tuple(detector_id for file in files for detector_id in load_detectors(file))
    return config.stash[USER_DETECTORS]


def suite_of(config: pytest.Config) -> Suite:
    """The suite that the command line names, read once."""
    if SUITE not in config.stash:
        option = config.getoption
        suite = Named(
            suite=option("--suite"),
            data_dir=config.rootpath / option("--data-dir"),
            models=option("--model") or (),
            id=option("--id"),
            train=option("--train"),
            val=option("--val"),
            ood=option("--ood") or (),
            outputs=option("--outputs"),
            detectors=user_detectors(config),
        ).make_suite()
        # Precomputed outputs come without the network that the unit tests of a whole suite need.
        config.stash[SUITE] = suite.whole() if option("--full") and not option("--outputs") else suite
    return config.stash[SUITE]


def _check_options(config: pytest.Config) -> None:
    """Ends the run with a usage error where an option, the suite or its threshold file has a mistake."""
    try:
        read_baselines(suite_of(config).entry.baselines, all_cases(config))
        _device(config)
        results = config.rootpath / str(config.getoption("--results"))
        if results.exists() and not results.is_dir():
            raise ValueError(f"--results {results}: this is a file; name a folder")
        entry = suite_of(config).entry
        if twice := {set_id for set_id, _ in entry.ood.by_role()} & {*unit_tests}:
            raise ValueError(f"{entry.file}: {sorted(twice)} are names of unit tests; rename the sets")
        if config.getoption("--record-baselines") and (own := [name for name in USER if config.getoption(name)]):
            raise ValueError(f"--record-baselines: a threshold file is of what its suite file names, without {own[0]}")
        if config.getoption("--record-baselines") and entry.baselines is None:
            raise ValueError(f"{entry.file}: baselines: name the file that --record-baselines shall write")
    except (ValueError, OSError) as error:
        raise pytest.UsageError(str(error)) from None


def all_cases(config: pytest.Config) -> dict[str, CaseId]:
    """Every case that a run of the suite may have, whatever this one has: baselines and lost workers are looked up."""
    suite = suite_of(config).whole()
    return {str(case): case for case in (*suite.ood_cases(), *suite.unit_test_cases(unit_tests))}


def _device(config: pytest.Config) -> "torch.device":
    return choose_device(config.getoption("--device"))


def _results(config: pytest.Config) -> ResultsFolder:
    return ResultsFolder(config.rootpath / str(config.getoption("--results")))


def _loaded_suite(config: pytest.Config) -> LoadedSuite:
    if outputs := config.getoption("--outputs"):
        return LoadedOutputs(suite_of(config), OutputsFolder(Path(split_name(outputs)[1])))
    return LoadedSuite(suite_of(config), Store(config.rootpath / config.getoption("--store")), _device(config))


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    """The suite at work in this process."""
    config = request.config
    suite = suite_of(config)
    option = config.getoption
    return Session(
        evaluation=Evaluation(_loaded_suite(config)),
        limits=Limits(
            suite,
            read_baselines(suite.entry.baselines, all_cases(config)),
            option("--fpr-limit"),
            option("--unit-test-limit"),
            option("--record-baselines"),
            user_detectors(config),
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
        with _uncaptured(request.config), _one_line(case), _fetched():
            return session.prepare(draft, image_set())

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


@contextmanager
def _fetched() -> Iterator[None]:
    """A case whose images or weights nobody has fetched is skipped, with what to do about it as the reason."""
    missing = None
    try:
        yield
    except (MissingImageSetError, MissingWeightsError) as error:
        missing = str(error)
    if missing is not None:  # outside of `except`, which would chain the tracebacks that nobody asked for
        pytest.skip(f"data missing: {missing}")


def _command(request: pytest.FixtureRequest) -> str:
    """What runs this case alone, under the same options."""
    full = ["--full"] if request.config.getoption("--full") else []
    return shlex.join(["pytest", request.node.nodeid, *_given(request.config, OPTIONS), *full])


def _given(config: pytest.Config, options: Iterable[str]) -> list[str]:
    """What of these options the command line said."""
    said = {name: value for name in options if (value := config.getoption(name)) != OPTIONS[name]}
    pairs = [
        (name, value) for name, values in said.items() for value in (values if isinstance(values, list) else [values])
    ]
    return [str(text) for pair in pairs for text in pair]


@contextmanager
def _one_line(case: CaseId) -> Iterator[None]:
    """What goes wrong in a user's files, disks, settings and code fails the case in one line, without a traceback."""
    problem = None
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        problem = str(error).removeprefix(f"{case}: ")
    except (Exception, SystemExit) as error:
        place = _place_in_user_code(error)
        if place is None:
            raise
        problem = f"{type(error).__name__}: {error} ({place})"
    if problem is not None:
        raise pytest.fail.Exception(f"{case}: {problem}", pytrace=False) from None


def _place_in_user_code(error: BaseException) -> str | None:
    """File and line of a user's code in which an error came up; None where it came up in ours or a library's."""
    others = [Path(__file__).parent / name for name in ("benchmark", "detectors", "unit_tests_ood")]
    others += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename)
    if any(file.is_relative_to(folder) for folder in others):
        return None
    return f"{file}, line {last.lineno}"


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
        records = draft.finished(item.config.stash[RUN], suite_of(item.config), message, skipped=skipped)
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
            beside = (*USER, "--data-dir")
            options = _given(config, ("--suite", *beside)) if _given(config, beside) else None
            option = shlex.join(options) if options else config.getoption("--suite")
            run = run_record(config.stash[RUN], suite, option, config.rootpath, _device(config))
            self._recorder = Recorder(_results(config), run)
        return self._recorder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if records := getattr(report, "ood_records", None):
            self._add([parse_record(record) for record in records])
        elif report.when == "???":  # what xdist says of a test whose process died
            case = all_cases(self._config).get(report.nodeid.partition("[")[2].rstrip("]"))
            if case:
                self._add(Draft(case).finished(self._config.stash[RUN], suite_of(self._config), "its process died"))

    def _add(self, records: list[Record]) -> None:
        with self._writing():
            self.recorder.add(records)

    def _add_published(self) -> None:
        """What papers report of several cases at once has its record when all cases have theirs."""
        recorder, suite = self.recorder, suite_of(self._config)
        with self._writing():
            recorder.add(published_records(self._config.stash[RUN], suite, recorder.cases))
            recorder.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Ends the run where a record cannot be written."""
        try:
            yield
        except OSError as error:
            pytest.exit(
                f"cannot write the records {self.recorder.place}: {error.strerror}; free some space, or name another "
                "folder with --results (what is recorded so far stays)",
                returncode=1,
            )

    @pytest.hookimpl(trylast=True)  # after the tables of other plugins, where a reader looks first
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._recorder is None:
            if self._core_alone(terminalreporter):
                terminalreporter.line("the unit tests meet a core of the suite's detectors; --full adds all others")
            for text in self._why_no_case():
                terminalreporter.line(text)
            return
        compared = comparisons(suite_of(self._config), self._recorder.cases)
        for line in summary(self._recorder.cases, self._recorder.models, compared):
            for text, bold in line:
                terminalreporter.write(text, bold=bold)
            terminalreporter.line("")
        for text in self._remarks():
            terminalreporter.line(text)
        terminalreporter.line(f"records: {self._recorder.place}")

    def _why_no_case(self) -> Iterator[str]:
        """What a run of a user's own lacks, where none of its cases ran."""
        if not _given(self._config, USER) or self._config.getoption("collectonly"):
            return
        entry = suite_of(self._config).entry
        yield from filter(None, [entry.about if entry.file == USER_SUITE else ""])
        if not entry.ood.by_role():
            yield "no case ran: there are no OOD images; name them with --ood, or run unit_tests_ood/"

    def _remarks(self) -> Iterator[str]:
        """What a reader should know of the figures: what was left out, and what is odd."""
        assert self._recorder
        if suite_of(self._config).entry.file == USER_SUITE and suite_of(self._config).entry.about:
            yield suite_of(self._config).entry.about
        if _given(self._config, ("--model", "--outputs")):
            yield from near_chance(self._recorder.models)
        missing = Counter(case.reason for case in self._recorder.cases if case.status == "skipped")
        yield from (f"{reason} ({count} cases skipped)" for reason, count in missing.items())
        if self._none_ran:
            yield "no case ran"

    @property
    def _none_ran(self) -> bool:
        """Whether all cases were skipped, which is no success."""
        return self._recorder is not None and all(case.status == "skipped" for case in self._recorder.cases)

    def _core_alone(self, terminalreporter: Any) -> bool:
        """Whether nothing was selected from unit tests, which may be there for other detectors."""
        deselected = {item.path.name for item in terminalreporter.stats.get("deselected", [])}
        none_left = not terminalreporter.stats.keys() - {"deselected", ""}
        return none_left and "test_unit_tests.py" in deselected and not self._config.getoption("--full")

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # around the terminal's: what fails here does not cost the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if self._none_ran and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        yield
        if self._recorder:
            self._add_published()
        if self._recorder and self._config.getoption("--record-baselines"):
            baselines = suite_of(self._config).entry.baselines
            assert baselines  # which _check_options saw to
            try:
                self._recorder.record_baselines(baselines, all_cases(self._config))
            except OSError as error:
                pytest.exit(f"cannot write the baselines {baselines}: {error.strerror}", returncode=1)
