"""The detectors of this project, by id; each family's file adds its own."""

from detectors.registry import Registry

registry = Registry()
