"""What a record says of the code: this package's version and commit, and apart from it the user's commit."""

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

from benchmark.running import provenance
from benchmark.running.provenance import SOURCE, GitState, package_git_state, package_version, user_git_state

NONE = GitState(None, None)
PYPROJECT = '[project]\nname = "ood-benchmark"\nversion = "7.8"\n'


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder: Path) -> str:
    """Makes a folder a repository with all that lies in it, and returns the commit."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "all")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source tree of this package, in no repository."""
    tree = tmp_path / "tree"
    (tree / "benchmark").mkdir(parents=True)
    (tree / "benchmark" / "__init__.py").touch()
    (tree / "pyproject.toml").write_text(PYPROJECT)
    return tree


def test_a_checkout_has_its_version_and_commit(source: Path) -> None:
    assert package_git_state(source) == NONE
    commit = repository(source)
    assert package_version(source) == "7.8"
    assert package_git_state(source) == GitState(commit, False)
    (source / "benchmark" / "__init__.py").write_text("changed = True")
    assert package_git_state(source) == GitState(commit, True)
    assert user_git_state(source, source) == NONE  # a user in our checkout has no repository of their own
    assert user_git_state(source / "benchmark", source) == NONE


def test_a_package_inside_of_somebodys_repository_has_no_commit(tmp_path: Path, source: Path) -> None:
    site_packages = tmp_path / "theirs" / ".venv" / "lib"
    (site_packages / "benchmark").mkdir(parents=True)
    (tmp_path / "theirs" / "pyproject.toml").write_text('[project]\nname = "theirs"\nversion = "1"\n')
    source.rename(tmp_path / "theirs" / "vendored")
    commit = repository(tmp_path / "theirs")
    for package in (site_packages, tmp_path / "theirs" / "vendored"):
        assert package_git_state(package) == NONE
        assert user_git_state(tmp_path / "theirs", package) == GitState(commit, False)
        assert user_git_state(site_packages, package) == GitState(commit, False)
    assert package_version(tmp_path / "theirs" / "vendored") == "7.8"
    assert package_version(site_packages) is None  # what is installed in this environment lies elsewhere


def test_a_repository_of_somebody_else_is_not_ours(source: Path) -> None:
    (source / "pyproject.toml").write_text(PYPROJECT.replace("ood-benchmark", "theirs"))
    commit = repository(source)
    assert package_git_state(source) == NONE
    assert package_version(source) is None
    assert git(source, "rev-parse", "HEAD") == commit  # the twin: it is a repository


def test_an_installed_package_has_the_version_of_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "ood_benchmark-3.4.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ood-benchmark\nVersion: 3.4\n")
    installed = importlib.metadata.Distribution.at(about)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    assert package_version(tmp_path) == "3.4"
    assert package_version(tmp_path / "elsewhere") is None


def test_what_is_not_installed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DISTRIBUTION", "no-such-distribution")
    assert package_version(tmp_path) is None


def test_without_git_nothing_is_known(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(source)
    monkeypatch.setenv("PATH", "")
    assert package_git_state(source) == NONE
    assert user_git_state(source, SOURCE) == NONE


def test_the_variables_of_a_hook_name_another_repository(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository(source)
    (tmp_path / "other").mkdir()
    repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert package_git_state(source) == GitState(commit, False)
