"""Suites, models, image sets, the forward pass and its store, metrics, thresholds, records and cases."""
