"""The command that runs a case alone, as it can be pasted where pytest was started."""

import os
import shlex
from pathlib import Path

import pytest

import benchmark
from benchmark.plugin.options import DEFAULTS, given_options

_HOME = Path(benchmark.__file__).parents[1]  # of our packages: a checkout, or what pip installs into


def alone_command(item: pytest.Item) -> str:
    """What runs a case alone, under the same options."""
    full = ["--full"] if item.config.getoption("--full") else []
    return shlex.join(["pytest", *_address(item), *given_options(item.config, DEFAULTS), *full])


def _address(item: pytest.Item) -> list[str]:
    """What makes pytest load the plugin and find the case.

    The id that pytest shows does not: it starts from the root folder, or from the folder of an installed package.
    """
    parts = item.nodeid.partition("::")[2]
    if not item.path.is_relative_to(_HOME) or item.config.pluginmanager.has_plugin(str(_HOME / "conftest.py")):
        plugin = [] if item.path.is_relative_to(_HOME) else ["-p", "benchmark.plugin"]
        return [*plugin, f"{os.path.relpath(item.path, item.config.invocation_params.dir)}::{parts}"]
    module = ".".join(item.path.relative_to(_HOME).with_suffix("").parts)
    return ["-p", "benchmark.plugin", "--pyargs", f"{module}::{parts}"]
