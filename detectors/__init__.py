"""OOD detectors: tensors in, scores out. Higher scores mean more in-distribution.

    detector = create("mahalanobis++").fit(train, head)
    scores = detector.score(outputs)  # (N,) float64

A new detector is one class in the file of its family (or in a new file beside them), under `@registry.register`.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from detectors.spelling import did_you_mean

if TYPE_CHECKING:
    from detectors.base import Detector
    from detectors.catalogue import registry
    from detectors.outputs import Head, Outputs
    from detectors.registry import Registry
    from detectors.state import learned

    available, create, describe, restore = registry.available, registry.create, registry.describe, registry.restore

__all__ = [
    "Detector",
    "Head",
    "Outputs",
    "Registry",
    "available",
    "create",
    "describe",
    "did_you_mean",
    "learned",
    "restore",
]

# Where the names are that need torch. It is slow to import, and a program that only spells names does without it.
_MODULES = {
    "Detector": "detectors.base",
    "Head": "detectors.outputs",
    "Outputs": "detectors.outputs",
    "Registry": "detectors.registry",
    "learned": "detectors.state",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in __all__:
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
        value = getattr(importlib.import_module("detectors.catalogue").registry, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
