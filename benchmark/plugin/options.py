"""The options of the plugin, and which of them were given."""

import argparse
from collections.abc import Iterable
from typing import Any

import pytest

from benchmark.user import DEFAULT_SUITE

# The options that name what is of the user.
OF_USER = ("--model", "--id", "--train", "--val", "--ood", "--outputs", "--detectors")
# Options and their defaults; what differs from them is needed to run a case again.
DEFAULTS: dict[str, Any] = {
    "--suite": DEFAULT_SUITE,
    **dict.fromkeys(OF_USER),
    "--data-dir": "data",
    "--store": ".store",
    "--results": "results",
    "--device": None,
    "--fpr-limit": None,
    "--unit-test-limit": None,
}
_MANY = {"action": "append"}


def add_options(parser: pytest.Parser) -> None:
    """Declares the options. Raises UsageError where a conftest.py or another plugin has one of the same name."""
    group = parser.getgroup("ood", "out-of-distribution detection")

    def add(name: str, meaning: str, **how: Any) -> None:
        try:
            group.addoption(name, help=meaning, **how)
        except ValueError:  # which would end with a traceback
            raise pytest.UsageError(
                f"{name} is an option of benchmark.plugin and of another plugin or conftest.py, too: rename it there, "
                "or run without that one"
            ) from None

    def add_value(name: str, meaning: str, **how: Any) -> None:
        add(name, meaning, default=DEFAULTS[name], **how)

    add_value("--suite", "a suite by name, or the path of its TOML file (default: digits)")
    add_value("--model", "an id, hf-hub:.., a timm name, local-dir:.., open-clip:.. or MODULE:FUNCTION", **_MANY)
    add_value("--id", "in-distribution test images: a folder of class folders, Parquet, or an id of image_sets.toml")
    add_value("--train", "in-distribution training images, for the detectors that learn")
    add_value("--val", "in-distribution images that are neither (default: a part of --id)")
    add_value("--ood", "out-of-distribution images: a folder, Parquet, or an id of image_sets.toml", **_MANY)
    add_value("--outputs", "a folder of precomputed outputs in place of a network and images (docs/your-own.md)")
    add_value(
        "--detectors", "a Python file that registers detectors, or those of a library (pytorch_ood:KNN,k=10)", **_MANY
    )
    add_value("--data-dir", "folder of downloaded images and weights (default: data)")
    add_value("--store", "folder for the outputs of networks (default: .store)")
    add_value("--results", "folder for records and scores (default: results)")
    add_value("--device", "where networks run, as torch names it (default: cuda where there is one, else cpu)")
    add_value("--fpr-limit", "hold OOD sets to this FPR@95 (0 to 1) instead of their limits", type=_fraction)
    add_value("--unit-test-limit", "FPR@95 above which a unit test fails (default: the suite's goal)", type=_fraction)
    add("--full", "run all detectors on unit tests and changed networks", action="store_true")
    add("--record-baselines", "write what this run measures to the suite's baselines", action="store_true")
    add("--push", "push the run to this dataset repository on the Hub when it ends", metavar="ORG/NAME")
    add("--push-scores", "push the score of each image, too", action="store_true")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def given_options(config: pytest.Config, names: Iterable[str]) -> list[str]:
    """Those of some options that were given, with their values, as words of a command line."""
    given = {name: value for name in names if (value := config.getoption(name)) != DEFAULTS[name]}
    pairs = [
        (name, value) for name, values in given.items() for value in (values if isinstance(values, list) else [values])
    ]
    return [str(text) for pair in pairs for text in pair]
