"""Suites: which models and detectors meet which image sets, and what is asked of them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from benchmark.entries import DATA_DIR, Entry, read_entries, read_toml
from benchmark.images.image_set import BUILT_IN as IMAGE_SETS
from benchmark.images.image_set import ImageSetEntry, listed_files
from benchmark.limits.published import Figures, read_published
from benchmark.models.model import BUILT_IN as MODELS
from benchmark.models.model import OPEN_CLIP, ModelEntry, ModelError, is_vision_language, root_of
from benchmark.records import ID_PATTERN, OOD_ROLES, OODRole, Role, SetRole
from benchmark.suites.tuning import combinations
from detectors import available, create, describe, did_you_mean

FOLDER = Path(__file__).parent
_OF_VISION_LANGUAGE = {"patches", "text"}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InDistribution(_Table):
    """The splits: detectors learn from `train` (and `val`), 95 % of `test` set the threshold.

    Without `train`, or without `val`, the detectors that need it have no cases.
    """

    train: str | None = None
    val: str | None = None
    test: str


class OOD(_Table):
    """The OOD sets by role. contaminated, cleaned: a set with the images in it that show an ID class, and without."""

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    cleaned: tuple[str, ...] = ()
    contaminated: tuple[str, ...] = ()

    def by_role(self) -> list[tuple[str, OODRole]]:
        return [(set, role) for role in OOD_ROLES for set in getattr(self, role)]


class Variants(_Table):
    """Changed networks, with bases that serve for comparison alone, and the core of detectors that meets them."""

    models: tuple[str, ...]
    detectors: tuple[str, ...]


class UnitTests(_Table):
    """The synthetic sets: height and width of their images, images a set, and the detectors that meet them."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (224, 224)
    images: int = Field(default=400, ge=1)
    detectors: tuple[str, ...] = ("*",)


class Goals(_Table):
    """The FPR@95 that no case of a role should exceed; that of `far` where a role has none of its own."""

    near: float = Field(ge=0, le=1)
    far: float = Field(ge=0, le=1)
    unit_test: float = Field(alias="unit-test", ge=0, le=1)
    cleaned: float | None = Field(default=None, ge=0, le=1)
    contaminated: float | None = Field(default=None, ge=0, le=1)

    def of(self, role: Role) -> float:
        goal = getattr(self, role.replace("-", "_"))
        return self.far if goal is None else goal


class Tuning(_Table):
    """Detector options that are chosen: each list's value with the best AUROC between the val split and an OOD set that
    serves this alone. options: the values to try, by detector and option."""

    ood: str
    options: dict[str, dict[str, tuple[Any, ...]]]


class SuiteEntry(Entry):
    """A suite file.

    shifted: ID images that look otherwise: they count as ID in the full-spectrum figures, and are classified too.
    outliers: images of none of the classes to train variants with, which no OOD set may hold.
    thresholds: the recorded baselines; without them, and without a published figure, the goals hold.
    published: files of what papers report of the suite's cases and means. means: OOD sets whose FPR@95 papers average,
    by name.
    """

    title: str
    about: str = ""
    models: tuple[str, ...]
    detectors: tuple[str, ...]
    variants: Variants = Variants(models=(), detectors=())
    outliers: str | None = None
    thresholds: Path | None = None
    published: tuple[Path, ...] = ()
    in_distribution: InDistribution
    shifted: tuple[str, ...] = ()
    ood: OOD
    means: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    tuning: Tuning | None = None
    goals: Goals
    unit_tests: UnitTests = UnitTests()
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def evaluated(self) -> list[str]:
        """The image sets that models are fitted to or evaluated on."""
        splits = self.in_distribution
        named = (splits.train, splits.val, splits.test, *self.shifted, *(set for set, _ in self.ood.by_role()))
        return [id for id in named if id is not None]

    def image_sets(self) -> list[str]:
        """Every image set that it names."""
        return [*self.evaluated(), *filter(None, [self.outliers, self.tuning.ood if self.tuning else None])]


@dataclass(frozen=True)
class CaseId:
    """A model and a detector before an OOD set: `model/detector/set`."""

    model: str
    detector: str
    set: str
    role: Role

    def __str__(self) -> str:
        return f"{self.model}/{self.detector}/{self.set}"


