"""The suite that the options of a command line describe: a built-in one, a file, or a user's network and images."""

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
    """The values of the options of a command line, as the user gave them.

    suite: the name of a built-in suite, or the path of a suite file (--suite).
    data_dir: the data folder (--data-dir).
    models: an id, a checkpoint or a function each (--model).
    id: the in-distribution test images (--id); None where the suite names them.
    train: the training images (--train).
    val: the validation images (--val).
    ood: the OOD sets (--ood).
    outputs: a folder of precomputed outputs in place of networks and images (--outputs).
    detectors: the ids of the detectors that the user's files define (--detectors).
    """

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
        """The suite of these options. Raises UserError, which names the option, where one is missing or wrong."""
        self._check_options()
        if self.outputs is not None:
            return suite_of_outputs(*split_name(self.outputs))
        if self.id is not None:
            suite = self._suite_of_images(self.id)
        else:
            suite = load_suite(self.suite, self.data_dir)
            suite = self._replace_models(suite) if self.models else suite
        return replace(
            suite,
            detectors=_join_ids(suite.detectors, self.detectors),
            unit_test_detectors=_join_ids(suite.unit_test_detectors, self.detectors),
        )

    def _check_options(self) -> None:
        """Raises UserError where options exclude each other, or one needs another."""
        if self.suite != DEFAULT_SUITE and (self.id or self.outputs):
            raise UserError(f"--suite {self.suite}: it has images of its own: leave it out, or --id and --outputs")
        sets = {"--id": self.id, "--train": self.train, "--val": self.val, "--ood": self.ood}
        given = [option for option, value in {"--model": self.models, **sets}.items() if value]
        if self.outputs is not None and given:
            raise UserError(f"--outputs: a run has either precomputed outputs or {' and '.join(given)}: leave one out")
        if self.id is not None and not self.models:
            raise UserError(f"--id {self.id}: name the network that is run on these images with --model")
        if self.id is None and (alone := [option for option in given if option != "--model"]):
            raise UserError(f"{' and '.join(alone)}: name the in-distribution test images with --id, too")

    def _find_models(self, known: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        found: dict[str, ModelEntry] = {}
        for text in self.models:
            model_id, entry = named_model(text, known)
            if model_id in found:
                raise UserError(
                    f"--model {text}: two models are called {model_id}; name one: --model NAME={split_name(text)[1]}"
                )
            found[model_id] = entry
        return found

    def _replace_models(self, suite: Suite) -> Suite:
        """The suite with the user's models in place of its own.

        A model that is called like one of the suite is held to that one's baselines.
        """
        models = self._find_models(suite.known_models)
        entry = suite.entry.model_copy(
            update={
                "models": tuple(models),
                "variants": Variants(models=(), detectors=()),
                "published": suite.entry.published if {*self.models} <= suite.known_models.keys() else (),
            }
        )
        return make_suite(suite.id, entry, suite.known_models | models, suite.image_sets)

    def _suite_of_images(self, text: str) -> Suite:
        """The suite of the user's models and images. `text`: the value of --id."""
        known_models = read_entries(MODELS, ModelEntry, data_dir=self.data_dir)
        known_sets = read_entries(IMAGE_SETS, ImageSetEntry, data_dir=self.data_dir)
        models = self._find_models(known_models)
        find = partial(named_set, known=known_sets, data_dir=self.data_dir)
        named = {"train": self.train, "val": self.val}
        images = NamedImages(
            find("test", text),
            {role: find(role, text) for role, text in named.items() if text},
            [find("ood", other) for other in self.ood],
        )
        name = suite_name(images.test, is_named=split_name(text)[0] is not None)
        return suite_of_images(name, models, images, known_models, known_sets, data_dir=self.data_dir)[0]


def _join_ids(some: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    """All ids in order, each of them once."""
    return tuple(dict.fromkeys((*some, *more)))
