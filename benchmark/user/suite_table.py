"""What the suites that a user names on the command line have in common."""

from collections.abc import Collection, Iterable
from pathlib import Path

from detectors import describe

FILE = Path(__file__).with_name("user.toml")
SHOWN = 8


def left_out(detectors: Iterable[str], needs: Collection[str], lacking: str) -> str:
    """A sentence on the detectors that have no cases because a run lacks something of what they need."""
    ids = [detector_id for detector_id in detectors if set(needs) & set(describe(detector_id)["needs"])]
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} others" if len(ids) > SHOWN else "")
    return f"Without {lacking}, {len(ids)} detectors have no cases: {shown}." if ids else ""
