"""Where a number comes from: the code and the packages."""

import importlib.metadata
import subprocess
from pathlib import Path

from PIL import features

PACKAGES = ("torch", "torchvision", "timm", "datasets", "safetensors", "numpy", "scipy", "pillow")


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout and whether it has uncommitted changes; (None, None) outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return commit, None if changes is None else bool(changes)


def package_versions() -> dict[str, str]:
    """Of the packages that numbers depend on, and of the library that decodes JPEG files for Pillow."""
    jpeg = features.version("libjpeg_turbo")
    decoder = {"libjpeg-turbo": jpeg} if jpeg else {"libjpeg": str(features.version("jpg"))}
    return {name: importlib.metadata.version(name) for name in PACKAGES} | decoder
