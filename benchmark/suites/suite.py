"""Suites: which models and detectors are run on which image sets, case by case."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmark.errors import UserError
from benchmark.images.entries import ImageSetEntry
from benchmark.models.entries import ModelEntry, is_vision_language
from benchmark.records import Role, SetRole
from benchmark.suites.entries import SuiteEntry
from benchmark.suites.published import Figures
from detectors import describe

_OF_VISION_LANGUAGE = {"patches", "text"}


@dataclass(frozen=True)
class CaseId:
    """A model, a detector and an OOD set. Its text is `model/detector/set`.

    model: the model's id.
    detector: the detector's id.
    set: the id of the OOD set, or the name of the unit test.
    role: what the suite uses the set for.
    """

    model: str
    detector: str
    set: str
    role: Role

    def __str__(self) -> str:
        return f"{self.model}/{self.detector}/{self.set}"


@dataclass(frozen=True)
class Suite:
    """A suite with all that it names looked up.

    id: the suite's id.
    entry: what its file says.
    models: its models and variants, by id.
    known_models: all models that its file and the built-in one describe, such as the bases of variants, by id.
    image_sets: all image sets that its file and the built-in one describe, by id.
    detectors: the detectors that are run on its models.
    variant_detectors: the detectors that are run on its variants.
    unit_test_detectors: the detectors that are run on the unit tests.
    published: what papers report of all known models, by cell (`model/detector/set`).
    """

    id: str
    entry: SuiteEntry
    models: dict[str, ModelEntry]
    known_models: dict[str, ModelEntry]
    image_sets: dict[str, ImageSetEntry]
    detectors: tuple[str, ...]
    variant_detectors: tuple[str, ...]
    unit_test_detectors: tuple[str, ...]
    published: Figures

    def whole(self) -> "Suite":
        """The suite in which all detectors are run on the variants and the unit tests, and not only a core of them."""
        return replace(
            self,
            unit_test_detectors=tuple(dict.fromkeys((*self.unit_test_detectors, *self.detectors))),
            variant_detectors=tuple(dict.fromkeys((*self.variant_detectors, *self.detectors))),
        )

    def ood_cases(self) -> Iterator[CaseId]:
        """One case a (model or variant, detector, OOD set)."""
        sets = self.entry.ood.by_role()
        for model in self.models:
            of_variants = model in self.entry.variants.models
            for detector in self._served(model, self.variant_detectors if of_variants else self.detectors):
                yield from (CaseId(model, detector, set_id, role) for set_id, role in sets)

    def unit_test_cases(self, names: Iterable[str]) -> Iterator[CaseId]:
        """One case a (model, detector, unit test). Variants have none.

        names: the unit tests of `unit_tests_ood`.
        """
        names = tuple(names)
        for model in self.entry.models:
            for detector in self._served(model, self.unit_test_detectors):
                yield from (CaseId(model, detector, name, "unit-test") for name in names)

    def lacking(self, model: str) -> set[str]:
        """What detectors may need, and a model and the splits do not give: texts and patches are of vision-language
        models."""
        lacking = set() if is_vision_language(model, self.known_models) else set(_OF_VISION_LANGUAGE)
        return lacking | ({"train", "val"} - {role for role, _ in self.splits()})

    def _served(self, model: str, detectors: Iterable[str]) -> list[str]:
        """The detectors that a model and the splits can serve."""
        lacking = self.lacking(model)
        return [detector_id for detector_id in detectors if not lacking & set(describe(detector_id)["needs"])]

    def splits(self) -> list[tuple[SetRole, str]]:
        """The in-distribution splits that there are: role and image set."""
        splits = self.entry.in_distribution
        named: list[tuple[SetRole, str | None]] = [("train", splits.train), ("val", splits.val), ("test", splits.test)]
        return [(role, set_id) for role, set_id in named if set_id is not None]

    @property
    def train(self) -> str:
        """The training split; a ValueError where the suite has none."""
        if self.entry.in_distribution.train is None:
            raise UserError(f"{self.entry.file}: in_distribution.train is needed here: name the training images")
        return self.entry.in_distribution.train

    def options(self, detector: str) -> dict[str, Any]:
        """The options that the suite fixes for a detector, by name."""
        return self.entry.options.get(detector, {})
