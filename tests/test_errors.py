"""What a user can mend is a UserError and one line; errors in their code have a file and a line; bugs a traceback."""

import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.errors import Remedy, UserError, is_refusal, place_in_user_code
from benchmark.metrics import auroc
from benchmark.running.fitted_detector import FittedDetector
from benchmark.user.messages import on_command_line, one_line, told
from detectors import create
from detectors.catalogue import registry
from tests.test_user import DETECTOR, OOD, Runs

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]
LIBRARY = ("images", "models", "suites", "limits", "running")


def caught(run: Any) -> BaseException:
    with pytest.raises(Exception) as error:  # noqa: PT011
        run()
    return error.value


def code_of_user(folder: Path, text: str) -> Any:
    """The functions of a file of a user's."""
    file = folder / "mine.py"
    file.write_text(text)
    names: dict[str, Any] = {}
    exec(compile(text, str(file), "exec"), names)
    return names


# --- The classes. ---


def error_classes(source: str) -> dict[str, list[str]]:
    """The public classes of errors in some code, with their bases."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return {
        node.name: [ast.unparse(base) for base in node.bases]
        for node in classes
        if node.name.endswith("Error") and not node.name.startswith("_")
    }


def test_every_class_of_errors_is_for_the_user() -> None:
    found: dict[str, list[str]] = {}
    for package in ("benchmark", "leaderboard"):
        for file in (ROOT / package).rglob("*.py"):
            found |= error_classes(file.read_text())
    roots = found.pop("UserError")
    assert roots == ["ValueError"]
    assert len(found) >= 15
    for name, bases in found.items():
        assert bases[0] == "UserError" or bases[0] in found, name


def test_a_class_of_another_kind_is_seen() -> None:
    assert error_classes("class NewError(ValueError): pass\nclass _Own(Exception): pass") == {
        "NewError": ["ValueError"]
    }


# --- The library does not know the options of a command line. ---


def options_in_messages(source: str) -> Iterator[str]:
    """The texts of some code, without its docstrings, that name an option."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for text in texts:
        if id(text) not in docstrings and re.search(r"(^|[\s`'\"])--[a-z]", str(text.value)):
            yield str(text.value)


def test_messages_of_the_library_name_no_option() -> None:
    for wing in LIBRARY:
        for file in (ROOT / "benchmark" / wing).rglob("*.py"):
            texts = [text for text in options_in_messages(file.read_text()) if file.name != "provenance.py"]
            assert not texts, file


def test_a_message_that_names_an_option_is_seen() -> None:
    source = '"""--this is a docstring."""\nraise UserError(f"{x}: no space; name another folder with --store")'
    assert list(options_in_messages(source)) == [": no space; name another folder with --store"]


@pytest.mark.parametrize(
    ("remedy", "says"),
    [
        (None, ""),
        (Remedy("set", "store"), "; name another folder with --store"),
        (Remedy("set", "device"), "; name another one with --device"),
        (Remedy("run", "train it"), "; make it again with: train it"),
        (Remedy("fetch", "svhn"), "; get it with: python -m benchmark fetch svhn"),
        (
            Remedy("fetch", "set", Path("my suite.toml"), Path("data")),
            "; get it with: python -m benchmark fetch set --suite 'my suite.toml' --data-dir data",
        ),
    ],
)
def test_remedies_on_the_command_line(remedy: Remedy | None, says: str) -> None:
    assert on_command_line(remedy) == says
    assert told(UserError("net: it is damaged", remedy)) == f"net: it is damaged{says}"


# --- Whose error it is. ---


def test_an_error_in_a_users_code_has_file_and_line(tmp_path: Path) -> None:
    mine = code_of_user(tmp_path, "import torch\ndef shapes():\n    return torch.ones(2, 3) @ torch.ones(2, 3)\n")
    error = caught(mine["shapes"])
    assert isinstance(error, RuntimeError)
    line = one_line(error)
    assert line is not None
    assert line.startswith("RuntimeError: ")
    assert line.endswith(f" ({tmp_path / 'mine.py'}, line 3)")
    assert "\n" not in line


def test_the_innermost_line_of_the_user_counts(tmp_path: Path) -> None:
    text = "import json\ndef outer():\n    inner()\ndef inner():\n    json.loads('{')\n"  # json is Python code, too
    assert str(place_in_user_code(caught(code_of_user(tmp_path, text)["outer"]))).endswith("mine.py, line 5")


