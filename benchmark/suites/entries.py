"""Entries: a suite file, as its tables say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from benchmark.entries import Entry
from benchmark.records import OOD_ROLES, OODRole, Role

# Of synthetic images. The largest test sets of the field have 50,000 images. A slip of the pen would work for ever.
MOST_IMAGES = 100_000
LONGEST_SIDE = 4096
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InDistribution(_Table):
    """The image set of each in-distribution split. Without `train` or `val`, detectors that need it have no cases.

    train: what detectors learn from.
    val: what some detectors learn from too, and what options are chosen with.
    test: the images of which 95 % are accepted at the threshold.
    """

    train: str | None = None
    val: str | None = None
    test: str


class OOD(_Table):
    """The OOD sets by role.

    near: sets that are close to the ID images.
    far: sets that are far from them.
    cleaned: sets without the images in them that show an ID class.
    contaminated: the same sets with those images.
    """

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    cleaned: tuple[str, ...] = ()
    contaminated: tuple[str, ...] = ()

    def by_role(self) -> list[tuple[str, OODRole]]:
        """All sets, each with its role."""
        return [(set_id, role) for role in OOD_ROLES for set_id in getattr(self, role)]


class Variants(_Table):
    """Changed networks.

    models: the variants, and bases that serve for comparison alone.
    detectors: the core of detectors that is run on them. The other detectors are run on them with --full alone.
    """

    models: tuple[str, ...]
    detectors: tuple[str, ...]


class UnitTests(_Table):
    """The synthetic OOD sets.

    size: height and width of their images, in pixels, up to LONGEST_SIDE.
    images: how many images each set has, up to MOST_IMAGES.
    detectors: the core of detectors that is run on them. The other detectors are run on them with --full alone.
    """

    size: tuple[Side, Side] = (224, 224)
    images: int = Field(default=400, ge=1, le=MOST_IMAGES)
    detectors: tuple[str, ...] = ("*",)


class Goals(_Table):
    """The FPR@95 that no case of a role should exceed, as fractions.

    near: the goal of near OOD sets.
    far: the goal of far OOD sets, and of each role without a goal of its own.
    unit_test: the goal of unit tests, `unit-test` in the file.
    cleaned: the goal of cleaned OOD sets.
    contaminated: the goal of contaminated OOD sets.
    """

    near: float = Field(ge=0, le=1)
    far: float = Field(ge=0, le=1)
    unit_test: float = Field(alias="unit-test", ge=0, le=1)
    cleaned: float | None = Field(default=None, ge=0, le=1)
    contaminated: float | None = Field(default=None, ge=0, le=1)

    def of(self, role: Role) -> float:
        """The goal of a role."""
        goal = getattr(self, role.replace("-", "_"))
        return self.far if goal is None else goal


class Tuning(_Table):
    """Detector options that are chosen by the best AUROC between the val split and an OOD set.

    ood: the OOD set, which no case may evaluate.
    options: the values to try, by detector and option.
    """

    ood: str
    options: dict[str, dict[str, tuple[Any, ...]]]


class SuiteEntry(Entry):
    """A suite file.

    title: the suite's name in words.
    about: what a reader should know of it.
    models: the models.
    detectors: the detectors, "*" alone for all that the models can serve.
    variants: changed networks, and the detectors that are run on them.
    outliers: images of none of the classes to train variants with. No OOD set may hold one of them.
    baselines: the file of the recorded baselines. Without one, and without a published figure, the goals hold.
    published: files of what papers report of the suite's cases and means.
    in_distribution: the in-distribution splits.
    shifted: ID images that look otherwise. They count as ID in the full-spectrum figures, and are classified too.
    ood: the OOD sets by role.
    means: the OOD sets whose FPR@95 papers average, by name of the mean.
    tuning: detector options that are chosen. None where none are.
    goals: the FPR@95 that no case should exceed.
    unit_tests: the synthetic OOD sets, and the detectors that are run on them.
    options: detector options that are fixed, by detector and option.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"thresholds": "baselines"}

    title: str
    about: str = ""
    models: tuple[str, ...]
    detectors: tuple[str, ...]
    variants: Variants = Variants(models=(), detectors=())
    outliers: str | None = None
    baselines: Path | None = None
    published: tuple[Path, ...] = ()
    in_distribution: InDistribution
    shifted: tuple[str, ...] = ()
    ood: OOD
    means: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    tuning: Tuning | None = None
    goals: Goals
    unit_tests: UnitTests = UnitTests()
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def evaluated(self) -> list[str]:
        """The image sets that models are fitted to or evaluated on."""
        splits = self.in_distribution
        named = (splits.train, splits.val, splits.test, *self.shifted, *(set_id for set_id, _ in self.ood.by_role()))
        return [set_id for set_id in named if set_id is not None]

    def image_sets(self) -> list[str]:
        """Every image set that it names."""
        return [*self.evaluated(), *filter(None, [self.outliers, self.tuning.ood if self.tuning else None])]
