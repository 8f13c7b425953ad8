"""What `sets` and `fetch` know: the entries of all built-in files, or those of a suite."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.commands.options import DATA_DIR
from benchmark.errors import UserError

if TYPE_CHECKING:
    from benchmark.images.entries import ImageSetEntry
    from benchmark.models.entries import ModelEntry


def known_image_sets(suite_name: str | None, data_dir: Path) -> "tuple[dict[str, ImageSetEntry], list[str]]":
    """All image sets that are known, and the ids of those that are meant where none is named."""
    if suite_name is not None:
        from benchmark.suites.loading import load_suite  # here, since it loads torch

        suite = load_suite(suite_name, data_dir)
        return suite.image_sets, list(dict.fromkeys(suite.entry.image_sets()))
    from benchmark.entries import read_entries  # here, as the next, since pydantic is slow to load
    from benchmark.images.entries import BUILT_IN, ImageSetEntry

    entries = read_entries(BUILT_IN, ImageSetEntry, data_dir=data_dir)
    return entries, list(entries)


def known_weights(suite_name: str | None, data_dir: Path) -> "dict[str, ModelEntry]":
    """The models whose weights are a file that can be fetched."""
    if suite_name is not None:
        from benchmark.suites.loading import load_suite  # here, since it loads torch

        models = load_suite(suite_name, data_dir).known_models
    else:
        from benchmark.entries import read_entries  # here, as the next, since pydantic is slow to load
        from benchmark.models.entries import BUILT_IN, ModelEntry

        models = read_entries(BUILT_IN, ModelEntry, data_dir=data_dir)
    return {model_id: entry for model_id, entry in models.items() if entry.weights}


def unknown_name(name: str, known: Iterable[str], suite_name: str | None, data_dir: Path) -> UserError:
    """The error for a name that nothing has."""
    from detectors import did_you_mean  # here, since it may be another `detectors`, of which `in_one_line` tells

    return UserError(
        f"nothing is called {name!r}{did_you_mean(name, list(known))}; all sets are listed by: "
        f"{command_line(['sets'], suite_name, data_dir)}"
    )


def command_line(command: list[str], suite_name: str | None, data_dir: Path) -> str:
    """A command to paste, in a form that works without an installation, too."""
    suite = [] if suite_name is None else ["--suite", suite_name]
    folder = [] if data_dir == DATA_DIR else ["--data-dir", str(data_dir)]
    return shlex.join(["python", "-m", "benchmark", *command, *suite, *folder])
