"""Options that several commands have, in one wording."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands import completion

# Defaults that the library has, too, in modules that are slow to load. A test holds both together.
DATA_DIR = Path("data")
STORE = Path(".store")
RESULTS = Path("results")
SUITE = "digits"

_SUITE = typer.Option(
    metavar="NAME_OR_FILE", help="A suite by name, or the path of its TOML file.", autocompletion=completion.suites
)
Suite = Annotated[str, _SUITE]
AnySuite = Annotated[str | None, _SUITE]
DataDir = Annotated[Path, typer.Option(metavar="DIR", help="Folder of downloaded images and weights.")]
Store = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the outputs of networks.")]
Results = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the records.")]
AnyResults = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of the records, or hf://datasets/ORG/NAME on the Hub.")
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="As torch names it (default: cuda where there is one, else cpu).")
]
