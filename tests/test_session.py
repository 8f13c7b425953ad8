"""What a pytest user gets: verdicts, records, messages and options, on a suite of colours."""

import errno
import importlib.metadata
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmark.limits.baselines import read_baselines, write_baselines
from benchmark.records import Case, Record, read_records
from benchmark.running.fitted_detector import FittedDetector, source_sha256
from benchmark.running.provenance import git_state
from benchmark.running.session import TIME_RETRIES
from detectors import create
from detectors.gaussian import Mahalanobis

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]
OOD, UNIT_TESTS = str(ROOT / "benchmark"), str(ROOT / "unit_tests_ood")


class Runs:
    """Runs pytest over the suite of a world, and reads the records that it left."""

    def __init__(self, pytester: pytest.Pytester, world: Path) -> None:
        self.pytester, self.world = pytester, world
        self.suite = world / "colours.toml"

    def arguments(self, *arguments: str) -> list[str]:
        folders = ["--suite", self.suite, "--store", self.world / "store", "--results", self.world / "results"]
        return [
            *map(str, [f"--rootdir={ROOT}", "-c", ROOT / "tox.ini", "-p", "no:cacheprovider", *folders]),
            *arguments,
        ]

    def __call__(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*self.arguments(*arguments))

    def be_patient(self) -> None:
        """Lets the recorded cases take any time: these tests may run on a busy machine, and are not about it."""
        file = self.world / "colours.csv"
        baselines = read_baselines(file, list(self.cases()))
        write_baselines(file, {name: replace(baseline, forward_ratio=1000.0) for name, baseline in baselines.items()})

    @property
    def files(self) -> list[Path]:
        return sorted((self.world / "results" / "colours").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)

    def records(self) -> list[Record]:
        return list(read_records(self.files[-1]))

    def cases(self) -> dict[str, Case]:
        return {f"{r.model}/{r.detector}/{r.set}": r for r in self.records() if isinstance(r, Case)}


@pytest.fixture
def run(pytester: pytest.Pytester, user_world: Path) -> Runs:
    return Runs(pytester, user_world)


def test_a_suite_is_recorded_and_then_held_to_its_baselines(run: Runs) -> None:
    result = run(OOD, UNIT_TESTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED  # without baselines
    remedy = "no baseline: record one with --record-baselines, or name a limit with --fpr-limit; alone: pytest"
    result.stdout.fnmatch_lines([f"*net/msp/noise: FPR@95 *, {remedy} *"])
    assert {case.reason for case in run.cases().values() if case.role != "unit-test"} == {"no baseline"}
    assert run(OOD, UNIT_TESTS, "--record-baselines").ret == pytest.ExitCode.OK
    recorded = read_baselines(run.world / "colours.csv", list(run.cases()))
    assert recorded.keys() == run.cases().keys()
    assert len(recorded) == 4 + 17
    run.be_patient()
    again = run(OOD, UNIT_TESTS)
    assert again.ret == pytest.ExitCode.OK
    for set_id, case in run.cases().items():
        assert case.metrics is not None
        assert case.metrics.fpr_at_95.value == pytest.approx(recorded[set_id].fpr_at_95, rel=1e-5)
        assert case.expected == (case.status == "failed") == (case.metrics.fpr_at_95.value > case.limit.goal)
    again.stdout.fnmatch_lines(["net (ID accuracy*", "*detector*greys*noise*unit tests failed*", "*msp*", "records: *"])


def test_the_records_of_a_run_hold_all_that_a_reader_needs(run: Runs) -> None:
    run(OOD, UNIT_TESTS, "-k", "mahalanobis and (greys or black)", "--fpr-limit", "1")
    kinds = [record.kind for record in run.records()]
    assert kinds[0] == "run"
    assert sorted(set(kinds)) == ["case", "detector", "model", "run", "set"]
    roles = {record.id: record.role for record in run.records() if record.kind == "set"}
    assert roles == {
        "colours-train": "train",
        "colours-val": "val",
        "colours-test": "test",
        "greys": "near",
        "black": "unit-test",
    }
    cases = run.cases()
    assert list(cases) == ["net/mahalanobis/greys", "net/mahalanobis/black"]
    scores_file = cases["net/mahalanobis/greys"].scores
    folder = run.files[-1].parent
    assert pq.ParquetFile(folder / scores_file.path).metadata.num_rows == 20
    assert pq.ParquetFile(folder / scores_file.id_path).metadata.num_rows == 36
    assert cases["net/mahalanobis/greys"].metrics.id_images == 36


def test_the_run_says_which_version_of_this_package_ran(run: Runs) -> None:
    run(OOD, "-k", "msp and greys", "--fpr-limit", "1")
    record = run.records()[0]
    assert record.package_version == importlib.metadata.version("ood-benchmark")
    state = git_state(ROOT)
    assert record.git_commit == state.commit
    assert (record.user_git_commit, record.user_git_dirty) == (None, None)


def test_the_hash_of_a_detectors_source_covers_all_that_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> set[str]:
        read = set()
        monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path.name) or b"")
        source_sha256(type(create(name)))
        return read

    assert files("msp") == {"base.py", "logits.py"}
    assert files("itp+react") == {"base.py", "parts.py", "logits.py", "shaping.py", "itp.py"}
    monkeypatch.undo()
    assert source_sha256(type(create("msp"))) != source_sha256(type(create("knn")))


