"""`python -m benchmark sets` and `fetch`: which images and weights there are, and how they get here."""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.entries import DATA_DIR, read_entries
from benchmark.images.downloads import DownloadError, Fetched, fetch, fetched, is_there, mark_verified
from benchmark.images.sources import HubSource, ManualSource, Source
from detectors import did_you_mean

if TYPE_CHECKING:
    from benchmark.images.entries import ImageSetEntry
    from benchmark.models.entries import ModelEntry

# Images beyond which the files of a set are not counted to see whether it is complete: that would take many seconds.
_COUNTED = 100_000
_NEEDED = {"missing", "incomplete"}


def add_command(commands: Any) -> None:
    """Adds `sets` and `fetch` to the subcommands of `python -m benchmark`."""
    sets = commands.add_parser("sets", help="which image sets are there, and how to get the others")
    sets.add_argument("names", nargs="*", metavar="NAME", help="tell all about these sets (default: a line of each)")
    sets.add_argument("--json", action="store_true", help="for programs")
    sets.set_defaults(run=_show)
    get = commands.add_parser("fetch", help="download image sets or weights, verify them, and put them in their place")
    get.add_argument("names", nargs="+", metavar="NAME", help="an image set, or a model whose weights are a file")
    get.add_argument("--from", type=int, dest="source", metavar="N", help="its Nth source alone (default: in order)")
    get.set_defaults(run=_fetch)
    for parser in (sets, get):
        parser.add_argument("--suite", help="a suite by name, or the path of its TOML file (default: all that we know)")
        parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="folder of it all (default: %(default)s)")


def _image_sets(options: argparse.Namespace) -> "tuple[dict[str, ImageSetEntry], list[str]]":
    """All sets that are known, and which of them are meant where none is named."""
    if options.suite:
        from benchmark.suites.loading import load_suite  # here, since it is slow to import

        suite = load_suite(options.suite, options.data_dir)
        return suite.image_sets, list(dict.fromkeys(suite.entry.image_sets()))
    from benchmark.images.entries import BUILT_IN, ImageSetEntry

    entries = read_entries(BUILT_IN, ImageSetEntry, data_dir=options.data_dir)
    return entries, list(entries)


def _models(options: argparse.Namespace) -> "dict[str, ModelEntry]":
    """The models whose weights can be fetched."""
    if options.suite:
        from benchmark.suites.loading import load_suite

        models = load_suite(options.suite, options.data_dir).known_models
    else:
        from benchmark.models.entries import BUILT_IN, ModelEntry

        models = read_entries(BUILT_IN, ModelEntry, data_dir=options.data_dir)
    return {model_id: entry for model_id, entry in models.items() if entry.weights}


def _unknown(name: str, known: Iterable[str]) -> ValueError:
    return ValueError(
        f"nothing is called {name!r}{did_you_mean(name, list(known))}; `python -m benchmark sets` lists all sets"
    )


# sets


def _show(options: argparse.Namespace) -> None:
    entries, meant = _image_sets(options)
    if unknown := [name for name in options.names if name not in entries]:
        raise _unknown(unknown[0], entries)
    told = [_told(set_id, entries[set_id]) for set_id in options.names or meant]
    if options.json:
        print(json.dumps(told, indent=1))
    elif options.names:
        print("\n\n".join(_details(about, options) for about in told))
    else:
        print(_table(told, options))


def _told(set_id: str, entry: "ImageSetEntry") -> dict[str, Any]:
    """All that is told about a set."""
    state = _state(entry)
    origin = fetched(entry.place, entry.data_dir) if entry.local and state != "missing" else None
    return {
        "id": set_id,
        "title": entry.title,
        "state": state,
        "place": str(entry.place),
        "images": entry.images,
        "list": entry.list_id,
        "licence": entry.licence,
        "redistributable": entry.redistributable,
        "contamination": [found.model_dump() for found in entry.contamination],
        "source": entry.source,
        "sources": [str(source) for source in entry.sources],
        "get": _how(entry),
        "fetched": origin.model_dump() if origin else None,
    }


def _state(entry: "ImageSetEntry") -> str:
    """fetched and loaded once; there, by hand; incomplete, or missing. No image is read for it."""
    if not is_there(entry.place):
        return "missing"
    if entry.listed and not _has_listed(entry.place, entry.listed):
        return "incomplete"
    expected = min(entry.images) if isinstance(entry.images, tuple) else entry.images or 0
    if not entry.listed and expected <= _COUNTED and _count(entry.place) < expected:
        return "incomplete"
    origin = fetched(entry.place, entry.data_dir) if entry.local else None
    return "fetched" if origin and origin.verified else "there"


