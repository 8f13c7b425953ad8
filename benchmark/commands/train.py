"""`train`: the networks of the digits suite, made again from nothing."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands import completion

EXAMPLES = {
    "train digits-resnet": "into its place in the package",
    "train digits-clip --output mine": "the vision-language model, elsewhere",
}


def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A network of the digits suite.", autocompletion=completion.trained)
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes (default: its place in this package).")
    ] = None,
) -> None:
    """Train a network of the digits suite from nothing.

    The same number of threads, the same machine and the same versions give the same weights. They are written when the
    training is over; a training that was interrupted goes on where it was, if its learning rate follows a cosine.
    """
    from benchmark.training.digits import train_digits_network  # here, since it loads torch

    trained = train_digits_network(model, output)
    print(
        f"{trained.folder}: {trained.parameters:,} parameters, trained in {trained.training_s:.0f} s, "
        f"validation accuracy {trained.accuracy:.1%}"
    )
