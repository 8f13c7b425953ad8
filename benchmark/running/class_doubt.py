"""Whether the outputs of a network seem to stand for other classes than they are taken for."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

_CHANCE = 1e-4  # that a right order is doubted


def doubt_of_order(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> str | None:
    """A sentence where another assignment of outputs to classes fits clearly better than the one taken, else None.

    The assignment with which most images are right (the Hungarian method, Kuhn 1955) is found on every other image. On
    the rest, the images that it alone makes right are counted against those that it alone makes wrong. Were the order
    right, either would be as likely at most: a network that is weak, but right, is not doubted.

    labels: the class of each ID test image as it is taken, (N,).
    predicted: the output with the largest logit, (N,).
    classes: the class that each output is taken for.
    """
    order = np.argsort(labels, kind="stable")  # so that both halves have images of each class
    labels, predicted = labels[order], predicted[order]
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels[::2], predicted[::2]), 1)
    _, output_of = linear_sum_assignment(confusion, maximize=True)
    held_labels, held = labels[1::2], predicted[1::2]
    right, right_otherwise = held == held_labels, held == output_of[held_labels]
    better, worse = int((right_otherwise & ~right).sum()), int((right & ~right_otherwise).sum())
    if better <= worse or binom.sf(better - 1, better + worse, 0.5) > _CHANCE:
        return None
    moved = np.flatnonzero(output_of != np.arange(len(classes)))
    most = moved[np.argmax(confusion[moved, output_of[moved]])]
    return (
        "its outputs seem to stand for other classes than they are taken for: "
        f"{right.mean():.1%} of the ID test images are right, and with another order {right_otherwise.mean():.1%} "
        f"would be. Output {output_of[most]} is taken for {classes[output_of[most]]!r}, and is largest for images of "
        f"{classes[most]!r}. Folders are in alphabetical order, or in that of their numbers; `label_names` in the "
        "config.json of a checkpoint say another one"
    )
