"""Suites, models, image sets, the forward pass and its store, metrics, limits, records and cases.

    from benchmark import evaluate, load_results

    results = evaluate("digits-resnet", in_distribution="digits-test", ood={"letters": "letters"})
    results.to_pandas()

docs/python.md shows the rest.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.api.evaluation import evaluate
    from benchmark.api.loading import load_results

# A thread of OpenMP that waits spins for long by default, and two runs on the same cores then slow each other down
# tenfold. A short spin, then sleep, costs nothing on a machine that is free. It has to be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

__all__ = ["evaluate", "load_results"]

# Where the names are that need torch or pydantic, which are slow to import: most who import a module of ours need less.
_MODULES = {"evaluate": "benchmark.api.evaluation", "load_results": "benchmark.api.loading"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
