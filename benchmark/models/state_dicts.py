"""State dicts: weights without their architecture, read from a file without running anything that it says.

    python -m benchmark.models.state_dicts CHECKPOINT.pth WEIGHTS.safetensors

keeps the weights alone of what a training script saved.
"""

import hashlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmark.errors import UserError

# Under these keys training scripts keep the state dict beside the epoch and the like.
NESTED = ("state_dict", "model", "net")
# What timm and others call the head and the shortcuts of a ResNet, where the network itself has no such name.
RENAMINGS = ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))
SHOWN = 4  # of the names in a message


class StateDictError(UserError):
    """A file that is no state dict, or not one of this network; the message says what is wrong with it."""


def load_state_dict(network: nn.Module, file: Path, sha256: str | None = None) -> None:
    """Loads all weights of a timm network from a file: .safetensors, .npz of a kind that timm reads, or any that torch
    reads with weights_only=True.

    sha256: of the file, where it is known. The counters of batch normalisation may be missing, since nothing but
    training reads them. Raises StateDictError; OSError where there is no file.
    """
    if sha256 is not None and (found := _sha256(file)) != sha256:
        raise StateDictError(f"its sha256 is {found}, not {sha256}: it is damaged, or another file")
    if file.suffix == ".npz":
        _load_npz(network, file)
        return
    expected = network.state_dict()
    state = {_renamed(name, expected): value for name, value in read_state_dict(file).items()}
    _check_classes(network, state)
    state = {name: value for name, value in expected.items() if name.endswith(".num_batches_tracked")} | state
    _refuse("it lacks", expected.keys() - state.keys())
    _refuse("it has what the network lacks:", state.keys() - expected.keys())
    shapes = {name: (tuple(state[name].shape), tuple(value.shape)) for name, value in expected.items()}
    _refuse("of another shape:", {f"{name} {has} for {needs}" for name, (has, needs) in shapes.items() if has != needs})
    _refuse("NaN or infinite:", _not_finite(state))
    network.load_state_dict(state)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without the prefix that DataParallel gives them. Raises StateDictError."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise StateDictError(f"it cannot be read as weights alone: {first_line}") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise StateDictError("it holds no state dict: save network.state_dict()")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _load_npz(network: nn.Module, file: Path) -> None:
    """timm knows the arrays in the files of some networks, but leaves out in silence a head that does not fit."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
        network.load_pretrained(str(file))  # type: ignore[operator]
    _refuse("it has no fitting and finite", _not_finite(dict(network.named_parameters())))


def _check_classes(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    head = network.get_classifier()  # type: ignore[operator]
    name = next((f"{name}.weight" for name, module in network.named_modules() if module is head), "")
    if name in state and len(state[name]) != len(head.weight):
        raise StateDictError(
            f"it has {len(state[name])} classes, the in-distribution set has {len(head.weight)}; "
            "use weights for these classes, or correct the set's `classes`"
        )


def _renamed(name: str, known: Mapping[str, Tensor]) -> str:
    """The network's name of a parameter; as it was where that has none."""
    renamed = name
    for pattern, replacement in RENAMINGS:
        if renamed not in known:
            renamed = re.sub(pattern, replacement, renamed)
    return renamed if renamed in known else name


def _not_finite(state: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in state.items() if not torch.isfinite(value).all()}


def _refuse(what: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise StateDictError(f"{what} {', '.join(sorted(names)[:SHOWN])}{more}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmark.models.state_dicts IN OUT.safetensors")
    try:
        save_file(read_state_dict(Path(sys.argv[1])), sys.argv[2])
    except (ValueError, OSError) as error:
        sys.exit(f"cannot convert {sys.argv[1]} to {sys.argv[2]}: {error}")
