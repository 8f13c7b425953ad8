"""Errors: what a user can mend, what mends it, and where the code of a user went wrong."""

import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_HOME = Path(__file__).resolve().parents[1]
_OURS = tuple(_HOME / name for name in ("benchmark", "detectors", "leaderboard", "unit_tests_ood"))
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
# Folders of installed packages have these names in every environment, whatever brought them onto sys.path.
_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class Remedy:
    """What mends an error, in terms of the library. `benchmark.user.messages` says it in those of a command line.

    action: `set` a setting otherwise, `fetch` or `make` the files of an entry, `run` a command that an entry gives, or
        `record` a baseline.
    name: the setting, the id of the entry, the command, or what there is no good baseline for.
    file: the suite file in which the entry stands, None of a built-in entry.
    data_dir: the folder that fetched files go to, None of the default one.
    """

    action: Literal["set", "fetch", "make", "run", "record"]
    name: str
    file: Path | None = None
    data_dir: Path | None = None


class UserError(ValueError):
    """Something that a user can mend: a file, a value, a disk. Each class of such errors is a subclass.

    The message is one line that names the file or the value, and says what is wrong and what to do. It names no option
    of a command line, since a program may have called us: `remedy` is for whoever knows the options. Any other
    exception is a bug, ours or that of the user's own code, and keeps its traceback.

    remedy: what mends it, where the message does not say that already.
    """

    def __init__(self, message: str, remedy: Remedy | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


def place_in_user_code(error: BaseException | None) -> str | None:
    """File and line of the innermost call in a user's code on the way to an error, or to a cause of it; else None.

    A user's code is what is neither ours nor installed: their detector file, their network, their transform. That the
    error came up in a library that this code called makes no difference.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(frame.filename, frame.lineno) for frame in frames]
        if isinstance(error, SyntaxError) and error.filename:
            places.append((error.filename, error.lineno))
        for file, line in reversed(places):
            if _is_of_user(file):
                return f"{file}, line {line}"
        error = error.__cause__
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether a detector or a metric refuses what it was given, which is for the user to mend.

    Both are libraries of their own and know no UserError: they raise a ValueError themselves. One that comes from a
    library which they called is a bug.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError) or not frames:
        return False
    file = Path(frames[-1].filename).resolve()
    return file.is_relative_to(_HOME / "detectors") or file == _HOME / "benchmark" / "metrics.py"


def _is_of_user(file: str) -> bool:
    path = Path(file)
    if not path.is_file():  # code without a file, such as <string> and <frozen importlib._bootstrap>
        return False
    path = path.resolve()
    if _INSTALLED.intersection(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (*_OURS, _STANDARD_LIBRARY))
