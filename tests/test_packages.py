"""Other modules under our names: a user's files, other distributions, and such as were installed over ours."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.packages import PACKAGES, foreign_package

ROOT = Path(__file__).parents[1]
OURS = ("benchmark", "detectors", "unit_tests_ood", "leaderboard")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code for which a folder is the first place to import from."""
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def told(folder: Path, name: str) -> str:
    """What is said of a name where a folder comes first; ours are those of the checkout."""
    code = (
        f"import runpy; print(runpy.run_path({str(ROOT / 'benchmark' / 'packages.py')!r})['foreign_package']({name!r}))"
    )
    return python(code, folder).stdout.strip()


def distribution(folder: Path, name: str, *files: str) -> None:
    """What pip writes of a distribution that has some files."""
    about = folder / f"{name.replace('-', '_')}-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    hashes = {file: hashlib.sha256((folder / file).read_bytes()).digest() for file in files}
    lines = [
        f"{file},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}," for file, digest in hashes.items()
    ]
    (about / "RECORD").write_text("\n".join(lines) + "\n")


def test_ours_are_ours() -> None:
    assert foreign_package() is None
    assert set(PACKAGES) == set(OURS)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("place", ["{}.py", "{}/__init__.py"])
def test_a_file_of_the_users_in_place_of_ours_is_told(tmp_path: Path, name: str, place: str) -> None:
    file = tmp_path / place.format(name)
    file.parent.mkdir(exist_ok=True)
    file.touch()
    line = told(tmp_path, name)
    assert line.startswith(f"{file} is imported as {name}, and is not that of ood-benchmark (")
    assert line.endswith("it belongs to no distribution, so rename it, or start from another folder")


def test_a_folder_without_code_takes_no_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "detectors").mkdir()
    code = f"sys.path.insert(1, {str(ROOT)!r}); from benchmark.packages import foreign_package as f; print(f())"
    assert python(code, tmp_path).stdout.strip() == "None"


def test_another_distribution_is_named(tmp_path: Path) -> None:
    (tmp_path / "detectors").mkdir()
    (tmp_path / "detectors" / "__init__.py").touch()
    distribution(tmp_path, "detectors", "detectors/__init__.py")
    assert "it belongs to the distribution detectors 9.9, so uninstall that" in told(tmp_path, "detectors")


def test_a_distribution_that_was_installed_over_ours_is_named(tmp_path: Path) -> None:
    for name in ("benchmark", "detectors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"'ours: {name}'")
    shutil.copy(ROOT / "benchmark" / "packages.py", tmp_path / "benchmark")
    distribution(tmp_path, "ood-benchmark", "benchmark/__init__.py", "detectors/__init__.py")
    code = "from benchmark.packages import foreign_package; print(foreign_package('benchmark', 'detectors'))"
    assert python(code, tmp_path).stdout.strip() == "None"  # the twin
    (tmp_path / "detectors" / "__init__.py").write_text("'theirs'")
    distribution(tmp_path, "detectors", "detectors/__init__.py")
    line = python(code, tmp_path).stdout.strip()
    assert line.startswith(f"{tmp_path / 'detectors' / '__init__.py'} is not the file of ood-benchmark: ")
    assert "the distribution detectors 9.9 was installed over it" in line


@pytest.mark.parametrize(
    ("foreign", "command", "code"),
    [
        ("benchmark.py", ["leaderboard", "build"], 1),
        ("benchmark.py", ["unit_tests_ood", "write", "x", "--count", "1", "--names", "pixel-permutation"], 1),
        ("detectors.py", ["unit_tests_ood", "write", "x", "--names", "blakc"], 1),
    ],
)
def test_commands_tell_in_one_line(tmp_path: Path, foreign: str, command: list[str], code: int) -> None:
    (tmp_path / foreign).touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert f"{tmp_path / foreign} is imported as {foreign.removesuffix('.py')}, and is not" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_import_that_fails_for_another_reason_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "build"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr


def test_the_plugin_tells_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "detectors.py").touch()
    (tmp_path / "conftest.py").touch()  # for which pytest puts its folder before all others
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "benchmark.plugin", "--pyargs", "benchmark"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith(f"ERROR: {tmp_path / 'detectors.py'} is imported as detectors, and is not")
    assert len(done.stderr.strip().splitlines()) == 1
