"""A detector that is fitted to a model's outputs, and its scores."""

import hashlib
import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmark import records
from benchmark.errors import UserError, is_refusal
from benchmark.images.image_set import ImageSet
from benchmark.metrics import accepted, auroc, measure
from benchmark.models.devices import device_name
from benchmark.records import Estimate, Metrics, ScoresFile, Timing, Tuned
from benchmark.results import Backend, RunId
from benchmark.running.loaded_model import LoadedModel
from benchmark.scores import ScoresOf, scores_sha256, scores_table, which_scores
from benchmark.suites.tuning import tune
from detectors import Detector, create, describe
from detectors.base import option_fields
from detectors.invariance import measure_invariances


@dataclass(frozen=True)
class Scores:
    """One detector's scores of the images of one set.

    image_set: the images.
    values: the scores, (N,).
    seconds: how long they took to compute.
    """

    image_set: ImageSet
    values: np.ndarray
    seconds: float


def fit(model: LoadedModel, detector_id: str, options: dict[str, Any]) -> tuple[Detector, float]:
    """A new detector, fitted to those of train and val that it needs, and the seconds that this took."""
    detector = create(detector_id, **options)
    train = model.split("train") if "train" in detector.needs else None
    val = model.split("val") if "val" in detector.needs else None
    head, started = model.model.head, time.perf_counter()
    detector.fit(train, head, val=val, model=model.model)
    return detector, time.perf_counter() - started


def choose_options(model: LoadedModel, detector_id: str) -> Tuned | None:
    """How the suite's tuning chooses a detector's options for a model; None where it leaves them."""
    suite = model.suite.suite
    tuning = suite.entry.tuning
    if tuning is None or detector_id not in tuning.options:
        return None
    ood = model.outputs(model.suite.tuning_set())

    def auroc_with(options: dict[str, Any]) -> float:
        try:
            detector, _ = fit(model, detector_id, suite.options(detector_id) | options)
            return auroc(detector.score(model.split("val")), detector.score(ood))  # type: ignore[arg-type]
        except ValueError as error:
            if not is_refusal(error):
                raise
            raise UserError(f"{model.model.id}/{detector_id}: tuning with {options}: {error}") from error

    return tune(tuning.ood, tuning.options[detector_id], auroc_with)


def _logit_warnings(model: LoadedModel, detector: Detector, options: dict[str, Any]) -> Iterator[str]:
    """Says where a score needs large logits that are positive, and those of the training images are not.

    A number that is added to all logits leaves the softmax, so training does not fix it. Scores that learn from the
    training logits and depend on it have signs, such as that of ViM's alpha, which are wrong then.
    """
    if not {"train", "logits"} <= detector.needs or (level := model.training_logit_level).largest > 0:
        return
    invariances = measure_invariances(partial(create, detector.id, **options)) or describe(detector.id)["invariances"]
    if not invariances.get("logit shift", True):
        yield (
            f"the mean of the largest training logit is {level.largest:.3g}, which is not above 0. The score depends "
            "on the level of the logits, which training does not fix, and is meant for positive ones: add "
            f"{-level.mean:.3g} to the head's bias (softmax and accuracy stay), or take a detector that is invariant "
            "to a logit shift, such as energy or mahalanobis++"
        )


