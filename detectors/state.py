"""What a detector learned, as named tensors and plain values: nothing that has to be pickled."""

import hashlib
import json
from dataclasses import field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from detectors.outputs import Rows, as_tensor

_PLAIN = (bool, int, float, str, type(None))


def learned() -> Any:
    """A field of a dataclass that `fit` sets: it belongs to the state and is no option."""
    return field(init=False, default=None, repr=False)


def split_value(value: Any, name: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Splits a value into tensors and plain values, and puts each under a name that starts with `name`.

    value: a tensor, a plain value, or a dataclass of such.
    tensors: where tensors go.
    values: where plain values go.
    """
    value = plain(value)
    if isinstance(value, _PLAIN):
        values[name] = value
    elif is_dataclass(value):
        for entry in fields(value):
            split_value(getattr(value, entry.name), f"{name}.{entry.name}", tensors, values)
    elif isinstance(value, Tensor):
        tensors[name] = value.cpu().contiguous()
    else:
        tensors[name] = as_tensor(value[:]).cpu().contiguous()


def digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """The SHA-256 of a state: of all its tensors, and of its values as JSON writes them."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def plain(value: Any) -> Any:
    """A numpy number as one of Python's, which JSON can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def join_value(kind: Any, name: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> Any:
    """The value that `split_value` took apart. Raises ValueError for what is missing or of another type.

    kind: its type.
    """
    if name in tensors or name in values:
        value = tensors[name] if name in tensors else values[name]
        if not _is_a(value, kind):
            raise ValueError(f"the state's {name!r} is a {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
        return value
    if not is_dataclass(kind) or not isinstance(kind, type):
        raise ValueError(f"the state lacks {name!r}")
    hints = get_type_hints(kind)
    entries = {entry: join_value(hints[entry.name], f"{name}.{entry.name}", tensors, values) for entry in fields(kind)}
    made = kind(**{entry.name: value for entry, value in entries.items() if entry.init})
    for entry, value in entries.items():
        if not entry.init:
            object.__setattr__(made, entry.name, value)
    return made


def _is_a(value: Any, kind: Any) -> bool:
    """Whether it is of the type, or of one of a union's; an integer will do for a float."""
    kinds = {kind, *get_args(kind)}
    if isinstance(value, Tensor):
        return bool(kinds & {Tensor, Rows, Any})
    return (bool(kinds & {type(value), Any}) and isinstance(value, _PLAIN)) or (type(value) is int and float in kinds)
