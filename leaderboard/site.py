"""Writes the site: pages from templates, and the records to download. A complete new site replaces the old one."""

import csv
import json
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape
from pydantic import TypeAdapter

from benchmark.errors import UserError
from benchmark.files import exchange, is_held, scratch_beside, scratches_of
from benchmark.metrics import Difference
from benchmark.records import Estimate, Limit, Metrics, ModelRecord, Record, ScoresFile, Timing
from leaderboard import plots, view
from leaderboard.board import Board, detector_records, make_board
from leaderboard.results import Result, Results
from leaderboard.trace import read_trace, setting_texts

_HERE = Path(__file__).parent
_DOWNLOADS = ("records.csv", "records.json", "schema.json")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
# In the folder of a build: the new site, the old one while they change places, and the old one while it is removed.
_PARTS = _NEW, _OLD, _REPLACED = ("new", "old", "replaced")
_ENDS = {"": "value", "_low": "low", "_high": "high"}


class OutputError(UserError, RuntimeError):
    """The output folder holds something that is not a site of this leaderboard."""


def build_site(results: Results, output: Path) -> list[str]:
    """Writes a site, and returns notes on what it could not show.

    results: the newest results of each suite.
    output: the folder of the site. An older site in it is replaced when the new one is complete. Whenever this process
        is killed, the old site or the new one is in its place; at the latest, the next build puts it there.

    Raises OutputError where the folder holds anything else, and OSError where it cannot be written.
    """
    _check_replaceable(output)
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    _bring_back(output)
    with scratch_beside(output, *_PARTS) as scratch:
        new = scratch / _NEW
        notes = _write_site(results, new)
        _put_in_place(new, output)
    return notes


def _put_in_place(new: Path, output: Path) -> None:
    """Gives a complete site its place. Where the system can, both change places in one step."""
    if not output.exists():
        new.rename(output)
        return
    if exchange(new, output):
        return
    old = new.with_name(_OLD)
    output.rename(old)  # from here to the next rename there is no site; see _bring_back
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise
    old.rename(new.with_name(_REPLACED))  # before its pages are removed one by one


def _bring_back(output: Path) -> None:
    """Gives a site its place again that a killed build had moved away."""
    if output.exists():
        return
    for scratch in scratches_of(output, *_PARTS):
        if (scratch / _OLD).is_dir() and not is_held(scratch):
            (scratch / _OLD).rename(output)
            return


def _check_replaceable(output: Path) -> None:
    ours = all((output / name).is_file() for name in ("index.html", *_DOWNLOADS))
    if output.exists() and not ours and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output} exists and is not a site of this leaderboard; name another folder or remove it")


def _write_site(results: Results, folder: Path) -> list[str]:
    boards, notes = [], [*results.notes]
    for suite in results.suites:
        board, of_suite = make_board(suite)
        boards.append(board)
        notes += of_suite
    environment = _environment()
    for path, template, values in _pages(results, boards, notes):
        page = environment.get_template(template).render(values, root="../" * path.count("/"))
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8", newline="\n")
    shutil.copyfile(_HERE / "static" / "style.css", folder / "style.css")
    _write_downloads(results, folder)
    return notes[len(results.notes) :]


def _pages(results: Results, boards: list[Board], notes: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The path, the template and the values of each page."""
    detectors = detector_records(boards)
    yield "index.html", "index.html", {"results": results, "boards": boards, "notes": notes, "detectors": detectors}
    yield "methods.html", "methods.html", {}
    for board in boards:
        yield f"suites/{board.suite.id}.html", "suite.html", {"board": board}
    for model in sorted({model for board in boards for model in board.suite.model_ids}):
        using = [board for board in boards if model in board.tables]
        yield f"models/{model}.html", "model.html", {"model": model, "boards": using}
    for detector in detectors:
        using = [board for board in boards if detector in board.suite.detector_ids]
        yield f"detectors/{detector}.html", "detector.html", {"detector": detector, "boards": using}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "points": points,
        "points_interval": points_interval,
        "setting_texts": setting_texts,
        "read_trace": read_trace,
        "count_of": count_of,
        "json_text": json_text,
        "with_links": with_links,
    }
    environment.globals |= {"address": address, "plots": plots, "view": view}
    return environment


def percent(fraction: float) -> str:
    """A fraction in %, with one decimal."""
    return f"{100 * fraction:.1f}"


def interval(estimate: Estimate) -> str:
    """The ends of the interval of an estimate in %, without a line break."""
    return f"[{percent(estimate.low)},\u00a0{percent(estimate.high)}]"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\u2212") if rounded else "0.0"


def points_interval(difference: Difference) -> str:
    """The ends of the interval of a difference in percentage points, without a line break.

    An end that rounds to 0 but is not 0 keeps its sign.
    """
    low, high = (f"{100 * end:+.1f}".replace("-", "\u2212") if end else "0.0" for end in difference[1:])
    return f"[{low},\u00a0{high}]"


def count_of(things: Collection[Any], noun: str) -> str:
    """The number of things, with their noun: '1 model', '3 models'."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def address(*parts: str) -> str:
    """A path or a fragment of these parts, encoded for a link."""
    return "/".join(quote(part, safe="") for part in parts)


def with_links(text: str) -> Markup:
    """The text, with links in place of arXiv numbers."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return Markup(re.sub(r"arXiv:(\d{4}\.\d{4,5})", link, str(escape(text))))


def _write_downloads(results: Results, folder: Path) -> None:
    records = TypeAdapter(list[Record])
    (folder / "records.json").write_bytes(records.dump_json(results.records, indent=1) + b"\n")
    schema = json.dumps(records.json_schema(), indent=1) + "\n"
    (folder / "schema.json").write_text(schema, encoding="utf-8", newline="\n")
    rows = [
        _csv_row(result, suite.models.get(result.case.model))
        for suite in results.suites
        for result in suite.results.values()
    ]
    with (folder / "records.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)


def _harmless(value: Any) -> Any:
    """A value of a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _csv_row(result: Result, model: ModelRecord | None) -> dict[str, Any]:
    """One line of the CSV file. Fractions are from 0 to 1; a missing value is an empty field."""
    case = result.case
    row = {name: getattr(case, name) for name in ("suite", "model", "detector", "set", "role", "status")}
    row |= {"verdict": view.verdict(case), "reason": case.reason, "stale": result.stale}
    row |= {"run": case.run, "started": result.run.started}
    for name, field in Metrics.model_fields.items():
        value = getattr(case.metrics, name, None)
        if Estimate in (field.annotation, *get_args(field.annotation)):
            row |= {f"{name}{end}": getattr(value, of, None) for end, of in _ENDS.items()}
        elif name != "classes":
            row[name] = value
    row |= {name: getattr(case.timing, name, None) for name in Timing.model_fields}
    row |= {f"limit_{name}": getattr(case.limit, name, None) for name in Limit.model_fields}
    row |= {f"scores_{name}": getattr(case.scores, name, None) for name in ScoresFile.model_fields}
    row |= {f"model_{name}": getattr(model, name, None) for name in ("base", "method", "group", "seed")}
    return row
