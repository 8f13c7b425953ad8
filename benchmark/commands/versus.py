"""`versus`: two detectors on the same images."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands import completion, options
from benchmark.commands.compare import Format, told

EXAMPLES = {
    "versus knn mahalanobis++": "in results/: what changes with mahalanobis++",
    "versus msp energy --model digits-vit": "on one model",
}


def versus(
    base: Annotated[
        str,
        typer.Argument(metavar="A", help="The detector to compare with.", autocompletion=completion.detectors),
    ],
    new: Annotated[
        str, typer.Argument(metavar="B", help="The detector that is compared.", autocompletion=completion.detectors)
    ],
    model: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A model; may be repeated (default: all).")
    ] = None,
    form: Format = "text",
    results: options.AnyResults = str(options.RESULTS),
) -> int:
    """Compare two detectors on the same models and images, set by set.

    "better" means that B is. Exit codes: 0 B is nowhere worse; 1 it is somewhere; 2 nothing could be compared.
    """
    from benchmark.comparing.cases import compare_sides  # here, as the next: they load scipy
    from benchmark.comparing.reading import of_detector, read_sides

    sides, _ = read_sides(results, Path(results))
    sides = {name: side for name, side in sides.items() if not model or side.case.model in model}
    return told(compare_sides(of_detector(sides, base), of_detector(sides, new)), form)
