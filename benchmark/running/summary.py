"""The table at the end of a run: FPR@95 of every case."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from benchmark.limits.comparisons import Comparison, counts, in_words
from benchmark.records import Case, ModelRecord, SetRecord

Piece = tuple[str, bool]  # text, and whether it is bold


def summary(
    cases: Sequence[Case], models: Sequence[ModelRecord], compared: Sequence[Comparison] = ()
) -> Iterator[list[Piece]]:
    """Lines: for each model a table and what papers report, then the cases that need somebody's attention.

    cases: the records of the cases of a run.
    models: the records of their models.
    compared: the published figures beside what was measured.
    """
    accuracies = {model.id: f" (ID accuracy {model.id_accuracy.value:.1%})" for model in models if model.id_accuracy}
    for model in dict.fromkeys(case.model for case in cases):
        yield []
        yield [(f"{model}{accuracies.get(model, '')}", True), (": FPR@95 in %, lower is better; best in bold", False)]
        yield from _table([case for case in cases if case.model == model])
        yield from _published([comparison for comparison in compared if comparison.figure.model == model])
    yield []
    yield from _attention(cases)


def _table(cases: Sequence[Case]) -> Iterator[list[Piece]]:
    """A row a detector, a column an OOD set, with the best of each in bold."""
    ood = [case for case in cases if case.role != "unit-test"]
    unit_tests = [case for case in cases if case.role == "unit-test"]
    sets = list(dict.fromkeys(case.set for case in ood))
    detectors = list(dict.fromkeys(case.detector for case in cases))
    cells = {(case.detector, case.set): _fpr(case) for case in ood}
    columns = {set_id: [cells.get((detector, set_id), "-") for detector in detectors] for set_id in sets}
    best = {
        set_id: min((float(text) for text in column if _is_number(text)), default=None)
        for set_id, column in columns.items()
    }
    if unit_tests:
        columns["unit tests failed"] = [_failed_unit_tests(unit_tests, detector) for detector in detectors]
    name_width = max(map(len, ["detector", *detectors]))
    yield [(_row("detector", name_width, list(columns), columns), False)]
    for row, detector in enumerate(detectors):
        pieces: list[Piece] = [(f"  {detector:<{name_width}}", False)]
        for name, column in columns.items():
            text = column[row]
            is_best = name in best and _is_number(text) and float(text) == best[name]
            pieces.append((f"  {text:>{_width(name, column)}}", is_best))
        yield pieces


def _published(compared: Sequence[Comparison]) -> Iterator[list[Piece]]:
    """How many published figures were reproduced, and those that differ."""
    if compared:
        yield [(f"  published figures: {counts(compared)}", False)]
    for comparison in compared:
        if comparison.value.status == "differs":
            figure, value = comparison.figure, comparison.value
            text = f"{in_words(value)} from {figure.fpr_at_95:.1%} ± {100 * figure.tolerance:.1f} ({figure.source})"
            yield [(f"    {figure.detector} on {figure.set} {text}", False)]


def _row(first: str, first_width: int, names: list[str], columns: dict[str, list[str]]) -> str:
    return f"  {first:<{first_width}}" + "".join(f"  {name:>{_width(name, columns[name])}}" for name in names)


def _width(name: str, column: list[str]) -> int:
    return max(map(len, [name, *column]))


def _fpr(case: Case) -> str:
    return f"{100 * case.metrics.fpr_at_95.value:.1f}" if case.metrics else case.status


def _is_number(text: str) -> bool:
    return text.replace(".", "").isdigit()


def _failed_unit_tests(cases: Sequence[Case], detector: str) -> str:
    """How many of a detector's unit tests exceed their limit, and the worst."""
    ours = [case for case in cases if case.detector == detector]
    measured = [case for case in ours if case.metrics]
    if not measured:
        return "-" if not ours else f"{len(ours)} errors"
    failed = sum(case.status == "failed" for case in ours)
    worst = max(measured, key=lambda case: case.metrics.fpr_at_95.value if case.metrics else 0.0)
    return f"{failed} of {len(ours)}" + (f" (worst {_fpr(worst)}, {worst.set})" if failed else "")


def _attention(cases: Sequence[Case]) -> Iterator[list[Piece]]:
    """The cases that failed without being expected to, and how many cases ended how."""
    for case in cases:
        if case.status in ("failed", "error") and not case.expected:
            yield [(case.status.upper(), True), (f" {case.model}/{case.detector}/{case.set}: {case.reason}", False)]
    counts = Counter("known failures" if case.expected else case.status for case in cases)
    yield [(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), True)]


def doubts(cases: Iterable[Case]) -> Iterator[str]:
    """The warnings of cases, once for each model and detector. Detectors that share one stand together."""
    told: dict[tuple[str, str], dict[str, None]] = {}
    for case in cases:
        for text in case.warnings:
            told.setdefault((case.model, text), {})[case.detector] = None
    yield from (f"WARNING: {model} with {', '.join(detectors)}: {text}" for (model, text), detectors in told.items())


CHANCE_MARGIN = 0.1  # of the way from chance to a perfect accuracy


def remarks_on(records: Iterable[ModelRecord | SetRecord]) -> Iterator[str]:
    """What a reader should know of the figures of models and image sets, each sentence once."""
    of = {remark: record.id for record in reversed([*records]) for remark in record.remarks}
    yield from (f"WARNING: {name}: {remark}" for remark, name in reversed(of.items()))


def near_chance(models: Iterable[ModelRecord]) -> Iterator[str]:
    """A warning for each model that classifies ID images hardly better than chance, of which nothing else is said."""
    for model in models:
        if model.remarks:
            continue
        accuracy, chance = model.id_accuracy, 1 / model.classes
        if accuracy and accuracy.value <= chance + CHANCE_MARGIN * (1 - chance):
            yield (
                f"WARNING: {model.id} classifies {accuracy.value:.1%} of the ID images right, chance is {chance:.1%}: "
                "are the classes in the order that it was trained with? Folders are in alphabetical order, or in that "
                "of their numbers"
            )
