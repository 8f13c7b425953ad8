"""The wheel in an environment of its own: what it holds and declares, and what a stranger does with it."""

import ast
import email
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmark", "detectors", "leaderboard", "unit_tests_ood")
PLUGIN = ("-p", "benchmark.plugin", "--pyargs")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
# Modules that import something optional at their top, and are themselves imported where it is there.
OPTIONAL = {("benchmark/running/scheduling.py", "xdist"), ("benchmark/images/make_digits.py", "sklearn")}


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and with the dependencies of the one that runs these tests."""

    wheel: Path
    environment: Path

    def python(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.shell(folder, [str(self.environment / "bin" / "python"), *arguments])

    def pytest(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.shell(folder, ["pytest", *arguments])

    def shell(self, folder: Path, command: str | list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command in a folder, as a user does who has activated the environment."""
        words = ["bash", "-c", command] if isinstance(command, str) else command
        variables = {"PATH": f"{self.environment / 'bin'}:/usr/bin:/bin", "HOME": str(self.environment)}
        return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    @cached_property
    def files(self) -> set[str]:
        """The files of our packages in the wheel."""
        names = zipfile.ZipFile(self.wheel).namelist()
        return {name for name in names if name.partition("/")[0] in PACKAGES}

    @cached_property
    def requirements(self) -> list[Requirement]:
        archive = zipfile.ZipFile(self.wheel)
        about = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(archive.read(about))
        return [Requirement(text) for text in told.get_all("Requires-Dist", [])]


