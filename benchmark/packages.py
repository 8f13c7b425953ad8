"""Whether our four packages are the ones that are imported: other distributions, and a user's files, have their names.

This file imports nothing of ours, so that whoever failed to import our packages can still run it by its place (see
`leaderboard/__main__.py`). Where `benchmark` itself is another one, `pytest -p benchmark.plugin` ends with an
ImportError, and `python -m benchmark` runs the other one: no code of ours runs then.
"""

import base64
import hashlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "ood-benchmark"
PACKAGES = ("benchmark", "detectors", "leaderboard", "unit_tests_ood")
_HOME = Path(__file__).resolve().parents[1]


def foreign_package(*names: str) -> str | None:
    """One line on the first of our packages in whose place Python finds another module; None where all are ours.

    names: the packages that are looked for.

    It says which file was found, to which distribution it belongs, and what to do.
    """
    return next(filter(None, map(_foreign, names or PACKAGES)), None)


def _foreign(name: str) -> str | None:
    ours = _HOME / name / "__init__.py"
    found = _found(name)
    if found is None:
        return f"no package {name} is found, though {DISTRIBUTION} has one: install {DISTRIBUTION} again"
    if found != ours:
        told = f"{found} is imported as {name}, and is not that of {DISTRIBUTION} ({ours})"
        if owner := _owner(found):
            return (
                f"{told}: it belongs to the distribution {owner}, so uninstall that, or install {DISTRIBUTION} into an "
                "environment of its own"
            )
        return f"{told}: it belongs to no distribution, so rename it, or start from another folder"
    if _was_overwritten(name, ours):
        owner = _owner(ours) or "another one"
        return (
            f"{ours} is not the file of {DISTRIBUTION}: the distribution {owner} was installed over it, so uninstall "
            f"that and install {DISTRIBUTION} again, or install it into an environment of its own"
        )
    return None


def _found(name: str) -> Path | None:
    """The file of the module of that name, imported or not; a folder without __init__.py is none."""
    module = sys.modules.get(name)
    try:
        specification = None if module else importlib.util.find_spec(name)
    except ValueError:  # of a module that is being replaced
        return None
    file = getattr(module, "__file__", None) if module else specification and specification.origin
    return Path(file).resolve() if file else None


def _was_overwritten(name: str, file: Path) -> bool:
    """Whether a file of ours is not the one that was installed: pip lets distributions write over each other."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return False  # a checkout, which no distribution writes to
    for recorded in distribution.files or ():
        if recorded.as_posix() == f"{name}/__init__.py" and recorded.hash and recorded.hash.mode == "sha256":
            if Path(str(distribution.locate_file(recorded))).resolve() != file:
                return False  # installed elsewhere, and imported from a checkout
            digest = hashlib.sha256(file.read_bytes()).digest()
            return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded.hash.value
    return False


def _owner(file: Path) -> str | None:
    """The distribution, other than ours, that a file was installed with, and its version."""
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name == DISTRIBUTION:
            continue
        for recorded in distribution.files or ():
            if recorded.name == file.name and Path(str(distribution.locate_file(recorded))).resolve() == file:
                return f"{name} {distribution.version}"
    return None