class FittedDetector:
    """A detector that is fitted to a model, with its scores of the in-distribution images that are evaluated.

    model: the model that it is fitted to.
    id: the detector's id.
    detector: the fitted detector.
    tuned: how its options were chosen, in place of the suite's. None where they were not.
    fit_s: how long the fit took, in seconds.
    warnings: what makes its scores on this model doubtful, and what to do.
    id_scores: the scores of the ID test images.
    shifted_scores: the scores of each shifted set.
    """

    def __init__(self, model: LoadedModel, detector_id: str) -> None:
        self.model, self.id = model, detector_id
        self.tuned = choose_options(model, detector_id)
        self._id_tables: list[pa.Table] | None = None
        options = model.suite.suite.options(detector_id) | (self.tuned.options if self.tuned else {})
        self.detector, self.fit_s = fit(model, detector_id, options)
        self.warnings = tuple(_logit_warnings(model, self.detector, options))
        self.id_scores = self.score(model.test_set)
        self.shifted_scores = [self.score(image_set) for image_set in model.shifted_sets]

    def score(self, image_set: ImageSet) -> Scores:
        """The scores of a set; a ValueError that names model, detector and set where they cannot be made."""
        outputs = self.model.outputs(image_set)
        started = time.perf_counter()
        scored = self.detector.score(outputs)
        seconds = time.perf_counter() - started
        if scored.shape != (len(image_set),) or scored.dtype != torch.float64:
            raise UserError(
                f"{self.model.model.id}/{self.id}/{image_set.id}: the scores are {scored.dtype} {tuple(scored.shape)}; "
                f"a detector gives torch.float64 ({len(image_set)},)"
            )
        values = scored.cpu().numpy()
        if np.isnan(values).any():
            image = image_set.image_ids[int(np.isnan(values).argmax())]
            raise UserError(f"{self.model.model.id}/{self.id}/{image_set.id}: the score of {image} is NaN")
        return Scores(image_set, values, seconds)

    def metrics(self, scores: Scores) -> Metrics:
        """The metrics of an OOD set, where test images count as ID."""
        return self._metrics([self.id_scores], scores)

    def full_spectrum(self, scores: Scores) -> Metrics | None:
        """The metrics where test and shifted images count as ID alike, and set the threshold together: OpenOOD v1.5's.

        None in a suite without shifted sets, and where one of them is missing.
        """
        shifted = self.model.suite.suite.entry.shifted
        if not shifted or len(self.shifted_scores) < len(shifted):
            return None
        return self._metrics([self.id_scores, *self.shifted_scores], scores)

    @cached_property
    def shifted_accepted(self) -> dict[str, Estimate]:
        """The share of each shifted set that the threshold of the test images accepts."""
        return {
            shifted.image_set.id: accepted(self.id_scores.values, shifted.values) for shifted in self.shifted_scores
        }

    def _metrics(self, id_scores: list[Scores], scores: Scores) -> Metrics:
        """The metrics of an OOD set, where the images of some sets count as ID."""
        correct = [self.model.correct(of_set.image_set) for of_set in id_scores]
        known = [of_set for of_set in correct if of_set is not None]
        return measure(
            np.concatenate([of_set.values for of_set in id_scores]),
            scores.values,
            scores.image_set.labels,
            scores.image_set.classes,
            id_correct=np.concatenate(known) if len(known) == len(correct) else None,
        )

    def timing(self, scores: Scores, forward_ms_per_image: float | None) -> Timing:
        """The times of a case, its score time beside a forward time (in milliseconds an image; None for none)."""
        milliseconds = 1000 * scores.seconds / len(scores.image_set)
        ratio = None if forward_ms_per_image is None else milliseconds / forward_ms_per_image
        return Timing(
            device=device_name(self.model.model.device),
            fit_s=self.fit_s,
            score_ms_per_image=milliseconds,
            forward_ms_per_image=forward_ms_per_image,
            forward_ratio=ratio,
        )

    def record(self, run: str, suite: str) -> records.DetectorRecord:
        """What a run of a suite says of the detector."""
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

    def keep_scores(self, results: Backend, run: str, scores: Scores) -> ScoresFile:
        """Keeps the scores of an OOD set in a run's results, and before the first of them those of the ID images.

        Returns what the record of the case says of them. Raises OSError where they cannot be written.
        """
        if self._id_tables is None:  # once: they are the same for each OOD set
            tables = [self._id_table(run, of_set) for of_set in (self.id_scores, *self.shifted_scores)]
            for table in tables:
                self._write(results, table)
            self._id_tables = tables
        ood = scores_table(self._which(run, scores), scores.image_set.image_ids, scores.values, scores.image_set.labels)
        self._write(results, ood)
        test, *shifted = self._id_tables
        return ScoresFile(
            path=which_scores(ood).path,
            id_path=which_scores(test).path,
            shifted_paths={which_scores(table).set: which_scores(table).path for table in shifted},
            sha256=scores_sha256(test, ood),
        )

    def _id_table(self, run: str, scores: Scores) -> pa.Table:
        """The table of scores of an in-distribution set."""
        images = scores.image_set
        correct, of_network = self.model.correct(images), self.model.network_correct(images)
        return scores_table(
            self._which(run, scores), images.image_ids, scores.values, images.labels, correct, of_network
        )

    def _which(self, run: str, scores: Scores) -> ScoresOf:
        return ScoresOf(self.model.suite.suite.id, run, self.model.model.id, self.id, scores.image_set.id)

    def _write(self, results: Backend, table: pa.Table) -> None:
        of = which_scores(table)
        results.write_scores(RunId(of.suite, of.run), of.path, table)


def source_sha256(detector: type[Detector]) -> str:
    """A hash of the files in which a detector, its bases and its parts are written."""
    kinds = [base for kind in (detector, *detector.made_of) for base in inspect.getmro(kind)]
    files = {inspect.getsourcefile(kind) for kind in kinds if kind.__module__ not in ("abc", "builtins")}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()
