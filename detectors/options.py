"""Checks of the options that a caller names. They are never rescaled, only accepted or refused."""

import math
from numbers import Integral
from typing import Any

import numpy as np


class OptionError(ValueError):
    """An option that cannot be used. The message says this:

    detector: the id of the detector.
    option: the name of the option.
    value: what was given.
    allowed: what is allowed, in words.
    """

    def __init__(self, detector: str, option: str, value: Any, allowed: str) -> None:
        super().__init__(f"{detector}: {option} is {value!r}; allowed: {allowed}")
        self.detector, self.option, self.value, self.allowed = detector, option, value, allowed

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, str, Any, str]]:
        """For pickle, which would call the class with the message alone."""
        return type(self), (self.detector, self.option, self.value, self.allowed)


def require(ok: bool, detector: str, option: str, value: Any, allowed: str) -> None:
    """Raises an OptionError unless `ok`."""
    if not ok:
        raise OptionError(detector, option, value, allowed)


def require_percentile(detector: str, option: str, value: Any, largest: int = 100) -> None:
    """Raises an OptionError unless the value is a number from 0 to `largest`."""
    require(is_number(value) and 0 <= value <= largest, detector, option, value, f"a number from 0 to {largest}")


def require_choice(detector: str, option: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises an OptionError unless the value is one of the texts."""
    ok = isinstance(value, str) and value in choices
    require(ok, detector, option, value, " or ".join(map(repr, choices)))


def require_temperature(detector: str, option: str, value: Any) -> None:
    """Raises an OptionError unless logits can be divided by the value and stay finite."""
    require(is_number(value) and value >= 1e-6, detector, option, value, "a number from 0.000001")


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a tensor can hold; a bool is none."""
    return is_integer(value) or (isinstance(value, float | np.floating) and math.isfinite(value))


def is_integer(value: Any) -> bool:
    """Whether it is an integer that a tensor can hold; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63
