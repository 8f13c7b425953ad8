"""`compare`: two results, case by case: may this checkpoint ship?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.commands import options
from benchmark.commands.mistakes import FAILED

if TYPE_CHECKING:
    from benchmark.comparing.cases import Comparison

EXAMPLES = {
    "compare last-release results": "two folders of results",
    "compare 20261201-093706-98d020 20261202-101112-0a1b2c": "two runs of results/",
    "compare hf://datasets/me/results results --as net-v1=net-v2": "results on the Hub; a model that was renamed",
}
NOTHING_COMPARED = 2

Format = Annotated[str, typer.Option("--format", metavar="text|markdown|json|junit", help="How it is written.")]
WHAT = "a folder of results, FOLDER:RUN, a run in --results, or hf://datasets/ORG/NAME[@REVISION]"


def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"The results to compare with: {WHAT}.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new results, likewise.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--as", metavar="OLD=NEW", help="A model that is called otherwise in NEW; may be repeated."),
    ] = None,
    allow: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="A worsening of at most X (0 to 1) is none.")
    ] = 0.0,
    form: Format = "text",
    results: options.Results = options.RESULTS,
) -> int:
    """Compare two results: FPR@95, AUROC, ID accuracy and time, case by case.

    A difference counts where sampling does not explain it: on the same images where both sides have their scores.
    Exit codes: 0 nothing is worse; 1 something is worse, or fails now; 2 nothing could be compared.
    """
    from benchmark.comparing.cases import compare_sides  # here, as the next: they load scipy
    from benchmark.comparing.reading import read_sides, renamed

    (of_base, base_damage), (of_new, new_damage) = (read_sides(text, Path(results)) for text in (base, new))
    for line in (*base_damage, *new_damage):
        print(f"left out: {line}", file=sys.stderr)
    return told(compare_sides(renamed(of_base, names or ()), of_new, allow), form)


def told(found: "Comparison", form: str) -> int:
    """Prints a comparison, and gives the exit code that says its verdict."""
    from benchmark.comparing.report import FORMATS
    from benchmark.errors import UserError

    if form not in FORMATS:
        raise UserError(f"--format {form}: choose {', '.join(FORMATS)}")
    print(FORMATS[form](found))
    return {"worse": FAILED, "no worse": 0}.get(found.verdict, NOTHING_COMPARED)