def tracked(*folders: str) -> list[str]:
    """The files of the checkout, new ones too, but none that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    for name in tracked(*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    built = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(built, cwd=folder / "source", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        str(wheel),
    ]
    done = subprocess.run([*install, "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A path file of its own is not searched for others, so that an editable install of the checkout stays unseen. It
    # comes after the wheel: pip would take that install for the wheel, and leave the wheel out.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(others))
    script = environment / "bin" / "pytest"
    script.write_text(f"#!{python}\nimport sys\n\nimport pytest\n\nsys.exit(pytest.main())\n")
    script.chmod(0o755)
    return Installed(wheel, environment)


def test_the_wheel_is_what_is_imported(installed: Installed, tmp_path: Path) -> None:
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {PACKAGES}]"
    files = installed.python(tmp_path, "-c", code).stdout.splitlines()
    assert len(files) == len(PACKAGES)
    assert all(Path(file).is_relative_to(installed.environment) for file in files)


# --- What the wheel holds and declares. ---


def test_the_wheel_holds_every_file_of_the_packages(installed: Installed) -> None:
    expected = set(tracked(*PACKAGES))
    assert {"benchmark/plugin/__init__.py", "benchmark/images/digits.parquet"} <= expected
    assert expected - installed.files == set()
    assert installed.files - expected == set()


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """What some code imports, by the first part of its name, and whether that is at its top."""
    tree = ast.parse(source)
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            if (first := name.partition(".")[0]) not in {*PACKAGES, *sys.stdlib_module_names}:
                yield first, id(node) in top


def undeclared(files: dict[str, str], requirements: list[Requirement]) -> list[str]:
    """What code imports of distributions that no requirement names, or at its top of those that only an extra names.

    files: source code by its file.
    """
    anyhow = {canonicalize_name(requirement.name) for requirement in requirements}
    always = {canonicalize_name(requirement.name) for requirement in requirements if requirement.marker is None}
    owners = metadata.packages_distributions()
    found = []
    for file, source in files.items():
        for module, at_top in imports(source):
            names = {canonicalize_name(name) for name in owners.get(module, ())}
            allowed = always if at_top and (file, module) not in OPTIONAL else anyhow
            if not names & allowed:
                found.append(f"{file}: {module}")
    return found


def test_every_import_is_declared(installed: Installed) -> None:
    sources = {name: (ROOT / name).read_text() for name in installed.files if name.endswith(".py")}
    assert len(sources) > 100
    assert undeclared(sources, installed.requirements) == []


def test_an_import_that_is_not_declared_is_seen() -> None:
    requirements = [Requirement("PyTest>=8"), Requirement('scikit-learn; extra == "test"')]
    files = {"a.py": "import pytest, os\ndef f():\n    import sklearn.base", "b.py": "from sklearn import base"}
    files |= {"c.py": "def f():\n    import jinja2", "d.py": "import nothing_of_that_name"}
    assert undeclared(files, requirements) == ["b.py: sklearn", "c.py: jinja2", "d.py: nothing_of_that_name"]


# --- The plugin is opt-in, and quick where it only prints. ---


def test_pytest_knows_nothing_of_the_plugin_unless_it_is_named(installed: Installed, tmp_path: Path) -> None:
    code = "import importlib.metadata as m; print([e.value for e in m.distribution('ood-benchmark').entry_points])"
    assert "plugin" not in installed.python(tmp_path, "-c", code).stdout
    assert "--fpr-limit" not in installed.pytest(tmp_path, "--help").stdout


LOADED = """
import sys, pytest
code = pytest.main(sys.argv[1:])
print(int(code), sorted({"torch", "timm", "datasets", "open_clip"} & {*sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("option", "says"), [("--help", "--fpr-limit"), ("--version", ""), ("--markers", "parametrize")]
)
def test_what_only_prints_loads_no_torch(installed: Installed, tmp_path: Path, option: str, says: str) -> None:
    done = installed.python(tmp_path, "-c", LOADED, "-p", "benchmark.plugin", option)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert says in done.stdout


def test_help_in_the_checkout_loads_no_torch() -> None:
    command = [sys.executable, "-c", LOADED, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "--fpr-limit" in done.stdout


def test_an_option_of_another_plugin_is_named(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--device')\n")
    done = installed.python(tmp_path, "-m", "pytest", "-p", "theirs", "-p", "benchmark.plugin", "--pyargs", "benchmark")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--device is an option of benchmark.plugin and of another plugin or conftest.py, too" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_pytest_benchmark_the_run_says_so(installed: Installed, tmp_path: Path) -> None:
    done = installed.pytest(tmp_path, "-p", "no:benchmark", *PLUGIN, "benchmark")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith("ERROR: pytest-benchmark, which times the cases, is not loaded")


# --- A stranger's commands. ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder in somebody's project, whose root is the folder above."""
    (tmp_path / "a project").mkdir()
    (tmp_path / "a project" / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "a project" / "an empty folder").mkdir()
    return tmp_path / "a project" / "an empty folder"


def records(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "digits").glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)


def test_a_stranger_runs_cases_in_a_folder_of_theirs(installed: Installed, folder: Path) -> None:
    both = [*PLUGIN, "benchmark", "unit_tests_ood", "--fpr-limit", "0", "-q"]
    done = installed.pytest(folder, *both, "-k", "digits-resnet/msp/ and (letters or black)", "-n", "2")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed, 1 xfailed" in done.stdout
    (file,) = records(folder)
    assert f"records: {file}" in done.stdout
    assert (file.with_suffix("") / "digits-resnet" / "msp" / "letters.parquet").is_file()
    assert any((folder / ".store").rglob("*.safetensors"))
    assert {path.name for path in folder.parent.iterdir()} <= {folder.name, "pyproject.toml", ".pytest_cache"}

    (command,) = re.findall(r"^digits-resnet/msp/letters: FPR@95 .*; alone: (.*)$", done.stdout, re.MULTILINE)
    alone = installed.shell(folder, command)
    assert alone.returncode == pytest.ExitCode.TESTS_FAILED, alone.stdout + alone.stderr
    assert "collected 1 item" in alone.stdout
    assert f"; alone: {command}\n" in alone.stdout

    again = installed.pytest(folder, *both, "--lf")
    assert "1 failed" in again.stdout
    assert " passed" not in again.stdout
    assert len(records(folder)) == 3


CONFTEST = """
import pytest

pytest_plugins = ["benchmark.plugin"]

@pytest.fixture
def session():
    return "theirs"

@pytest.fixture
def prepare():
    return "theirs"
"""

# It has the name of a file of ours, which has no cases where a suite has none.
OWN_TEST = """
def test_theirs(session, prepare):
    assert (session, prepare) == ("theirs", "theirs")
"""


def test_a_stranger_with_a_project_of_their_own(installed: Installed, folder: Path) -> None:
    """The plugin is named three times, the environment lies below the root folder, and half of pytest is off."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_detector_contract.py").write_text(OWN_TEST)
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = -p benchmark.plugin --strict-markers --strict-config\nxfail_strict = true\n"
    )
    off = ["-p", "no:cacheprovider", "-p", "no:terminal", f"--rootdir={installed.environment.parent}"]
    chosen = ["test_detector_contract.py", "benchmark", "-k", "theirs or digits-resnet/msp/digits"]
    done = installed.pytest(folder, *PLUGIN, *chosen, *off, "--junit-xml=report.xml")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert 'tests="2"' in (folder / "report.xml").read_text()
    assert len(records(folder)) == 1
    assert not (folder / ".pytest_cache").exists()


def test_an_own_file_in_place_of_ours_is_told(installed: Installed, folder: Path) -> None:
    (folder / "conftest.py").touch()  # for which pytest puts its folder before all others
    (folder / "unit_tests_ood.py").touch()
    done = installed.pytest(folder, *PLUGIN, "benchmark")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith(f"ERROR: {folder / 'unit_tests_ood.py'} is imported as unit_tests_ood, and is not")
