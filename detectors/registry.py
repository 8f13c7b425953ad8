"""Detectors by id. The docstring of a detector is its only description: `describe` reads it."""

import difflib
import inspect
import re
from dataclasses import fields
from typing import Any, TypeVar

from detectors.base import NEEDS, Detector

_SECTIONS = ("Formula", "Paper", "Options", "Deviations")
_DetectorClass = TypeVar("_DetectorClass", bound=type[Detector])


class Registry:
    """A name for each detector class."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Detector]] = {}

    def register(self, detector: _DetectorClass) -> _DetectorClass:
        """Class decorator. Raises ValueError on an id that is taken, an unknown need or a gap in the docstring."""
        if detector.id in self._classes:
            raise ValueError(f"two detectors are called {detector.id!r}")
        if unknown := detector.needs - NEEDS:
            raise ValueError(f"{detector.id}: unknown needs {sorted(unknown)}; the known ones are {sorted(NEEDS)}")
        _describe(detector)
        self._classes[detector.id] = detector
        return detector

    def available(self) -> list[str]:
        """The ids of all detectors, sorted."""
        return sorted(self._classes)

    def create(self, id: str, **options: Any) -> Detector:
        """A new detector. Options override the published defaults; an unknown id or a bad option is a ValueError."""
        detector = self._class(id)
        known = [field.name for field in fields(detector)]
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{id} has no option {name!r}{did_you_mean(name, known)}; its options: {', '.join(known) or 'none'}"
                )
        return detector(**options)

    def describe(self, id: str) -> dict[str, Any]:
        """What a reader should know, as plain values that JSON can hold.

        Keys: id, summary, formula, paper, needs (list), options (name -> meaning), defaults (name -> value; None
        stands for the rule that the option's meaning gives) and deviations (list, one a difference from the paper).
        """
        return _describe(self._class(id))

    def _class(self, id: str) -> type[Detector]:
        if id not in self._classes:
            raise ValueError(
                f"no detector is called {id!r}{did_you_mean(id, self._classes)}; "
                f"available: {', '.join(self.available())}"
            )
        return self._classes[id]


def did_you_mean(name: str, known: Any) -> str:
    """The tail of an error message about an unknown name: the closest known one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _describe(detector: type[Detector]) -> dict[str, Any]:
    text = inspect.cleandoc(detector.__doc__ or "")
    summary, *parts = re.split(rf"^({'|'.join(_SECTIONS)}):\s*", text, flags=re.MULTILINE)
    sections = {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    if missing := {"Formula", "Paper"} - sections.keys():
        raise ValueError(f"{detector.id}: its docstring lacks {' and '.join(sorted(missing))}")
    meanings = dict(_entry(item) for item in _items(sections.get("Options", "")))
    defaults = {field.name: field.default for field in fields(detector)}
    if meanings.keys() != defaults.keys():
        raise ValueError(
            f"{detector.id}: its docstring explains {sorted(meanings)}, its options are {sorted(defaults)}"
        )
    return {
        "id": detector.id,
        "summary": " ".join(summary.split()),
        "formula": " ".join(sections["Formula"].split()),
        "paper": " ".join(sections["Paper"].split()),
        "needs": sorted(detector.needs),
        "options": meanings,
        "defaults": defaults,
        "deviations": _items(sections.get("Deviations", "")),
    }


def _items(section: str) -> list[str]:
    """The entries of a section: each starts with '- ', and goes on in the indented lines below."""
    return [" ".join(item.split()) for item in re.split(r"^- ", section, flags=re.MULTILINE) if item.strip()]


def _entry(item: str) -> tuple[str, str]:
    name, _, meaning = item.partition(":")
    return name.strip(), meaning.strip()
