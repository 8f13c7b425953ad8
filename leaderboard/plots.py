"""Plots as SVG elements. Their text has the colour and the font of the page; equal numbers give equal bytes."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from leaderboard.trace import Trace
from leaderboard.view import Cell, ModelTable, exceeds_goal

# The text should have the colour of the page (CSS currentColor), which matplotlib does not know. This colour is
# replaced.
_INK = "#010203"
_HEAT = "#d9660a"
_PASS = "#2f7fbf"
_STYLE = {
    "svg.hashsalt": "leaderboard",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "path.simplify": False,
}
_PANELS_A_ROW = 4


def fpr_dots(table: ModelTable, name: str) -> Markup | None:
    """FPR@95 of every detector (rows) on every OOD set (panels), with its interval; None without any figure."""
    rows = [row for row in reversed(table.rows) if any(cell.fpr for cell in row.ood)]
    if not rows:
        return None
    sets = [cell.set for cell in rows[0].ood]
    columns = min(len(sets), _PANELS_A_ROW)
    lines = -(-len(sets) // columns)
    with _figure_style():
        figure = Figure(figsize=(1.6 + 2.1 * columns, (0.75 + 0.21 * len(rows)) * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for panel in panels[len(sets) :]:
            panel.remove()
        for column, (panel, set_id) in enumerate(zip(panels, sets, strict=False)):
            _draw_dots(panel, [row.ood[column] for row in rows])
            panel.set(title=set_id, xlim=(-3, 103), ylim=(-0.6, len(rows) - 0.4), xticks=(0, 50, 100))
            panel.set_yticks(range(len(rows)), [row.detector for row in rows])
            panel.grid(visible=True)
        figure.supxlabel("FPR@95 in %", fontsize=9)
        return _svg_element(figure, name)


def _draw_dots(panel: Any, cells: Sequence[Cell]) -> None:
    """Draws a dot and an interval for each cell: a full dot within the goal, a hollow one above. A tick is the goal."""
    shown = [(height, cell, cell.fpr, cell.result) for height, cell in enumerate(cells) if cell.fpr and cell.result]
    panel.hlines(
        [height for height, *_ in shown],
        [100 * fpr.low for _, _, fpr, _ in shown],
        [100 * fpr.high for _, _, fpr, _ in shown],
        color=_INK,
        alpha=0.45,
        linewidth=1.4,
    )
    goals = [(100 * result.case.limit.goal, height) for height, _, _, result in shown if result.case.limit]
    _draw_marks(panel, goals, marker="|", color=_INK, alpha=0.6, markersize=7, markeredgewidth=0.9)
    within = [(100 * fpr.value, height) for height, cell, fpr, _ in shown if not exceeds_goal(cell)]
    _draw_marks(panel, within, marker="o", color=_PASS, markersize=5)
    above = [(100 * fpr.value, height) for height, cell, fpr, _ in shown if exceeds_goal(cell)]
    _draw_marks(panel, above, marker="o", color=_HEAT, markerfacecolor="none", markersize=5)


def _draw_marks(panel: Any, points: Sequence[tuple[float, float]], **style: Any) -> None:
    panel.plot([x for x, _ in points], [y for _, y in points], linestyle="none", **style)


def unit_test_heat(table: ModelTable, name: str) -> Markup | None:
    """FPR@95 in % of every detector (columns) on every unit test (rows); None without any figure."""
    rows = [row for row in table.rows if any(cell.fpr for cell in row.unit_cells)]
    if not rows:
        return None
    tests = [cell.set for cell in rows[0].unit_cells]
    with _figure_style():
        figure = Figure(figsize=(2.2 + 0.47 * len(rows), 1.5 + 0.24 * len(tests)), layout="constrained")
        panel = figure.subplots()
        places = [(x, y, cell) for x, row in enumerate(rows) for y, cell in enumerate(row.unit_cells)]
        squares = [
            [(x - 0.47, y - 0.46), (x + 0.47, y - 0.46), (x + 0.47, y + 0.46), (x - 0.47, y + 0.46)]
            for x, y, _ in places
        ]
        shades = [to_rgba(_HEAT, 0.55 * cell.fpr.value if cell.fpr else 0) for _, _, cell in places]
        panel.add_collection(PolyCollection(squares, facecolors=shades))
        for x, y, cell in places:
            failed = exceeds_goal(cell)
            figures = f"{100 * cell.fpr.value:.1f}{'✗' if failed else ''}" if cell.fpr else "·"
            weight = "bold" if failed else "normal"
            panel.text(x, y, figures, ha="center", va="center", fontsize=7.5, fontweight=weight, in_layout=False)
        panel.set(xlim=(-0.5, len(rows) - 0.5), ylim=(len(tests) - 0.5, -0.5))
        panel.set_yticks(range(len(tests)), tests)
        panel.set_xticks(range(len(rows)), [row.detector for row in rows], rotation=90)
        panel.xaxis.tick_top()
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return _svg_element(figure, name)


def fpr_against_time(tables: Sequence[ModelTable], name: str) -> Markup | None:
    """Mean FPR@95 against score time divided by forward time, one panel a model; None without complete means.

    A detector has a full dot if no other detector is better in both. Full dots are labelled where there is room, the
    lowest first.
    """
    points = {table.model: points for table in tables if (points := _time_and_fpr(table))}
    if not points:
        return None
    highest = max(fpr for of_model in points.values() for _, fpr, _ in of_model)
    ratios = [ratio for of_model in points.values() for ratio, *_ in of_model]
    few_decades = max(ratios) < 30 * min(ratios)
    columns = min(len(points), 3)
    lines = -(-len(points) // columns)
    with _figure_style():
        figure = Figure(figsize=(0.9 + 3.4 * columns, 0.4 + 2.6 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for panel in panels[len(points) :]:
            panel.remove()
        for panel, (model, of_model) in zip(panels, points.items(), strict=False):
            best = [(x, y, name) for x, y, name in of_model if not any(_is_better(other, (x, y)) for other in of_model)]
            _draw_marks(
                panel, [(x, y) for x, y, _ in of_model], marker="o", color=_PASS, markerfacecolor="none", markersize=5
            )
            _draw_marks(panel, [(x, y) for x, y, _ in best], marker="o", color=_PASS, markersize=5)
            free_from = -math.inf
            for y, x, label in sorted((y, x, label) for x, y, label in best):
                if y >= free_from:
                    panel.annotate(label, (x, y), (5, 4), textcoords="offset points", fontsize=8)
                    free_from = y + 0.1 * highest
            panel.set(title=model, xscale="log")
            panel.margins(x=0.25, y=0.15)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.grid(visible=True)
        figure.supxlabel("score time ÷ forward time, an image", fontsize=9)
        figure.supylabel("mean FPR@95 in %", fontsize=9)
        return _svg_element(figure, name)


def losses(trace: Trace, name: str) -> Markup | None:
    """The losses of a variant's making against its steps, one panel a loss; None without losses."""
    if not trace.losses:
        return None
    columns = min(len(trace.losses), _PANELS_A_ROW)
    lines = -(-len(trace.losses) // columns)
    with _figure_style():
        figure = Figure(figsize=(0.4 + 2.6 * columns, 0.3 + 1.9 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        for panel in panels[len(trace.losses) :]:
            panel.remove()
        for panel, (loss, points) in zip(panels, trace.losses.items(), strict=False):
            few = len(points) <= 50
            panel.plot(*zip(*points, strict=True), color=_PASS, linewidth=1.2, marker="o" if few else "", markersize=3)
            panel.set(title=_shortened(loss))
            panel.margins(x=0.03, y=0.08)
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            panel.grid(visible=True)
        figure.supxlabel(trace.place, fontsize=9)
        return _svg_element(figure, name)


def ratio_strip(trace: Trace, name: str) -> Markup | None:
    """The share of singular values removed from each layer (columns) of each tower (rows); None without such shares."""
    if not trace.ratios:
        return None
    layers = range(
        min(layer for of_tower in trace.ratios.values() for layer in of_tower),
        1 + max(layer for of_tower in trace.ratios.values() for layer in of_tower),
    )
    with _figure_style():
        figure = Figure(figsize=(1.8 + 0.4 * len(layers), 0.6 + 0.36 * len(trace.ratios)), layout="constrained")
        panel = figure.subplots()
        places = [
            (layer, row, ratio)
            for row, of_tower in enumerate(trace.ratios.values())
            for layer, ratio in of_tower.items()
        ]
        squares = [
            [(x - 0.47, y - 0.45), (x + 0.47, y - 0.45), (x + 0.47, y + 0.45), (x - 0.47, y + 0.45)]
            for x, y, _ in places
        ]
        darkest = max(ratio for *_, ratio in places) or 1
        shades = [to_rgba(_HEAT, 0.05 + 0.5 * ratio / darkest) for *_, ratio in places]
        panel.add_collection(PolyCollection(squares, facecolors=shades))
        for x, y, ratio in places:
            panel.text(x, y, f"{100 * ratio:.3g}", ha="center", va="center", fontsize=7.5, in_layout=False)
        panel.set(xlim=(layers[0] - 0.5, layers[-1] + 0.5), ylim=(len(trace.ratios) - 0.5, -0.5))
        panel.set_yticks(range(len(trace.ratios)), [_shortened(tower) for tower in trace.ratios])
        panel.set_xticks(layers[:: 1 + len(layers) // 40])
        panel.set_xlabel("layer, from the input", fontsize=9)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return _svg_element(figure, name)


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _is_better(one: tuple[float, float, str], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one[:2] != other


def _time_and_fpr(table: ModelTable) -> list[tuple[float, float, str]]:
    return [
        (row.forward_ratio, 100 * row.mean.value.value, row.detector)
        for row in table.rows
        if row.mean.value and row.forward_ratio
    ]


@contextmanager
def _figure_style() -> Iterator[None]:
    """The style of the plots, without the settings of a matplotlibrc file of this machine."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _svg_element(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element. Its ids start with `name`, so that ids of several figures on a page differ."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    return Markup(svg)
