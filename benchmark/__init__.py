"""Suites, models, image sets, the forward pass and its store, metrics, limits, records and cases."""

import os

# A thread of OpenMP that waits spins for long by default, and two runs on the same cores then slow each other down
# tenfold. A short spin, then sleep, costs nothing on a machine that is free. It has to be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "50000")