def _has_listed(place: Path, listed: Path) -> bool:
    """Whether the files of a list are there: all of them, or of a long list a sample."""
    from benchmark.images.readers import read_list

    try:
        files = [path for path, _ in read_list(listed)]
        return all((place / path).is_file() for path in files[:: -(-len(files) // _COUNTED)])
    except (ValueError, OSError):
        return False


def _count(place: Path) -> int:
    """The rows of Parquet files, or else the files, of which a set may be a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    try:
        if shards:
            return sum(pq.read_metadata(shard).num_rows for shard in shards)
    except (pa.ArrowException, OSError):
        return 0
    return sum(not name.startswith(".") for _, _, names in os.walk(place, followlinks=True) for name in names)


def _how(entry: "ImageSetEntry") -> str:
    if not entry.local:
        return "shipped"
    automatic = [source for source in entry.sources if not isinstance(source, ManualSource)]
    if not automatic:
        return "by hand"
    return "gated" if all(isinstance(source, HubSource) and source.gated for source in automatic) else "fetch"


def _table(told: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """A line a set, as wide as the terminal, or 120 columns."""
    rows = [
        ["set", "state", "images", "list", "licence", "pass on", "ID share", "get"],
        *(
            [
                about["id"],
                about["state"],
                _number(about["images"]),
                about["list"] or "",
                about["licence"],
                {True: "yes", False: "no", None: ""}[about["redistributable"]],
                ", ".join(f"{found['share']:.1%}" for found in about["contamination"]),
                about["get"] if about["state"] in _NEEDED else "",
            ]
            for about in told
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    spare = shutil.get_terminal_size((120, 0)).columns - sum(widths) - 2 * len(widths)
    for name, least in (("list", 12), ("licence", 12), ("list", 0), ("licence", 0)):  # `sets NAME` has them in full
        column = rows[0].index(name)
        narrower = max(min(least, widths[column]), widths[column] + min(spare, 0))
        spare += widths[column] - narrower
        widths[column] = narrower
    lines = ["".join(_fitted(text, width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = Counter(about["state"] for about in told)
    return "\n".join(
        [
            *lines,
            "",
            f"{len(told)} sets: {', '.join(f'{count} {state}' for state, count in counts.items())}",
            "ID share: of their images, how many show a class of the ID set they are used with",
            f"get one: {_command('fetch', 'SET', options)}",
            f"all about one, with what is to be done by hand: {_command('sets', 'SET', options)}",
        ]
    )


def _fitted(text: str, width: int) -> str:
    """The text in a column, with a gap after it; nothing where the column is too narrow to be of use."""
    if width < 6 and len(text) > width:
        return ""
    return (text if len(text) <= width else text[: width - 1] + "…").ljust(width) + "  "


def _number(images: int | tuple[int, ...] | None) -> str:
    counts = images if isinstance(images, tuple) else () if images is None else (images,)
    return "/".join(f"{count:,}" for count in counts)


def _command(command: str, name: str, options: argparse.Namespace) -> str:
    suite = ["--suite", options.suite] if options.suite else []
    folder = [] if options.data_dir == DATA_DIR else ["--data-dir", str(options.data_dir)]
    return shlex.join(["python", "-m", "benchmark", command, name, *suite, *folder])


def _details(about: dict[str, Any], options: argparse.Namespace) -> str:
    passing = {True: "; may be passed on", False: "; may not be passed on", None: ""}[about["redistributable"]]
    lines = [
        ("state", f"{about['state']}: {about['place']}"),
        ("images", _number(about["images"]) + (f"; list: {about['list']}" if about["list"] else "")),
        ("licence", about["licence"] + passing),
        *(
            ("ID share", "{share:.1%} of {inspected} inspected images show a class of {of}; {source}".format(**found))
            for found in about["contamination"]
        ),
        ("source", about["source"]),
    ]
    if about["get"] == "shipped":
        lines.append(("get", "comes with the file that names it"))
    elif about["get"] == "by hand":
        lines.append(("get", "by hand"))
    else:
        lines.append(("get", _command("fetch", about["id"], options)))
    lines += [(f"from {number}", source) for number, source in enumerate(about["sources"], 1)]
    if origin := about["fetched"]:
        revision = f" at {origin['revision']}" if origin["revision"] else ""
        checked = "" if origin["verified"] else ", not yet loaded as its entry says"
        lines.append(("fetched", f"{origin['date']} from {origin['source']}{revision}{checked}"))
    filled = (
        textwrap.fill(
            text,
            100,
            initial_indent=f"  {label:<10}",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines
    )
    return "\n".join([f"{about['id']}: {about['title']}", *filled])


# fetch


def _fetch(options: argparse.Namespace) -> int:
    """Fetches one after the other. What fails is told, and the others are fetched."""
    image_sets, _ = _image_sets(options)
    models = _models(options) if set(options.names) - set(image_sets) else {}
    if unknown := [name for name in options.names if name not in image_sets and name not in models]:
        raise _unknown(unknown[0], [*image_sets, *models])
    failed = 0
    for name in options.names:
        try:
            if name in image_sets:
                _fetch_images(name, image_sets, options)
            else:
                _fetch_weights(name, models[name], options)
        except ValueError as error:
            failed = _complain(f"{name}: {str(error).removeprefix(f'image set {name}: ')}")
        except OSError as error:
            failed = _complain(
                f"{name}: cannot write {error.filename or options.data_dir}: {error.strerror or error}; mend that or "
                "name another folder with --data-dir; what is downloaded is kept, and the same command goes on with it"
            )
        except KeyboardInterrupt:
            _complain(f"\n{name}: interrupted; what is downloaded is kept, and the same command goes on with it")
            return 130
    _tell_kept(options.data_dir / ".downloads")
    return failed


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def _fetch_images(set_id: str, entries: "dict[str, ImageSetEntry]", options: argparse.Namespace) -> None:
    from benchmark.images.image_set import ImageSetError, load_image_set

    entry = entries[set_id]
    origin = _fetched(set_id, entry, entry.place, options) if entry.local else None
    if entry.listed and not entry.listed.is_file():
        raise DownloadError(f"the list of its images is missing: put it at {entry.listed} by hand")
    try:
        images = len(load_image_set(set_id, entries))
    except ImageSetError as error:
        if origin is None:
            raise
        raise DownloadError(
            f"what was fetched is not what its entry says, and does not count as fetched: "
            f"{str(error).removeprefix(f'image set {set_id}: ')}; delete {entry.place} to fetch it again"
        ) from None
    if origin:
        mark_verified(entry.place, entry.data_dir)
    print(f"{set_id}: {images:,} images in {entry.place}{_from(origin)}")


def _fetch_weights(model_id: str, entry: "ModelEntry", options: argparse.Namespace) -> None:
    file = entry.weights_file
    origin = _fetched(model_id, entry, file, options)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if entry.weights_sha256 not in (None, sha256):
        raise DownloadError(
            f"{file} has the sha256 {sha256}, {entry.weights_sha256} expected: do not trust it; delete it to fetch it "
            f"again, or correct `weights_sha256` in {entry.file}"
        )
    mark_verified(file, entry.data_dir)
    print(f"{model_id}: {file.stat().st_size / 1e6:.1f} MB in {file}{_from(origin)}")


def _fetched(
    name: str, entry: "ImageSetEntry | ModelEntry", target: Path, options: argparse.Namespace
) -> Fetched | None:
    """Where the target comes from, after it was fetched, or if it was before."""
    sources: Sequence[Source] = entry.sources
    if options.source is not None:
        if not 1 <= options.source <= len(sources):
            raise DownloadError(f"--from {options.source}: it has {len(sources)} sources, the first of which is 1")
        sources = sources[options.source - 1 : options.source]
    return fetch(sources, target, entry.data_dir, lambda line: print(f"{name}: {line}", file=sys.stderr))


def _from(origin: Fetched | None) -> str:
    if origin is None:
        return ", as they were"
    return f", from {origin.source}{f' at {origin.revision[:12]}' if origin.revision else ''} ({origin.date})"


def _tell_kept(downloads: Path) -> None:
    megabytes = sum(file.stat().st_size for file in downloads.rglob("*") if file.is_file()) / 1e6
    if megabytes >= 1:
        print(f"{downloads}: {megabytes:,.0f} MB of archives, for other sets in them; delete it when all are fetched")
