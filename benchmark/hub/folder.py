"""Where a folder of results is asked for, an address on the Hub may stand too."""

from collections.abc import Callable
from pathlib import Path

from benchmark.hub.address import Address


def results_folder(text: str, tell: Callable[[str], None]) -> Path:
    """The folder of results that a text names: a folder, or an address on the Hub whose runs are brought here.

    text: a path, or hf://datasets/ORG/NAME, perhaps with @REVISION.
    tell: what is told of runs that were refused, a line each.

    Raises UserError where there are no such results on the Hub.
    """
    if not text.startswith("hf://"):
        return Path(text)
    from benchmark.hub.cached import bring  # here, since most results are a folder, and it loads the Hub's client

    return bring(Address.parse(text), tell)
