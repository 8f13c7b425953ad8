"""The training loop of all trainings but "one-cycle". It is seeded, shows its progress, and can be continued."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from benchmark.errors import UserError
from benchmark.files import write_atomically

SAVE_EVERY_S = 60.0
MOST_EPOCHS = 100_000  # the longest trainings of the field have some thousands


class Schedule(BaseModel):
    """The length and the learning rates of a training. After a linear warm-up, the rate falls to 0 along a cosine.

    epochs: how often all training images are used, at most MOST_EPOCHS.
    batch: images a step.
    learning_rate: the largest learning rate.
    warm_up: the share of the steps, from 0 to below 1, over which the rate rises from 0.
    seed: the seed of the order of the images and of all that a step draws at random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(ge=0, allow_inf_nan=False)
    warm_up: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one step.

        step: the number of the step, from 0.
        steps: how many steps there are.
        """
        warm = self.warm_up * steps
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2


@dataclass(frozen=True)
class Progress:
    """The file in which a long computation saves its state, so that it can be continued after an interruption.

    file: the file; None saves nothing.
    key: all that the computation depends on, as JSON. A state that was saved under another key is not used.
    """

    file: Path | None
    key: Mapping[str, Any]

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the JSON that were saved last; None where there is no file, or no usable one."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            with safe_open(self.file, "pt") as kept:
                about = kept.metadata() or {}
                if about.get("key") != self._key:
                    return None
                return {name: kept.get_tensor(name) for name in kept.keys()}, json.loads(about["about"])  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None  # with a damaged file the computation starts again, instead of failing

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Saves a state: its tensors, by name, and what else it needs, as JSON."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Two names may refer to the same memory, which safetensors refuses.
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        write_atomically(self.file, save(copies, {"key": self._key, "about": json.dumps(about)}))

    def clear(self) -> None:
        """Removes the file, when the computation is finished and its result is written."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    @property
    def _key(self) -> str:
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()


def optimise(
    optimizer: Optimizer,
    schedule: Schedule,
    rows: int,
    update: Callable[[Tensor, Generator], float],
    trained: Mapping[str, Tensor],
    progress: Progress,
    title: str,
) -> list[float]:
    """Trains for the epochs of a schedule, and returns the mean loss of each epoch.

    optimizer: the optimizer; its learning rate is set before each step.
    schedule: the epochs, the batch size, the learning rates and the seed.
    rows: the number of training images.
    update: a function that takes one step. It gets the indices (n,) of the images of the step and a generator, and
        returns the loss. It draws all random numbers from this generator or from torch's random state. Both depend on
        the seed and the number of the step only, so a training that was continued ends with the same bits.
    trained: every tensor that the steps change, by name: parameters, and buffers such as BatchNorm's running
        statistics. They are saved, with the optimizer's state, after each epoch and once a minute.
    progress: where they are saved.
    title: what the progress bar and errors call the training.

    Raises ValueError where a loss is not finite.
    """
    steps_an_epoch = math.ceil(rows / schedule.batch)
    steps = schedule.epochs * steps_an_epoch
    losses: list[list[float]] = []
    first = 0
    kept = progress.load()
    if kept is not None:
        tensors, about = kept
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(tensors[f"trained/{name}"])
        _restore_optimizer(optimizer, tensors)
        losses, first = about["losses"], about["steps"]
    saved_at = time.monotonic()
    with (
        torch.random.fork_rng(),
        tqdm(total=steps, initial=first, desc=title, unit="step", disable=None, leave=False) as bar,
    ):
        for step in range(first, steps):
            epoch, position = divmod(step, steps_an_epoch)
            if position == 0:
                losses.append([])
            if position == 0 or step == first:
                order = torch.randperm(rows, generator=_generator(schedule.seed, "order", epoch))
            indices = order[position * schedule.batch : (position + 1) * schedule.batch]
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, steps)
            generator = _generator(schedule.seed, "step", step)
            torch.manual_seed(generator.initial_seed())  # layers such as dropout draw from torch's global state
            losses[-1].append(update(indices, generator))
            if not math.isfinite(losses[-1][-1]):
                raise UserError(
                    f"{title}: the training diverged in step {step + 1} of {steps}; schedule.learning_rate is "
                    f"{schedule.learning_rate}; allowed: a smaller one"
                )
            bar.update()
            bar.set_postfix(epoch=f"{epoch + 1}/{schedule.epochs}", loss=f"{losses[-1][-1]:.4f}")
            if position == steps_an_epoch - 1 or time.monotonic() - saved_at > SAVE_EVERY_S:
                saved = {f"trained/{name}": value for name, value in trained.items()}
                progress.save(saved | _optimizer_state(optimizer), {"losses": losses, "steps": step + 1})
                saved_at = time.monotonic()
    return [sum(epoch) / len(epoch) for epoch in losses]


def _generator(seed: int, purpose: str, number: int) -> Generator:
    """A generator for one purpose ("order" or "step") and one number of it: no two of them give the same numbers."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7]))


def _optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, such as its momentum, as `optimizer/<parameter>/<name>`."""
    return {
        f"optimizer/{index}/{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads the tensors that `_optimizer_state` gave; other tensors are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            index, _, name = rest.partition("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
