"""What the options ask for: the suite with its cases, the device, the folders, and the run."""

from pathlib import Path

import pytest
import torch

from benchmark.errors import UserError
from benchmark.limits.baselines import read_baselines
from benchmark.models.devices import choose_device
from benchmark.plugin.options import OF_USER
from benchmark.plugin.pushing import check_push
from benchmark.results import ResultsFolder
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.recorder import new_run_id
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from benchmark.suites.suite import CaseId, Suite
from benchmark.user.command_line import Named
from benchmark.user.detectors import load_detectors
from benchmark.user.ids import split_name
from benchmark.user.messages import one_line
from benchmark.user.outputs import LoadedOutputs, OutputsFolder
from unit_tests_ood import names as unit_tests

_FOLDER = pytest.StashKey[Path]()
_RUN = pytest.StashKey[str]()
_SUITE = pytest.StashKey[Suite]()
_USER_DETECTORS = pytest.StashKey[tuple[str, ...]]()


def begin_run(config: pytest.Config) -> None:
    """Gives the run its id and its folder: new ones, or in a worker of pytest-xdist those of the controller."""
    worker = getattr(config, "workerinput", None)
    config.stash[_RUN] = worker["ood_run"] if worker else new_run_id()
    config.stash[_FOLDER] = Path(worker["ood_folder"]) if worker else config.invocation_params.dir


def share_run(config: pytest.Config, workerinput: dict[str, str]) -> None:
    """Hands the id and the folder of the run to a worker."""
    workerinput["ood_run"] = run_of(config)
    workerinput["ood_folder"] = str(config.stash[_FOLDER])


def run_of(config: pytest.Config) -> str:
    return config.stash[_RUN]


def folder_of(config: pytest.Config, option: str) -> Path:
    """A folder that an option names, from the folder that pytest was started in."""
    return config.stash[_FOLDER] / Path(str(config.getoption(option))).expanduser()


def user_detectors(config: pytest.Config) -> tuple[str, ...]:
    """The detectors of the user's files, which are run once."""
    if _USER_DETECTORS not in config.stash:
        files = dict.fromkeys(config.getoption("--detectors") or ())
        config.stash[_USER_DETECTORS] = tuple(detector_id for file in files for detector_id in load_detectors(file))
    return config.stash[_USER_DETECTORS]


def suite_of(config: pytest.Config) -> Suite:
    """The suite that the command line names, read once."""
    if _SUITE not in config.stash:
        option = config.getoption
        suite = Named(
            suite=option("--suite"),
            data_dir=folder_of(config, "--data-dir"),
            models=option("--model") or (),
            id=option("--id"),
            train=option("--train"),
            val=option("--val"),
            ood=option("--ood") or (),
            outputs=option("--outputs"),
            detectors=user_detectors(config),
        ).make_suite()
        # Precomputed outputs come without the network that the unit tests of a whole suite need.
        config.stash[_SUITE] = suite.whole() if option("--full") and not option("--outputs") else suite
    return config.stash[_SUITE]


def all_cases(config: pytest.Config) -> dict[str, CaseId]:
    """Every case that a run of the suite may have, whatever this one has: baselines and lost workers are looked up."""
    suite = suite_of(config).whole()
    return {str(case): case for case in (*suite.ood_cases(), *suite.unit_test_cases(unit_tests))}


def recorded_cases(config: pytest.Config) -> set[str]:
    """Every case that the suite's file of baselines may have: those of the suite as it stands, too, without --model."""
    cases = {*all_cases(config)}
    if config.getoption("--model") and suite_of(config).entry.baselines:
        whole = load_suite(config.getoption("--suite"), folder_of(config, "--data-dir")).whole()
        cases |= {str(case) for case in (*whole.ood_cases(), *whole.unit_test_cases(unit_tests))}
    return cases


def user_models(config: pytest.Config) -> tuple[str, ...]:
    """The models that --model names and the suite as it stands does not have: the goals are their limits."""
    if not config.getoption("--model"):
        return ()
    recorded = {
        case.partition("/")[0] for case in read_baselines(suite_of(config).entry.baselines, recorded_cases(config))
    }
    return tuple(model for model in suite_of(config).models if model not in recorded)


def device_of(config: pytest.Config) -> torch.device:
    return choose_device(config.getoption("--device"))


def results_of(config: pytest.Config) -> ResultsFolder:
    """The folder of records and scores."""
    return ResultsFolder(folder_of(config, "--results"))


def remove_litter(config: pytest.Config) -> None:
    """Removes what killed runs left in the folders of results and of outputs, where it is old."""
    results_of(config).remove_litter()
    Store(folder_of(config, "--store")).remove_litter()


def load_suite_of(config: pytest.Config) -> LoadedSuite:
    """The suite with its images and networks, or with the precomputed outputs that stand for them."""
    if outputs := config.getoption("--outputs"):
        return LoadedOutputs(suite_of(config), OutputsFolder(Path(split_name(outputs)[1])))
    return LoadedSuite(suite_of(config), Store(folder_of(config, "--store")), device_of(config))


def check_options(config: pytest.Config) -> None:
    """Ends the run with a usage error where an option, the suite or its file of baselines has a mistake."""
    try:
        _check_options(config)
    except Exception as error:
        problem = one_line(error)
        if problem is None:
            raise
        raise pytest.UsageError(problem) from None


def _check_options(config: pytest.Config) -> None:
    if config.getoption("--push"):
        check_push(config)
    read_baselines(suite_of(config).entry.baselines, recorded_cases(config))
    device_of(config)
    results = folder_of(config, "--results")
    if results.exists() and not results.is_dir():
        raise UserError(f"--results {results}: this is a file; name a folder")
    entry = suite_of(config).entry
    if twice := {set_id for set_id, _ in entry.ood.by_role()} & {*unit_tests}:
        raise UserError(f"{entry.file}: {sorted(twice)} are names of unit tests; rename the sets")
    if config.getoption("--record-baselines") and (given := [name for name in OF_USER if config.getoption(name)]):
        raise UserError(f"--record-baselines: baselines are of what their suite file names, without {given[0]}")
    if config.getoption("--record-baselines") and entry.baselines is None:
        raise UserError(f"{entry.file}: baselines: name the file that --record-baselines shall write")
