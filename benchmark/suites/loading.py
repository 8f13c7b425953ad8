"""Loading: a suite from its file, with all that it names looked up and checked."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmark.entries import DATA_DIR, read_entries, read_toml
from benchmark.errors import UserError
from benchmark.images.entries import BUILT_IN as IMAGE_SETS
from benchmark.images.entries import ImageSetEntry, listed_files
from benchmark.models.entries import BUILT_IN as MODELS
from benchmark.models.entries import OPEN_CLIP, ModelEntry, ModelError, root_of
from benchmark.records import ID_PATTERN
from benchmark.suites.entries import SuiteEntry
from benchmark.suites.published import read_published
from benchmark.suites.suite import _OF_VISION_LANGUAGE, Suite
from benchmark.suites.tuning import combinations
from detectors import available, create, describe, did_you_mean

FOLDER = Path(__file__).parent


def suite_names() -> list[str]:
    """The names of the built-in suites."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_suite(name_or_path: str, data_dir: Path = DATA_DIR) -> Suite:
    """A built-in suite by name, or the one in a TOML file.

    The file may add models and image sets of its own, as tables `model.ID` and `image_set.ID`.

    name_or_path: the name, or the path of a file that ends in .toml.
    data_dir: where downloaded images and weights lie.
    Raises ValueError for anything that it names and that is not there, before any work.
    """
    file = Path(name_or_path).expanduser() if name_or_path.endswith(".toml") else FOLDER / f"{name_or_path}.toml"
    if not file.is_file():
        raise UserError(
            f"no suite {name_or_path!r}{did_you_mean(name_or_path, suite_names())}; "
            f"available: {', '.join(suite_names())}, or the path of a .toml file"
        )
    tables = read_toml(file)
    of_models, of_sets = (_tables(tables.pop(name, {}), name, file) for name in ("model", "image_set"))
    _check_ids([file.stem, *of_models, *of_sets], file)
    models_of_file = read_entries(file, ModelEntry, of_models, data_dir)
    sets_of_file = read_entries(file, ImageSetEntry, of_sets, data_dir)
    entry = SuiteEntry.parse(tables, file, "", data_dir)
    models = read_entries(MODELS, ModelEntry, data_dir=data_dir) | models_of_file
    image_sets = read_entries(IMAGE_SETS, ImageSetEntry, data_dir=data_dir) | sets_of_file
    return make_suite(file.stem, entry, models, image_sets)


def make_suite(
    suite: str, entry: SuiteEntry, models: dict[str, ModelEntry], image_sets: dict[str, ImageSetEntry]
) -> Suite:
    """The suite of an entry.

    suite: its id.
    entry: what its file says.
    models: all models that are known, by id.
    image_sets: all image sets that are known, by id.
    Raises ValueError for anything that the entry names and that is not there.
    """
    file = entry.file
    for set_id in entry.image_sets():
        _look_up(set_id, image_sets, "image set", file)
    _check_apart(entry, image_sets)
    _check_means(entry, image_sets)
    ids = (*entry.models, *entry.variants.models)
    try:
        roots = [root_of(_look_up(model_id, models, "model", file), models) for model_id in ids]
    except ModelError as error:
        raise UserError(f"{file}: {error}") from None
    if twice := sorted({model_id for model_id in ids if ids.count(model_id) > 1}):
        raise UserError(f"{file}: {', '.join(twice)}: listed twice; name a model once, under `models` or `variants`")
    sets = [*(set_id for set_id, _ in entry.ood.by_role()), *entry.shifted]
    if twice := sorted({set_id for set_id in sets if sets.count(set_id) > 1}):
        raise UserError(f"{file}: {', '.join(twice)}: listed twice; name an image set once, under one role")
    reads_text = any(root.source.startswith(OPEN_CLIP) for root in roots)
    detectors = _detectors(entry.detectors, file, reads_text)
    of_variants = _detectors(entry.variants.detectors, file, reads_text)
    in_unit_tests = _detectors(entry.unit_tests.detectors, file, reads_text)
    for detector, options in entry.options.items():
        _look_up(detector, [*detectors, *in_unit_tests, *of_variants], "detector of the suite", file)
        try:
            create(detector, **options)
        except ValueError as error:
            raise UserError(f"{file}: options.{detector}: {error}") from error
    _check_tuning(entry, [*detectors, *in_unit_tests, *of_variants])
    return Suite(
        id=suite,
        entry=entry,
        models={model_id: models[model_id] for model_id in ids},
        known_models=models,
        image_sets=image_sets,
        detectors=detectors,
        variant_detectors=of_variants,
        unit_test_detectors=in_unit_tests,
        published=read_published(entry.published, models, available(), [*entry.means, *_sets_and_groups(image_sets)]),
    )


def _tables(content: Any, name: str, file: Path) -> dict[str, Any]:
    """What a file holds below a name, by id. Raises ValueError where these are no tables."""
    if not isinstance(content, dict):
        raise UserError(f"{file}: {name}: tables are expected, [{name}.ID] each, not {content!r}")
    return content


