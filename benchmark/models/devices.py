"""The device that computes: which one, its name, and its share."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmark.errors import Remedy, UserError


def choose_device(name: str | None) -> torch.device:
    """The device of that name, by default a GPU where there is one. UserError on a name without a device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name is None else None
    try:
        device = device or torch.device(str(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name}: {str(error).splitlines()[0]}", Remedy("set", "device")) from None
    return device


def share_processor(processes: int) -> None:
    """Leaves this process its part of the processor's threads."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Gives torch that many threads meanwhile: on another number it takes sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """What computes, in words that two machines share only where their times compare."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
