"""`sharpness`: how far the training loss rises near a network's weights."""

from typing import Annotated

import typer

from benchmark.commands import completion, options

EXAMPLES = {
    "sharpness digits-resnet digits-vit": "by all 12 definitions of the paper",
    "sharpness digits-vit --definition worst-linf-adaptive --rho 0.001 --rho 0.002": "by one, at two radii",
}


def sharpness(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Models of the suite.", autocompletion=completion.models)
    ],
    suite: options.Suite = options.SUITE,
    definition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="CASE-NORM-SCALING[-normalised], such as average-l2-standard (default: all 12)."
        ),
    ] = None,
    rho: Annotated[
        list[float] | None, typer.Option(metavar="X", help="A radius (default: the paper's for each definition).")
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="Images at most, drawn by the seed.")] = 1024,
    batch: Annotated[int, typer.Option(metavar="N", help="Images that share a perturbation.")] = 128,
    steps: Annotated[int, typer.Option(metavar="N", help="Of the search for the worst case.")] = 20,
    draws: Annotated[int, typer.Option(metavar="N", help="Of the average case.")] = 100,
    seed: Annotated[int, typer.Option(metavar="N")] = 0,
    data_dir: options.DataDir = options.DATA_DIR,
    device: options.Device = None,
) -> None:
    """Measure how sharp the training loss is around networks.

    On training images without augmentation. --definition and --rho may be repeated.
    """
    from benchmark.models.devices import choose_device  # here, as the next: they load torch
    from benchmark.suites.loading import load_suite
    from benchmark.training import sharpness as library

    chosen = [library.definition_of(name) for name in definition or map(str, library.definitions())]
    named, on = load_suite(suite, data_dir), choose_device(device)
    print(f"{'model':24} {'definition':32} {'rho':>8} {'sharpness':>12} {'loss':>10} {'seconds':>8}")
    for model in models:
        network, pixels, labels = library.training_images(named, model, on, images, seed)
        for one in chosen:
            for radius in rho or [one.radius]:
                found = library.sharpness(
                    network,
                    pixels,
                    labels,
                    **one._asdict(),
                    rho=radius,
                    batch=batch,
                    steps=steps,
                    draws=draws,
                    seed=seed,
                )
                numbers = f"{radius:8g} {found.value:12.6f} {found.base_loss:10.6f} {found.seconds:8.1f}"
                print(f"{model:24} {one!s:32} {numbers}", flush=True)
