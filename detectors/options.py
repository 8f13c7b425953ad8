"""Checks of the options that a caller names. They are never rescaled, only accepted or refused."""

import math
from numbers import Integral, Real
from typing import Any


def require(ok: bool, detector: str, option: str, value: Any, allowed: str) -> None:
    """Raises a ValueError that names the detector, its option, the value and the values allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{detector}: {option} is {value!r}; allowed: {allowed}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Any) -> bool:
    """Whether it is an integer; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
