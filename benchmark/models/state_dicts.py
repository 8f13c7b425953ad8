"""State dicts: weights without their architecture. No code in their files is run.

    python -m benchmark.models.state_dicts CHECKPOINT.pth WEIGHTS.safetensors

writes only the weights of a checkpoint that a training script saved.
"""

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmark.arrays import load_npz
from benchmark.errors import UserError

# Training scripts save the state dict under these keys, beside the epoch and other values.
NESTED = ("state_dict", "model", "net")
# Names that timm and others give to the head and the shortcuts of a ResNet, and our names in their place.
RENAMINGS = ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))
SHOWN = 4  # so many names are listed in a message


class StateDictError(UserError):
    """A file that is no state dict, or is one of another network; the message says what is wrong."""


def load_state_dict(network: nn.Module, file: Path, sha256: str | None = None) -> None:
    """Loads all weights of a timm network from a file.

    network: the network, whose weights are replaced.
    file: a .safetensors file, an .npz file of a kind that timm reads, or any file that torch reads with
        weights_only=True. The counters of batch normalisation may be missing, since only training reads them.
    sha256: the SHA-256 of the file. None: it is not checked.
    Raises StateDictError where the file is damaged or does not fit the network, and OSError where there is no file.
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
    _raise_for_names("it lacks", expected.keys() - state.keys())
    _raise_for_names("it has what the network lacks:", state.keys() - expected.keys())
    shapes = {name: (tuple(state[name].shape), tuple(value.shape)) for name, value in expected.items()}
    misfits = {f"{name} {has} for {needs}" for name, (has, needs) in shapes.items() if has != needs}
    _raise_for_names("of another shape:", misfits)
    _raise_for_names("NaN or infinite:", _not_finite(state))
    network.load_state_dict(state)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without the prefix "module." of DataParallel.

    file: a .safetensors file, or one that torch reads with weights_only=True.
    Raises StateDictError where the file is damaged or holds no state dict, and OSError where there is no file.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of a damaged file, torch raises whatever its unpickler meets
        first_line = str(error).strip().partition("\n")[0]
        raise StateDictError(f"it cannot be read as weights alone: {first_line}") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise StateDictError("it holds no state dict: save network.state_dict()")
    if not all(isinstance(name, str) for name in content):
        raise StateDictError("it holds no state dict: the names of its tensors are no texts")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _load_npz(network: nn.Module, file: Path) -> None:
    """Loads an .npz file by timm, which skips weights that do not fit. Raises StateDictError where it skips one."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
        try:
            load_npz(file)  # timm allocates what an array declares, whatever the file holds
            network.load_pretrained(str(file))  # type: ignore[operator]
        except AttributeError:
            raise StateDictError("timm reads no .npz file for this architecture: save it as .safetensors") from None
        except OSError:
            raise
        except Exception as error:  # timm looks for its arrays without a check
            raise StateDictError(f"it cannot be read as weights alone: {type(error).__name__}: {error}") from None
    _raise_for_names("it has no fitting and finite", _not_finite(dict(network.named_parameters())))


def _check_classes(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raises StateDictError where the head is for another number of classes."""
    head = network.get_classifier()  # type: ignore[operator]
    name = next((f"{name}.weight" for name, module in network.named_modules() if module is head), "")
    if name in state and len(state[name]) != len(head.weight):
        raise StateDictError(
            f"it has {len(state[name])} classes, the in-distribution set has {len(head.weight)}; "
            "use weights for these classes, or correct the set's `classes`"
        )


def _renamed(name: str, known: Mapping[str, Tensor]) -> str:
    """The name that the network gives to a parameter of the file; the same name where the network has no such one."""
    renamed = name
    for pattern, replacement in RENAMINGS:
        if renamed not in known:
            renamed = re.sub(pattern, replacement, renamed)
    return renamed if renamed in known else name


def _not_finite(state: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in state.items() if not torch.isfinite(value).all()}


def _raise_for_names(what: str, names: set[str]) -> None:
    """Raises StateDictError where there are names. `what` is the start of its message."""
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
