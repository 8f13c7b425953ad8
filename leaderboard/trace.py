"""How a variant was made, cut for a page: settings and traces may hold any value, and may have any length."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ROWS, _COLUMNS, _PLOTTED, _SETTINGS, _CHARACTERS = 60, 12, 400, 60, 160
_PLACES = ("epoch", "step", "iteration")
# The names of the losses in a trace of SeTAR. In other traces, a loss has "loss" in its name.
_SEARCH_LOSSES = ("total", "id", "ood")


@dataclass(frozen=True)
class Trace:
    """The steps in which a variant was made.

    steps: the number of steps.
    columns: the names of the first columns.
    rows: the values of the first steps, as text.
    cut: what was left out, in words.
    place: what the steps are called: "epoch", "step", "decision", ...
    losses: by column, the finite losses, each after the number of its step.
    ratios: by tower and layer, the share of singular values that was removed, from 0 to 1.
    """

    steps: int
    columns: list[str]
    rows: list[list[str]]
    cut: list[str]
    place: str
    losses: dict[str, list[tuple[float, float]]]
    ratios: dict[str, dict[int, float]]


def read_trace(steps: Sequence[Mapping[str, Any]]) -> Trace:
    """The trace of a model's record, cut for a page."""
    columns = list(dict.fromkeys(name for step in steps for name in step))
    ratios = _ratios_by_tower(steps)
    place = next((name for name in _PLACES if name in columns), "decision" if ratios else "entry")
    losses, thinned = _losses_by_column(steps, columns, place, ratios)
    cut = []
    if len(steps) > _ROWS:
        cut.append(f"the table has the first {_ROWS} of {len(steps)} steps")
    if len(columns) > _COLUMNS:
        cut.append(f"the table has the first {_COLUMNS} of {len(columns)} columns")
    if thinned > 1:
        cut.append(f"the plot has one step in {thinned}")
    shown = columns[:_COLUMNS]
    rows = [[text_of(step[name]) if name in step else "" for name in shown] for step in steps[:_ROWS]]
    return Trace(len(steps), [text_of(name) for name in shown], rows, cut, place, losses, ratios)


def _losses_by_column(
    steps: Sequence[Mapping[str, Any]], columns: Sequence[str], place: str, ratios: object
) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """The losses by column, and n, where only every n-th step is kept."""
    every = max(1, math.ceil(len(steps) / _PLOTTED))
    names = [name for name in columns if "loss" in name.lower() or (ratios and name in _SEARCH_LOSSES)]
    losses = {}
    for name in names[:_COLUMNS]:
        points = [
            (place_of, value)
            for number, step in enumerate(steps[::every])
            if (place_of := _finite_number(step.get(place, 1 + number * every))) is not None
            and (value := _finite_number(step.get(name))) is not None
        ]
        if points:
            losses[text_of(name)] = points
    return losses, every


def _ratios_by_tower(steps: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    ratios: dict[str, dict[int, float]] = {}
    for step in steps:
        layer, ratio = _finite_number(step.get("layer")), _finite_number(step.get("ratio"))
        if layer is not None and ratio is not None and 0 <= ratio <= 1 and layer == int(layer) and 0 <= layer < 1000:
            ratios.setdefault(text_of(step.get("tower", "vision")), {})[int(layer)] = ratio
    return ratios


def _finite_number(value: Any) -> float | None:
    """The value as a finite number; None where it is none. A text is read as a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e100 else None


def setting_texts(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The names and the values of settings, as texts. A setting inside of another has a dotted name."""
    texts = [(text_of(name), text_of(value)) for name, value in _with_dotted_names("", settings)]
    left_out = len(texts) - _SETTINGS
    return texts[:_SETTINGS] + ([("and more", f"{left_out}, all in records.json")] if left_out > 0 else [])


def _with_dotted_names(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _with_dotted_names(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def text_of(value: Any) -> str:
    """A value as text: a text as it is, a float with six digits, anything else as JSON. A long text is cut."""
    if isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…"
