"""OOD detectors: tensors in, scores out. Higher scores mean more in-distribution.

    detector = create("mahalanobis++").fit(train, head)
    scores = detector.score(outputs)  # (N,) float64

A new detector is one class in the file of its family (or in a new file beside them), under `@registry.register`.
"""

import importlib
import pkgutil

from detectors.base import Detector
from detectors.catalogue import registry
from detectors.outputs import Head, Outputs
from detectors.registry import Registry, did_you_mean
from detectors.state import learned

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

available = registry.available
create = registry.create
describe = registry.describe
restore = registry.restore

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
    "registry",
    "restore",
]