@dataclass(frozen=True)
class Suite:
    """A suite with all that it names looked up.

    models: its models and variants. known_models: all that its file and the built-in one describe, such as their bases.
    published: what papers report, by cell (`model/detector/set`), of all known models.
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
        """The suite in which all detectors meet the variants and the unit tests, and not only a core of them."""
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
                yield from (CaseId(model, detector, set, role) for set, role in sets)

    def unit_test_cases(self, names: Iterable[str]) -> Iterator[CaseId]:
        """One case a (model, detector, unit test); `names` are those of `unit_tests_ood`. Variants meet none."""
        names = tuple(names)
        for model in self.entry.models:
            for detector in self._served(model, self.unit_test_detectors):
                yield from (CaseId(model, detector, name, "unit-test") for name in names)

    def _served(self, model: str, detectors: Iterable[str]) -> list[str]:
        """The detectors that a model and the splits can serve: texts and patches need a vision-language model."""
        lacking = set() if is_vision_language(model, self.known_models) else set(_OF_VISION_LANGUAGE)
        lacking |= {"train", "val"} - {role for role, _ in self.splits()}
        return [id for id in detectors if not lacking & set(describe(id)["needs"])]

    def splits(self) -> list[tuple[SetRole, str]]:
        """The in-distribution splits that there are: role and image set."""
        splits = self.entry.in_distribution
        named: list[tuple[SetRole, str | None]] = [("train", splits.train), ("val", splits.val), ("test", splits.test)]
        return [(role, id) for role, id in named if id is not None]

    @property
    def train(self) -> str:
        """The training split; a ValueError where the suite has none."""
        if self.entry.in_distribution.train is None:
            raise ValueError(f"{self.entry.file}: in_distribution.train is needed here: name the training images")
        return self.entry.in_distribution.train

    def options(self, detector: str) -> dict[str, Any]:
        return self.entry.options.get(detector, {})


def suite_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_suite(name_or_path: str, data_dir: Path = DATA_DIR) -> Suite:
    """A built-in suite by name, or the one in a TOML file; data_dir: where downloaded images and weights lie.

    The file may add models and image sets of its own, as tables `model.ID` and `image_set.ID`. Raises ValueError for
    anything that it names and that is not there, before any work.
    """
    file = Path(name_or_path) if name_or_path.endswith(".toml") else FOLDER / f"{name_or_path}.toml"
    if not file.is_file():
        raise ValueError(
            f"no suite {name_or_path!r}{did_you_mean(name_or_path, suite_names())}; "
            f"available: {', '.join(suite_names())}, or the path of a .toml file"
        )
    tables = read_toml(file)
    _check_ids([file.stem, *tables.get("model", {}), *tables.get("image_set", {})], file)
    own_models = read_entries(file, ModelEntry, tables.pop("model", {}), data_dir)
    own_sets = read_entries(file, ImageSetEntry, tables.pop("image_set", {}), data_dir)
    entry = SuiteEntry.parse(tables, file, "", data_dir)
    models = read_entries(MODELS, ModelEntry, data_dir=data_dir) | own_models
    image_sets = read_entries(IMAGE_SETS, ImageSetEntry, data_dir=data_dir) | own_sets
    return make_suite(file.stem, entry, models, image_sets)


def make_suite(
    suite: str, entry: SuiteEntry, models: dict[str, ModelEntry], image_sets: dict[str, ImageSetEntry]
) -> Suite:
    """The suite of that id, of all models and image sets that are known.

    Raises ValueError for anything that the entry names and that is not there.
    """
    file = entry.file
    for id in entry.image_sets():
        _look_up(id, image_sets, "image set", file)
    _check_apart(entry, image_sets)
    _check_means(entry, image_sets)
    ids = (*entry.models, *entry.variants.models)
    try:
        roots = [root_of(_look_up(id, models, "model", file), models) for id in ids]
    except ModelError as error:
        raise ValueError(f"{file}: {error}") from None
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"{file}: {', '.join(twice)}: listed twice; name a model once, under `models` or `variants`")
    sets = [*(set for set, _ in entry.ood.by_role()), *entry.shifted]
    if twice := sorted({id for id in sets if sets.count(id) > 1}):
        raise ValueError(f"{file}: {', '.join(twice)}: listed twice; name an image set once, under one role")
    reads_text = any(root.source.startswith(OPEN_CLIP) for root in roots)
    detectors = _detectors(entry.detectors, file, reads_text)
    of_variants = _detectors(entry.variants.detectors, file, reads_text)
    in_unit_tests = _detectors(entry.unit_tests.detectors, file, reads_text)
    for detector, options in entry.options.items():
        _look_up(detector, [*detectors, *in_unit_tests, *of_variants], "detector of the suite", file)
        try:
            create(detector, **options)
        except ValueError as error:
            raise ValueError(f"{file}: options.{detector}: {error}") from None
    _check_tuning(entry, [*detectors, *in_unit_tests, *of_variants])
    return Suite(
        id=suite,
        entry=entry,
        models={id: models[id] for id in ids},
        known_models=models,
        image_sets=image_sets,
        detectors=detectors,
        variant_detectors=of_variants,
        unit_test_detectors=in_unit_tests,
        published=read_published(entry.published, models, available(), [*entry.means, *_sets_and_groups(image_sets)]),
    )


def _check_ids(ids: Iterable[str], file: Path) -> None:
    """Ids stand in file names, addresses and test names, so they are of letters, digits and `.+_-`."""
    for id in ids:
        if not re.fullmatch(ID_PATTERN, id):
            raise ValueError(f"{file}: {id!r} cannot be an id: take letters, digits and . + _ -, letter or digit first")


def _check_apart(entry: SuiteEntry, image_sets: Mapping[str, ImageSetEntry]) -> None:
    """Raises ValueError where image sets are, by their ids or their files, sets that they must not be."""
    named = (entry.in_distribution.train, entry.in_distribution.val, entry.in_distribution.test)
    splits = [id for id in named if id is not None]
    ood = [set for set, _ in entry.ood.by_role()]
    rules = [
        ("in_distribution", id, splits[later:], "what detectors learn from does not judge them")
        for later, id in enumerate(splits, start=1)
    ]
    corrupted = [id for id in ood if image_sets[id].corruption]
    rules += [("ood", id, splits, "what is in-distribution is not OOD for being corrupted") for id in corrupted]
    for id in entry.shifted:
        alike = [other for other in (*splits, *ood) if image_sets[other].corruption == image_sets[id].corruption]
        rules.append(("shifted", id, alike, "shifted images are neither clean nor OOD"))
    if entry.outliers:
        why = "a network that has seen them in training proves nothing there"
        rules.append(("outliers", entry.outliers, entry.evaluated(), why))
    if entry.tuning:
        rules.append(("tuning.ood", entry.tuning.ood, entry.evaluated(), "options that fit them prove nothing there"))
    files = cache(listed_files)  # of a list with a million lines, each reading takes seconds
    for key, id, others, why in rules:
        for other in others:
            if other == id or image_sets[other].may_overlap(image_sets[id], files):
                raise ValueError(
                    f"{entry.file}: {key}: {id} holds images of {other}, which the suite uses, too; {why}: name "
                    "another set"
                )


def _check_tuning(entry: SuiteEntry, detectors: Iterable[str]) -> None:
    """Raises ValueError where options cannot be tuned: there is no val split, or no such detector, option or value."""
    if entry.tuning is None:
        return
    if entry.in_distribution.val is None:
        raise ValueError(f"{entry.file}: tuning: in_distribution.val is needed to tune with: name a validation split")
    for detector, values in entry.tuning.options.items():
        where = f"{entry.file}: tuning.options.{detector}"
        _look_up(detector, detectors, "detector of the suite", entry.file)
        fixed = entry.options.get(detector, {})
        if twice := sorted(values.keys() & fixed.keys()):
            raise ValueError(
                f"{where}: {', '.join(twice)}: fixed by options.{detector} already; name it in one of them"
            )
        if empty := [name for name, choices in values.items() if not choices]:
            raise ValueError(f"{where}: {', '.join(empty)}: name the values to try")
        for options in combinations(values):
            try:
                create(detector, **(fixed | options))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def _check_means(entry: SuiteEntry, image_sets: Mapping[str, ImageSetEntry]) -> None:
    """Raises ValueError where a mean has the name of an image set, or is of none or of what is no OOD set here."""
    ood = [set for set, _ in entry.ood.by_role()]
    for name, sets in entry.means.items():
        if name in image_sets or not sets:
            raise ValueError(f"{entry.file}: means.{name}: {'an image set has this name' if sets else 'it has no set'}")
        for set in sets:
            _look_up(set, ood, f"OOD set of the suite (in means.{name})", entry.file)


def _sets_and_groups(image_sets: Mapping[str, ImageSetEntry]) -> list[str]:
    """The image sets, and as `SET:GROUP` their groups of classes."""
    groups = [f"{id}:{group}" for id, image_set in image_sets.items() for group in image_set.class_groups]
    return [*image_sets, *groups]


def _detectors(names: tuple[str, ...], file: Path, reads_text: bool) -> tuple[str, ...]:
    """The detectors of a list; "*" stands for all that the suite's models can serve without options."""
    if names == ("*",):
        known = {id: describe(id) for id in available()}
        served = {id: reads_text or not _OF_VISION_LANGUAGE & set(about["needs"]) for id, about in known.items()}
        return tuple(id for id, about in known.items() if served[id] and about["defaults"].get("words") != ())
    return tuple(_look_up(name, available(), "detector", file) for name in names)


def _look_up(name: str, known: Iterable[str], kind: str, file: Path) -> str:
    known = list(known)
    if name not in known:
        raise ValueError(f"{file}: no {kind} is called {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return name
