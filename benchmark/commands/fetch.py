"""`fetch`: image sets and weights, downloaded and put in their place."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.commands import completion, options
from benchmark.commands.known import known_image_sets, known_weights, unknown_name
from benchmark.commands.mistakes import FAILED, interruption_says
from benchmark.errors import UserError
from benchmark.user.messages import told

if TYPE_CHECKING:
    from benchmark.images.downloads import Fetched
    from benchmark.images.entries import ImageSetEntry
    from benchmark.models.entries import ModelEntry

EXAMPLES = {
    "fetch svhn textures": "two image sets",
    "fetch cifar10-resnet20 --data-dir /big/disk": "the weights of a model",
    "fetch textures --from 2": "from its second source alone",
}


def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="An image set, or a model whose weights are a file.",
            autocompletion=completion.fetched,
        ),
    ],
    source: Annotated[
        int | None, typer.Option("--from", metavar="N", help="Its Nth source alone (default: in order).")
    ] = None,
    suite: options.AnySuite = None,
    data_dir: options.DataDir = options.DATA_DIR,
) -> int:
    """Download image sets or weights.

    What is downloaded is verified and put in its place. After an interruption the same command goes on where it was.
    Where one of several cannot be had, the others are fetched, and the exit code is 1.
    """
    image_sets, _ = known_image_sets(suite, data_dir)
    models = known_weights(suite, data_dir) if set(names) - set(image_sets) else {}
    if unknown := [name for name in names if name not in image_sets and name not in models]:
        raise unknown_name(unknown[0], [*image_sets, *models], suite, data_dir)
    failed = 0
    for name in names:
        try:
            with interruption_says(f"{name}: what is downloaded is kept, and the same command goes on with it"):
                if name in image_sets:
                    print(_fetch_images(name, image_sets, source))
                else:
                    print(_fetch_weights(name, models[name], source))
        except OSError as error:
            failed = FAILED
            _complain(
                f"{name}: cannot write {error.filename or data_dir}: {error.strerror or error}; mend that or "
                "name another folder with --data-dir; what is downloaded is kept, and the same command goes on with it"
            )
        except UserError as error:
            failed = FAILED
            _complain(f"{name}: {told(error).removeprefix(f'image set {name}: ')}")
    _tell_kept(data_dir / ".downloads")
    return failed


def _complain(message: str) -> None:
    print(message, file=sys.stderr)


def _fetch_images(set_id: str, entries: "dict[str, ImageSetEntry]", source: int | None) -> str:
    """Fetches an image set, and says what it is."""
    from benchmark.images.fetching import fetch_image_set  # here, since it is slow to load

    image_set, origin = fetch_image_set(set_id, entries, lambda line: _complain(f"{set_id}: {line}"), source)
    return f"{set_id}: {len(image_set):,} images in {entries[set_id].place}{_from_where(origin)}"


def _fetch_weights(model_id: str, entry: "ModelEntry", source: int | None) -> str:
    """Fetches the weights of a model, and says what they are."""
    from benchmark.models.fetching import fetch_weights  # here, since it is slow to load

    origin = fetch_weights(entry, lambda line: _complain(f"{model_id}: {line}"), source)
    file = entry.weights_file
    return f"{model_id}: {file.stat().st_size / 1e6:.1f} MB in {file}{_from_where(origin)}"


def _from_where(origin: "Fetched | None") -> str:
    if origin is None:
        return ", as they were"
    return f", from {origin.source}{f' at {origin.revision[:12]}' if origin.revision else ''} ({origin.date})"


def _tell_kept(downloads: Path) -> None:
    megabytes = sum(file.stat().st_size for file in downloads.rglob("*") if file.is_file()) / 1e6
    if megabytes >= 1:
        print(f"{downloads}: {megabytes:,.0f} MB of archives, for other sets in them; delete it when all are fetched")
