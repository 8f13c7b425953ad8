"""Records: what a run found, one JSON line each. The leaderboard reads nothing else but the scores beside them.

A record is of one of six kinds, and a missing value is null. `benchmark.results` says where records and scores lie.
Records are written in the schema SCHEMA. Those of an older schema are read through MIGRATIONS.

This module imports nothing of the machinery: neither torch nor timm.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from benchmark.errors import UserError
from benchmark.public import public, public_message, public_values

SCHEMA: Literal[3] = 3

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$"
ID_LENGTH = 120
Id = Annotated[str, Field(pattern=ID_PATTERN, max_length=ID_LENGTH)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
# Records are for everybody: a place of a user in one of these is shortened, in records of earlier versions too.
Text = Annotated[str, AfterValidator(public)]
Message = Annotated[str, AfterValidator(public_message)]
Values = Annotated[dict[str, Any], AfterValidator(public_values)]
OODRole = Literal["near", "far", "cleaned", "contaminated"]
OOD_ROLES: tuple[OODRole, ...] = ("near", "far", "cleaned", "contaminated")
Role = OODRole | Literal["unit-test"]
SetRole = Role | Literal["train", "val", "test", "shifted", "tuning"]
Status = Literal["passed", "failed", "error", "skipped"]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Estimate(_Value):
    """A fraction from 0 to 1 with its 95 % sampling interval.

    value: the fraction.
    low: the lower end of the interval, at most the value.
    high: the upper end of the interval, at least the value.
    """

    value: Fraction
    low: Fraction
    high: Fraction

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} lies outside of its interval {self.low} to {self.high}")
        return self


class ClassValue(_Value):
    """FPR@95 on one class of an OOD set.

    name: the class.
    fpr_at_95: the share of its images that are accepted when 95 % of the ID test images are.
    images: how many images of the class were scored.
    """

    name: str
    fpr_at_95: Estimate
    images: Count


class Metrics(_Value):
    """One detector on one OOD set. In-distribution is the positive class, except where a name says otherwise.

    fpr_at_95: the headline: the share of OOD images that are accepted when 95 % of the ID test images are. Over a set
        with classes it is the unweighted mean of the classes' shares.
    fpr_at_95_pooled: the same share over all images, whatever their class.
    fpr_at_95_ood_positive: the other convention in use: the share of ID test images that are rejected when 95 % of the
        OOD images are.
    auroc: the probability that an ID image scores above an OOD image, a tie counting half.
    aupr_id: average precision with ID as the positive class.
    aupr_ood: average precision with OOD as the positive class.
    threshold: the score from which an image is accepted. Null where it is infinite.
    id_images: how many ID images were scored.
    ood_images: how many OOD images were scored.
    classes: FPR@95 on each class of the OOD set that has images. Empty for a set without classes.
    oscr: the area under the share of ID images that are accepted and classified right, over the share of OOD images
        that are accepted. Null where the ID images have no labels.
    aurc: the mean risk over all coverages. Errors are accepted OOD images and misclassified ID images. ID and OOD
        images have the same weight in all. Null where the ID images have no labels.
    aurc_id: the same over the ID images alone. Null where they have no labels.
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
    """Times of one case.

    device: where they were measured.
    fit_s: how long the detector's fit took, in seconds.
    score_ms_per_image: how long scoring took, in milliseconds an image.
    forward_ms_per_image: the model's forward time on the same device, in milliseconds an image. Null for outputs that
        were computed elsewhere.
    forward_ratio: score time over forward time. Null where the forward time is.
    """

    device: str
    fit_s: Seconds
    score_ms_per_image: Seconds
    forward_ms_per_image: Seconds | None
    forward_ratio: Seconds | None


class Limit(_Value):
    """What a case was held to.

    goal: the FPR@95 that the suite asks for. A unit test above it counts as failed.
    fpr_at_95: the highest FPR@95 that was allowed. It lies above the goal where a baseline or a paper says that the
        case is known to exceed it.
    forward_ratio: the highest score time over forward time that was allowed. Null where time was not judged.
    source: where the limit came from: a file with its date, a paper, or an option.
    known_failure: in words, that the case is known to exceed its goal. Null where it is not.
    """

    goal: Fraction
    fpr_at_95: Fraction
    forward_ratio: Seconds | None
    source: Text
    known_failure: Text | None = None


