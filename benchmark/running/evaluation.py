"""Evaluation: a suite's models and detectors meet its image sets. The one place where the steps are joined."""

import hashlib
import inspect
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmark import records
from benchmark.images.image_set import ImageSet, ImageSetError, MissingImageSetError, load_image_set
from benchmark.metrics import accepted, accuracy, auroc, measure
from benchmark.models.devices import device_name
from benchmark.models.model import Model, base_of, load_model
from benchmark.records import Estimate, Metrics, ScoresFile, SetRole, Timing, Tuned
from benchmark.running.store import BATCH_ROWS, Store, forward_ms_per_image
from benchmark.suites.suite import Suite
from benchmark.suites.tuning import tune
from detectors import Detector, Outputs, create, describe
from detectors.base import option_fields

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Scores:
    """One detector's scores (N,) of the images of one set, and the seconds that they took."""

    image_set: ImageSet
    values: np.ndarray
    seconds: float

    def table(self) -> pa.Table:
        ids = list(self.image_set.image_ids)
        return pa.table({"set": [self.image_set.id] * len(ids), "image": ids, "score": self.values})

    def lines(self) -> bytes:
        """The text that a record's hash of scores stands for."""
        pairs = zip(self.image_set.image_ids, self.values.tolist(), strict=True)
        return "".join(f"{image}\t{value.hex()}\n" for image, value in pairs).encode()


class Once:
    """Values by name, each made once. What failed is not tried again: the same exception is raised."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._failed: dict[str, tuple[Exception, TracebackType | None]] = {}

    def __call__(self, name: str, make: Callable[[], _Made]) -> _Made:
        if name not in self._made and name not in self._failed:
            try:
                self._made[name] = make()
            except Exception as error:
                self._failed[name] = error, error.__traceback__
        if name in self._failed:
            failure, traceback = self._failed[name]
            raise failure.with_traceback(traceback)  # else it would grow, and keep every case's frames, with each raise
        return self._made[name]


class Workbench:
    """A suite at work: its models and image sets, each loaded once, and their stored outputs.

    It holds one model's outputs and detectors at a time, since the cases of a suite go through it model by model.
    """

    def __init__(self, suite: Suite, store: Store, device: torch.device) -> None:
        self.suite, self.store, self.device = suite, store, device
        self._image_sets = Once()
        self._found_ood, self._found_untuned = Once(), Once()
        self._model = ("", Once())

    def image_set(self, id: str) -> ImageSet:
        return self._image_sets(id, lambda: load_image_set(id, self.suite.image_sets))

    def model(self, id: str) -> "ModelBench":
        """A model with its outputs on the in-distribution splits."""
        if self._model[0] != id:
            self._model = (id, Once())
        return self._model[1](id, lambda: ModelBench(self, self.load_model(id)))

    @cached_property
    def splits(self) -> list[tuple[SetRole, ImageSet]]:
        """The in-distribution splits with their roles. One to learn from may be missing: not every detector learns."""
        found: list[tuple[SetRole, ImageSet]] = []
        for role, id in self.suite.splits():
            with nullcontext() if role == "test" else suppress(MissingImageSetError):
                found.append((role, self.image_set(id)))
        return found

    @cached_property
    def _classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The classes that networks tell apart, in their order, and a word for each."""
        splits = self.suite.entry.in_distribution
        id = splits.train or splits.test
        try:
            return self.image_set(id).classes, self.image_set(id).class_names
        except MissingImageSetError:
            entry = self.suite.image_sets[id].with_classes()
            if entry.leave_out or not entry.classes:  # its files have to tell
                raise
            return entry.classes, entry.class_names or entry.classes

    def load_model(self, id: str) -> Model:
        """A model for the suite's classes, without its outputs."""
        return load_model(id, self.suite.known_models, self.device, self._classes[1])

    def base_of(self, model: Model) -> Model:
        """The base of a variant, for what is asked of it beside the variant."""
        return self.load_model(base_of(model.id, self.suite.known_models))

    def shifted_sets(self) -> list[ImageSet]:
        """The shifted sets that somebody has fetched."""
        found = []
        for id in self.suite.entry.shifted:
            with suppress(MissingImageSetError):
                found.append(self.image_set(id))
        return found

    def id_labels(self, image_set: ImageSet) -> np.ndarray | None:
        """The labels of in-distribution images (N,), as the network counts them; None where there are none.

        A shifted set may hold some of the classes only, in another order.
        """
        classes, _ = self._classes
        if image_set.labels is None or image_set.classes == classes:
            return image_set.labels
        if not classes:
            return None
        if unknown := sorted(set(image_set.classes) - set(classes)):
            raise ImageSetError(
                f"image set {image_set.id}: {len(unknown)} of its classes are none of the in-distribution images', "
                f"such as {unknown[0]!r}; a shifted set shows ID classes: leave the others out of `classes`"
            )
        return np.array([classes.index(name) for name in image_set.classes])[image_set.labels]

    def check_is_ood(self, image_set: ImageSet) -> None:
        """Raises ImageSetError where a set holds files of an in-distribution split too. Each set is looked at once."""

        def check() -> None:
            for role, split in self.splits:
                _refuse_shared(image_set, split, f"the {role} images of this suite", "what is ID cannot be OOD")

        self._found_ood(image_set.id, check)

    def tuning_set(self) -> ImageSet:
        """The OOD images that options are chosen with, which are in no in-distribution set."""
        assert self.suite.entry.tuning
        image_set = self.image_set(self.suite.entry.tuning.ood)
        self.check_is_ood(image_set)
        for shifted in self.shifted_sets():
            self.check_not_tuned_on(shifted)
        return image_set

    def check_not_tuned_on(self, image_set: ImageSet) -> None:
        """Raises ImageSetError where a set holds files that options were chosen with."""
        assert self.suite.entry.tuning
        tuning_set = self.image_set(self.suite.entry.tuning.ood)
        what, why = "the tuning images of this suite", "what options were chosen with proves nothing"
        self._found_untuned(image_set.id, lambda: _refuse_shared(image_set, tuning_set, what, why))


