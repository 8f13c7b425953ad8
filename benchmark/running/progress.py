"""Progress: bars in terminals and in notebooks, and a line now and then in logs."""

import io
import sys
import warnings
from typing import Any, TextIO

from tqdm import TqdmWarning

# In a log: nothing of what is done soon, and then a line in so many seconds.
SECONDS_A_LINE = 30.0
_NOW_AND_THEN: dict[str, Any] = {
    "delay": SECONDS_A_LINE,
    "mininterval": SECONDS_A_LINE,
    "maxinterval": SECONDS_A_LINE,
    "ascii": True,
    "bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left",
}


def progress_bar(**options: Any) -> Any:
    """A bar of tqdm in a terminal or a notebook. Elsewhere, such as in a log, a line now and then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # of a notebook without ipywidgets, which gets a bar of text
        from tqdm.auto import tqdm

    if _in_notebook() or sys.stderr.isatty():
        return tqdm(**options)
    return tqdm(**{**_NOW_AND_THEN, **options, "file": _Lines(sys.stderr), "leave": False})


class _Lines(io.TextIOBase):
    """Gives each state of a bar a line of its own. A bar writes over itself, which a log cannot show."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if told := text.strip():
            self._stream.write(f"{told}\n")
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _in_notebook() -> bool:
    """Whether what is printed goes to a notebook."""
    streams = sys.modules.get("ipykernel.iostream")
    return streams is not None and isinstance(sys.stderr, streams.OutStream)
