"""`save`: a fitted detector, kept as a gate for single images."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands import completion, options

EXAMPLES = {
    "save digits-resnet mahalanobis++ gate": "into the folder `gate`",
    "save my-net knn gate --suite my-suite.toml": "a network of your own suite",
    "save local-dir:net knn gate --id images/val --train images/train": "your network and images",
}


def save(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model, as --model of `run` takes it.", autocompletion=completion.models
        ),
    ],
    detector: Annotated[
        str, typer.Argument(metavar="DETECTOR", help="The id of a detector.", autocompletion=completion.detectors)
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the gate goes.")],
    suite: options.Suite = options.SUITE,
    id_images: Annotated[
        str | None, typer.Option("--id", metavar="WHAT", help="Your in-distribution test images, as of `run`.")
    ] = None,
    train: Annotated[str | None, typer.Option(metavar="WHAT", help="Your training images.")] = None,
    val: Annotated[str | None, typer.Option(metavar="WHAT", help="Your validation images.")] = None,
    data_dir: options.DataDir = options.DATA_DIR,
    store: options.Store = options.STORE,
    device: options.Device = None,
) -> None:
    """Fit a detector and save it as a gate for single images.

    The gate accepts an image whose score reaches the threshold that 95 % of the suite's test images reach. Load it with
    benchmark.gate.Gate.load(DIR).
    """
    from benchmark.gate import Gate  # here, since it loads torch

    gate = Gate.fit(
        model,
        detector,
        suite=suite,
        in_distribution=id_images,
        train=train,
        val=val,
        data_dir=data_dir,
        store=store,
        device=device,
    )
    gate.save(folder)
    accepted, test = gate.accepted, gate.sets["test"]
    print(
        f"{folder}: {gate.model.id} with {gate.detector.id} accepts scores from {gate.threshold:.6g}: "
        f"{accepted.value:.1%} of the {test.images} images of {test.id} (95 % interval {accepted.low:.1%} to "
        f"{accepted.high:.1%})"
    )
