"""A model of a suite with its outputs."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from benchmark import records
from benchmark.errors import UserError
from benchmark.images.image_set import ImageSet
from benchmark.metrics import accuracy
from benchmark.models.class_order import order_of_outputs
from benchmark.models.devices import device_name
from benchmark.models.model import Model
from benchmark.records import Estimate
from benchmark.running.class_doubt import doubt_of_order
from benchmark.running.forward import BATCH_ROWS, forward_ms_per_image
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.once import Once
from detectors import Outputs


@dataclass(frozen=True)
class LogitLevel:
    """Where the training logits lie.

    largest: the mean over the training images of their largest logit.
    mean: the mean of all their logits.
    """

    largest: float
    mean: float


class LoadedModel:
    """A model of a suite, with its outputs on the image sets, each made once.

    To make one runs the network on the ID test images. What makes the model useless is so raised before any detector is
    fitted.

    suite: the suite with its image sets.
    model: the model.
    classes: the class that each of its outputs stands for.
    test_set: the ID test images.
    test: the outputs on them.
    shifted_sets: the shifted ID images that somebody has fetched.
    forward_ms_per_image: the forward time, in milliseconds an image.
    """

    def __init__(self, suite: LoadedSuite, model: Model) -> None:
        self.suite, self.model = suite, model
        self._outputs = Once()
        self._correct = Once()
        # Of precomputed outputs and of networks without names, the order is that of the set.
        self.classes = order_of_outputs(model.id, model.label_names, *suite.classes, model.classes)
        self.test_set = suite.image_set(suite.suite.entry.in_distribution.test)
        self.test = self.outputs(self.test_set)
        self.shifted_sets = suite.shifted_sets()
        self.forward_ms_per_image = suite.store.forward_ms_per_image(model, self.test)

    @property
    def class_names(self) -> tuple[str, ...]:
        """A word for the class of each output."""
        word_of = dict(zip(*self.suite.classes, strict=True))
        return tuple(word_of.get(name, name) for name in self.classes)

    def forget_failures(self) -> None:
        """Lets what failed be tried again."""
        self._outputs.forget_failures()
        self._correct.forget_failures()

    def outputs(self, image_set: ImageSet) -> Outputs:
        """The outputs on an image set, which are in the store or are computed now."""
        return self._outputs(image_set.id, lambda: self._make_outputs(image_set))

    def _make_outputs(self, image_set: ImageSet) -> Outputs:
        for edit in self.model.edits:
            seen = image_set.image_sha256s.keys() & set(edit.about.get("outliers_sha256", ()))
            if seen:
                raise UserError(
                    f"{self.model.id} was trained with {len(seen)} of the {len(image_set)} images of {image_set.id} as "
                    f"outliers, such as {image_set.image_sha256s[min(seen)]}: what it makes of them proves nothing; "
                    "evaluate it on another set"
                )
        return self.suite.store.outputs(self.model, image_set)

    def split(self, role: Literal["train", "val"]) -> Outputs | None:
        """The outputs of a split to learn from. None where the suite has none.

        They are made when a detector needs them, since those of ImageNet's training images take hours.
        """
        set_id = getattr(self.suite.suite.entry.in_distribution, role)
        if set_id is None:
            return None
        image_set = self.suite.image_set(set_id)
        outputs, labels = self.outputs(image_set), self.suite.id_labels(image_set, self.classes)
        if labels is image_set.labels:
            return outputs
        return replace(outputs, labels=None if labels is None else torch.from_numpy(labels))

    @cached_property
    def training_logit_level(self) -> LogitLevel:
        """Where the training logits lie, in a suite with training images."""
        train = self.split("train")
        assert train is not None
        largest = mean = 0.0
        for batch in train.only({"logits"}).batches(BATCH_ROWS):
            logits = batch.logits.double()  # type: ignore[union-attr]
            largest += float(logits.amax(dim=1).sum())
            mean += float(logits.mean(dim=1).sum())
        return LogitLevel(largest / len(train), mean / len(train))

    def forward_ms_per_image_now(self) -> float:
        """The model's forward time while the machine does whatever else it does now."""
        return forward_ms_per_image(self.model, next(self.test.only({"images"}).batches(BATCH_ROWS)).images)

    def correct(self, image_set: ImageSet) -> np.ndarray | None:
        """Whether the network that classifies is right about each in-distribution image, (N,). None without labels.

        That network is the base where the base goes on classifying.
        """
        return self._correct(image_set.id, lambda: self._find_correct(image_set))

    def network_correct(self, image_set: ImageSet) -> np.ndarray | None:
        """The same of the network that detects. None where that is the one that classifies, too."""
        if not self.model.classified_by_base:
            return None
        return self._correct_of(self.outputs(image_set), image_set, self.classes)

    def _find_correct(self, image_set: ImageSet) -> np.ndarray | None:
        if not self.model.classified_by_base:
            return self._correct_of(self.outputs(image_set), image_set, self.classes)
        base = self._base
        classes = order_of_outputs(base.id, base.label_names, *self.suite.classes, base.classes)
        return self._correct_of(self.suite.store.outputs(base, image_set), image_set, classes)

    @cached_property
    def _base(self) -> Model:
        return self.suite.base_of(self.model)

    def record(self, run: str, suite: str) -> records.ModelRecord:
        """What a run of a suite says of the model."""
        model = self.model
        shifted = {image_set.id: _accuracy(self.correct(image_set)) for image_set in self.shifted_sets}
        return records.ModelRecord(
            run=run,
            suite=suite,
            id=model.id,
            title=model.entry.title,
            source=model.entry.source,
            architecture=model.architecture,
            family=model.entry.family,
            pretraining=model.entry.pretraining,
            weights_sha256=model.weights_sha256,
            preprocessing=model.preprocessing,
            parameters=model.parameters,
            feature_dimensions=model.feature_dimensions,
            classes=model.classes,
            id_accuracy=_accuracy(self.correct(self.test_set)),
            id_images=len(self.test_set),
            forward_ms_per_image=self.forward_ms_per_image,
            device=device_name(model.device),
            base=model.entry.base,
            group=model.entry.group,
            seed=model.entry.seed,
            classified_by_base=model.classified_by_base,
            network_accuracy=_accuracy(self._correct_of(self.test, self.test_set, self.classes)),
            shifted_accuracy={set_id: estimate for set_id, estimate in shifted.items() if estimate},
            remarks=self._remarks,
            **_how_made(model),
        )

    def _correct_of(self, outputs: Outputs, image_set: ImageSet, classes: tuple[str, ...]) -> np.ndarray | None:
        """Whether some outputs are right about each in-distribution image (N,); None where they have no labels."""
        labels = self.suite.id_labels(image_set, classes)
        return None if labels is None else _predicted(outputs) == labels

    @property
    def _remarks(self) -> list[str]:
        """What a reader should know of the model's figures."""
        labels = self.suite.id_labels(self.test_set, self.classes)
        doubt = None if labels is None else doubt_of_order(labels, _predicted(self.test), self.classes)
        return [*filter(None, [doubt]), *self.suite.shared_images]


def _predicted(outputs: Outputs) -> np.ndarray:
    """The class of the largest logit of each image, (N,)."""
    batches = outputs.only({"logits"}).batches(4096)
    return torch.cat([batch.logits.argmax(dim=1) for batch in batches]).numpy()  # type: ignore[union-attr]


def _accuracy(correct: np.ndarray | None) -> Estimate | None:
    return None if correct is None else accuracy(int(correct.sum()), len(correct))


def _how_made(model: Model) -> dict[str, Any]:
    """Of a record: the method that made a variant, its settings, and its trace."""
    if not model.edits:
        return {"method": model.entry.method, "settings": model.entry.settings}
    edit = model.edits[-1]
    settings, about = edit.about.get("settings", {}), edit.about
    used = {name: about[name] for name in ("outliers", "loss_target", "ood_weight", "rank") if name in about}
    epochs = [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(about.get("losses", []), start=1)]
    ratios = [{"layer": layer, "ratio": ratio} for layer, ratio in edit.ratios.items()]
    return {
        "method": about.get("method"),
        "settings": settings | {f"{name} used": value for name, value in used.items() if settings.get(name) != value},
        "trace": about.get("trace") or epochs or ratios,
    }