def test_a_bug_is_told_in_no_line() -> None:
    assert one_line(caught(lambda: torch.ones(2, 3) @ torch.ones(2, 3))) is not None  # the twin: this file is a user's
    for bug in (caught(partial(torch.cat, [])), caught(partial(int, "x"))):
        bug.__traceback__ = None  # as of an error that came up in our code alone
        assert one_line(bug) is None


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: create("knn", k=0),
        lambda: create("knn").fit(None, None),
        lambda: auroc(np.array([np.nan]), np.array([1.0])),
    ],
)
def test_what_detectors_and_metrics_refuse_is_for_the_user(refuse: Any) -> None:
    assert is_refusal(caught(refuse))


def test_an_error_of_a_library_under_a_detector_is_no_refusal() -> None:
    assert not is_refusal(caught(lambda: np.zeros(3).reshape(2, 2)))
    assert not is_refusal(caught(lambda: create("msp").score(None).bogus))  # type: ignore[arg-type]


def test_what_a_users_module_raises_while_it_is_loaded_has_its_place(run: Runs) -> None:
    (run.pytester.path / "mine.py").write_text("def make():\n    return [][1]\n")
    result = run(OOD, "--model", "mine:make", *run.user[2:], "-k", "msp/")
    result.assert_outcomes(errors=1)
    line = next(line for line in result.outlines if "IndexError" in line)
    assert "cannot use module:mine:make (named in --model): IndexError: list index out of range (" in line
    assert f"{run.pytester.path / 'mine.py'}, line 2)" in line


# --- In a case. ---

SHAPES = DETECTOR.replace("return batch.logits.amax(dim=1)", "return batch.logits @ batch.logits")


@pytest.fixture
def run(pytester: pytest.Pytester, user_world: Path) -> Runs:
    return Runs(pytester, user_world)


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the detectors that a test registers."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize("style", ["auto", "short", "long", "native"])
def test_a_shape_error_in_a_users_detector(run: Runs, style: str) -> None:
    file = run.pytester.path / "mine.py"
    file.write_text(SHAPES)
    number = SHAPES[: SHAPES.index("batch.logits @")].count("\n") + 1
    result = run(OOD, *run.user, "--detectors", str(file), "-k", "my-detector and test_case", f"--tb={style}")
    result.assert_outcomes(errors=1)
    reason = str(run.cases()["net/my-detector/greys"].reason)
    assert re.fullmatch(rf"RuntimeError: .*mat1 and mat2 shapes .* \(mine\.py, line {number}\)", reason)
    text = result.stdout.str()
    if style == "auto":
        assert f"net/my-detector/greys: {reason.replace('(mine.py', f'({file}')}" in text
    assert ("return batch.logits @ batch.logits" in text) == (style != "auto")
    assert bool(re.search(rf'mine\.py(:|", line ){number}\b', text)) == (style != "auto")


@pytest.mark.usefixtures("_registry")
def test_a_detector_that_breaks_off_in_the_contract_has_its_place(run: Runs) -> None:
    file = run.pytester.path / "mine.py"
    file.write_text(SHAPES)
    result = run(OOD, "--detectors", str(file), "-k", "my-detector/higher_means")
    result.stdout.fnmatch_lines([f"my-detector: higher_means_*: RuntimeError: *mat1 * ({file}, line *)"])


def test_a_bug_of_ours_keeps_its_traceback(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec("def broken(self, scores):\n    raise RuntimeError('this is a bug')", names)  # no code of a user's
    monkeypatch.setattr(FittedDetector, "metrics", names["broken"])
    result = run(OOD, *run.user, "-k", "msp/")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "metrics = self.detector.metrics(scores)" in text
    assert "session.py" in text
    assert run.cases()["net/msp/greys"].reason == "RuntimeError: this is a bug"


def test_a_full_disk_is_one_line_whatever_the_style(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.world / "store").write_text("in the way")
    result = run(OOD, *run.user, "-k", "msp/", "--tb=long")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"net/msp/greys: cannot write to the store {run.world / 'store'}*; name another folder with --store"]
    )
    assert "Traceback" not in result.stdout.str()
    assert "store.py" not in result.stdout.str()
