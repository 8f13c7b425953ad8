"""Suites of what the options of a command line name."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmark.entries import read_entries
from benchmark.errors import UserError
from benchmark.images.entries import BUILT_IN as IMAGE_SETS
from benchmark.images.entries import ImageSetEntry
from benchmark.models.entries import BUILT_IN as MODELS
from benchmark.models.entries import ModelEntry
from benchmark.suites.entries import Variants
from benchmark.suites.loading import load_suite, make_suite
from benchmark.suites.suite import Suite
from benchmark.user import DEFAULT_SUITE
from benchmark.user.ids import split_name
from benchmark.user.image_sets import named_set
from benchmark.user.image_suites import NamedImages, suite_name, suite_of_images
from benchmark.user.models import named_model
from benchmark.user.outputs import suite_of_outputs


@dataclass(frozen=True)
class Named:
    """What the options of a command line name, as they were given. detectors: the ids that the user's files define."""

    suite: str
    data_dir: Path
    models: Sequence[str] = ()
    id: str | None = None
    train: str | None = None
    val: str | None = None
    ood: Sequence[str] = ()
    outputs: str | None = None
    detectors: Collection[str] = ()

    def make_suite(self) -> Suite:
        """The suite of it all. Raises ValueError, naming the option, for what is missing or does not fit."""
        self._check()
        if self.outputs is not None:
            return suite_of_outputs(*split_name(self.outputs))
        if self.id is not None:
            suite = self._of_images(self.id)
        else:
            suite = load_suite(self.suite, self.data_dir)
            suite = self._with_models(suite) if self.models else suite
        return replace(
            suite,
            detectors=_joined(suite.detectors, self.detectors),
            unit_test_detectors=_joined(suite.unit_test_detectors, self.detectors),
        )

    def _check(self) -> None:
        if self.suite != DEFAULT_SUITE and (self.id or self.outputs):
            raise UserError(f"--suite {self.suite}: it has images of its own: leave it out, or --id and --outputs")
        sets = {"--id": self.id, "--train": self.train, "--val": self.val, "--ood": self.ood}
        given = [option for option, value in {"--model": self.models, **sets}.items() if value]
        if self.outputs is not None and given:
            raise UserError(f"--outputs: a run has either precomputed outputs or {' and '.join(given)}: leave one out")
        if self.id is not None and not self.models:
            raise UserError(f"--id {self.id}: name the network that meets these images with --model")
        if self.id is None and (alone := [option for option in given if option != "--model"]):
            raise UserError(f"{' and '.join(alone)}: name the in-distribution test images with --id, too")

    def _models(self, known: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        found: dict[str, ModelEntry] = {}
        for text in self.models:
            model_id, entry = named_model(text, known)
            if model_id in found:
                raise UserError(
                    f"--model {text}: two models are called {model_id}; name one: --model NAME={split_name(text)[1]}"
                )
            found[model_id] = entry
        return found

    def _with_models(self, suite: Suite) -> Suite:
        """A suite that was written for others, with these models, of which its baselines know nothing."""
        models = self._models(suite.known_models)
        entry = suite.entry.model_copy(
            update={
                "models": tuple(models),
                "variants": Variants(models=(), detectors=()),
                "baselines": None,
                "published": suite.entry.published if {*self.models} <= suite.known_models.keys() else (),
            }
        )
        return make_suite(suite.id, entry, suite.known_models | models, suite.image_sets)

    def _of_images(self, text: str) -> Suite:
        known_models = read_entries(MODELS, ModelEntry, data_dir=self.data_dir)
        known_sets = read_entries(IMAGE_SETS, ImageSetEntry, data_dir=self.data_dir)
        models = self._models(known_models)
        find = partial(named_set, known=known_sets, data_dir=self.data_dir)
        named = {"train": self.train, "val": self.val}
        images = NamedImages(
            find("test", text),
            {role: find(role, text) for role, text in named.items() if text},
            [find("ood", other) for other in self.ood],
        )
        name = suite_name(images.test, is_named=split_name(text)[0] is not None)
        return suite_of_images(name, models, images, known_models, known_sets, data_dir=self.data_dir)[0]


def _joined(some: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*some, *more)))