def _refuse_shared(image_set: ImageSet, other: ImageSet, what: str, why: str) -> None:
    """Raises ImageSetError where a set holds files of another one too. what: the other one is."""
    shared = sorted(image_set.image_sha256s.keys() & other.image_sha256s.keys())
    if shared:
        one, there = image_set.image_sha256s[shared[0]], other.image_sha256s[shared[0]]
        raise ImageSetError(
            f"image set {image_set.id}: {len(shared)} of its {len(image_set)} images are also in {other.id}, {what}, "
            f"such as {one} ({there} there): {why}; remove them, or name another set"
        )


class ModelBench:
    """One model at work. Raises what makes the model useless before any detector is fitted."""

    def __init__(self, workbench: Workbench, model: Model) -> None:
        self.workbench, self.model = workbench, model
        self._outputs = Once()
        self._detectors = Once()
        self._correct = Once()
        self.test_set = workbench.image_set(workbench.suite.entry.in_distribution.test)
        self.test = self.outputs(self.test_set)
        self.shifted_sets = workbench.shifted_sets()
        self.forward_ms_per_image = workbench.store.forward_ms_per_image(model, self.test)

    def outputs(self, image_set: ImageSet) -> Outputs:
        return self._outputs(image_set.id, lambda: self._make_outputs(image_set))

    def _make_outputs(self, image_set: ImageSet) -> Outputs:
        for edit in self.model.edits:
            seen = image_set.image_sha256s.keys() & set(edit.about.get("outliers_sha256", ()))
            if seen:
                raise ValueError(
                    f"{self.model.id} was trained with {len(seen)} of the {len(image_set)} images of {image_set.id} as "
                    f"outliers, such as {image_set.image_sha256s[min(seen)]}: what it makes of them proves nothing; "
                    "evaluate it on another set"
                )
        return self.workbench.store.outputs(self.model, image_set)

    def split(self, role: Literal["train", "val"]) -> Outputs | None:
        """The outputs of a split to learn from, None where there is none. They are made when a detector needs them:
        those of ImageNet's training images take hours."""
        id = getattr(self.workbench.suite.entry.in_distribution, role)
        if id is None:
            return None
        image_set = self.workbench.image_set(id)
        outputs, labels = self.outputs(image_set), self.workbench.id_labels(image_set)
        if labels is image_set.labels:
            return outputs
        return replace(outputs, labels=None if labels is None else torch.from_numpy(labels))

    def forward_ms_per_image_now(self) -> float:
        """The model's forward time while the machine does whatever else it does now."""
        return forward_ms_per_image(self.model, next(self.test.only({"images"}).batches(BATCH_ROWS)).images)

    def detector(self, id: str) -> "DetectorBench":
        return self._detectors(id, lambda: DetectorBench(self, id, self.tuned(id)))

    def tuned(self, id: str) -> Tuned | None:
        """How the suite's tuning chooses a detector's options for this model; None where it leaves them."""
        suite = self.workbench.suite
        tuning = suite.entry.tuning
        if tuning is None or id not in tuning.options:
            return None
        ood = self.outputs(self.workbench.tuning_set())

        def auroc_with(options: dict[str, Any]) -> float:
            try:
                detector, _ = self.fit(id, suite.options(id) | options)
                return auroc(detector.score(self.split("val")), detector.score(ood))  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"{self.model.id}/{id}: tuning with {options}: {error}") from error

        return tune(tuning.ood, tuning.options[id], auroc_with)

    def fit(self, id: str, options: dict[str, Any]) -> tuple[Detector, float]:
        """A new detector, fitted to those of train and val that it needs, and the seconds that this took."""
        detector = create(id, **options)
        train = self.split("train") if "train" in detector.needs else None
        val = self.split("val") if "val" in detector.needs else None
        head, started = self.model.head, time.perf_counter()
        detector.fit(train, head, val=val, model=self.model)
        return detector, time.perf_counter() - started

    def correct(self, image_set: ImageSet) -> np.ndarray | None:
        """Whether the network that classifies is right about each of some in-distribution images (N,); None where they
        have no labels. It is the base's where that goes on classifying."""
        return self._correct(image_set.id, lambda: self._find_correct(image_set))

    def _find_correct(self, image_set: ImageSet) -> np.ndarray | None:
        if not self.model.classified_by_base:
            return self._correct_of(self.outputs(image_set), image_set)
        return self._correct_of(self.workbench.store.outputs(self._base, image_set), image_set)

    @cached_property
    def _base(self) -> Model:
        return self.workbench.base_of(self.model)

    def record(self, run: str, suite: str) -> records.ModelRecord:
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
            network_accuracy=_accuracy(self._correct_of(self.test, self.test_set)),
            shifted_accuracy={id: estimate for id, estimate in shifted.items() if estimate},
            **_how_made(model),
        )

    def _correct_of(self, outputs: Outputs, image_set: ImageSet) -> np.ndarray | None:
        """Whether some outputs are right about each in-distribution image (N,); None where they have no labels."""
        labels = self.workbench.id_labels(image_set)
        if labels is None:
            return None
        batches = outputs.only({"logits"}).batches(4096)
        predicted = torch.cat([batch.logits.argmax(dim=1) for batch in batches])  # type: ignore[union-attr]
        return predicted.numpy() == labels


