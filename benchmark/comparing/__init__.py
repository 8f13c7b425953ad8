"""Comparing results: two runs, or two detectors, case by case, with what sampling alone explains."""
