"""In the process that the user started: the records of all cases, the summary of the run, and the workers of xdist."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmark.errors import UserError
from benchmark.limits.comparisons import comparisons, published_records
from benchmark.models.devices import device_name
from benchmark.plugin.options import OF_USER, given_options
from benchmark.plugin.pushing import push_run
from benchmark.plugin.suite import all_cases, device_of, results_of, run_of, share_run, suite_of
from benchmark.records import Record, parse_record
from benchmark.results import RunId
from benchmark.running.recorder import Recorder, run_record
from benchmark.running.session import Draft
from benchmark.running.summary import doubts, near_chance, remarks_on, summary
from benchmark.user.suite_table import FILE as USER_SUITE
from detectors import did_you_mean


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Controller(config), "ood-controller")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    share_run(node.config, node.workerinput)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from benchmark.running.scheduling import ByDetector  # here, since xdist may not be installed

    return None if config.getoption("dist") == "each" else ByDetector(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """pytest-benchmark knows the processor; the times of a GPU are not those of its host."""
    machine_info["device"] = device_name(device_of(config))


_CASES = ("test_ood_detection.py", "test_unit_tests.py")  # the modules whose tests are cases


class Controller:
    """In the process that the user started: writes the records of all cases, and the summary of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._recorder: Recorder | None = None

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            config, suite = self._config, suite_of(self._config)
            beside = (*OF_USER, "--data-dir")
            options = given_options(config, ("--suite", *beside)) if given_options(config, beside) else None
            option = shlex.join(options) if options else config.getoption("--suite")
            run = run_record(run_of(config), suite, option, config.rootpath, device_of(config))
            self._recorder = Recorder(results_of(config), run)
        return self._recorder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "rerun":  # what pytest-rerunfailures says of an attempt that does not count
            return
        if records := getattr(report, "ood_records", None):
            self._add([parse_record(record) for record in records])
        elif report.when == "???":  # what xdist says of a test whose process died
            case = all_cases(self._config).get(report.nodeid.partition("[")[2].rstrip("]"))
            if case:
                self._add(Draft(case).finished(run_of(self._config), suite_of(self._config), "its process died"))

    def _add(self, records: list[Record]) -> None:
        with self._writing():
            self.recorder.add(records)

    def _add_published(self) -> None:
        """What papers report of several cases at once has its record when all cases have theirs."""
        recorder, suite = self.recorder, suite_of(self._config)
        with self._writing():
            recorder.add(published_records(run_of(self._config), suite, recorder.cases))
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
                terminalreporter.line(
                    "the unit tests are run with a core of the suite's detectors; --full adds all others"
                )
            for text in (*self._why_no_case(), *self._nearest(terminalreporter)):
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
        if not given_options(self._config, OF_USER) or self._config.getoption("collectonly"):
            return
        entry = suite_of(self._config).entry
        yield from filter(None, [entry.about if entry.file == USER_SUITE else ""])
        if not entry.ood.by_role():
            yield "no case ran: there are no OOD images; name them with --ood, or run unit_tests_ood/"

    def _nearest(self, terminalreporter: Any) -> Iterator[str]:
        """What a word of -k may have meant that is in no case, where no case was selected."""
        if terminalreporter.stats.keys() - {"deselected", ""}:  # something else ran, which -k was about
            return
        words = re.findall(r"[\w.+/-]+", self._config.getoption("keyword") or "")
        ids = [item.nodeid.lower() for item in terminalreporter.stats.get("deselected", []) if item.path.name in _CASES]
        known = {part for case in all_cases(self._config) for part in case.split("/")} if ids else set()
        for word in words if ids else ():
            if word not in ("and", "or", "not") and not any(word.lower() in node for node in ids):
                yield f"-k: no case has {word!r} in its name{did_you_mean(word.strip('/'), known)}"

    def _remarks(self) -> Iterator[str]:
        """What a reader should know of the figures: what was left out, and what is odd."""
        assert self._recorder
        if suite_of(self._config).entry.file == USER_SUITE and suite_of(self._config).entry.about:
            yield suite_of(self._config).entry.about
        yield from remarks_on((*self._recorder.models, *self._recorder.sets))
        if given_options(self._config, ("--model", "--outputs")):
            yield from near_chance(self._recorder.models)
        yield from doubts(self._recorder.cases)
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
            assert baselines  # which check_options saw to
            try:
                self._recorder.record_baselines(baselines, all_cases(self._config))
            except OSError as error:
                pytest.exit(f"cannot write the baselines {baselines}: {error.strerror}", returncode=1)
        if self._recorder and self._config.getoption("--push"):
            self._push()

    def _push(self) -> None:
        """Pushes the run. Where that fails, the run fails, and all of it is kept."""
        config = self._config
        try:
            told = push_run(config, RunId(suite_of(config).id, run_of(config)), results_of(config).folder)
        except UserError as error:
            again = f"`python -m benchmark push {config.getoption('--push')} --run {run_of(config)}` goes on"
            pytest.exit(f"the run was not pushed: {error}; all of it is kept: {again}", returncode=1)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.write_line(told)
