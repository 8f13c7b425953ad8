"""The device that computes: which one, its name, and its share."""

import platform
from pathlib import Path

import torch


def choose_device(name: str | None, option: str = "--device") -> torch.device:
    """The device of that name, by default a GPU where there is one.

    option: what the caller calls it, for messages.

    Raises ValueError on a name without a device.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name is None else None
    try:
        device = device or torch.device(str(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{option} {name}: {str(error).splitlines()[0]}") from None
    return device


def share_processor(processes: int) -> None:
    """Leaves this process its part of the processor's threads."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


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
