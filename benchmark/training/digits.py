"""Trains a network of the digits suite, by its id."""

from pathlib import Path

from benchmark.errors import UserError
from benchmark.models.devices import threads
from benchmark.training import clip, from_scratch
from benchmark.training.from_scratch import CHECKPOINTS, RECIPES, Trained
from detectors import did_you_mean


def train_digits_network(model_id: str, folder: Path | None = None) -> Trained:
    """Trains a network of the digits suite, and writes it.

    model_id: the id of the network.
    folder: where to write; None takes its folder among the checkpoints.

    Raises UserError where no recipe has this id.
    """
    known = (*RECIPES, clip.NAME)
    if model_id not in known:
        raise UserError(
            f"no recipe is called {model_id!r}{did_you_mean(model_id, known)}; available: {', '.join(known)}"
        )
    folder = folder or CHECKPOINTS / model_id
    if model_id == clip.NAME:
        with threads(clip.THREADS):
            return clip.train_and_save(folder)
    with threads(from_scratch.THREADS):
        return from_scratch.train_and_save(model_id, folder)
