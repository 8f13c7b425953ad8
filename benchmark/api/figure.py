"""FPR@95 of cases as a figure of matplotlib."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmark.errors import UserError
from benchmark.records import Case

# Colours that people of any colour vision tell apart (Okabe and Ito, 2008), and a shape for each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
_PANELS_A_ROW = 4


class NotebookFigure(Figure):
    """A figure that a notebook shows where it is the value of a cell, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def fpr_figure(cases: Sequence[Case]) -> Figure:
    """FPR@95 of every detector (rows) on every set (panels), with its 95 % interval.

    cases: those that have no figures are left out. Raises UserError where none is left, where they are of several
    suites, and where they are of more models than there are colours.
    """
    measured = [(case, case.metrics.fpr_at_95) for case in cases if case.metrics]
    if not measured:
        raise UserError("there is nothing to plot: no case has figures")
    if len(suites := dict.fromkeys(case.suite for case, _ in measured)) > 1:
        raise UserError(f"a figure is of one suite: .select(suites=...) one of {', '.join(suites)}")
    if len(models := list(dict.fromkeys(case.model for case, _ in measured))) > len(_COLOURS):
        raise UserError(f"{len(models)} models are too many for a figure: .select(models=...) up to {len(_COLOURS)}")
    sets = list(dict.fromkeys(case.set for case, _ in measured))
    means = {case.detector: 0.0 for case, _ in measured}
    for detector in means:
        values = [fpr.value for case, fpr in measured if case.detector == detector]
        means[detector] = sum(values) / len(values)
    rows = {detector: row for row, detector in enumerate(sorted(means, key=lambda name: -means[name]))}

    columns = min(len(sets), _PANELS_A_ROW)
    lines = -(-len(sets) // columns)
    height = (0.9 + 0.2 * len(rows) * max(1.0, 0.5 * len(models))) * lines + 0.3 * (len(models) > 1)
    figure = NotebookFigure(figsize=(1.8 + 2.2 * columns, height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, set_id in zip(panels, sets, strict=False):
        panel.set_title(set_id, fontsize=9)
        panel.grid(axis="x", alpha=0.2)
        panel.tick_params(labelsize=8)
        for number, model in enumerate(models):
            shown = [(rows[case.detector], fpr) for case, fpr in measured if (case.model, case.set) == (model, set_id)]
            apart = 0.6 * ((number + 0.5) / len(models) - 0.5)
            panel.errorbar(
                [100 * fpr.value for _, fpr in shown],
                [row - apart for row, _ in shown],
                xerr=[
                    [100 * (fpr.value - fpr.low) for _, fpr in shown],
                    [100 * (fpr.high - fpr.value) for _, fpr in shown],
                ],
                fmt=_SHAPES[number],
                color=_COLOURS[number],
                markersize=4,
                linewidth=1,
                label=model,
            )
    for panel in panels[len(sets) :]:
        panel.set_visible(False)
    panels[0].set_yticks(list(rows.values()), list(rows))
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    panels[0].set_xlim(-3, 103)
    figure.supxlabel("FPR@95 in %, with its 95 % interval; lower is better", fontsize=9)
    if len(models) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(models), 3), fontsize=8)
    return figure
