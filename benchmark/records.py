"""Records: what a run found, one JSON line each. They are all that the leaderboard reads.

`results/<suite>/<run>.jsonl` holds the records of one run, of six kinds; a missing value is null. Beside it,
`results/<suite>/<run>/<model>/<detector>.parquet` holds the scores (columns set, image, score), one row an image.

This module imports nothing of the machinery: neither torch nor timm.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from benchmark.errors import UserError

SCHEMA: Literal[1] = 1

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$"
ID_LENGTH = 120
Id = Annotated[str, Field(pattern=ID_PATTERN, max_length=ID_LENGTH)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
OODRole = Literal["near", "far", "cleaned", "contaminated"]
OOD_ROLES: tuple[OODRole, ...] = ("near", "far", "cleaned", "contaminated")
Role = OODRole | Literal["unit-test"]
SetRole = Role | Literal["train", "val", "test", "shifted", "tuning"]
Status = Literal["passed", "failed", "error", "skipped"]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Estimate(_Value):
    """A fraction in [0, 1] with its 95 % sampling interval."""

    value: Fraction
    low: Fraction
    high: Fraction

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} lies outside of its interval {self.low} to {self.high}")
        return self


class ClassValue(_Value):
    """FPR@95 on one class of an OOD set."""

    name: str
    fpr_at_95: Estimate
    images: Count


class Metrics(_Value):
    """One detector on one OOD set. In-distribution is the positive class but where a name says otherwise.

    fpr_at_95: the headline: share of OOD images accepted when 95 % of ID test images are; over a set with classes, the
    unweighted mean of the classes' shares. fpr_at_95_pooled: over all images alike. fpr_at_95_ood_positive: the other
    convention in use: share of ID test images rejected when 95 % of OOD images are. threshold: the score from which an
    image is accepted; null where it is infinite. aupr_id, aupr_ood: average precision with that class positive.
    Where the ID images have labels: oscr, the area under the share of ID images accepted and classified right over the
    share of OOD images accepted; aurc, the mean risk over all coverages, where an accepted OOD image and a
    misclassified ID image are errors, ID and OOD images having the same weight in all; aurc_id, that of the ID images.
    """

    fpr_at_95: Estimate
    fpr_at_95_pooled: Estimate
    fpr_at_95_ood_positive: Estimate
    auroc: Estimate
    aupr_id: Estimate
    aupr_ood: Estimate
    threshold: float | None
    id_images: Count
    ood_images: Count
    classes: list[ClassValue] = Field(default_factory=list)
    oscr: Estimate | None = None
    aurc: Estimate | None = None
    aurc_id: Estimate | None = None


class Timing(_Value):
    """Times of one case. forward_ratio: score time over the model's forward time, an image, on the same device; both
    null for outputs that somebody else's machine made."""

    device: str
    fit_s: Seconds
    score_ms_per_image: Seconds
    forward_ms_per_image: Seconds | None
    forward_ratio: Seconds | None


class Limit(_Value):
    """What a case was held to, and where that came from (a file with its date, or an option).

    goal: the FPR@95 that the suite asks for; a unit test above it is a failed one. fpr_at_95: what was allowed: above
    the goal where a baseline or a paper says that the case is known to exceed it, and known_failure says so in words.
    """

    goal: Fraction
    fpr_at_95: Fraction
    forward_ratio: Seconds | None
    source: str
    known_failure: str | None = None


class PublishedValue(_Value):
    """An FPR@95 that somebody published for a case, and how this one compares.

    tolerance: how far apart the two may lie and still say the same. difference: measured minus published, null where
    nothing was measured. note: what was different there.
    """

    fpr_at_95: Fraction
    tolerance: Fraction
    source: str
    note: str | None = None
    difference: float | None
    status: Literal["reproduced", "differs", "not run"]


class Tuned(_Value):
    """How a detector's options were chosen. tried: {"options": ..., "auroc": ...} of each choice, in order.

    AUROC is that between val split and `ood`. It flatters a detector that needs `val`, which was fitted to it as well.
    """

    ood: Id
    options: dict[str, Any]
    tried: list[dict[str, Any]]


class ScoresFile(_Value):
    """Where the scores of a (model, detector) lie, relative to the record's own file, and the hash of this set's rows.

    sha256: over the lines 'image id, tab, score as float.hex(), newline' of the ID test images and then of the set's.
    """

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*(/[A-Za-z0-9][A-Za-z0-9.+_-]*)*$", max_length=400)]
    sha256: Sha256


class _Record(_Value):
    schema_version: Literal[1] = SCHEMA
    run: Id
    suite: Id


class Run(_Record):
    """Provenance of all that one run recorded.

    suite_option: what its --suite was or, where that is not enough to run it again, all options that name the suite and
    where its images lie, as one types them. suite_about: what the suite says of itself.
    """

    kind: Literal["run"] = "run"
    suite_option: str
    suite_title: str = ""
    suite_about: str = ""
    started: str
    command: str
    git_commit: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    python: str
    platform: str
    device: str


