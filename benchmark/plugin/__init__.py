"""The pytest plugin of the suite: `pytest -p benchmark.plugin --pyargs benchmark unit_tests_ood`.

It is opt-in: an environment in which it is installed does not load it. A `pytest.ini` switches it on with
`addopts = -p benchmark.plugin`, a `conftest.py` in the root folder with `pytest_plugins = ["benchmark.plugin"]`.

Relative paths, those of the command line as those that hold by default, start from the folder that pytest was started
in: `results/`, `.store/` and `data/` lie there, wherever the root folder of pytest is.

This module only declares the options, so that `pytest --help` is quick. What loads torch is in the modules beside it:

    suite         what the options ask for: the suite, its cases, its device and its folders
    cases         which tests there are, and the fixtures that take a case from its images to its verdict
    errors        what becomes of an error in a case
    alone         the command that runs a case alone
    controller    in the process that the user started: the records and the summary
"""

from importlib import import_module

import pytest

from benchmark.packages import foreign_package
from benchmark.plugin.options import add_options


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Registers what runs the cases, unless pytest is only asked to print something of itself."""
    if any(config.getoption(name) for name in ("help", "version", "markers")):
        return
    # Not leaderboard, which no case needs. Where benchmark is another one, this module was not found.
    if problem := foreign_package("benchmark", "detectors", "unit_tests_ood"):
        raise pytest.UsageError(problem)
    for name in ("benchmark.plugin.cases", "benchmark.plugin.controller"):
        config.pluginmanager.register(import_module(name), name)
