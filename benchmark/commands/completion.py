"""What a shell completes. The names come from data files, since torch and pydantic are slow to load."""

import csv
import tomllib
from pathlib import Path
from typing import Any

import typer

PACKAGE = Path(__file__).parents[1]


def suites() -> list[str]:
    """The names of the built-in suites."""
    return sorted(file.stem for file in (PACKAGE / "suites").glob("*.toml"))


def models(context: typer.Context) -> list[str]:
    """The ids of models: the built-in ones, and those of the suite file that the line names before."""
    return list(_tables(PACKAGE / "models" / "models.toml") | _tables_of_suite(context, "model"))


def image_sets(context: typer.Context) -> list[str]:
    """The ids of image sets: the built-in ones, and those of the suite file that the line names before."""
    return list(_tables(PACKAGE / "images" / "image_sets.toml") | _tables_of_suite(context, "image_set"))


def fetched(context: typer.Context) -> list[str]:
    """The ids of what can be fetched: image sets, and models whose weights are a file."""
    known = _tables(PACKAGE / "models" / "models.toml") | _tables_of_suite(context, "model")
    return [*image_sets(context), *(model_id for model_id, table in known.items() if "weights" in table)]


def trained() -> list[str]:
    """The ids of the networks that `train` can make."""
    command = "python -m benchmark train "
    known = _tables(PACKAGE / "models" / "models.toml")
    return [model_id for model_id, table in known.items() if str(table.get("recipe", "")).startswith(command)]


def variants(context: typer.Context) -> list[str]:
    """The ids of models that are edits of others."""
    known = _tables(PACKAGE / "models" / "models.toml") | _tables_of_suite(context, "model")
    return [model_id for model_id, table in known.items() if "edit" in table]


def detectors() -> list[str]:
    """The ids of the detectors that the recorded baselines know: the others are known only once torch is loaded."""
    found: dict[str, None] = {}
    for file in (PACKAGE / "limits" / "baselines").glob("*.csv"):
        with file.open(newline="", encoding="utf-8") as lines:
            found |= {row["detector"]: None for row in csv.DictReader(lines)}
    return sorted(found)


def _tables_of_suite(context: typer.Context, kind: str) -> dict[str, Any]:
    suite = str(context.params.get("suite") or "")
    return _tables(Path(suite)).get(kind, {}) if suite.endswith(".toml") else {}


def _tables(file: Path) -> dict[str, Any]:
    """The tables of a TOML file; none where it cannot be read, since a completion has no place for an error."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
