"""The command line: `ood-benchmark`, and `python -m benchmark`."""

import hashlib
import inspect
import io
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import timm
import typer
from safetensors.torch import save

from benchmark import entries
from benchmark.commands import completion, options, run
from benchmark.commands.app import INSTALLED, MODULE, console, main, make_app
from benchmark.commands.run import run_pytest
from benchmark.entries import read_entries
from benchmark.gate import Gate, GateError
from benchmark.images.downloads import DownloadError
from benchmark.images.entries import BUILT_IN as IMAGE_SETS
from benchmark.images.entries import ImageSetEntry
from benchmark.models.entries import BUILT_IN as MODELS
from benchmark.models.entries import ModelEntry
from benchmark.suites.loading import suite_names
from benchmark.training import clip
from benchmark.training.digits import train_digits_network
from benchmark.training.from_scratch import RECIPES, Trained
from benchmark.user.command_line import DEFAULT_SUITE
from detectors import available
from tests.local_servers import Served, running

ROOT = Path(__file__).parents[1]
APP = typer.main.get_command(make_app(MODULE))
COMMANDS: dict[str, Any] = APP.commands  # type: ignore[attr-defined]
NAMES = ["run", "sets", "fetch", "compare", "versus", "push", "pull", "published"]
NAMES += ["save", "train", "variant", "sharpness", "site"]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/gate.md", "docs/your-own.md")
NOTHING_NAMED: Any = SimpleNamespace(params={})


def parse(command: str) -> None:
    """Parses a command line without running it; raises SystemExit or a usage error where it is wrong."""
    name, *arguments = shlex.split(command, comments=True)
    COMMANDS[name].make_context(name, arguments)


def commands_in(text: str) -> list[str]:
    """The commands of ours that a document names."""
    return re.findall(r"(?:python -m benchmark|ood-benchmark) ([a-z][^`\n]*)", text)


# --- Help. ---


def test_every_module_of_a_command_is_one() -> None:
    assert list(COMMANDS) == NAMES
    assert all(inspect.getdoc(getattr(import_module(f"benchmark.commands.{name}"), name)) for name in NAMES)


