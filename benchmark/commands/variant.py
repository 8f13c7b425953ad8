"""`variant`: a changed network, made by its recipe."""

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands import completion, options
from benchmark.commands.mistakes import interruption_says

EXAMPLES = {
    "variant digits-resnet+umap": "one of the built-in variants",
    "variant my-net+umap --suite my-suite.toml": "a variant that your suite names",
}


def variant(
    model: Annotated[
        str,
        typer.Argument(
            metavar="VARIANT",
            help="A model entry with `base`, `edit` and a `recipe` that names a `method`.",
            autocompletion=completion.variants,
        ),
    ],
    suite: options.Suite = options.SUITE,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes (default: the `edit` of its entry).")
    ] = None,
    data_dir: options.DataDir = options.DATA_DIR,
    device: options.Device = None,
) -> None:
    """Make a variant of a network by its recipe.

    It learns from the images of the suite. What was interrupted goes on where it was.
    """
    from benchmark.models.devices import choose_device, threads  # here, as the next: they load torch
    from benchmark.suites.loading import load_suite
    from benchmark.training.from_scratch import THREADS
    from benchmark.variants.making import edit_folder, make_and_save

    started = time.perf_counter()
    named = load_suite(suite, data_dir)
    folder = output or edit_folder(model, named)
    with (
        interruption_says(f"what is finished is kept in {folder}: the same command goes on with it"),
        threads(THREADS),
    ):
        make_and_save(model, named, choose_device(device), folder)
    size = sum(file.stat().st_size for file in folder.glob("edit.*"))
    print(f"{folder}: {size / 1e6:.2f} MB, made in {time.perf_counter() - started:.0f} s")