def _check_ids(ids: Iterable[str], file: Path) -> None:
    """Ids stand in file names, addresses and test names, so they are of letters, digits and `.+_-`."""
    for name in ids:
        if not re.fullmatch(ID_PATTERN, name):
            raise UserError(
                f"{file}: {name!r} cannot be an id: take letters, digits and . + _ -, letter or digit first"
            )


def _check_apart(entry: SuiteEntry, image_sets: Mapping[str, ImageSetEntry]) -> None:
    """Raises ValueError where image sets are, by their ids or their files, sets that they must not be."""
    named = (entry.in_distribution.train, entry.in_distribution.val, entry.in_distribution.test)
    splits = [set_id for set_id in named if set_id is not None]
    ood = [set_id for set_id, _ in entry.ood.by_role()]
    rules = [
        ("in_distribution", set_id, splits[later:], "what detectors learn from does not judge them")
        for later, set_id in enumerate(splits, start=1)
    ]
    corrupted = [set_id for set_id in ood if image_sets[set_id].corruption]
    rules += [("ood", set_id, splits, "what is in-distribution is not OOD for being corrupted") for set_id in corrupted]
    for set_id in entry.shifted:
        alike = [other for other in (*splits, *ood) if image_sets[other].corruption == image_sets[set_id].corruption]
        rules.append(("shifted", set_id, alike, "shifted images are neither clean nor OOD"))
    if entry.outliers:
        why = "a network that has seen them in training proves nothing there"
        rules.append(("outliers", entry.outliers, entry.evaluated(), why))
    if entry.tuning:
        rules.append(("tuning.ood", entry.tuning.ood, entry.evaluated(), "options that fit them prove nothing there"))
    files = cache(listed_files)  # of a list with a million lines, each reading takes seconds
    for key, set_id, others, why in rules:
        for other in others:
            if other == set_id or image_sets[other].may_overlap(image_sets[set_id], files):
                raise UserError(
                    f"{entry.file}: {key}: {set_id} holds images of {other}, which the suite uses, too; {why}: name "
                    "another set"
                )


def _check_tuning(entry: SuiteEntry, detectors: Iterable[str]) -> None:
    """Raises ValueError where options cannot be tuned: there is no val split, or no such detector, option or value."""
    if entry.tuning is None:
        return
    if entry.in_distribution.val is None:
        raise UserError(f"{entry.file}: tuning: in_distribution.val is needed to tune with: name a validation split")
    for detector, values in entry.tuning.options.items():
        where = f"{entry.file}: tuning.options.{detector}"
        _look_up(detector, detectors, "detector of the suite", entry.file)
        fixed = entry.options.get(detector, {})
        if twice := sorted(values.keys() & fixed.keys()):
            raise UserError(f"{where}: {', '.join(twice)}: fixed by options.{detector} already; name it in one of them")
        if empty := [name for name, choices in values.items() if not choices]:
            raise UserError(f"{where}: {', '.join(empty)}: name the values to try")
        for options in combinations(values):
            try:
                create(detector, **(fixed | options))
            except ValueError as error:
                raise UserError(f"{where}: {error}") from error


def _check_means(entry: SuiteEntry, image_sets: Mapping[str, ImageSetEntry]) -> None:
    """Raises ValueError where a mean has the name of an image set, or is of none or of what is no OOD set here."""
    ood = [set_id for set_id, _ in entry.ood.by_role()]
    for name, sets in entry.means.items():
        if name in image_sets or not sets:
            raise UserError(f"{entry.file}: means.{name}: {'an image set has this name' if sets else 'it has no set'}")
        for set_id in sets:
            _look_up(set_id, ood, f"OOD set of the suite (in means.{name})", entry.file)


def _sets_and_groups(image_sets: Mapping[str, ImageSetEntry]) -> list[str]:
    """The image sets, and as `SET:GROUP` their groups of classes."""
    groups = [f"{set_id}:{group}" for set_id, image_set in image_sets.items() for group in image_set.class_groups]
    return [*image_sets, *groups]


def _detectors(names: tuple[str, ...], file: Path, reads_text: bool) -> tuple[str, ...]:
    """The detectors of a list; "*" stands for all that the suite's models can serve without options."""
    if names == ("*",):
        known = {detector_id: describe(detector_id) for detector_id in available()}
        served = {
            detector_id: reads_text or not _OF_VISION_LANGUAGE & set(about["needs"])
            for detector_id, about in known.items()
        }
        return tuple(
            detector_id
            for detector_id, about in known.items()
            if served[detector_id] and about["defaults"].get("words") != ()
        )
    return tuple(_look_up(name, available(), "detector", file) for name in names)


def _look_up(name: str, known: Iterable[str], kind: str, file: Path) -> str:
    """The name, where it is known. Else raises ValueError.

    kind: what it is the name of, in words.
    file: the file that holds it.
    """
    known = list(known)
    if name not in known:
        raise UserError(f"{file}: no {kind} is called {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return name