@pytest.mark.parametrize("program", [INSTALLED, MODULE])
def test_the_help_names_every_command_and_works_in_a_log(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], program) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +\S.*\.$", text.partition("Commands:")[2], re.MULTILINE) == NAMES
    assert f"{program} sets textures" in text
    assert "╭" not in text
    assert "…" not in text


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_each_command_has_examples_that_can_be_given(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"], INSTALLED) == 0
    examples = commands_in(capsys.readouterr().out.partition("Examples:")[2])
    assert examples
    for example in examples:
        assert example.split()[0] == name
        parse(example)


def test_the_help_of_run_sends_to_pytest_for_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    assert "`pytest --help`" in (text := capsys.readouterr().out)
    assert all(option in text for option in ("--suite", "--ood", "--fpr-limit", "--full"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_of_the_documents_can_be_given(document: str) -> None:
    for command in commands_in((ROOT / document).read_text(encoding="utf-8")):
        parse(command)


@pytest.mark.parametrize(
    ("command", "says"),
    [("trains digits-vit", "trains"), ("fetch textures --fron 2", "--fron"), ("save digits-vit knn", "folder|DIR")],
)
def test_a_command_that_cannot_be_given_is_seen(command: str, says: str) -> None:
    with pytest.raises(Exception, match=says):
        parse(command)


# --- What is loaded. ---

LOADED = """
import sys
from benchmark.commands.app import main
for arguments in {arguments}:
    code = main(arguments)
print("LOADED", code, *sorted({{"torch", "timm", "datasets", "pydantic"}} & {{*sys.modules}}))
"""


def loaded_by(*arguments: list[str]) -> list[str]:
    """The exit code of some command lines, and which slow modules they loaded."""
    code = LOADED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("LOADED ")[2].split()


def test_help_and_completion_load_nothing_slow() -> None:
    assert loaded_by(["--help"], *([name, "--help"] for name in NAMES)) in (["0"], ["0", "pydantic"])
    assert loaded_by(["--help"]) == ["0"]


def test_sets_starts_without_torch() -> None:
    assert loaded_by(["sets"]) == ["0", "pydantic"]


# --- Exit codes. ---


def ends(with_what: BaseException) -> Callable[..., None]:
    def end(*_: object) -> None:
        raise with_what

    return end


@pytest.mark.parametrize(
    "mistake", [DownloadError("set.zip: cut off; try again"), OSError("set.zip: cut off; try again")]
)
def test_a_mistake_is_one_line_and_code_1(
    mistake: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmark.images.inventory.describe_image_set", ends(mistake))
    assert main(["sets", "digits-val"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "set.zip: cut off; try again" in err
    assert err.count("\n") == 1


def test_an_interruption_is_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmark.images.inventory.describe_image_set", ends(KeyboardInterrupt()))
    assert main(["sets", "digits-val"]) == 130
    assert capsys.readouterr() == ("", "\ninterrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.images.inventory.describe_image_set", divmod)  # which takes no texts
    before = sys.excepthook
    with pytest.raises(TypeError, match="divmod"):
        main(["sets", "digits-val"])
    assert sys.excepthook is before


def test_another_package_under_one_of_our_names_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "detectors.py"
    file.touch()
    other = ModuleType("detectors")
    other.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "detectors", other)
    assert main(["sets", "nois"]) == 1
    assert capsys.readouterr().err.startswith(f"{file} is imported as detectors, and is not that of ood-benchmark")


def test_another_import_that_fails_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmark.images.inventory", None)
    with pytest.raises(ImportError):
        main(["sets"])


@pytest.mark.parametrize("arguments", [["set"], ["sets", "--jsn"], ["save", "digits-resnet"], ["fetch", "--from", "x"]])
def test_a_wrong_call_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("Usage: python -m benchmark")


# --- run. ---


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a test that passes and one that fails, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "TESTS", ("test_all.py",))
    (tmp_path / "test_all.py").write_text("def test_of_all():\n    pass\n")
    file = tmp_path / "test_probe.py"
    file.write_text("def test_good():\n    pass\n\ndef test_bad():\n    assert False\n")
    return file


def run_probe(*arguments: str) -> int:
    return run_pytest(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *arguments], plugin="pytester")


def test_a_run_takes_the_paths_that_it_is_given(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_probe(probe.name, "-k", "good") == 0
    assert "1 passed, 1 deselected" in capsys.readouterr().out
    assert run_probe(f"{probe}::test_bad") == 1
    assert run_probe("there-is-none.py") == 4


def test_a_run_without_a_path_is_of_all_cases(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_probe("-k", "test", "--junitxml", probe.name) == 0  # the value of an option is no path
    assert "1 passed in" in capsys.readouterr().out
    assert run_probe("-k", "good") == 5


def test_a_run_passes_on_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(run, "run_pytest", lambda arguments: given.append(arguments) or 3)
    line = "-k 'a and b' -n2 --suite ninco -x --model a --lf unit_tests_ood --model b=c --full -p no:xdist --tb=short"
    assert main(["run", *shlex.split(line)]) == 3
    ours, rest = "--suite ninco --model a --model b=c --full", "-k 'a and b' -n2 -x --lf unit_tests_ood -p no:xdist"
    assert given == [shlex.split(f"{ours} {rest} --tb=short")]


def test_a_run_has_the_options_of_the_suite(request: pytest.FixtureRequest) -> None:
    groups = [[option.names()[0] for option in group.options] for group in request.config._parser._groups]
    (ours,) = [names for names in groups if "--suite" in names]
    assert sorted(parameter.opts[0] for parameter in COMMANDS["run"].params) == sorted(ours)


# --- site. ---


def test_the_site_keeps_messages_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["site", "--results", str(tmp_path), "--output", str(tmp_path / "site")]) == 2
    assert f"no records to show in {tmp_path}" in capsys.readouterr().err


# --- Completion. ---


def test_what_a_shell_completes_is_what_there_is() -> None:
    models = read_entries(MODELS, ModelEntry)
    image_sets = read_entries(IMAGE_SETS, ImageSetEntry)
    assert completion.suites() == suite_names()
    assert completion.models(NOTHING_NAMED) == list(models)
    assert completion.image_sets(NOTHING_NAMED) == list(image_sets)
    assert completion.variants(NOTHING_NAMED) == [name for name, entry in models.items() if entry.edit]
    assert completion.fetched(NOTHING_NAMED) == [*image_sets, *(name for name in models if models[name].weights)]
    assert sorted(completion.trained()) == sorted([*RECIPES, clip.NAME])
    assert {"msp", "knn"} <= {*completion.detectors()} <= {*available()}


def test_the_ids_of_a_suite_file_are_completed(world: Path) -> None:
    context: Any = SimpleNamespace(params={"suite": str(world / "colours.toml")})
    assert "net" in completion.models(context)
    assert "greys" in completion.fetched(context)
    missing: Any = SimpleNamespace(params={"suite": str(world / "none.toml")})
    assert completion.models(missing) == completion.models(NOTHING_NAMED)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("sets textu", ["textures", "textures-43"]),
        ("published --suite cifar1", ["cifar10", "cifar100"]),
        ("save digits-resnet mahalanobis+", ["mahalanobis++"]),
        ("shar", ["sharpness"]),
    ],
)
def test_a_shell_asks_for_completions(
    line: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_OOD_BENCHMARK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"ood-benchmark {line}")
    monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
    monkeypatch.setattr(sys, "argv", ["ood-benchmark"])
    assert console() == 0
    assert capsys.readouterr().out.split() == completed


def test_a_shell_gets_its_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    assert main(["--show-completion"], INSTALLED) == 0
    assert "_OOD_BENCHMARK_COMPLETE=complete_bash" in capsys.readouterr().out


def test_defaults_are_those_of_the_library() -> None:
    """The commands repeat some, since the modules that have them are slow to load."""
    fit = inspect.signature(Gate.fit).parameters
    assert entries.DATA_DIR == options.DATA_DIR == Path(fit["data_dir"].default)
    assert Path(fit["store"].default) == options.STORE
    assert options.SUITE == fit["suite"].default == DEFAULT_SUITE


# --- Recipes. ---


def test_the_recipes_of_the_built_in_models_train_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed; what they would train is only noted."""
    trained: list[str] = []

    def train(model_id: str, folder: Path | None) -> Trained:
        trained.append(model_id)
        return Trained(Path(), 1, 1.0, 1.0)

    monkeypatch.setattr("benchmark.training.digits.train_digits_network", train)
    tables = tomllib.loads(MODELS.read_text(encoding="utf-8"))
    recipes = {model_id: table["recipe"] for model_id, table in tables.items() if isinstance(table.get("recipe"), str)}
    assert recipes
    for recipe in recipes.values():
        python, *module, command, model_id = shlex.split(recipe)
        assert (python, *module) == ("python", "-m", "benchmark")
        assert main([command, model_id]) == 0
    assert trained == list(recipes)
    assert sorted(trained) == sorted([*RECIPES, clip.NAME])


def test_each_network_has_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr("benchmark.training.from_scratch.train_and_save", lambda *what: made.append(what))
    monkeypatch.setattr("benchmark.training.clip.train_and_save", lambda *what: made.append(what))
    for model_id in ("digits-vit", "digits-clip"):
        train_digits_network(model_id, tmp_path)
    assert made == [("digits-vit", tmp_path), (tmp_path,)]


# --- What is printed can be run. ---


def run_printed(message: str, **names: str) -> None:
    """Runs the command that ends a message, with names in place of its words in capitals."""
    found = re.search(r"python -m benchmark (.*)", message)
    assert found, message
    assert main([names.get(word, word) for word in shlex.split(found[1])]) == 0


@dataclass
class Saving:
    """`save` in a world of colours, whose data lie in a folder with a space in its name."""

    world: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def suite(self) -> Path:
        return self.world / "colours.toml"

    def __call__(self, model: str = "net") -> str:
        """What it complains of."""
        folders = ["--data-dir", self.world / "my data", "--store", self.world / "store"]
        arguments = ["save", model, "msp", self.world / "gate", "--suite", self.suite, *folders]
        code = main([*map(str, arguments)])
        complaint = self.capsys.readouterr().err
        assert code == (1 if complaint else 0)
        return complaint

    def becomes_possible(self, model: str = "net") -> None:
        """Saving is refused, and the command that is printed mends it."""
        complaint = self(model)
        assert complaint.count("\n") == 1
        run_printed(complaint)
        self.capsys.readouterr()
        assert self(model) == ""


@pytest.fixture
def saving(user_world: Path, capsys: pytest.CaptureFixture[str]) -> Saving:
    return Saving(user_world, capsys)


def test_images_are_fetched_as_it_is_printed(saving: Saving) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in sorted((saving.world / "images" / "colours-test").rglob("*.png")):
            archive.write(file, file.relative_to(saving.world / "images"))
    with running() as server:
        server.files["/set.zip"] = Served(content.getvalue())
        text = saving.suite.read_text()
        source = f'sources = [{{ url = "{server.url}/set.zip", inside = "colours-test" }}]'
        local = f'local = "fetched colours"\n{source}'
        saving.suite.write_text(text.replace('folder = "images/colours-test"', local))
        saving.becomes_possible()


def test_weights_are_fetched_as_it_is_printed(saving: Saving) -> None:
    weights = save(timm.create_model("cifar_resnet20", num_classes=3).state_dict())
    with running() as server:
        server.files["/net.safetensors"] = Served(weights)
        sha256 = hashlib.sha256(weights).hexdigest()
        with saving.suite.open("a") as suite:
            suite.write(STATE_DICT.format(url=server.url, sha256=sha256))
        saving.becomes_possible("my-net")


STATE_DICT = """
[model.my-net]
title = "A network"
source = "state-dict:cifar_resnet20"
weights = "nets/net.safetensors"
weights_sha256 = "{sha256}"
preprocessing = {{ input_size = [3, 32, 32], mean = [0, 0, 0], std = [1, 1, 1] }}
sources = [{{ url = "{url}/net.safetensors" }}]
"""


def test_a_variant_is_made_as_it_is_printed(saving: Saving) -> None:
    with saving.suite.open("a") as suite:
        suite.write(VARIANT)
    saving.becomes_possible("net+pruned")


VARIANT = """
[model."net+pruned"]
title = "A pruned network"
base = "net"
edit = "edits/net+pruned"
recipe = { method = "umap", kept = 0.9, schedule = { epochs = 1, learning_rate = 0.05 } }
"""


def test_a_gate_is_saved_again_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GateError) as caught:
        Gate.load("my gate")
    run_printed(str(caught.value), MODEL="digits-resnet", DETECTOR="msp")
    assert Gate.load("my gate").detector.id == "msp"


def test_an_unknown_name_tells_where_the_names_are(saving: Saving) -> None:
    assert main(["sets", "grays", "--suite", str(saving.suite)]) == 1
    complaint = saving.capsys.readouterr().err
    assert complaint.startswith("nothing is called 'grays' (did you mean 'greys'?)")
    run_printed(complaint)
    assert "greys" in saving.capsys.readouterr().out


def test_the_table_of_sets_tells_how_to_see_one(saving: Saving) -> None:
    assert main(["sets", "--suite", str(saving.suite)]) == 0
    run_printed(saving.capsys.readouterr().out.splitlines()[-1], SET="greys")
    assert "greys: greys\n  state     there" in saving.capsys.readouterr().out


def test_an_old_recipe_stays_readable(saving: Saving) -> None:
    text = saving.suite.read_text().replace("see tests/conftest.py", "python -m benchmark.train net")
    saving.suite.write_text(text)
    assert saving() == ""
