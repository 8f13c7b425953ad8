"""The docstring of a detector is its only description: this reads it."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from detectors.base import option_fields

_SECTIONS = ("Formula", "Paper", "Options", "Deviations", "Verified")


def describe(detector: Any) -> dict[str, Any]:
    """What the docstring of a detector (or part) says; the keys are those of `Registry.describe`.

    Raises ValueError when it lacks a section, or explains other options than there are.
    """
    summary, sections = _sections(detector)
    if missing := {"Formula", "Paper"} - sections.keys():
        raise ValueError(f"{detector.id}: its docstring lacks {' and '.join(sorted(missing))}")
    meanings = _meanings(sections)
    defaults = {option.name: option.default for option in option_fields(detector)}
    if meanings.keys() != defaults.keys():
        raise ValueError(
            f"{detector.id}: its docstring explains {sorted(meanings)}, its options are {sorted(defaults)}"
        )
    return {
        "id": detector.id,
        "summary": summary,
        "formula": " ".join(sections["Formula"].split()),
        "paper": " ".join(sections["Paper"].split()),
        "needs": sorted(detector.needs),
        "options": meanings,
        "defaults": defaults,
        "deviations": _items(sections.get("Deviations", "")),
        "verified": _items(sections.get("Verified", "")),
    }


def join_descriptions(score: Any, parts: Sequence[Any], options: dict[str, tuple[Any, str]]) -> str:
    """The docstring of a score after parts. options: the combination's name -> the part and its name for the option."""
    kinds = (*parts, score)
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
