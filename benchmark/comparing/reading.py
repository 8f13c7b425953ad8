"""What a comparison compares: results by a folder, a run or an address on the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.comparing.cases import Side, sides_of
from benchmark.errors import UserError
from benchmark.hub.folder import results_folder
from benchmark.results import ResultsFolder
from benchmark.run_records import newest, read_folder
from detectors.spelling import did_you_mean


def read_sides(text: str, results: Path) -> tuple[dict[str, Side], list[str]]:
    """The cases of results, by `suite/model/detector/set`, and what could not be read of them.

    text: a results folder; FOLDER:RUN or hf://datasets/ORG/NAME; or the id of a run in `results`.
    Raises UserError where there are no such results.
    """
    damage: list[str] = []
    folder, run = _place_of(text, results, damage)
    found = read_folder(folder)
    damage += found.damage
    runs = [records for records in found.runs if run is None or records.run.run == run]
    if not runs:
        known = [records.run.run for records in found.runs]
        if run is not None and known:
            raise UserError(f"{text}: {folder} has no run {run!r}{did_you_mean(run, known)}; the newest is {known[0]}")
        raise UserError(f"{text}: no results are there" + (f": {damage[0]}" if damage else ""))
    sides: dict[str, Side] = {}
    for suite in sorted({records.run.suite for records in runs}):
        of_suite = newest([records for records in runs if records.run.suite == suite])
        sides |= sides_of(of_suite, ResultsFolder(folder))
    return sides, damage


def _place_of(text: str, results: Path, damage: list[str]) -> tuple[Path, str | None]:
    """The folder and, where one is meant, the run."""
    if text.startswith("hf://"):
        return results_folder(text, damage.append), None
    if Path(text).is_dir():
        return Path(text), None
    folder, colon, run = text.rpartition(":")
    if colon and Path(folder).is_dir():
        return Path(folder), run
    if results.is_dir():
        return results, text
    raise UserError(f"{text}: there is no such folder, and no {results} in which it could be a run")


def renamed(sides: Mapping[str, Side], names: Sequence[str]) -> dict[str, Side]:
    """The cases under the names that their models have on the other side.

    names: OLD=NEW each: the model OLD of these cases is NEW there.
    Raises UserError for a model that is not there.
    """
    new_of = dict(_pair(name) for name in names)
    models = {side.case.model for side in sides.values()}
    for model in new_of:
        if model not in models:
            known = ", ".join(sorted(models))
            raise UserError(f"--as {model}: the base has no such model{did_you_mean(model, models)}; it has: {known}")
    return {_with_model(name, new_of.get(side.case.model)): side for name, side in sides.items()}


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise UserError(f"--as {text}: write OLD=NEW, the model's name in the base and in the new results")
    return old, new


def _with_model(name: str, model: str | None) -> str:
    suite, old, detector, set_id = name.split("/")
    return "/".join((suite, model or old, detector, set_id))


def of_detector(sides: Mapping[str, Side], detector: str) -> dict[str, Side]:
    """The cases of a detector, by `suite/model/set`. Raises UserError where it has none."""
    detectors = {side.case.detector for side in sides.values()}
    if detector not in detectors:
        known = ", ".join(sorted(detectors))
        raise UserError(f"no case has the detector {detector!r}{did_you_mean(detector, detectors)}; there are: {known}")
    return {
        f"{side.case.suite}/{side.case.model}/{side.case.set}": side
        for side in sides.values()
        if side.case.detector == detector
    }
