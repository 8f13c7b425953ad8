"""`sets`: which image sets there are, and how to get those that are missing."""

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from benchmark.commands import completion, options
from benchmark.commands.known import command_line, known_image_sets, unknown_name

_NEEDED = {"missing", "incomplete"}

EXAMPLES = {
    "sets": "all image sets, a line each",
    "sets textures": "all about one set",
    "sets --suite cifar10": "the sets of a suite",
    "sets --json": "the same for programs",
}


def sets(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Tell all about these sets.", autocompletion=completion.image_sets),
    ] = None,
    suite: options.AnySuite = None,
    data_dir: options.DataDir = options.DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which image sets are there.

    For each set: whether it is there, how many images it has, its licence, and how to get it.
    """
    from benchmark.images.inventory import describe_image_set  # here, since pydantic is slow to load

    entries, meant = known_image_sets(suite, data_dir)
    if unknown := [name for name in names or () if name not in entries]:
        raise unknown_name(unknown[0], entries, suite, data_dir)
    described = [describe_image_set(set_id, entries[set_id]) for set_id in names or meant]
    command = partial(command_line, suite_name=suite, data_dir=data_dir)
    if as_json:
        print(json.dumps(described, indent=1))
    elif names:
        print("\n\n".join(_details(about, command(["fetch", about["id"]])) for about in described))
    else:
        print(_table(described))
        print(f"get one: {command(['fetch', 'SET'])}")
        print(f"all about one, with what is to be done by hand: {command(['sets', 'SET'])}")


def _table(described: Sequence[dict[str, Any]]) -> str:
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
            for about in described
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
    counts = Counter(about["state"] for about in described)
    return "\n".join(
        [
            *lines,
            "",
            f"{len(described)} sets: {', '.join(f'{count} {state}' for state, count in counts.items())}",
            "ID share: of their images, how many show a class of the ID set they are used with",
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


def _details(about: dict[str, Any], fetch: str) -> str:
    """All about a set, a line or more for each thing; fetch: the command that gets it."""
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
        lines.append(("get", fetch))
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
