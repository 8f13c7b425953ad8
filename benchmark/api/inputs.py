"""What `evaluate` is given: a network or outputs, image sets and detectors. It is checked, and made a suite."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmark.entries import read_entries, read_toml
from benchmark.errors import UserError
from benchmark.images.entries import BUILT_IN as IMAGE_SETS
from benchmark.images.entries import ImageSetEntry
from benchmark.images.readers import Images
from benchmark.models.entries import BUILT_IN as MODELS
from benchmark.models.entries import ModelEntry
from benchmark.models.preprocessing import Transform
from benchmark.records import ID_LENGTH, ID_PATTERN
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.store import Store
from benchmark.user.given_images import given_set
from benchmark.user.given_suite import GivenNetwork, GivenSuite
from benchmark.user.ids import Words, id_of, id_of_place, split_name
from benchmark.user.image_sets import NamedSet, named_set
from benchmark.user.image_suites import NamedImages, suite_name, suite_of_images
from benchmark.user.models import named_model
from benchmark.user.outputs import NOT_KEPT, GivenOutputs, LoadedOutputs, OutputsFolder, suite_of_rows
from benchmark.user.suite_table import FILE
from detectors import Head, Outputs, available, create, describe, did_you_mean

ARGUMENTS = Words(
    model="model", test="in_distribution", train="train", val="val", ood="ood", outputs="model"
)  # what `evaluate` calls them
_IDS = {"test": "in-distribution", "train": "train", "val": "val"}  # of sets that are objects
_SOURCES = "an nn.Module, a timm name, hf-hub:.., local-dir:.., an id of models.toml, a folder of outputs, or a Head"

# What a detector may lack, in words.
_LACKING = {
    "train": "train=...",
    "val": "val=...",
    "model": "the network",
    "images": "the network and its images",
    "patches": "a vision-language model",
    "text": "a vision-language model",
}


@dataclass(frozen=True)
class DetectorChoice:
    """Which detectors are evaluated.

    ids: their ids, or "*" alone for all that can be.
    options: by detector, options that are not its defaults.
    required: those that somebody asked for by name, so that it is an error where they cannot be evaluated.
    """

    ids: tuple[str, ...]
    options: dict[str, dict[str, Any]]
    required: tuple[str, ...]

    def without(self, needs: Collection[str]) -> "DetectorChoice":
        """Those that need none of some things. Raises UserError where a required one does."""
        lacking = set(needs)
        for detector_id in self.required:
            if missing := sorted(lacking & set(describe(detector_id)["needs"])):
                raise UserError(
                    f"detectors: {detector_id} needs {_LACKING[missing[0]]}: give it, or leave this one out"
                )
        if self.ids == ("*",):
            return self
        return replace(self, ids=tuple(one for one in self.ids if not lacking & set(describe(one)["needs"])))


def chosen_detectors(
    detectors: str | Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> DetectorChoice:
    """The detectors that arguments of `evaluate` name. Raises UserError for what there is not."""
    if isinstance(detectors, str):
        detectors = ("*",) if detectors == "all" else (detectors,)
    ids = core_detectors() if detectors is None else tuple(dict.fromkeys(detectors))
    if not ids:
        raise UserError('detectors: name some, or "all", or leave the argument out for a core of them')
    everything = ids == ("*",)
    for detector_id in () if everything else ids:
        if detector_id not in available():
            hint = did_you_mean(str(detector_id), available())
            raise UserError(
                f"detectors: no detector is called {detector_id!r}{hint}; detectors.available() lists all of them"
            )
    given = {detector_id: dict(values) for detector_id, values in (options or {}).items()}
    for detector_id, values in given.items():
        if detector_id not in (available() if everything else ids):
            raise UserError(f"options: {detector_id!r} is none of the detectors{did_you_mean(str(detector_id), ids)}")
        try:
            create(detector_id, **values)
        except (ValueError, TypeError) as error:
            raise UserError(f"options: {error}") from None
    required = given if detectors is None or everything else dict.fromkeys(ids)
    return DetectorChoice(ids, given, tuple(required))


def core_detectors() -> tuple[str, ...]:
    """The detectors that are evaluated where nobody chooses any."""
    return tuple(read_toml(FILE)["unit_tests"]["detectors"])


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of `evaluate` that say what is evaluated, which explains them.

    detectors: which detectors are evaluated.
    unit_tests: the names of the unit tests that are.
    """

    model: Any
    transform: Transform | None
    name: str | None
    in_distribution: Any
    train: Any
    val: Any
    ood: Any
    detectors: DetectorChoice
    unit_tests: tuple[str, ...]
    data_dir: Path

    def load(self, store: Path, device: torch.device) -> LoadedSuite:
        """The suite of it all. Raises UserError, in the words of `evaluate`, for what is missing or does not fit."""
        if self.transform is not None and not isinstance(self.model, nn.Module):
            raise UserError("transform: it goes with an nn.Module; every other model says how its images are prepared")
        if self.name is not None:
            _check_id(self.name, "name")
        if isinstance(self.model, Head):
            return self._of_arrays(self.model)
        if isinstance(self.model, (str, Path)) and _is_folder_of_outputs(str(self.model)):
            return self._of_folder(*split_name(str(self.model)))
        return self._of_images(store, device)

    # --- Outputs in place of a network. ---

    def _of_arrays(self, head: Head) -> LoadedSuite:
        test = self._test()
        splits = {"test": test, "train": self.train, "val": self.val}
        ood = self._ood()
        if same := sorted(ood.keys() & splits.keys()):
            raise UserError(f"ood: {same[0]!r} is the name of a split; take another key")
        outputs = GivenOutputs(
            head, {role: given for role, given in splits.items() if given is not None}, ood, ARGUMENTS
        )
        return self._of_rows(outputs, self.name or "outputs", "arrays in memory")

    def _of_folder(self, name: str | None, place: str) -> LoadedSuite:
        sets = {"in_distribution": self.in_distribution, "train": self.train, "val": self.val, "ood": self.ood}
        if given := [argument for argument, value in sets.items() if value is not None]:
            raise UserError(f"{given[0]}: the folder {place} holds the outputs of all sets: leave {given[0]} out")
        model = self.name or (id_of(name) if name else id_of_place(Path(place).expanduser()))
        return self._of_rows(OutputsFolder(Path(place), ARGUMENTS), model, f"outputs in {place}")

    def _of_rows(self, outputs: GivenOutputs | OutputsFolder, model: str, source: str) -> LoadedSuite:
        if self.unit_tests:
            raise UserError("unit_tests: they need the network, which outputs come without: leave them out")
        absent = {"train", "val"} - set(outputs.splits)
        served = self.detectors.without({*NOT_KEPT, *absent})
        changes = {"detectors": self.detectors.ids, "options": served.options}
        return LoadedOutputs(suite_of_rows(outputs, model, source, changes, ARGUMENTS), outputs)

    # --- A network, and images. ---

    def _of_images(self, store: Path, device: torch.device) -> LoadedSuite:
        known_models = read_entries(MODELS, ModelEntry, data_dir=self.data_dir)
        known_sets = read_entries(IMAGE_SETS, ImageSetEntry, data_dir=self.data_dir)
        model_id, entry, network = self._model(known_models)
        test = self._set("test", self._test(), known_sets)
        given = {"train": self.train, "val": self.val}
        splits = {role: self._set(role, data, known_sets) for role, data in given.items() if data is not None}
        ood = [self._ood_set(key, data, known_sets) for key, data in self._ood().items()]
        if taken := [one.id for one in (test, *splits.values(), *ood) if one.id in self.unit_tests]:
            raise UserError(f"{taken[0]!r} is the name of a unit test: give this set another one")
        unit_tests = self.detectors.ids if self.unit_tests else ()
        suite, images = suite_of_images(
            suite_name(test, is_named=_is_named(self.in_distribution)),
            {model_id: entry},
            NamedImages(test, splits, ood),
            known_models,
            known_sets,
            data_dir=self.data_dir,
            changes={
                "detectors": self.detectors.ids,
                "options": self.detectors.options,
                "unit_tests": read_toml(FILE)["unit_tests"] | {"detectors": unit_tests},
            },
            words=ARGUMENTS,
        )
        self.detectors.without(suite.lacking(model_id))
        objects: dict[str, Images] = {one.id: one.given.images for one in images if one.given is not None}
        return GivenSuite(suite, Store(store), device, objects, network)

    def _model(self, known: dict[str, ModelEntry]) -> tuple[str, ModelEntry, GivenNetwork | None]:
        model = self.model
        if isinstance(model, nn.Module):
            if self.transform is None and not getattr(model, "pretrained_cfg", None):
                raise UserError("transform: an nn.Module needs one, a callable from a PIL image to a tensor (C, H, W)")
            kind = type(model).__name__
            entry = ModelEntry.in_file(Path("model"), title=self.name or kind, source=f"a {kind} in memory")
            return self.name or id_of(kind), entry, GivenNetwork(model, self.transform)
        if not isinstance(model, (str, Path)):
            raise UserError(f"model: {_kind(model)} is none: give {_SOURCES}")
        model_id, entry = named_model(str(model), known, ARGUMENTS)
        return self.name or model_id, entry, None

    def _set(self, role: str, data: Any, known: dict[str, ImageSetEntry]) -> NamedSet:
        option = getattr(ARGUMENTS, role)
        if isinstance(data, (str, Path)):
            return named_set(role, str(data), known, self.data_dir, ARGUMENTS)
        if isinstance(data, Outputs):
            raise UserError(f"{option}: Outputs go with a Head as the model; beside a network, give images")
        return given_set(option, role, _IDS[role], data)

    def _ood_set(self, set_id: str, data: Any, known: dict[str, ImageSetEntry]) -> NamedSet:
        option = f"ood[{set_id!r}]"
        if isinstance(data, (str, Path)):
            if str(data) in known and not Path(data).exists() and str(data) != set_id:
                raise UserError(
                    f"{option}: {data} is an id of image_sets.toml, which it keeps: take it as the key, too"
                )
            return named_set("ood", f"{set_id}={data}", known, self.data_dir, replace(ARGUMENTS, ood=option))
        if isinstance(data, Outputs):
            raise UserError(f"{option}: Outputs go with a Head as the model; beside a network, give images")
        return given_set(option, "ood", set_id, data)

    # --- Both. ---

    def _test(self) -> Any:
        if self.in_distribution is None:
            raise UserError("in_distribution: name the in-distribution test images")
        return self.in_distribution

    def _ood(self) -> dict[str, Any]:
        """The OOD sets by id."""
        if self.ood is None and self.unit_tests:
            return {}
        if not isinstance(self.ood, Mapping) or not self.ood:
            raise UserError("ood: name at least one OOD set, as in ood={'strange': './strange'}")
        for set_id in self.ood:
            _check_id(set_id, "ood")
        return dict(self.ood)


def _is_folder_of_outputs(text: str) -> bool:
    """Whether a model is a folder that is not in timm's format."""
    place = Path(split_name(text)[1])
    return place.is_dir() and not (place / "config.json").is_file()


def _is_named(data: Any) -> bool:
    return isinstance(data, str) and split_name(data)[0] is not None


def _check_id(text: Any, argument: str) -> None:
    if not isinstance(text, str) or not re.fullmatch(ID_PATTERN, text) or len(text) > ID_LENGTH:
        raise UserError(
            f"{argument}: {text!r} cannot be a name: take letters, digits and . + _ -, letter or digit first, up to "
            f"{ID_LENGTH} of them"
        )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
