"""What a detector learned, as named tensors and plain values: nothing that has to be pickled."""

from dataclasses import field, fields, is_dataclass
from typing import Any, get_type_hints

from torch import Tensor

from detectors.outputs import as_tensor

_PLAIN = (bool, int, float, str, type(None))


def learned() -> Any:
    """A field of a dataclass that `fit` sets: it belongs to the state and is no option."""
    return field(init=False, default=None, repr=False)


def pack(value: Any, name: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Puts a tensor, a plain value or a dataclass of such, under names that start with `name`, where it belongs."""
    if isinstance(value, _PLAIN):
        values[name] = value
    elif is_dataclass(value):
        for part in fields(value):
            pack(getattr(value, part.name), f"{name}.{part.name}", tensors, values)
    elif isinstance(value, Tensor):
        tensors[name] = value.contiguous()
    else:
        tensors[name] = as_tensor(value[:]).contiguous()


def unpack(kind: Any, name: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> Any:
    """What `pack` took apart; `kind` is its type. Raises ValueError for what is missing or of another type."""
    if name in tensors:
        return tensors[name]
    if name in values:
        value = values[name]
        if not isinstance(value, _PLAIN):
            raise ValueError(f"the state's {name!r} is a {type(value).__name__}, not a number or a text")
        return value
    if not is_dataclass(kind) or not isinstance(kind, type):
        raise ValueError(f"the state lacks {name!r}")
    hints = get_type_hints(kind)
    parts = {part: unpack(hints[part.name], f"{name}.{part.name}", tensors, values) for part in fields(kind)}
    made = kind(**{part.name: value for part, value in parts.items() if part.init})
    for part, value in parts.items():
        if not part.init:
            object.__setattr__(made, part.name, value)
    return made