class ModelRecord(_Record):
    """A model, or a variant: a base model that was changed.

    base: what a variant is compared with. method, settings: how it was changed; trace: its making, step by step.
    group, seed: models of one group differ in their seed alone. id_accuracy: of the network that classifies, which is
    the base's where classified_by_base says so; network_accuracy: of this network itself. id_accuracy is null where the
    ID images have no labels. shifted_accuracy: on ID images that look otherwise, by set.
    """

    kind: Literal["model"] = "model"
    id: Id
    title: str
    source: str
    architecture: str
    family: str
    pretraining: str
    weights_sha256: Sha256
    preprocessing: dict[str, Any]
    parameters: Count
    feature_dimensions: Count
    classes: Count
    id_accuracy: Estimate | None
    id_images: Count
    forward_ms_per_image: Seconds | None
    device: str
    base: Id | None = None
    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    trace: list[dict[str, Any]] = Field(default_factory=list)
    group: Id | None = None
    seed: Count | None = None
    classified_by_base: bool = False
    network_accuracy: Estimate | None = None
    shifted_accuracy: dict[str, Estimate] = Field(default_factory=dict)


class DetectorRecord(_Record):
    """What `detectors.describe` says, the options that ran, and the hash of its source files."""

    kind: Literal["detector"] = "detector"
    id: Id
    summary: str
    formula: str
    paper: str
    needs: list[str]
    options: dict[str, str]
    defaults: dict[str, Any]
    deviations: list[str]
    verified: list[str] = []
    options_used: dict[str, Any]
    source_sha256: Sha256


class SetRecord(_Record):
    """An image set. coding: how its pixels were stored ('pixels' for none, 'jpeg', 'png', 'half jpeg, half png').

    list_id: which images of a set that exists in several forms. decoding: what was decided about files that decoders
    treat differently. contamination: shares of images that show an ID class, as somebody found. class_groups: classes
    that are looked at together.
    """

    kind: Literal["set"] = "set"
    id: Id
    role: SetRole
    title: str
    images: Count
    classes: list[str]
    content_sha256: Sha256
    coding: str
    licence: str
    source: str
    list_id: str | None = None
    redistributable: bool | None = None
    contamination: list[dict[str, Any]] = Field(default_factory=list)
    class_groups: dict[str, list[str]] = Field(default_factory=dict)
    decoding: dict[str, Any] = Field(default_factory=dict)


class Case(_Record):
    """One (model, detector, OOD set). metrics, timing and scores are null where the case ended before them.

    expected: the case failed as its baseline says it does. published: what others report of it. full_spectrum: the
    metrics where shifted ID images count as ID too. shifted_accepted: the share of each shifted set that is accepted at
    the threshold. tuned: how the detector's options were chosen, null where they were not.
    """

    kind: Literal["case"] = "case"
    model: Id
    detector: Id
    set: Id
    role: Role
    status: Status
    expected: bool
    reason: str | None
    metrics: Metrics | None
    timing: Timing | None
    limit: Limit | None
    scores: ScoresFile | None
    published: list[PublishedValue] = Field(default_factory=list)
    full_spectrum: Metrics | None = None
    shifted_accepted: dict[str, Estimate] = Field(default_factory=dict)
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.status == "passed" and (self.metrics is None or self.limit is None):
            raise ValueError("a case without metrics or a limit cannot have passed")
        return self


class PublishedRecord(_Record):
    """An FPR@95 that somebody published of more than one case, or of a part of one: written when its run ends.

    name: the suite's name of a mean of OOD sets, or `SET:GROUP` for a group of a set's classes. sets: those that it is
    of. measured: from the cases of this run alone, null where it lacks a figure of one.
    """

    kind: Literal["published"] = "published"
    model: Id
    detector: Id
    name: str
    sets: Annotated[list[Id], Field(min_length=1)]
    measured: Estimate | None
    published: PublishedValue


Record = Run | ModelRecord | DetectorRecord | SetRecord | Case | PublishedRecord
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class RecordError(UserError):
    """A line that is no record of a schema we know; the message names the file and the line."""


def append_record(path: Path, record: Record) -> None:
    """Adds one line to a run's file, whole or not at all as far as a reader is concerned (see `read_records`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")


def parse_record(content: dict[str, Any]) -> Record:
    """The record that `model_dump(mode="json")` gave."""
    return _RECORD.validate_python(content)


def read_records(path: Path) -> Iterator[Record]:
    """The records of one run's file, in order.

    A last line without its newline was cut off by a kill and is left out. Any other line that does not fit the schema,
    a newer schema included, raises RecordError.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield _RECORD.validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise RecordError(
                    f"{path}:{number}: not a record of schema {SCHEMA}: {where}: {first['msg']}; "
                    "a newer schema needs a newer version of this project, a damaged line has to be removed"
                ) from None
