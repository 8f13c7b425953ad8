"""Progress bars: shown in terminals and in notebooks, and nowhere else."""

import sys
import warnings
from typing import Any

from tqdm import TqdmWarning


def progress_bar(**options: Any) -> Any:
    """A bar of tqdm, which leaves out those that no terminal shows; a notebook, which is none, shows them too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # of a notebook without ipywidgets, which gets a bar of text
        from tqdm.auto import tqdm

    return tqdm(**options, disable=False if _in_notebook() else None)


def _in_notebook() -> bool:
    """Whether what is printed goes to a notebook."""
    streams = sys.modules.get("ipykernel.iostream")
    return streams is not None and isinstance(sys.stderr, streams.OutStream)
