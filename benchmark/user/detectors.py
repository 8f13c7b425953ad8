"""Detectors of a user's own files."""

import importlib.util
import re
import sys
import traceback
from pathlib import Path

from benchmark.errors import UserError
from benchmark.records import ID_LENGTH, ID_PATTERN
from detectors import available

# --- Detectors. ---


def load_detectors(file: str) -> list[str]:
    """Runs a file that registers detectors, and gives their ids; a ValueError that names the file where that fails."""
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"--detectors {file}: there is no such file")
    before = set(available())
    specification = importlib.util.spec_from_file_location(str(path), path)
    if specification is None or specification.loader is None:
        raise UserError(f"--detectors {file}: this is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[str(path)] = module  # where dataclasses, and whoever hashes the source, look it up
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is somebody else's code
        raise UserError(f"--detectors {file}: {_place(error, path)}{type(error).__name__}: {error}") from error
    if not (new := sorted(set(available()) - before)):
        raise UserError(f"--detectors {file}: it registers no detector; see `Add a detector` in CONTRIBUTING.md")
    if odd := [
        detector_id for detector_id in new if not re.fullmatch(ID_PATTERN, detector_id) or len(detector_id) > ID_LENGTH
    ]:
        raise UserError(
            f"--detectors {file}: {odd[0][:ID_LENGTH]!r} cannot be an id: take up to {ID_LENGTH} letters, digits and "
            ". + _ -, letter or digit first"
        )
    return new


def _place(error: BaseException, path: Path) -> str:
    """The line of a file in which an error came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"line {line}: " if line else ""
