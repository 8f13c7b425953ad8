"""`evaluate`: the cases of the benchmark from a program or a notebook, without pytest."""

import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmark.api.inputs import Inputs, chosen_detectors
from benchmark.api.results import EvaluationResults
from benchmark.entries import DATA_DIR
from benchmark.errors import UserError, place_in_user_code
from benchmark.images.image_set import ImageSet, MissingImageSetError
from benchmark.limits.limits import Limits
from benchmark.models.devices import choose_device
from benchmark.models.entries import MissingWeightsError
from benchmark.models.preprocessing import Transform
from benchmark.records import Case, ModelRecord, Record, Run, SetRecord
from benchmark.results import ResultsFolder, ResultsInMemory
from benchmark.running.evaluation import Evaluation
from benchmark.running.progress import progress_bar
from benchmark.running.recorder import Recorder, new_run_id, run_record
from benchmark.running.session import Draft, Session
from benchmark.running.summary import doubts, near_chance, remarks_on
from benchmark.scores import read_case_scores
from benchmark.suites.suite import CaseId
from benchmark.user.messages import on_command_line, one_line
from detectors import Head, did_you_mean

_LOG = logging.getLogger(__name__)


def evaluate(
    model: nn.Module | Head | str | Path,
    *,
    in_distribution: Any = None,
    train: Any = None,
    val: Any = None,
    ood: Mapping[str, Any] | None = None,
    detectors: str | Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    unit_tests: bool | Sequence[str] = False,
    transform: Transform | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    data_dir: str | Path = DATA_DIR,
    store: str | Path | None = None,
    results: str | Path | None = None,
) -> EvaluationResults:
    """Evaluates a model with some detectors: every (detector, OOD set) is a case, as in a run of pytest, bit for bit.

    model: an nn.Module with its `transform`; a timm name, "hf-hub:OWNER/NAME", "local-dir:PATH", "MODULE:FUNCTION" or
        an id of models.toml; a folder of precomputed outputs (docs/your-own.md), which brings all image sets; or a
        `detectors.Head`, beside which all sets are `detectors.Outputs`.
    in_distribution: the in-distribution test images: a folder of a folder a class, a Parquet file or a folder of those,
        an id of image_sets.toml, a `datasets.Dataset` with the columns image and label, or a torch data set or a
        sequence of (image, label), where an image is a PIL image or an array, uint8 (height, width, 3).
    train: in-distribution training images, likewise. Without them, detectors that learn are left out.
    val: in-distribution images that are neither. By default the first images of each class of `in_distribution` are
        held out.
    ood: the OOD sets by name, each likewise. Their labels are left alone.
    detectors: ids, or "all". By default a core: msp, max-logit, energy, kl-matching, mahalanobis, mahalanobis++,
        relative-mahalanobis, relative-mahalanobis++, vim, react, knn, cosine, relative-cosine, odin.
    options: by detector, options that are not its defaults, as in {"knn": {"k": 5}}.
    unit_tests: whether the seventeen synthetic sets are evaluated too, or the names of those that are.
    transform: of an nn.Module, from a PIL image to a tensor (C, H, W). A network of timm needs none.
    name: what the model is called in the results.
    device: where networks run, as torch names it; by default a GPU where there is one, else the CPU.
    data_dir: where downloaded images and weights lie.
    store: a folder that keeps the outputs of the network. By default they are kept until this Python process ends, in a
        temporary folder.
    results: a folder for records and scores, as `--results` of pytest; by default they stay in memory.

    A case that goes wrong is a row with the status "error" and its reason. After an interruption (Ctrl-C), what is done
    is returned. The given network stays as it is. Raises UserError, in one line, for an argument with a mistake, and
    for what makes all cases impossible.
    """
    given = {"in_distribution": in_distribution, "train": train, "val": val, "ood": ood, "detectors": detectors}
    given |= {"options": options, "unit_tests": unit_tests or None, "name": name}
    tests = _unit_tests(unit_tests)
    inputs = Inputs(
        model=model,
        transform=transform,
        name=name,
        in_distribution=in_distribution,
        train=train,
        val=val,
        ood=ood,
        detectors=chosen_detectors(detectors, options),
        unit_tests=tests,
        data_dir=Path(data_dir),
    )
    if results is not None and Path(results).exists() and not Path(results).is_dir():
        raise UserError(f"results: {results} is a file; name a folder")
    with _told_to_a_program():
        computing = choose_device(None if device is None else str(device))
        suite = inputs.load(Path(_session_store().name if store is None else store), computing)
        run = run_record(new_run_id(), suite.suite, _call(model, given), Path.cwd(), suite.device)
        run = run.model_copy(update={"command": run.suite_option})
        kept = ResultsInMemory() if results is None else ResultsFolder(Path(results))
        limits = Limits(suite.suite, baselines={}, fpr_limit=None, unit_test_limit=None, recording=False)
        session = Session(Evaluation(suite), limits, kept, run.run)
        for model_id in suite.suite.models:
            session.evaluation.model(model_id)  # what makes it useless ends the call here, and not each case
    return _evaluated(session, run, _cases(session, tests))


