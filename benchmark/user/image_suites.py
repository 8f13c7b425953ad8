"""The suite of a caller's own networks and images, whether a command line names them or a function is given them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmark.entries import read_toml
from benchmark.images.entries import ImageSetEntry
from benchmark.models.entries import ModelEntry
from benchmark.suites.entries import SuiteEntry
from benchmark.suites.loading import make_suite
from benchmark.suites.suite import Suite
from benchmark.user.ids import COMMAND_LINE, Words, id_of_place
from benchmark.user.image_sets import NamedSet, check_apart, classes_of, hold_out, median_size
from benchmark.user.suite_table import FILE, left_out
from detectors import available


@dataclass(frozen=True)
class NamedImages:
    """The image sets of a caller.

    test: the in-distribution images that are evaluated.
    splits: those to learn from, by role ("train", "val"), as far as there are any.
    ood: the OOD sets.
    """

    test: NamedSet
    splits: dict[str, NamedSet]
    ood: list[NamedSet]

    def __iter__(self) -> Any:
        return iter((self.test, *self.splits.values(), *self.ood))

    def with_one_order_of_classes(self) -> Self:
        """The same sets, whose in-distribution ones have the same classes. Raises ValueError where they cannot."""
        check_apart([self.test, *self.splits.values()], self.ood)
        classes = classes_of(self.test, self.splits.values())
        splits = {role: given.with_classes(classes) for role, given in self.splits.items()}
        return type(self)(self.test.with_classes(classes), splits, self.ood)


def suite_of_images(
    suite_id: str,
    models: dict[str, ModelEntry],
    images: NamedImages,
    known_models: dict[str, ModelEntry],
    known_sets: dict[str, ImageSetEntry],
    *,
    data_dir: Path,
    changes: Mapping[str, Any] | None = None,
    words: Words = COMMAND_LINE,
) -> tuple[Suite, NamedImages]:
    """The suite of that id, and its image sets: val is held out from the test images where nobody names it.

    changes: what differs from the table of user.toml.
    Raises ValueError, in the caller's words, for what does not fit.
    """
    images = images.with_one_order_of_classes()
    test, splits = images.test, images.splits
    whole = test.load(known_sets)
    about = []
    if "val" not in splits:
        test, splits, told = hold_out(test, splits, whole, words)
        about.append(told)
    table = read_toml(FILE) | dict(changes or {})
    asked = available() if tuple(table["detectors"]) == ("*",) else table["detectors"]
    about += [left_out(asked, [role], getattr(words, role)) for role in ("train", "val") if role not in splits]
    table |= {
        "title": f"{', '.join(models)} on {test.id}",
        "about": " ".join(filter(None, about)),
        "models": tuple(models),
        "in_distribution": {"test": test.id} | {role: given.id for role, given in splits.items()},
        "ood": {"far": [given.id for given in images.ood]},
        "unit_tests": table["unit_tests"] | {"size": median_size(whole, table["unit_tests"]["size"])},
    }
    images = NamedImages(test, splits, images.ood)
    entry = SuiteEntry.parse(table, FILE, "", data_dir)
    return make_suite(suite_id, entry, known_models | models, known_sets | {g.id: g.entry for g in images}), images


def suite_name(test: NamedSet, *, is_named: bool) -> str:
    """What tells a suite of these ID images from others: the name that they were given, or their folder and its own."""
    if test.path is None or is_named:
        return f"own-{test.id}"
    return f"own-{id_of_place(test.path.resolve().with_suffix(''), parts=2)}"
