"""Evaluation: a suite's models and detectors meet its image sets. The one place where the steps are joined."""

import hashlib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmark import records
from benchmark.devices import device_name
from benchmark.image_sets import ImageSet, ImageSetError, load_image_set
from benchmark.metrics import accuracy, measure
from benchmark.models import Model, base_of, load_model
from benchmark.records import Estimate, Metrics, ScoresFile, SetRole, Timing
from benchmark.store import BATCH_ROWS, Store, forward_ms_per_image
from benchmark.suites import Suite
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

    def __call__(self, name: str, make: Callable[[], _Made]) -> _Made:
        if name not in self._made:
            try:
                self._made[name] = make()
            except Exception as error:
                self._made[name] = error
        if isinstance(self._made[name], Exception):
            raise self._made[name]
        return self._made[name]


class Workbench:
    """A suite at work: its models and image sets, each loaded once, and their stored outputs.

    It holds one model's outputs and detectors at a time, since the cases of a suite go through it model by model.
    """

    def __init__(self, suite: Suite, store: Store, device: torch.device) -> None:
        self.suite, self.store, self.device = suite, store, device
        self._image_sets = Once()
        self._model = ("", Once())

    def image_set(self, id: str) -> ImageSet:
        return self._image_sets(id, lambda: load_image_set(id, self.suite.image_sets))

    def model(self, id: str) -> "ModelBench":
        """A model with its outputs on the in-distribution splits."""
        if self._model[0] != id:
            self._model = (id, Once())
        return self._model[1](id, lambda: ModelBench(self, self.load_model(id)))

    def load_model(self, id: str) -> Model:
        """A model for the suite's classes, without its outputs."""
        splits = self.suite.entry.in_distribution
        class_names = self.image_set(splits.train or splits.test).class_names
        return load_model(id, self.suite.known_models, self.device, class_names)

    def base_of(self, model: Model) -> Model:
        """The base of a variant, for what is asked of it beside the variant."""
        return self.load_model(base_of(model.id, self.suite.known_models))

    def check_is_ood(self, image_set: ImageSet) -> None:
        """Raises ImageSetError where a set holds files of an in-distribution split too."""
        for role, id in self.suite.splits():
            shared = sorted(image_set.image_sha256s.keys() & self.image_set(id).image_sha256s.keys())
            if shared:
                one, other = image_set.image_sha256s[shared[0]], self.image_set(id).image_sha256s[shared[0]]
                raise ImageSetError(
                    f"image set {image_set.id}: {len(shared)} of its {len(image_set)} images are also in {id}, the "
                    f"{role} images of this suite, such as {one} ({other} there): what is ID cannot be OOD; "
                    "remove them, or name another set"
                )


class ModelBench:
    """One model at work. Raises what makes the model useless before any detector is fitted."""

    def __init__(self, workbench: Workbench, model: Model) -> None:
        self.workbench, self.model = workbench, model
        self._outputs = Once()
        self._detectors = Once()
        splits = workbench.suite.entry.in_distribution
        self.train, self.val = (
            self.outputs(workbench.image_set(id)) if id is not None else None for id in (splits.train, splits.val)
        )
        self.test_set = workbench.image_set(splits.test)
        self.test = self.outputs(self.test_set)
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

    def forward_ms_per_image_now(self) -> float:
        """The model's forward time while the machine does whatever else it does now."""
        return forward_ms_per_image(self.model, next(self.test.only({"images"}).batches(BATCH_ROWS)).images)

    def detector(self, id: str) -> "DetectorBench":
        return self._detectors(id, lambda: DetectorBench(self, id, self.workbench.suite.options(id)))

    def record(self, run: str, suite: str) -> records.ModelRecord:
        model = self.model
        classifying = self.test
        if model.classified_by_base:
            classifying = self.workbench.store.outputs(self.workbench.base_of(model), self.test_set)
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
            id_accuracy=self._accuracy(classifying),
            id_images=len(self.test_set),
            forward_ms_per_image=self.forward_ms_per_image,
            device=device_name(model.device),
            base=model.entry.base,
            group=model.entry.group,
            seed=model.entry.seed,
            classified_by_base=model.classified_by_base,
            network_accuracy=self._accuracy(self.test),
            **_how_made(model),
        )

    def _accuracy(self, outputs: Outputs) -> Estimate | None:
        """The share of the in-distribution test images that some outputs classify right; null without labels."""
        if self.test_set.labels is None:
            return None
        predicted = torch.cat([batch.logits.argmax(dim=1) for batch in outputs.batches(4096)])  # type: ignore[union-attr]
        return accuracy(int((predicted.numpy() == self.test_set.labels).sum()), len(self.test_set))


class DetectorBench:
    """One detector on one model: fitted once, and the in-distribution test images scored once."""

    def __init__(self, bench: ModelBench, id: str, options: dict[str, Any]) -> None:
        self.bench, self.id = bench, id
        self._saved: pa.Table | None = None
        self._detector = create(id, **options)
        started = time.perf_counter()
        self._detector.fit(bench.train, bench.model.head, val=bench.val, model=bench.model)
        self.fit_s = time.perf_counter() - started
        self.id_scores = self.score(bench.test_set)

    def score(self, image_set: ImageSet) -> Scores:
        """The scores of a set; a ValueError that names model, detector and set where they cannot be made."""
        outputs = self.bench.outputs(image_set)
        started = time.perf_counter()
        scored = self._detector.score(outputs)
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
        image_set = scores.image_set
        return measure(self.id_scores.values, scores.values, image_set.labels, image_set.classes)

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
                option.name: getattr(self._detector, option.name) for option in option_fields(self._detector)
            },
            source_sha256=source_sha256(type(self._detector)),
        )

    def save(self, folder: Path, run: str, scores: Scores) -> ScoresFile:
        """Writes all scores so far to the Parquet file of this model and detector in the results folder of a run."""
        path = f"{run}/{self.bench.model.id}/{self.id}.parquet"
        if self._saved is None:  # a detector that was let go and made again goes on with its file
            self._saved = pq.read_table(folder / path) if (folder / path).exists() else self.id_scores.table()
        self._saved = pa.concat_tables([self._saved, scores.table()])
        _write_table(folder / path, self._saved)
        return ScoresFile(path=path, sha256=hashlib.sha256(self.id_scores.lines() + scores.lines()).hexdigest())


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
