"""What a detector is invariant to: changes of a network that leave its predictions, and so should leave figures.

After such a change of a toy world the detector is fitted again. It is invariant where the scores of all images have the
same order as before. FPR@95 and AUROC are then the same, and only the threshold may be another one.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from detectors.outputs import Head
from detectors.worlds import CLASSES, WIDTH, Coordinates, Make, World, build_world, fitted

# The names of the changes, as docstrings have them under `Invariant to`, and what changes.
CHANGES: dict[str, str] = {
    "logit shift": "the same number is added to all logits, which leaves the softmax",
    "logit scale": "all logits are multiplied by the same positive number, which leaves the predicted class",
    "class order": "the classes are numbered in another order",
    "feature unit": "one feature is multiplied by a number and its weights in the head are divided by it",
    "feature scale": "all features are multiplied by the same positive number and the head is divided by it",
    "feature shift": "the same vector is added to the features of all images, and the head's bias makes up for it",
    "feature rotation": "the features are rotated, and the head with them",
}

# Differences of scores, relative to the largest score: up to the first they are none, from the second they are certain.
_NONE, _CERTAIN = 1e-9, 1e-6


def broken_by(make: Make) -> dict[str, int]:
    """How many pairs of images each change exchanges, ties or parts. 0 means that the detector is invariant to it.

    make: makes the detector, with the options that are tried.
    """
    before = _scores(make, build_world())
    return {
        name: sum(_exchanged_pairs(before, _scores(make, build())) for build in worlds)
        for name, worlds in _WORLDS.items()
    }


def measure_invariances(make: Make) -> dict[str, bool]:
    """Whether the detector is invariant to each change. Empty where it cannot be fitted in a toy world."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            return {name: pairs == 0 for name, pairs in broken_by(make).items()}
        except Exception:  # it may be anyone's code, and what is wrong with it is for the contract to say
            return {}


def _scores(make: Make, world: World) -> Tensor:
    """The scores of all images of a world, after a fit in it."""
    detector = fitted(make, world)
    return torch.cat([detector.score(part) for part in (world.test, world.ood, world.val, world.train)])


def _exchanged_pairs(before: Tensor, after: Tensor) -> int:
    """How many pairs of images have a certain order in one of the scores, and not the same one in the other."""
    first, second = (scores[:, None] - scores for scores in (before, after))
    first_size, second_size = float(before.abs().max()), float(after.abs().max())
    lost = (first > _CERTAIN * first_size) & (second <= _NONE * second_size)
    new = (second > _CERTAIN * second_size) & (first <= _NONE * first_size)
    return int((lost | new).sum())


def _shifted_logits(head: Head, by: float) -> Head:
    return Head(head.weight, head.bias + by)


def _scaled_logits(head: Head, by: float) -> Head:
    return Head(head.weight * by, head.bias * by)


_ORDER = torch.tensor([2, 0, 3, 1])


def _renumbered_head(head: Head) -> Head:
    return Head(head.weight[_ORDER], head.bias[_ORDER])


def _renumbered_labels(labels: Tensor) -> Tensor:
    return _ORDER.argsort()[labels]


def _coordinates(matrix: Tensor | float = 1.0, offset: Tensor | float = 0.0) -> Callable[[], World]:
    """A world in other coordinates. A number stands for so many times the identity, or for so many ones."""
    full = matrix if isinstance(matrix, Tensor) else matrix * torch.eye(WIDTH, dtype=torch.float64)
    return partial(build_world, coordinates=Coordinates(full, offset * torch.ones(WIDTH, dtype=torch.float64)))


def _one_unit(feature: int, by: float) -> Tensor:
    return torch.where(torch.arange(WIDTH) == feature, by, 1.0).double().diag()


def _any_vector() -> Tensor:
    return 3 * torch.rand(WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def _any_rotation() -> Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random, dtype=torch.float64))[0]


# Feature 0 is of a class, feature 13 of none. Factors go up and down, and far: a temperature of 1000 hides small ones.
_WORLDS: dict[str, list[Callable[[], World]]] = {
    "logit shift": [partial(build_world, head=partial(_shifted_logits, by=by)) for by in (-16.5, 40.0)],
    "logit scale": [partial(build_world, head=partial(_scaled_logits, by=by)) for by in (0.2, 1000.0)],
    "class order": [partial(build_world, head=_renumbered_head, labels=_renumbered_labels)],
    "feature unit": [_coordinates(_one_unit(feature, by)) for feature, by in ((0, 0.01), (0, 30.0), (13, 30.0))],
    "feature scale": [_coordinates(by) for by in (0.2, 1000.0)],
    "feature shift": [_coordinates(offset=sign * _any_vector()) for sign in (1, -1)],
    "feature rotation": [_coordinates(_any_rotation())],
}
assert _WORLDS.keys() == CHANGES.keys()
assert len(_ORDER) == CLASSES
