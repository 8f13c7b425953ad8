"""Values that are made once."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

_Made = TypeVar("_Made")


class Once:
    """Values by name, each made once.

    What failed is not tried again, until failures are forgotten: the same exception is raised each time.
    """

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._failed: dict[str, tuple[Exception, TracebackType | None]] = {}

    def __call__(self, name: str, make: Callable[[], _Made]) -> _Made:
        if name not in self._made and name not in self._failed:
            try:
                self._made[name] = make()
            except Exception as error:
                self._failed[name] = error, error.__traceback__
        if name in self._failed:
            failure, traceback = self._failed[name]
            raise failure.with_traceback(traceback)  # else it would grow, and keep every case's frames, with each raise
        return self._made[name]

    def has(self, name: str) -> bool:
        """Whether a value was made."""
        return name in self._made

    def forget_failures(self) -> None:
        """Lets what failed be tried again: the disk may have space now, and the network be back."""
        self._failed.clear()
