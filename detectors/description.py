"""The docstring of a detector is its only description: this reads it, and says what a docstring lacks."""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detectors.base import Detector, option_fields
from detectors.invariance import CHANGES
from detectors.spelling import did_you_mean

_SECTIONS = ("Formula", "Paper", "Options", "Invariant to", "Deviations", "Verified")
_NEEDED = ("Formula", "Paper", "Verified")
_PAPER = re.compile(r'[A-Z].*, ".+", .*\b(19|20)\d\d')
_PLACE = re.compile(r"arXiv:\d{4}\.\d{4,5}\b|\bdoi:\S|https?://\S|\bnot on arXiv\b")


def describe(detector: Any) -> dict[str, Any]:
    """What the docstring of a detector (or part) says, as far as it goes; the keys are those of `Registry.describe`."""
    summary, sections = _sections(detector)
    return {
        "id": detector.id,
        "summary": summary,
        "formula": " ".join(sections.get("Formula", "").split()),
        "paper": " ".join(sections.get("Paper", "").split()),
        "needs": sorted(detector.needs),
        "options": _meanings(sections),
        "defaults": {option.name: option.default for option in option_fields(detector)},
        "deviations": _items(sections.get("Deviations", "")),
        "verified": _items(sections.get("Verified", "")),
    }


def declared_invariances(detector: Any) -> frozenset[str] | None:
    """The changes that the docstring of a detector names under `Invariant to`. None where it has no such line.

    `nothing` stands for none of them.
    """
    _, sections = _sections(detector)
    if "Invariant to" not in sections:
        return None
    return frozenset(" ".join(name.split()) for name in sections["Invariant to"].split(",")) - {"nothing"}


def check_description(detector: Any) -> None:
    """Raises ValueError for the first gap in the docstring of a detector (or part).

    The message names the class, what the docstring lacks, and where CONTRIBUTING.md explains it.
    """
    for gap in _gaps(detector):
        raise ValueError(f"{detector.__name__} ({detector.id}): {gap}; see `Add a detector` in CONTRIBUTING.md")


def _gaps(detector: Any) -> Iterator[str]:
    """What a docstring lacks, a line each."""
    description, (_, sections) = describe(detector), _sections(detector)
    if missing := [name for name in _NEEDED if not sections.get(name)]:
        yield f"its docstring lacks {' and '.join(missing)}"
    if not description["summary"].endswith("."):
        yield "its docstring does not begin with a whole sentence, which ends with a full stop"
    if issubclass(detector, Detector) and not re.search("(^|; )S = ", description["formula"]):
        yield "its Formula does not say what the score S is, as in `S = max_c o_c`"
    yield from _gaps_of_paper(description["paper"])
    options, defaults = description["options"], description["defaults"]
    if options.keys() != defaults.keys():
        yield f"its docstring explains {sorted(options)}, its options are {sorted(defaults)}"
    if empty := [name for name, meaning in options.items() if not meaning]:
        yield f"its docstring does not say what the option {empty[0]} means"
    if loose := [deviation for deviation in description["deviations"] if not deviation.endswith(".")]:
        yield f"its Deviations are whole sentences, and this one has no full stop: {loose[0]}"
    for name in sorted(declared_invariances(detector) or ()):
        if name not in CHANGES:
            known = f"{', '.join(CHANGES)}, or nothing"
            yield f"its docstring says `Invariant to: {name}`{did_you_mean(name, CHANGES)}; what is known: {known}"
    for name, default in defaults.items():
        try:
            json.dumps(default, allow_nan=False)
        except (TypeError, ValueError):
            yield f"the default of its option {name} is {default!r}, which JSON cannot hold"


def _gaps_of_paper(papers: str) -> Iterator[str]:
    """What the Paper of a docstring lacks. One that begins with `none` says that there is no paper."""
    if papers.startswith("none"):
        return
    for paper in papers.split("; "):
        if not _PAPER.match(paper):
            yield f'its Paper is not of the form `A. Author, "Title", Venue 2024, arXiv:2401.00001` or `none`: {paper}'
        elif not _PLACE.search(paper):
            yield f"its Paper does not say where it is (arXiv:, doi: or https://), or that it is not on arXiv: {paper}"


def join_descriptions(
    score: Any, parts: Sequence[Any], options: dict[str, tuple[Any, str]], invariant_to: str | None
) -> str:
    """The docstring of a score after parts. Raises ValueError where the docstring of one of them has a gap.

    options: the combination's name of each option -> the class that it belongs to, and that class's name of it.
    invariant_to: what the docstring is to say under `Invariant to`. None for no such line.
    """
    kinds = (*parts, score)
    for kind in kinds:
        check_description(kind)
    described = {kind: describe(kind) for kind in kinds}
    steps = [described[part]["summary"][0].lower() + described[part]["summary"][1:].rstrip(".") for part in parts]
    papers = dict.fromkeys(described[kind]["paper"] for kind in kinds)
    fixed = {} if any(kind is score for kind, _ in options.values()) else described[score]["defaults"]
    formula = "".join([described[score]["formula"], *(f", {name} = {value:g}" for name, value in fixed.items())])
    if "images" in score.needs:
        formula += ", f(x) = o of the features h of x"
    text = [f"{described[score]['summary'].rstrip('.')}, with {'; then '.join(steps)}.", ""]
    text.append(f"Formula: {'; '.join([*(described[part]['formula'] for part in parts), formula])}")
    text.append(f"Paper: {'; '.join(papers)}")
    text += ["Options:", *(f"- {name}: {described[kind]['options'][own]}" for name, (kind, own) in options.items())]
    text += [] if invariant_to is None else [f"Invariant to: {invariant_to}"]
    deviations = dict.fromkeys(item for kind in kinds for item in described[kind]["deviations"])
    text += ["Deviations:", *(f"- {item}" for item in deviations)]
    text += ["Verified:", *(f"- {kind.id}: {item}" for kind in kinds for item in described[kind]["verified"])]
    return "\n".join(text)


def _sections(detector: Any) -> tuple[str, dict[str, str]]:
    text = inspect.cleandoc(detector.__doc__ or "")
    summary, *parts = re.split(rf"^({'|'.join(_SECTIONS)}):[^\S\n]*\n?", text, flags=re.MULTILINE)
    return " ".join(summary.split()), {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _meanings(sections: dict[str, str]) -> dict[str, str]:
    return dict(_entry(item) for item in _items(sections.get("Options", "")))


def _items(section: str) -> list[str]:
    """The entries of a section: each starts with '- ', and goes on in the indented lines below."""
    return [" ".join(item.split()) for item in re.split(r"^- ", section, flags=re.MULTILINE) if item.strip()]


def _entry(item: str) -> tuple[str, str]:
    name, _, meaning = item.partition(":")
    return name.strip(), meaning.strip()
