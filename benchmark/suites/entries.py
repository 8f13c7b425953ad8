"""Entries: a suite file, as its tables say."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from benchmark.entries import Entry
from benchmark.records import OOD_ROLES, OODRole, Role


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InDistribution(_Table):
    """The splits: detectors learn from `train` (and `val`), 95 % of `test` set the threshold.

    Without `train`, or without `val`, the detectors that need it have no cases.
    """

    train: str | None = None
    val: str | None = None
    test: str


class OOD(_Table):
    """The OOD sets by role. contaminated, cleaned: a set with the images in it that show an ID class, and without."""

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    cleaned: tuple[str, ...] = ()
    contaminated: tuple[str, ...] = ()

    def by_role(self) -> list[tuple[str, OODRole]]:
        return [(set_id, role) for role in OOD_ROLES for set_id in getattr(self, role)]


class Variants(_Table):
    """Changed networks, with bases that serve for comparison alone, and the core of detectors that meets them."""

    models: tuple[str, ...]
    detectors: tuple[str, ...]


class UnitTests(_Table):
    """The synthetic sets: height and width of their images, images a set, and the detectors that meet them."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (224, 224)
    images: int = Field(default=400, ge=1)
    detectors: tuple[str, ...] = ("*",)


class Goals(_Table):
    """The FPR@95 that no case of a role should exceed; that of `far` where a role has none of its own."""

    near: float = Field(ge=0, le=1)
    far: float = Field(ge=0, le=1)
    unit_test: float = Field(alias="unit-test", ge=0, le=1)
    cleaned: float | None = Field(default=None, ge=0, le=1)
    contaminated: float | None = Field(default=None, ge=0, le=1)

    def of(self, role: Role) -> float:
        goal = getattr(self, role.replace("-", "_"))
        return self.far if goal is None else goal


class Tuning(_Table):
    """Detector options that are chosen: each list's value with the best AUROC between the val split and an OOD set that
    serves this alone. options: the values to try, by detector and option."""

    ood: str
    options: dict[str, dict[str, tuple[Any, ...]]]


class SuiteEntry(Entry):
    """A suite file.

    shifted: ID images that look otherwise: they count as ID in the full-spectrum figures, and are classified too.
    outliers: images of none of the classes to train variants with, which no OOD set may hold.
    baselines: the file of the recorded baselines; without them, and without a published figure, the goals hold.
    published: files of what papers report of the suite's cases and means. means: OOD sets whose FPR@95 papers average,
    by name.
    """

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
