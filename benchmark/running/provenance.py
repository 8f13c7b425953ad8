"""Where a number comes from: the code of this package, the repository of its user, and the packages."""

import importlib.metadata
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from PIL import features

DISTRIBUTION = "ood-benchmark"
PACKAGES = ("torch", "torchvision", "timm", "datasets", "safetensors", "numpy", "scipy", "pillow")
SOURCE = Path(__file__).resolve().parents[2]  # the folder that holds `benchmark`


class GitState(NamedTuple):
    """The state of a git checkout.

    commit: the commit that is checked out. None outside of a checkout, and before the first commit.
    dirty: whether there are changes or files that are not committed. None outside of a checkout.
    """

    commit: str | None
    dirty: bool | None


NO_CHECKOUT = GitState(None, None)


def package_version(source: Path = SOURCE) -> str | None:
    """The version of this package. None where it neither is installed nor lies in its source tree.

    A source tree knows its version best: what is installed beside it may be another one.

    source: the folder that holds `benchmark`.
    """
    if version := _project(source).get("version"):
        return str(version)
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    return installed.version if Path(str(installed.locate_file("benchmark"))).resolve().parent == source else None


def package_git_state(source: Path = SOURCE) -> GitState:
    """The state of this package's own checkout. Of an installed package there is none, wherever it is installed.

    source: the folder that holds `benchmark`.
    """
    own = checkout_of(source) == source and _project(source)
    return git_state(source) if own else NO_CHECKOUT


def user_git_state(folder: Path, source: Path = SOURCE) -> GitState:
    """The state of the repository in which a user works. The checkout of this package counts as none.

    folder: where the user is.
    source: the folder that holds `benchmark`.
    """
    return NO_CHECKOUT if checkout_of(folder) in (None, source) else git_state(folder)


def git_state(folder: Path) -> GitState:
    """The state of the checkout that a folder lies in."""
    changes = _git(folder, "status", "--porcelain")
    return GitState(_git(folder, "rev-parse", "HEAD"), None if changes is None else bool(changes))


def checkout_of(folder: Path) -> Path | None:
    """The top folder of the checkout that a folder lies in. None where it lies in none, or git is not there."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    return Path(top).resolve() if top else None


def package_versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on, and of the library that decodes JPEG files for Pillow."""
    jpeg = features.version("libjpeg_turbo")
    decoder = {"libjpeg-turbo": jpeg} if jpeg else {"libjpeg": str(features.version("jpg"))}
    return {name: importlib.metadata.version(name) for name in PACKAGES} | decoder


def _project(source: Path) -> dict[str, Any]:
    """The table `project` of this package's pyproject.toml in a folder. Empty where there is none, or another's."""
    try:
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}
    return project if project.get("name") == DISTRIBUTION else {}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints in a folder. None where it fails, or is not there."""
    # Within a hook, git's variables name the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # somebody may be at work in the checkout
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
