"""What all suites of a user's networks and images have in common: a table, and a sentence on detectors left out."""

from collections.abc import Collection, Iterable
from pathlib import Path

from detectors import describe

FILE = Path(__file__).with_name("user.toml")
SHOWN = 8  # so many ids are listed in a sentence


def left_out(detectors: Iterable[str], needs: Collection[str], lacking: str) -> str:
    """A sentence on the detectors that have no cases, because a run lacks what they need; empty where there are none.

    detectors: ids of detectors.
    needs: what the run lacks, in the words of a detector's `needs`.
    lacking: the same in the words of the user.
    """
    ids = [detector_id for detector_id in detectors if set(needs) & set(describe(detector_id)["needs"])]
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} others" if len(ids) > SHOWN else "")
    return f"Without {lacking}, {len(ids)} detectors have no cases: {shown}." if ids else ""
