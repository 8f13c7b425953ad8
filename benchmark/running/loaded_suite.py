"""A suite with its image sets and models loaded."""

from contextlib import nullcontext, suppress
from functools import cached_property
from itertools import combinations

import numpy as np
import torch

from benchmark import records
from benchmark.images.image_set import ImageSet, ImageSetError, MissingImageSetError, load_image_set
from benchmark.models.entries import base_of
from benchmark.models.loading import load_model
from benchmark.models.model import Model
from benchmark.records import SetRole
from benchmark.running.once import Once
from benchmark.running.store import Store
from benchmark.suites.suite import Suite

# The share of a split that may also be in another one. Public sets have equal images in train and test (one of the
# 10,000 test images of CIFAR-100 is among the first 10,000 training images), and a share of s moves FPR@95 and AUROC by
# about s at most. More than that is no accident.
MOST_SHARED = 0.01


class LoadedSuite:
    """A suite with its image sets, each loaded once, and its models, loaded where they are asked for.

    suite: the suite.
    store: where the outputs of its models are kept.
    device: where networks run.
    """

    def __init__(self, suite: Suite, store: Store, device: torch.device) -> None:
        self.suite, self.store, self.device = suite, store, device
        self._image_sets = Once()
        self._found_ood, self._found_untuned, self._found_apart = Once(), Once(), Once()

    def forget_failures(self) -> None:
        """Lets what failed be tried again."""
        for once in (self._image_sets, self._found_ood, self._found_untuned, self._found_apart):
            once.forget_failures()

    def image_set(self, set_id: str) -> ImageSet:
        """An image set. Raises ImageSetError where it is missing or damaged."""
        return self._image_sets(set_id, lambda: load_image_set(set_id, self.suite.image_sets))

    @cached_property
    def splits(self) -> list[tuple[SetRole, ImageSet]]:
        """The in-distribution splits with their roles. One to learn from may be missing: not every detector learns."""
        found: list[tuple[SetRole, ImageSet]] = []
        for role, set_id in self.suite.splits():
            with nullcontext() if role == "test" else suppress(MissingImageSetError):
                found.append((role, self.image_set(set_id)))
        return found

    @cached_property
    def classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The classes of the in-distribution images in the order of the set, and a word for each."""
        splits = self.suite.entry.in_distribution
        set_id = splits.train or splits.test
        try:
            return self.image_set(set_id).classes, self.image_set(set_id).class_names
        except MissingImageSetError:
            entry = self.suite.image_sets[set_id].with_classes()
            if entry.leave_out or not entry.classes:  # its files have to tell
                raise
            return entry.classes, entry.class_names or entry.classes

    def load_model(self, model_id: str) -> Model:
        """A model for the suite's classes, without its outputs."""
        return load_model(model_id, self.suite.known_models, self.device, self.classes[1], self._image_size)

    def _image_size(self) -> tuple[int, int]:
        """Height and width of the first ID test image."""
        width, height = self.image_set(self.suite.entry.in_distribution.test)[0].size
        return height, width

    def base_of(self, model: Model) -> Model:
        """The base of a variant, for what is asked of it beside the variant."""
        return self.load_model(base_of(model.id, self.suite.known_models))

    def shifted_sets(self) -> list[ImageSet]:
        """The shifted sets that somebody has fetched."""
        found = []
        for set_id in self.suite.entry.shifted:
            with suppress(MissingImageSetError):
                found.append(self.image_set(set_id))
        return found

    def id_labels(self, image_set: ImageSet, classes: tuple[str, ...]) -> np.ndarray | None:
        """The labels of in-distribution images (N,), as a network counts them; None where there are none.

        A shifted set may hold some of the classes only, in another order.

        classes: the class that each output of the network stands for.
        """
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

    def check_splits(self) -> None:
        """Raises ImageSetError where one in-distribution split holds more than a few images of another."""
        self._found_apart("splits", self._find_shared)

    @property
    def shared_images(self) -> tuple[str, ...]:
        """What splits have in common, where that is so little that it moves no figure much: a sentence each."""
        return tuple(self._found_apart("splits", self._find_shared))

    def _find_shared(self) -> list[str]:
        found = []
        for (role, split), (other_role, other) in combinations(self.splits, 2):
            shared = sorted(split.image_sha256s.keys() & other.image_sha256s.keys())
            if not shared:
                continue
            told = (
                f"{len(shared)} of the {len(split)} {role} images ({split.id}) are also among the {other_role} images "
                f"({other.id}), such as {split.image_sha256s[shared[0]]} ({other.image_sha256s[shared[0]]} there)"
            )
            if len(shared) > MOST_SHARED * min(len(split), len(other)):
                raise ImageSetError(
                    f"{told}: a detector that has learned from an image is not tested by it; remove them from one of "
                    "the two, or name other images"
                )
            found.append(told)
        return found

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
    """Raises ImageSetError where a set holds files of another one too.

    what: what the other one is, in words.
    why: why the two must not share files, in words.
    """
    shared = sorted(image_set.image_sha256s.keys() & other.image_sha256s.keys())
    if shared:
        one, there = image_set.image_sha256s[shared[0]], other.image_sha256s[shared[0]]
        raise ImageSetError(
            f"image set {image_set.id}: {len(shared)} of its {len(image_set)} images are also in {other.id}, {what}, "
            f"such as {one} ({there} there): {why}; remove them, or name another set"
        )


def set_record(image_set: ImageSet, role: SetRole, run: str, suite: str) -> records.SetRecord:
    """What a run of a suite says of an image set that it uses in a role."""
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