class PublishedValue(_Value):
    """An FPR@95 that somebody published for a case, and how the measured one compares.

    fpr_at_95: the published value.
    tolerance: how far apart the two may lie and still say the same, as a fraction.
    source: the paper and the table.
    note: what was different there. Null where nothing is known to be.
    difference: measured minus published, as a fraction. Null where nothing was measured.
    status: "reproduced" where the difference is within the tolerance, else "differs". "not run" where nothing was
        measured.
    """

    fpr_at_95: Fraction
    tolerance: Fraction
    source: Text
    note: Text | None = None
    difference: float | None
    status: Literal["reproduced", "differs", "not run"]


class Tuned(_Value):
    """How a detector's options were chosen.

    AUROC is that between the val split and `ood`. It flatters a detector that needs `val`, because the detector was
    fitted to the val split too.

    ood: the OOD set that the options were chosen on.
    options: the options with the highest AUROC.
    tried: {"options": ..., "auroc": ...} of each choice, in order.
    """

    ood: Id
    options: Values
    tried: list[Values]


ScoresPath = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*(/[A-Za-z0-9][A-Za-z0-9.+_-]*)*$", max_length=500)
]


class ScoresFile(_Value):
    """Where the scores of a case lie. `benchmark.scores` says what the files hold.

    Paths are relative to the folder of the record's own file. In records that are older than schema 3 all of them are
    the same path: one file held the scores of all sets.

    path: the Parquet file of the images of the OOD set.
    id_path: the Parquet file of the ID test images.
    shifted_paths: the Parquet file of each shifted set, by set.
    sha256: of the lines 'image id, tab, score as float.hex(), newline' of the ID test images and then of the OOD set's.
    """

    path: ScoresPath
    id_path: ScoresPath
    shifted_paths: dict[Id, ScoresPath] = Field(default_factory=dict)
    sha256: Sha256


class _Record(_Value):
    """What all records have in common.

    schema_version: the schema that the record is written in.
    run: the id of the run.
    suite: the id of the suite.
    """

    schema_version: Literal[3] = SCHEMA
    run: Id
    suite: Id


class Run(_Record):
    """Provenance of all that one run recorded.

    suite_option: what its --suite was or, where that is not enough to run it again, all options that name the suite and
        where its images lie, as one types them.
    suite_title: the suite's name in words.
    suite_about: what the suite says of itself.
    started: when the run began, as an ISO 8601 date with time, to the millisecond. Of two runs of a suite the one that
        started later counts. One that started in the future counts as the oldest.
    command: the command line.
    package_version: the version of this package that ran. Null where that is not known: the package was neither
        installed nor run from its source tree, or the record is older than schema 2.
    git_commit: the commit of this package. Null where it did not run from a git checkout of its own.
    git_dirty: whether that checkout had changes or files that were not committed. Null where it is not known.
    user_git_commit: the commit of the repository in which the user ran it. Null where that is no repository, or the
        checkout of this package itself.
    user_git_dirty: whether that repository had changes or files that were not committed. Null where it is not known.
    packages: the version of each package that numbers depend on.
    python: the version of Python.
    platform: the operating system, as Python names it.
    device: where networks ran.
    """

    kind: Literal["run"] = "run"
    suite_option: Text
    suite_title: Text = ""
    suite_about: Text = ""
    started: str
    command: Message
    package_version: str | None
    git_commit: str | None
    git_dirty: bool | None
    user_git_commit: str | None
    user_git_dirty: bool | None
    packages: dict[str, str]
    python: str
    platform: str
    device: Text


