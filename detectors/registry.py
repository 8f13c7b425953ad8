"""Detectors by id."""

from typing import Any, TypeVar

from torch import Tensor

from detectors.base import NEEDS, Detector, option_fields
from detectors.description import check_description, declared_invariances, describe
from detectors.invariance import CHANGES, measure_invariances
from detectors.spelling import did_you_mean

_DetectorClass = TypeVar("_DetectorClass", bound=type[Detector])


class Registry:
    """Detector classes by their ids."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Detector]] = {}
        self._invariances: dict[type[Detector], dict[str, bool]] = {}

    def register(self, detector: _DetectorClass) -> _DetectorClass:
        """Class decorator. Raises ValueError on an id that is taken, an unknown need or a gap in the docstring.

        To register a class again changes nothing.
        """
        if "__dataclass_fields__" not in vars(detector):
            raise ValueError(f"{detector.__name__} needs @dataclass(kw_only=True, eq=False), under @registry.register")
        if missing := [name for name in ("id", "needs") if not hasattr(detector, name)]:
            raise ValueError(f"{detector.__name__} lacks {' and '.join(missing)}")
        if self._classes.get(detector.id, detector) is not detector:
            raise ValueError(f"two detectors are called {detector.id!r}")
        if unknown := detector.needs - NEEDS:
            raise ValueError(f"{detector.id}: unknown needs {sorted(unknown)}; the known ones are {sorted(NEEDS)}")
        check_description(detector)
        self._classes[detector.id] = detector
        return detector

    def available(self) -> list[str]:
        """The ids of all detectors, sorted."""
        return sorted(self._classes)

    def create(self, detector_id: str, **options: Any) -> Detector:
        """A new detector. Options override the published defaults; an unknown id or a bad option is a ValueError."""
        detector = self._class(detector_id)
        known = [option.name for option in option_fields(detector)]
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{detector_id} has no option {name!r}{did_you_mean(name, known)}; "
                    f"its options: {', '.join(known) or 'none'}"
                )
        return detector(**options)

    def describe(self, detector_id: str) -> dict[str, Any]:
        """What a reader should know, as plain values that JSON can hold.

        id: the detector's id.
        summary: one sentence.
        formula: the score S.
        paper: authors, title, venue and year.
        needs: list of what it reads.
        options: what each option means, by its name.
        defaults: the value of each option, by its name; None stands for the rule that its meaning gives.
        deviations: list of the differences from the paper.
        verified: list of the independent references that it was compared with, and the tolerances.
        invariances: whether the order of the scores stays, by the name of a change (`detectors.invariance.CHANGES`),
            with the default options. Empty where it is not declared and cannot be measured.
        invariances_declared: whether the class declares them, and they are not measured now.
        """
        detector = self._class(detector_id)
        declared = declared_invariances(detector)
        invariances = self._measured(detector) if declared is None else {name: name in declared for name in CHANGES}
        return describe(detector) | {"invariances": invariances, "invariances_declared": declared is not None}

    def _measured(self, detector: type[Detector]) -> dict[str, bool]:
        """The invariances of a class that declares none, which are measured once."""
        if detector not in self._invariances:
            self._invariances[detector] = measure_invariances(detector)
        return dict(self._invariances[detector])

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any], *, model: Any = None) -> Detector:
        """The fitted detector whose `state()` this is. Raises ValueError for a state that is not whole.

        tensors, about: the two values of `state()`.
        model: the network, for a detector that scores with it.
        """
        try:
            detector = self.create(about["id"], **about["options"])
            detector._take_state(tensors, about, model)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not the state of a detector: {error!r}") from error
        return detector

    def _class(self, detector_id: str) -> type[Detector]:
        if detector_id not in self._classes:
            raise ValueError(
                f"no detector is called {detector_id!r}{did_you_mean(detector_id, self._classes)}; "
                f"available: {', '.join(self.available())}"
            )
        return self._classes[detector_id]