class DetectorBench:
    """One detector on one model: fitted once, and the in-distribution images that are evaluated scored once.

    tuned: how its options were chosen, in place of the suite's; None where they were not.
    """

    def __init__(self, bench: ModelBench, id: str, tuned: Tuned | None = None) -> None:
        self.bench, self.id, self.tuned = bench, id, tuned
        self._saved: pa.Table | None = None
        options = bench.workbench.suite.options(id) | (tuned.options if tuned else {})
        self.detector, self.fit_s = bench.fit(id, options)
        self.id_scores = self.score(bench.test_set)
        self.shifted_scores = [self.score(image_set) for image_set in bench.shifted_sets]

    def score(self, image_set: ImageSet) -> Scores:
        """The scores of a set; a ValueError that names model, detector and set where they cannot be made."""
        outputs = self.bench.outputs(image_set)
        started = time.perf_counter()
        scored = self.detector.score(outputs)
        seconds = time.perf_counter() - started
        if scored.shape != (len(image_set),) or scored.dtype != torch.float64:
            raise ValueError(
                f"{self.bench.model.id}/{self.id}/{image_set.id}: the scores are {scored.dtype} {tuple(scored.shape)}; "
                f"a detector gives torch.float64 ({len(image_set)},)"
            )
        values = scored.cpu().numpy()
        if np.isnan(values).any():
            image = image_set.image_ids[int(np.isnan(values).argmax())]
            raise ValueError(f"{self.bench.model.id}/{self.id}/{image_set.id}: the score of {image} is NaN")
        return Scores(image_set, values, seconds)

    def metrics(self, scores: Scores) -> Metrics:
        return self._measure([self.id_scores], scores)

    def full_spectrum(self, scores: Scores) -> Metrics | None:
        """The metrics where test and shifted images count as ID alike, and set the threshold together: OpenOOD v1.5's.

        None in a suite without shifted sets, and where one of them is missing.
        """
        shifted = self.bench.workbench.suite.entry.shifted
        if not shifted or len(self.shifted_scores) < len(shifted):
            return None
        return self._measure([self.id_scores, *self.shifted_scores], scores)

    @cached_property
    def shifted_accepted(self) -> dict[str, Estimate]:
        """The share of each shifted set that the threshold of the test images accepts."""
        return {
            shifted.image_set.id: accepted(self.id_scores.values, shifted.values) for shifted in self.shifted_scores
        }

    def _measure(self, id_scores: list[Scores], scores: Scores) -> Metrics:
        correct = [self.bench.correct(part.image_set) for part in id_scores]
        known = [part for part in correct if part is not None]
        return measure(
            np.concatenate([part.values for part in id_scores]),
            scores.values,
            scores.image_set.labels,
            scores.image_set.classes,
            id_correct=np.concatenate(known) if len(known) == len(correct) else None,
        )

    def timing(self, scores: Scores, forward_ms_per_image: float | None) -> Timing:
        milliseconds = 1000 * scores.seconds / len(scores.image_set)
        ratio = None if forward_ms_per_image is None else milliseconds / forward_ms_per_image
        return Timing(
            device=device_name(self.bench.model.device),
            fit_s=self.fit_s,
            score_ms_per_image=milliseconds,
            forward_ms_per_image=forward_ms_per_image,
            forward_ratio=ratio,
        )

    def record(self, run: str, suite: str) -> records.DetectorRecord:
        return records.DetectorRecord(
            run=run,
            suite=suite,
            **describe(self.id),
            options_used={
                option.name: getattr(self.detector, option.name)
                for option in option_fields(self.detector)
                if not (self.tuned and option.name in self.tuned.options)  # which differ between models
            },
            source_sha256=source_sha256(type(self.detector)),
        )

    def save(self, folder: Path, run: str, scores: Scores) -> ScoresFile:
        """Writes all scores so far to the Parquet file of this model and detector in the results folder of a run."""
        path = f"{run}/{self.bench.model.id}/{self.id}.parquet"
        if self._saved is None:  # a detector that was let go and made again goes on with its file
            of_id = pa.concat_tables([scored.table() for scored in (self.id_scores, *self.shifted_scores)])
            self._saved = pq.read_table(folder / path) if (folder / path).exists() else of_id
        self._saved = pa.concat_tables([self._saved, scores.table()])
        _write_table(folder / path, self._saved)
        return ScoresFile(path=path, sha256=hashlib.sha256(self.id_scores.lines() + scores.lines()).hexdigest())


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


def source_sha256(detector: type[Detector]) -> str:
    """A hash of the files in which a detector, its bases and its parts are written."""
    kinds = [base for kind in (detector, *detector.made_of) for base in inspect.getmro(kind)]
    files = {inspect.getsourcefile(kind) for kind in kinds if kind.__module__ not in ("abc", "builtins")}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def set_record(image_set: ImageSet, role: SetRole, run: str, suite: str) -> records.SetRecord:
    return records.SetRecord(
        run=run,
        suite=suite,
        id=image_set.id,
        role=role,
        title=image_set.title,
        images=len(image_set),
        classes=list(image_set.classes),
        content_sha256=image_set.content_sha256,
        coding=image_set.coding,
        licence=image_set.licence,
        source=image_set.source,
        **image_set.about,
    )


def _write_table(file: Path, table: pa.Table) -> None:
    temporary = file.with_suffix(".writing")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"cannot write the scores {file}: {error.strerror or error}; "
            "free some space, or name another folder with --results"
        ) from error