def test_a_failing_case_says_all_in_one_line(run: Runs) -> None:
    result = run(OOD, "-k", "msp and noise", "--fpr-limit", "0")
    line = next(line for line in result.outlines if line.startswith("net/msp/noise: FPR@95"))
    assert "95 % interval" in line
    assert "allowed 0.0% (the limit of this run)" in line
    file = os.path.relpath(ROOT / "benchmark" / "test_ood_detection.py", run.pytester.path)
    assert f"pytest '{file}::test_case[net/msp/noise]' --suite {run.suite} --store" in line
    assert "--fpr-limit 0.0" in line
    assert run(OOD, "-k", "msp and noise", "--fpr-limit", "1").ret == pytest.ExitCode.OK  # the twin


def test_a_regression_is_noticed(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run(OOD, "--record-baselines")
    run.be_patient()
    assert run(OOD).ret == pytest.ExitCode.OK
    monkeypatch.setattr(Mahalanobis, "_score", lambda self, batch: -batch.features[:, 0].abs())
    assert run(OOD, "-k", "mahalanobis").ret == pytest.ExitCode.TESTS_FAILED


def test_a_slow_detector_is_noticed(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run(OOD, "--record-baselines")
    timing = FittedDetector.timing

    def slower(self: Any, scores: Any, forward_ms_per_image: float) -> Any:
        measured = timing(self, scores, forward_ms_per_image)
        return measured.model_copy(update={"forward_ratio": measured.forward_ratio + 100})

    monkeypatch.setattr(FittedDetector, "timing", slower)
    result = run(OOD, "-k", "msp and greys")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["net/msp/greys: *score time * of a forward pass, allowed 0.*"])


def test_one_slow_moment_is_forgiven(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run(OOD, "--record-baselines")
    timing = FittedDetector.timing
    calls: list[float] = []

    def slow_at_first(self: Any, scores: Any, forward_ms_per_image: float) -> Any:
        calls.append(forward_ms_per_image)
        measured = timing(self, scores, forward_ms_per_image)
        return measured.model_copy(update={"forward_ratio": 100.0 if len(calls) == 1 else 0.01})

    monkeypatch.setattr(FittedDetector, "timing", slow_at_first)
    assert run(OOD, "-k", "msp and greys").ret == pytest.ExitCode.OK
    assert len(calls) == 1 + TIME_RETRIES


def test_a_damaged_image_is_an_error_of_its_set_alone(run: Runs) -> None:
    (run.world / "images" / "greys" / "07.png").write_bytes(b"")
    result = run(OOD, "--fpr-limit", "1", "-k", "msp")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["net/msp/greys: image set greys: cannot decode 07.png: the file is empty; *"])
    assert {set_id: case.status for set_id, case in run.cases().items()} == {
        "net/msp/greys": "error",
        "net/msp/noise": "passed",
    }
    assert "cannot decode 07.png" in str(run.cases()["net/msp/greys"].reason)


def test_a_model_that_cannot_be_used_is_an_error_of_its_cases(run: Runs) -> None:
    run.suite.write_text(run.suite.read_text().replace("local-dir:net", "local-dir:gone"))
    result = run(OOD, "--fpr-limit", "1")
    result.assert_outcomes(errors=4)
    assert all("cannot load local-dir:gone" in str(case.reason) for case in run.cases().values())


def test_scores_that_are_nan_are_an_error_that_names_the_case(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mahalanobis, "_score", lambda self, batch: batch.features[:, 0] * float("nan"))
    run(OOD, "--fpr-limit", "1", "-k", "mahalanobis and greys").assert_outcomes(errors=1)
    assert "net/mahalanobis/colours-test: the score of blue/00.png is NaN" in str(
        run.cases()["net/mahalanobis/greys"].reason
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "digit"], "no suite 'digit' (did you mean 'digits'?)"),
        (["--fpr-limit", "2"], "--fpr-limit"),
        (["--fpr-limit", "abc"], "'abc' is no number from 0 to 1"),
        (["--device", "abacus"], "device abacus: Expected one of cpu, cuda"),
        (["--device", "abacus"], "; name another one with --device"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_usage_error(run: Runs, arguments: list[str], says: str) -> None:
    result = run(OOD, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in result.stderr.str()
    assert not run.files


def test_a_threshold_of_an_unknown_case_stops_the_run_before_it_works(run: Runs) -> None:
    run(OOD, "--record-baselines")
    baselines = run.world / "colours.csv"
    baselines.write_text(baselines.read_text().replace("net,msp,noise", "net,msp,noises"))
    result = run(OOD)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "the suite has no case 'net/msp/noises' (did you mean 'net/msp/noise'?)" in result.stderr.str()


def test_collecting_writes_nothing(run: Runs) -> None:
    result = run(OOD, UNIT_TESTS, "--collect-only", "-q")
    assert "benchmark/test_ood_detection.py::test_case[net/mahalanobis/noise]" in result.outlines
    assert sum("::test_case[" in line for line in result.outlines) == 4 + 17
    assert not run.files


@pytest.mark.usefixtures("one_thread")  # as each of the two has, since sums of other threads differ in the last bit
def test_two_processes_give_the_same_records_as_one(run: Runs) -> None:
    run(OOD, UNIT_TESTS, "--record-baselines")
    run.be_patient()
    alone = run.cases()
    command = [sys.executable, "-m", "pytest", *run.arguments(OOD, UNIT_TESTS, "-n", "2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert len(run.files) == 2
    both = run.cases()
    assert {name: case.metrics for name, case in both.items()} == {name: case.metrics for name, case in alone.items()}
    assert {name: case.scores.sha256 for name, case in both.items()} == {
        name: case.scores.sha256 for name, case in alone.items()
    }
    assert [record.kind for record in run.records()].count("model") == 1


def test_a_unit_test_limit_of_the_user_replaces_the_suites(run: Runs) -> None:
    run(UNIT_TESTS, "-k", "black", "--unit-test-limit", "1").assert_outcomes(passed=1)
    assert run.cases()["net/mahalanobis/black"].limit.source == "the limit of this run"


@pytest.mark.parametrize("place", ["records", "scores"])
def test_a_results_folder_that_cannot_be_written_is_named(run: Runs, place: str) -> None:
    results = run.world / "results" / "colours"
    if place == "records":
        results.parent.mkdir()
        results.write_text("in the way")
    else:
        run(OOD, "-k", "msp and greys", "--fpr-limit", "1").assert_outcomes(passed=1)
    with pytest.MonkeyPatch.context() as patch:
        if place == "scores":
            patch.setattr(pq, "write_table", full_disk)
        result = run(OOD, "-k", "msp", "--fpr-limit", "1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str() + result.stderr.str()
    assert f"cannot write the {place} {results}" in text
    assert "--results" in text


def full_disk(*_: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_worker_that_dies_leaves_a_record_of_its_case(run: Runs) -> None:
    killer = run.world / "killer.py"
    killer.write_text(
        "import os\nfrom detectors.gaussian import Mahalanobis\nMahalanobis._fit = lambda *_: os._exit(9)\n"
    )
    command = [sys.executable, "-m", "pytest", *run.arguments(OOD, "-n", "1", "-p", "killer", "--fpr-limit", "1")]
    environment = os.environ | {"PYTHONPATH": str(run.world)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    statuses = {name: case.status for name, case in run.cases().items()}
    assert statuses["net/msp/greys"] == "passed"
    assert statuses["net/mahalanobis/greys"] == "error"
    assert run.cases()["net/mahalanobis/greys"].reason == "its process died"


def test_a_rerun_tries_again_and_counts_once(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pytest-rerunfailures does: it reports an attempt as "rerun", and runs the test once more."""
    pytest.importorskip("pytest_rerunfailures")
    calls = []
    fit = Mahalanobis._fit

    def fails_at_first(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EIO, "the network disk is away")
        return fit(self, *arguments)

    monkeypatch.setattr(Mahalanobis, "_fit", fails_at_first)
    result = run(OOD, "-k", "mahalanobis and greys", "--fpr-limit", "1", "--reruns", "2")
    assert result.ret == pytest.ExitCode.OK
    assert len(calls) == 2
    assert [(case.status, case.detector) for case in run.records() if isinstance(case, Case)] == [
        ("passed", "mahalanobis")
    ]


def test_a_word_of_k_that_is_in_no_case_gets_the_nearest_name(run: Runs) -> None:
    result = run(OOD, "-k", "mahalanobs and greys")
    result.stdout.fnmatch_lines(["-k: no case has 'mahalanobs' in its name (did you mean 'mahalanobis'?)"])
    assert "no case has" not in run(OOD, "-k", "msp and greys and not noise", "--fpr-limit", "1").stdout.str()
