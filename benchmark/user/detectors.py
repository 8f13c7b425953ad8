"""Detectors that a user names: those of a file of theirs, and those of other libraries."""

import ast
import importlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import detectors  # not `available` itself, with which torch would be loaded
from benchmark.errors import UserError
from benchmark.records import ID_LENGTH, ID_PATTERN
from benchmark.user.ids import split_name
from detectors.spelling import did_you_mean

# Where the detectors of a library are, for which its name is enough.
_SHORT = {"pytorch_ood": "pytorch_ood.detector", "openood": "openood.postprocessors"}
_INSTALL = {
    "pytorch_ood": "pip install 'ood-benchmark[pytorch-ood]'",
    "openood": "install it from its repository, Jingkang50/OpenOOD",
}
_FOREIGN = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?:,(.*))?", flags=re.DOTALL)
_NEXT_OPTION = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")
_WORD = re.compile(r"[A-Za-z][\w.+-]*")


def load_detectors(text: str) -> list[str]:
    """Registers the detectors that a value of --detectors names, and gives their ids.

    text: a Python file that registers detectors, or `[NAME=]MODULE:CLASS[,OPTION=VALUE]...` for a detector of another
    library: a subclass of `pytorch_ood.api.Detector` (`pytorch_ood:KNN,k=10`), or a postprocessor of OpenOOD or with
    its interface (`openood:KNNPostprocessor,K=50`, `my_module:MyPostprocessor`). NAME is its id, in place of the
    library's name and that of the class. A value is a number, a text, True, False, None, or a list of such.

    Raises UserError, in one line that repeats the text, where that fails.
    """
    name, what = split_name(text)
    try:
        if not Path(text).is_file() and (found := _FOREIGN.fullmatch(what)):
            return [_register_foreign(name, *found.groups())]
        return _register_file(text)
    except ValueError as error:
        raise UserError(f"--detectors {text}: {error}") from error


# --- Detectors of a file. ---


def _register_file(file: str) -> list[str]:
    """Runs a file that registers detectors, and gives their ids."""
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError("there is no such file")
    before = set(detectors.available())
    specification = importlib.util.spec_from_file_location(str(path), path)
    if specification is None or specification.loader is None:
        raise ValueError("this is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[str(path)] = module  # where dataclasses, and whoever hashes the source, look it up
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is somebody else's code
        raise ValueError(f"{_place(error, path)}{type(error).__name__}: {error}") from error
    if not (new := sorted(set(detectors.available()) - before)):
        raise ValueError("it registers no detector; see `Add a detector` in CONTRIBUTING.md")
    for detector_id in new:
        _check_id(detector_id)
    return new


def _check_id(detector_id: str) -> None:
    if not re.fullmatch(ID_PATTERN, detector_id) or len(detector_id) > ID_LENGTH:
        raise ValueError(
            f"{detector_id[:ID_LENGTH]!r} cannot be an id: take up to {ID_LENGTH} letters, digits and . + _ -, "
            "letter or digit first"
        )


def _place(error: BaseException, path: Path) -> str:
    """The line of a file in which an error came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"line {line}: " if line else ""


# --- Detectors of other libraries. ---


def _register_foreign(name: str | None, module: str, attribute: str, options: str | None) -> str:
    """Registers a detector of another library, and gives its id."""
    from detectors.catalogue import registry  # here, since it needs torch, which is slow to import
    from detectors.foreign import adapt

    adapted = adapt(_find(module, attribute), name, **_parse_options(options or ""))
    _check_id(adapted.id)
    try:
        registry.register(adapted)
    except ValueError as error:
        if adapted.id not in detectors.available():
            raise
        raise ValueError(f"{error}; name one, as in --detectors NAME={module}:{attribute}") from error
    return adapted.id


def _find(module: str, attribute: str) -> Any:
    """What a module of a library, or of the current folder, has under a name."""
    from benchmark.models.user_network import importable  # here, since it needs torch, which is slow to import

    try:
        with importable((Path.cwd(),)):
            found = importlib.import_module(_SHORT.get(module, module))
    except ModuleNotFoundError as error:
        remedy = f": {_INSTALL[module]}" if module in _INSTALL else ""
        raise ValueError(f"{error}{remedy}") from error
    except (Exception, SystemExit) as error:  # it is somebody else's code
        raise ValueError(f"importing {module}: {type(error).__name__}: {error}") from error
    if not hasattr(found, attribute):
        known = [name for name, value in vars(found).items() if isinstance(value, type)]
        raise ValueError(f"{found.__name__} has no {attribute}{did_you_mean(attribute, known)}")
    return getattr(found, attribute)


def _parse_options(text: str) -> dict[str, Any]:
    """The options of `k=10,metric=cosine,scale=[1, 2]`. A value that is no literal of Python is a text."""
    options: dict[str, Any] = {}
    for pair in _NEXT_OPTION.split(text) if text else ():
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"{pair.strip()!r} is no option: write OPTION=VALUE, with commas between them")
        if name in options:
            raise ValueError(f"the option {name!r} is named twice")
        options[name] = _parse_value(name, value)
    return options


def _parse_value(name: str, text: str) -> Any:
    if _WORD.fullmatch(text) and text not in ("True", "False", "None"):
        return text
    try:
        if text.endswith(","):
            raise ValueError("a comma too many")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{name}={text}: write a number, a word, True, False, None, a text in quotes, or a list of such"
        ) from error