@contextmanager
def _told_to_a_program() -> Iterator[None]:
    """Completes the message of an error by what mends it, where that is no option of a command line."""
    try:
        yield
    except UserError as error:
        error.args, error.remedy = (_told(error),), None
        raise


def _told(error: UserError) -> str:
    remedy = error.remedy if error.remedy and error.remedy.action in ("fetch", "make", "run") else None
    return " ".join(f"{error}{on_command_line(remedy)}".split("\n"))


def _unit_tests(asked: bool | Sequence[str]) -> tuple[str, ...]:
    """The names of the unit tests that are asked for. Raises UserError on one that there is not."""
    from unit_tests_ood import names  # here, since most calls ask for none

    if isinstance(asked, bool):
        return names if asked else ()
    chosen = (asked,) if isinstance(asked, str) else tuple(dict.fromkeys(asked))
    for name in chosen:
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise UserError(f"unit_tests: none is called {name!r}{hint}; there are: {', '.join(names)}")
    return chosen


@cache
def _session_store() -> "tempfile.TemporaryDirectory[str]":
    """A folder that lasts as long as this process: the next call finds there what this one computed."""
    return tempfile.TemporaryDirectory(prefix="ood-benchmark-", ignore_cleanup_errors=True)


def _call(model: Any, given: Mapping[str, Any]) -> str:
    """A call of `evaluate` as one types it; objects stand there by their kind."""
    arguments = [f"{name}={_shown(value)}" for name, value in given.items() if value is not None]
    return f"evaluate({', '.join([_shown(model), *arguments])})"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return repr(list(value))
    if isinstance(value, (str, int, float, Path)):
        return repr(str(value) if isinstance(value, Path) else value)
    return f"<{type(value).__name__}>"


# --- The cases. ---


def _cases(session: Session, unit_tests: Sequence[str]) -> list[tuple[CaseId, Callable[[], ImageSet]]]:
    """The cases with what makes their image sets, model by model, as pytest runs them."""
    from unit_tests_ood.image_sets import UnitTestSets  # here, since most calls ask for none

    suite = session.suite
    synthetic = UnitTestSets(suite)
    cases = [(case, _maker(suite.image_set, case.set)) for case in suite.suite.ood_cases()]
    cases += [(case, _maker(synthetic, case.set)) for case in suite.suite.unit_test_cases(unit_tests)]
    if not cases:
        raise UserError("no case is left: none of the detectors can do with what was given")
    return cases


def _maker(make: Callable[[str], ImageSet], set_id: str) -> Callable[[], ImageSet]:
    return lambda: make(set_id)


def _evaluated(session: Session, run: Run, cases: Sequence[tuple[CaseId, Callable[[], ImageSet]]]) -> EvaluationResults:
    records: list[Record] = [run]
    recorder: Recorder | None = Recorder(session.results, run)
    remarks, done = [], 0
    with progress_bar(total=len(cases), desc=session.suite.suite.id, unit="case") as bar:
        try:
            for case, image_set in cases:
                bar.set_postfix_str(f"{case.detector} on {case.set}")
                of_case = _records_of(session, case, image_set)
                records += of_case
                if recorder and (problem := _written(recorder, of_case)):
                    remarks.append(problem)
                    recorder = None  # what comes now stays in memory
                done += 1
                bar.update()
        except KeyboardInterrupt:
            remarks.append(f"interrupted: {done} of {len(cases)} cases were done")
    if recorder:
        recorder.close()
    described = [record for record in records if isinstance(record, ModelRecord | SetRecord)]
    models = [record for record in described if isinstance(record, ModelRecord)]
    about = session.suite.suite.entry.about
    doubtful = doubts(record for record in records if isinstance(record, Case))
    told = (*filter(None, [about]), *remarks_on(described), *near_chance(models), *doubtful, *remarks)
    return EvaluationResults(tuple(records), told, partial(read_case_scores, session.results))


def _written(recorder: Recorder, records: Sequence[Record]) -> str | None:
    """Hands records to the place of results. Returns a sentence where it cannot take them, None where it did."""
    try:
        recorder.add(records)
    except OSError as error:
        return f"the records {recorder.place} cannot be written: {error.strerror or error}"
    return None


def _records_of(session: Session, case: CaseId, image_set: Callable[[], ImageSet]) -> list[Record]:
    """Takes a case to its verdict; whatever goes wrong there is its reason."""
    draft, message, skipped = Draft(case), "", False
    try:
        prepared = session.prepare(draft, image_set())
        prepared.judge(prepared.score())
    except (MissingImageSetError, MissingWeightsError) as error:
        message, skipped = f"data missing: {_told(error)}", True
    except (Exception, SystemExit) as error:
        message = _reason(case, error)
    return draft.finished(session.run, session.suite.suite, message, skipped=skipped)


def _reason(case: CaseId, error: BaseException) -> str:
    """Why a case ended, in one line. What no line can mend is logged with its traceback."""
    if isinstance(error, UserError) and not place_in_user_code(error.__cause__):
        return _told(error)
    line = one_line(error)
    if line is None or not isinstance(error, (UserError, OSError)):
        _LOG.error("%s", case, exc_info=error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return line or f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
