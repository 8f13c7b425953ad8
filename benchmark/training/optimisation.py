"""The loop that trainings of variants share: seeded, shown, and taken up again where it was killed."""

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


class Schedule(BaseModel):
    """How long and how fast a training goes: a learning rate that falls to 0 along a cosine, after a linear warm-up.

    warm_up: share of the steps over which the rate rises from 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epochs: int = Field(ge=1)
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(ge=0, allow_inf_nan=False)
    warm_up: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of so many."""
        warm = self.warm_up * steps
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2


@dataclass(frozen=True)
class Progress:
    """Where a long work keeps what is finished, in one file; without a file nothing is kept.

    key: all that the work depends on, as JSON. What was kept under another key is not taken up.
    """

    file: Path | None
    key: Mapping[str, Any]

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the JSON that were saved last, or None where there are none to go on with."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            with safe_open(self.file, "pt") as kept:
                about = kept.metadata() or {}
                if about.get("key") != self._key:
                    return None
                return {name: kept.get_tensor(name) for name in kept.keys()}, json.loads(about["about"])  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None  # a damaged file costs its steps, not the work

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Two names may share one memory, which safetensors refuses.
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        write_atomically(self.file, save(copies, {"key": self._key, "about": json.dumps(about)}))

    def clear(self) -> None:
        """Forgets what was kept: the work is over and its result is on the disk."""
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
    """Trains over `rows` images for the schedule's epochs; returns the mean over the batches of each epoch.

    update(indices (n,), generator) takes one step on those images and returns its loss; all that it draws at random
    comes from the generator, or from torch's random state, which both hang on the seed and the step alone: a training
    that was killed and taken up again ends with the same bits.
    trained: every tensor that the steps change (parameters, and buffers such as the running statistics of BatchNorm),
    which are saved with the optimizer's state after each epoch and once a minute.
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
            torch.manual_seed(generator.initial_seed())  # layers such as dropout draw from torch's own state
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
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            index, _, name = rest.partition("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
