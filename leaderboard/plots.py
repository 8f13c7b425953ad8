"""Figures as SVG for inlining: text takes the page's colour and font, and the same numbers give the same bytes."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from leaderboard.view import Cell, ModelTable, exceeds_goal

# Matplotlib wants a colour where the page's own (CSS currentColor) is meant; this one stands in and is replaced.
_INK = "#010203"
_HEAT = "#d9660a"
_PASS = "#2f7fbf"
_STYLE = {
    "svg.hashsalt": "leaderboard",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
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
    """FPR@95 of every detector (rows) on every OOD set (panels) with 95 % intervals; null where nothing was measured."""
    rows = [row for row in reversed(table.rows) if any(cell.fpr for cell in row.ood)]
    if not rows:
        return None
    sets = [cell.set for cell in rows[0].ood]
    columns = min(len(sets), _PANELS_A_ROW)
    lines = -(-len(sets) // columns)
    with _style():
        figure = Figure(figsize=(1.6 + 2.1 * columns, (0.75 + 0.21 * len(rows)) * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for panel in panels[len(sets) :]:
            panel.remove()
        for column, (panel, set) in enumerate(zip(panels, sets, strict=False)):
            for height, row in enumerate(rows):
                _dot(panel, height, row.ood[column])
            panel.set(title=set, xlim=(-3, 103), ylim=(-0.6, len(rows) - 0.4), xticks=(0, 50, 100))
            panel.set_yticks(range(len(rows)), [row.detector for row in rows])
            panel.grid(visible=True)
        figure.supxlabel("FPR@95 in %", fontsize=9)
        return _svg(figure, name)


def _dot(panel: Any, height: int, cell: Cell) -> None:
    """A dot on its interval: full within the goal, hollow above; a tick where the goal lies."""
    if not (cell.fpr and cell.result):
        return
    panel.plot([100 * cell.fpr.low, 100 * cell.fpr.high], [height, height], color=_INK, alpha=0.45, linewidth=1.4)
    if limit := cell.result.case.limit:
        panel.plot([100 * limit.goal], [height], "|", color=_INK, alpha=0.6, markersize=7, markeredgewidth=0.9)
    colour, face = (_HEAT, "none") if limit and exceeds_goal(cell) else (_PASS, _PASS)
    panel.plot([100 * cell.fpr.value], [height], "o", color=colour, markerfacecolor=face, markersize=5, zorder=3)


def unit_test_heat(table: ModelTable, name: str) -> Markup | None:
    """FPR@95 in % of every detector (columns) on every unit test (rows); null where nothing was measured."""
    rows = [row for row in table.rows if any(cell.fpr for cell in row.unit_cells)]
    if not rows:
        return None
    tests = [cell.set for cell in rows[0].unit_cells]
    with _style():
        figure = Figure(figsize=(2.2 + 0.47 * len(rows), 1.5 + 0.24 * len(tests)), layout="constrained")
        panel = figure.subplots()
        for x, row in enumerate(rows):
            for y, cell in enumerate(row.unit_cells):
                _square(panel, x, y, cell)
        panel.set(xlim=(-0.5, len(rows) - 0.5), ylim=(len(tests) - 0.5, -0.5))
        panel.set_yticks(range(len(tests)), tests)
        panel.set_xticks(range(len(rows)), [row.detector for row in rows], rotation=90)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return _svg(figure, name)


def _square(panel: Any, x: int, y: int, cell: Cell) -> None:
    if cell.fpr is None:
        panel.text(x, y, "·", ha="center", va="center", alpha=0.6)
        return
    failed = exceeds_goal(cell)
    share = cell.fpr.value
    panel.fill([x - 0.47, x + 0.47, x + 0.47, x - 0.47], [y - 0.45, y - 0.45, y + 0.45, y + 0.45], _HEAT, alpha=0.55 * share)
    weight = "bold" if failed else "normal"
    panel.text(x, y, f"{100 * share:.0f}{'✗' if failed else ''}", ha="center", va="center", fontsize=7.5, fontweight=weight)


def fpr_against_time(tables: Sequence[ModelTable], name: str) -> Markup | None:
    """Mean FPR@95 against score time over forward time (logarithmic), a marker a model; null without complete means."""
    points = {
        table.model: [
            (row.forward_ratio, 100 * row.mean.value.value, row.detector)
            for row in table.rows
            if row.mean.value and row.forward_ratio
        ]
        for table in tables
    }
    if not any(points.values()):
        return None
    with _style():
        columns = len(points)
        figure = Figure(figsize=(0.9 + 3.3 * min(columns, 3), 3.2 * -(-columns // 3)), layout="constrained")
        panels = figure.subplots(-(-columns // 3), min(columns, 3), squeeze=False, sharex=True, sharey=True).ravel()
        for panel in panels[columns:]:
            panel.remove()
        for panel, (model, of_model) in zip(panels, points.items(), strict=False):
            for ratio, fpr, detector in of_model:
                panel.plot([ratio], [fpr], "o", color=_PASS, markersize=5)
                panel.annotate(detector, (ratio, fpr), (4, 3), textcoords="offset points", fontsize=7.5)
            panel.set(title=model, xscale="log")
            panel.grid(visible=True)
        figure.supxlabel("score time ÷ forward time, an image", fontsize=9)
        figure.supylabel("mean FPR@95 in %", fontsize=9)
        return _svg(figure, name)


@contextmanager
def _style() -> Iterator[None]:
    """Our style over matplotlib's own defaults, whatever this machine's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element. Its ids start with `name`, so that several fit on one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    return Markup(svg)