class ModelRecord(_Record):
    """A model, or a variant: a base model that was changed.

    id: the model's id.
    title: its name in words.
    source: where its weights come from.
    architecture: the architecture, as its library names it.
    family: the kind of architecture, in words.
    pretraining: what it was trained on before, in words.
    weights_sha256: of the weights, with all edits.
    preprocessing: what is done to an image before the network sees it.
    parameters: how many parameters the network has.
    feature_dimensions: the length D of its features.
    classes: how many classes it tells apart.
    id_accuracy: of the network that classifies. Null where the ID images have no labels.
    id_images: how many ID test images there are.
    forward_ms_per_image: its forward time, in milliseconds an image. Null for outputs that were computed elsewhere.
    device: where it ran.
    base: the model that a variant is compared with. Null for a model that is no variant.
    method: how it was changed, or trained otherwise than its base. Null where it was neither.
    settings: the settings of the method.
    trace: how it was made, step by step.
    group: models of one group differ in their seed alone. Null where it is in none.
    seed: the seed that it was trained with. Null where none is stated.
    classified_by_base: whether the base goes on classifying, while this network only detects.
    network_accuracy: of this network itself. Null where the ID images have no labels.
    shifted_accuracy: of the network that classifies, on shifted ID images, by set.
    remarks: what a reader should know of its figures, a sentence each.
    """

    kind: Literal["model"] = "model"
    id: Id
    title: Text
    source: Text
    architecture: Text
    family: Text
    pretraining: Text
    weights_sha256: Sha256
    preprocessing: Values
    parameters: Count
    feature_dimensions: Count
    classes: Count
    id_accuracy: Estimate | None
    id_images: Count
    forward_ms_per_image: Seconds | None
    device: str
    base: Id | None = None
    method: Text | None = None
    settings: Values = Field(default_factory=dict)
    trace: list[Values] = Field(default_factory=list)
    group: Id | None = None
    seed: Count | None = None
    classified_by_base: bool = False
    network_accuracy: Estimate | None = None
    shifted_accuracy: dict[str, Estimate] = Field(default_factory=dict)
    remarks: list[Text] = Field(default_factory=list)


class DetectorRecord(_Record):
    """A detector: what `detectors.describe` says of it, and what ran.

    id: the detector's id.
    summary: what its score is, in a sentence.
    formula: the formula of its score.
    paper: where it was proposed.
    needs: what it asks for, such as "logits" or "train".
    options: the meaning of each option.
    defaults: the default of each option.
    deviations: how it differs from the paper, each with its reason.
    verified: what its scores were compared with.
    invariances: whether changes of a network leave the order of its scores, by the name of the change; with the default
        options. Empty in older records, and where nothing could be measured.
    invariances_declared: whether the detector declares them, and its contract checks them. Else they were measured.
    options_used: the value of each option in this run, but of those that were chosen for each model.
    source_sha256: of the source files of the detector and of all that it is made of.
    """

    kind: Literal["detector"] = "detector"
    id: Id
    summary: Text
    formula: str
    paper: str
    needs: list[str]
    options: dict[str, Text]
    defaults: Values
    deviations: list[Text]
    verified: list[Text] = []
    invariances: dict[str, bool] = Field(default_factory=dict)
    invariances_declared: bool = False
    options_used: Values
    source_sha256: Sha256


class SetRecord(_Record):
    """An image set.

    id: the set's id.
    role: what the suite uses it for.
    title: its name in words.
    images: how many images it has.
    classes: the names of its classes, in the order of its labels. Empty where it has no labels.
    content_sha256: of every image's id, content and label, in order.
    coding: how its pixels were stored: "pixels" for no coding, "jpeg", "png", "half jpeg, half png".
    licence: the licence of the images.
    source: whose images these are, in words.
    list_id: which images of a set that exists in several forms. Null where it exists in one.
    redistributable: whether the licence lets anyone pass it on. Null where nobody has looked.
    contamination: the shares of images that show an ID class, as somebody found.
    class_groups: classes that are looked at together, by name of the group.
    decoding: what was decided about files that decoders treat differently.
    remarks: what a reader should know of it, a sentence each.
    """

    kind: Literal["set"] = "set"
    id: Id
    role: SetRole
    title: Text
    images: Count
    classes: list[str]
    content_sha256: Sha256
    coding: str
    licence: Text
    source: Text
    list_id: Text | None = None
    redistributable: bool | None = None
    contamination: list[Values] = Field(default_factory=list)
    class_groups: dict[str, list[str]] = Field(default_factory=dict)
    decoding: Values = Field(default_factory=dict)
    remarks: list[Text] = Field(default_factory=list)


