"""The options of suites that follow somebody's code, beside a table of what that code says.

`references/followed_options.csv` holds one option a line, by our names, read from the file that `source` names:

* suites, detector, option: who takes it. `fitted to` is no option, but the split that the detector learns from.
* values: what is tried there, one or several. divided_by: of a step in pixels, the standard deviations by which it is
  divided in each channel; ours is divided by their mean.
* instead: the words of the suite's `about` that say what it does otherwise; nothing where it does the same.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmark.suites.loading import load_suite
from benchmark.suites.suite import Suite
from detectors import describe

Row = dict[str, str]

TABLE = Path(__file__).parent / "references" / "followed_options.csv"
OPENOOD = ["openood-cifar10", "openood-cifar100", "openood-imagenet"]


with TABLE.open(newline="", encoding="utf-8") as _lines:
    ROWS: list[Row] = list(csv.DictReader(_lines))
SUITES = sorted({suite_id for row in ROWS for suite_id in row["suites"].split()})


def rows_of(suite_id: str) -> list[Row]:
    return [row for row in ROWS if suite_id in row["suites"].split()]


def there(row: Row) -> list[Any]:
    values = [_number(value) for value in row["values"].split()]
    if row["divided_by"]:
        divisor = fmean(map(float, row["divided_by"].split()))
        return [pytest.approx(value / divisor, rel=1e-3) for value in values]
    return values


def here(suite: Suite, row: Row) -> list[Any]:
    """The values that a suite tries of the row's option; nothing where the detector has no such option."""
    about = describe(row["detector"])
    if row["option"] == "fitted to":
        return [split for split in ("val", "train") if split in about["needs"]]
    swept = suite.entry.tuning.options.get(row["detector"], {}) if suite.entry.tuning else {}
    if row["option"] in swept:
        return list(swept[row["option"]])
    chosen = about["defaults"] | suite.options(row["detector"])
    return [chosen[row["option"]]] if row["option"] in chosen else []


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def complaints(suite: Suite) -> Iterator[str]:
    """One for each row that the suite neither follows nor tells of, or that it tells of and follows all the same."""
    about = " ".join(suite.entry.about.split())
    for row in rows_of(suite.id):
        if not row["option"]:
            continue
        name = f"{row['detector']}.{row['option']}"
        told = row["instead"] != "" and row["instead"] in about
        same = bool(row["values"]) and here(suite, row) == there(row)
        if not same and not told:
            yield f"{name} is {here(suite, row)}, there {row['values']} ({row['source']})"
        if same and row["instead"]:
            yield f"{name} is the same as there; `instead` says otherwise"


@pytest.mark.parametrize("suite_id", SUITES)
def test_a_suite_takes_the_options_that_it_follows_or_tells_what_differs(suite_id: str) -> None:
    assert not list(complaints(load_suite(suite_id)))


@pytest.mark.parametrize("suite_id", OPENOOD)
def test_the_table_has_every_detector_of_openoods_suites(suite_id: str) -> None:
    assert {row["detector"] for row in rows_of(suite_id)} == set(load_suite(suite_id).detectors)


def test_a_difference_that_is_not_told_is_found() -> None:
    suite = load_suite("openood-imagenet")
    tuning = suite.entry.tuning
    assert tuning is not None

    def said(**changes: object) -> str:
        return "; ".join(complaints(replace(suite, entry=suite.entry.model_copy(update=changes))))

    assert "nnguide.k is [None], there 100" in said(options={})
    undivided = tuning.options | {"odin": tuning.options["odin"] | {"epsilon": (0.0014, 0.0028)}}
    assert "odin.epsilon is [0.0014, 0.0028]" in said(tuning=tuning.model_copy(update={"options": undivided}))
    no_vim = {detector: options for detector, options in tuning.options.items() if detector != "vim"}
    assert "vim.dimension is [None]" in said(tuning=tuning.model_copy(update={"options": no_vim}))
    silent = said(about="")
    assert all(name in silent for name in ("react.fitted to", "kl-matching.fitted to", "fdbd.", "ssd.", "rankfeat."))
