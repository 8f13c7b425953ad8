"""What detectors are compared with: one module a family, which lists `(id, options, reference)` in REFERENCES."""

import importlib
import pkgutil

FAMILIES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
REFERENCES = [reference for family in FAMILIES for reference in getattr(family, "REFERENCES", [])]