class Case(_Record):
    """One (model, detector, OOD set).

    model: the model's id.
    detector: the detector's id.
    set: the id of the OOD set.
    role: what the suite uses the set for.
    status: how the case ended. A failure that is expected is "failed" too.
    expected: whether it failed as its baseline says it does.
    reason: why it ended so, in words. Null where there is nothing to say.
    metrics: what was measured. Null where the case ended before that.
    timing: how long it took. Null where the case ended before that.
    limit: what it was held to. Null where it had no limit, or ended before that.
    scores: where its scores lie. Null where the case ended before that.
    published: what papers report of it.
    full_spectrum: the metrics where shifted ID images count as ID too. Null where the suite has none.
    shifted_accepted: the share of each shifted set that is accepted at the threshold, by set.
    tuned: how the detector's options were chosen. Null where they were not.
    warnings: what makes the scores of this detector on this model doubtful, and what to do.
    """

    kind: Literal["case"] = "case"
    model: Id
    detector: Id
    set: Id
    role: Role
    status: Status
    expected: bool
    reason: Message | None
    metrics: Metrics | None
    timing: Timing | None
    limit: Limit | None
    scores: ScoresFile | None
    published: list[PublishedValue] = Field(default_factory=list)
    full_spectrum: Metrics | None = None
    shifted_accepted: dict[str, Estimate] = Field(default_factory=dict)
    tuned: Tuned | None = None
    warnings: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.status == "passed" and (self.metrics is None or self.limit is None):
            raise ValueError("a case without metrics or a limit cannot have passed")
        return self


class PublishedRecord(_Record):
    """An FPR@95 that somebody published of more than one case, or of a part of one. It is written when its run ends.

    model: the model's id.
    detector: the detector's id.
    name: the suite's name of a mean of OOD sets, or `SET:GROUP` for a group of a set's classes.
    sets: the OOD sets that it is of.
    measured: the same figure from the cases of this run alone. Null where the run lacks a case of it.
    published: the published figure, and how the measured one compares.
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
    """A line that is no record of a schema that is known. The message names the file and the line."""


def parse_record(content: dict[str, Any]) -> Record:
    """The record that `model_dump(mode="json")` gave, in this schema or in an older one.

    Raises pydantic's ValidationError for what is no record.
    """
    return _RECORD.validate_python(migrated(content))


def read_records(path: Path) -> Iterator[Record]:
    """The records of one run's file, in order. Those of an older schema come in the present one.

    A last line without its newline was cut off by a kill and is left out. Any other line that does not fit the schema,
    a newer schema included, raises RecordError.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield _parse_line(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise RecordError(
                    f"{path}:{number}: not a record of schema {SCHEMA}: {where}: {first['msg']}; "
                    "a newer schema needs a newer version of this project, a damaged line has to be removed"
                ) from None


def _parse_line(line: str) -> Record:
    """The record of a line. Raises ValidationError for what is no record."""
    try:
        return _RECORD.validate_json(line)  # which is twice as fast as to parse first and to validate then
    except ValidationError:
        if not _is_older(content := _json(line)):
            raise
    return parse_record(content)


def _json(line: str) -> Any:
    """What a line says as JSON. None where it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# --- Migrations: what records of older schemas say, in the words of the present one. ---


def migrated(content: dict[str, Any]) -> dict[str, Any]:
    """A record of an older schema in the present one. Any other comes back as it is.

    content: the record as its JSON says.
    """
    while _is_older(content):
        content = MIGRATIONS[content["schema_version"]](content)
    return content


def _is_older(content: Any) -> bool:
    """Whether some JSON is of a schema that a migration leads on from."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    return type(version) is int and version in MIGRATIONS  # `True` and `1.0` equal 1 too


def _from_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 tells this package from the repository of its user.

    In schema 1 the suite ran in a checkout of this package alone. `git_commit` and `git_dirty` were of the folder that
    pytest ran in, which was that checkout. So they keep their names. The version of the package was not recorded.
    """
    more = {"package_version": None, "user_git_commit": None, "user_git_dirty": None}
    return content | {"schema_version": 2} | (more if content.get("kind") == "run" else {})


def _from_schema_2(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 3 keeps the scores of each image set in a file of its own.

    In schema 2 one file of a model and detector held those of all sets.
    """
    content = content | {"schema_version": 3}
    scores = content.get("scores")
    if content.get("kind") != "case" or not isinstance(scores, dict) or "path" not in scores:
        return content
    shifted = content.get("shifted_accepted")
    paths = dict.fromkeys(shifted, scores["path"]) if isinstance(shifted, dict) else {}
    return content | {"scores": scores | {"id_path": scores["path"], "shifted_paths": paths}}


# By schema: what makes a record of the next one of it.
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_schema_1, 2: _from_schema_2}
