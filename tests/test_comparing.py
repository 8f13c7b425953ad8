"""Comparisons: differences with their sampling error, many of them at once, and the command that gates a checkpoint."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmark.commands.app import main
from benchmark.comparing.cases import compare_sides
from benchmark.comparing.differences import (
    Change,
    accuracy_change,
    auroc_change,
    fpr_change,
    holm,
    unpaired_change,
)
from benchmark.comparing.reading import of_detector, read_sides, renamed
from benchmark.comparing.report import as_junit, as_markdown, as_text
from benchmark.errors import UserError
from benchmark.metrics import accuracy, auroc, fpr_at_tpr, measure
from benchmark.records import Estimate, Record
from tests.test_leaderboard import write_suite

# --- Statistics. ---


def samples(seed: int, images: int, apart: float = 2.0, noise: float = 0.5) -> list[np.ndarray]:
    """Scores of two detectors on the same ID and OOD images: what they share, and noise of their own."""
    generator = np.random.default_rng(seed)
    test, ood = generator.normal(apart, 1, images), generator.normal(0, 1, images)
    of_base = [test + noise * generator.normal(size=images), ood + noise * generator.normal(size=images)]
    return [*of_base, test + noise * generator.normal(size=images), ood + noise * generator.normal(size=images)]


def test_values_are_the_differences_of_the_metrics() -> None:
    a, b, c, d = samples(0, 80)
    assert fpr_change(a, b, c, d).value == pytest.approx(fpr_at_tpr(c, d) - fpr_at_tpr(a, b))
    assert auroc_change(a, b, c, d).value == pytest.approx(auroc(c, d) - auroc(a, b))
    right = np.arange(10) < 7
    assert accuracy_change(right, ~right).value == pytest.approx(-0.4)


def test_delong_is_that_of_the_definition() -> None:
    """The covariance of the structural components, by loops over all pairs, with ties and infinities."""
    a, b, c, d = (np.round(values, 1) for values in samples(1, 30))
    a[0], d[0] = np.inf, -np.inf

    def components(test: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wins = np.array([[float(x > y) + 0.5 * float(x == y) for y in ood] for x in test])
        return wins.mean(axis=1), wins.mean(axis=0)

    (v10_a, v01_a), (v10_b, v01_b) = components(a, b), components(c, d)
    s10, s01 = np.cov(v10_a, v10_b), np.cov(v01_a, v01_b)
    variance = sum((s[0, 0] + s[1, 1] - 2 * s[0, 1]) / 30 for s in (s10, s01))
    assert auroc_change(a, b, c, d).error == pytest.approx(np.sqrt(variance))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60))
def test_a_comparison_turned_round_says_the_opposite(seed: int, images: int) -> None:
    a, b, c, d = samples(seed, images)
    forth, back = auroc_change(a, b, c, d), auroc_change(c, d, a, b)
    assert forth == pytest.approx(-back)
    one, other = (Estimate(value=v, low=max(v - 0.1, 0), high=min(v + 0.2, 1)) for v in (0.3, 0.6))
    assert unpaired_change(one, other) == pytest.approx(-unpaired_change(other, one))
    assert auroc_change(a, b, a, b)[:4] == (0, 0, 0, 0)
    assert fpr_change(a, b, a, b).low <= 0 <= fpr_change(a, b, a, b).high


def test_pairs_see_more_than_images_of_their_own() -> None:
    a, b, c, d = samples(2, 300, noise=0.1)
    paired = fpr_change(a, b, c, d)
    unpaired = unpaired_change(measure(a, b).fpr_at_95, measure(c, d).fpr_at_95)
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


def test_equal_ones_are_seldom_called_different() -> None:
    """Of 300 pairs without a true difference, one in twenty but for chance, at the level of 5 % of a single test."""
    called = {"fpr": 0, "auroc": 0, "accuracy": 0, "unpaired": 0}
    generator = np.random.default_rng(0)
    for seed in range(300):
        a, b, c, d = samples(seed, 120)
        right = [generator.random(150) < 0.9 for _ in range(2)]
        changes = {
            "fpr": fpr_change(a, b, c, d),
            "auroc": auroc_change(a, b, c, d),
            "accuracy": accuracy_change(*right),
            "unpaired": unpaired_change(*(accuracy(int(of.sum()), 150) for of in right)),
        }
        for name, change in changes.items():
            called[name] += min(change.p_above(0), (-change).p_above(0)) < 0.025
    for name, count in called.items():
        assert binomtest(count, 300, 0.05, alternative="greater").pvalue > 1e-3, (name, count)
    assert sum(called.values()) > 0


def test_true_differences_are_seen() -> None:
    generator = np.random.default_rng(0)
    test, ood = generator.normal(2, 1, 500), generator.normal(0, 1, 500)
    change = fpr_change(test, ood, test, ood + 0.8)
    assert change.p_above(0) < 1e-6
    assert change.p_above(change.value) == pytest.approx(0.5)
    assert change.p_above(1.0) > 0.99


def test_holm_is_that_of_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_never_lowers(probabilities: list[float]) -> None:
    corrected = holm(probabilities)
    assert all(p <= q <= 1 for p, q in zip(probabilities, corrected, strict=True))
    order = np.argsort(probabilities, kind="stable")
    assert all(corrected[i] <= corrected[j] for i, j in pairwise(order))


def test_a_change_without_spread_is_certain() -> None:
    assert Change(0.1, 0.1, 0.1, 0.0, True).p_above(0.0) == 0.0
    assert Change(0.0, 0.0, 0.0, 0.0, True).p_above(0.0) == 1.0


# --- Results. ---


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """Folders of results of one model: "digits-vit" tells the sets apart well, "digits-convnext" badly."""

    def make(name: str, model: str = "digits-vit", called: str = "net", **more: object) -> Path:
        write_suite(tmp_path / "made" / name, models=[model], **more)
        text = "".join(file.read_text() for file in (tmp_path / "made" / name).rglob("*.jsonl"))
        folder = tmp_path / name
        (folder / "digits").mkdir(parents=True)
        (folder / "digits" / "run-1.jsonl").write_text(text.replace(model, called))
        for file in (tmp_path / "made" / name).rglob("*.parquet"):
            parts = file.relative_to(tmp_path / "made" / name).as_posix().replace(model, called)
            (folder / parts).parent.mkdir(parents=True, exist_ok=True)
            (folder / parts).write_bytes(file.read_bytes())
        return folder

    return make


def compared(base: Path, new: Path) -> object:
    return compare_sides(read_sides(str(base), base)[0], read_sides(str(new), new)[0])


def test_the_same_results_are_within_noise(folders: Callable[..., Path]) -> None:
    base = folders("base")
    found = compared(base, base)
    assert found.verdict == "no worse"
    assert {finding.standing for finding in found.findings} == {"within noise"}
    figures = {finding.figure for finding in found.findings}
    assert figures == {"FPR@95", "AUROC", "ID accuracy", "score time"}
    paired = [of.change.paired for of in found.findings if of.figure in ("FPR@95", "AUROC")]
    assert all(paired)
    assert paired


def test_a_worse_checkpoint_is_told_and_fails(folders: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_leaderboard import MODELS

    best, worst = max(MODELS, key=MODELS.get), min(MODELS, key=MODELS.get)
    good, bad = folders("good", best), folders("bad", worst)
    assert main(["compare", str(good), str(bad)]) == 1
    text = capsys.readouterr().out
    assert re.match(r"Worse: \d+ worse, 0 better", text)
    assert re.search(r"digits/net/\S+: AUROC \d+\.\d % -> \d+\.\d % \(-\d+\.\d points, -.* to -.*, p ", text)
    assert main(["compare", str(bad), str(good)]) == 0
    assert re.match(r"No worse: 0 worse, \d+ better", capsys.readouterr().out)
    assert main(["compare", str(good), str(bad), "--allow", "1"]) == 0


def test_each_format_says_the_same(folders: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_leaderboard import MODELS

    good, bad = folders("good", max(MODELS, key=MODELS.get)), folders("bad", min(MODELS, key=MODELS.get))
    found = compared(good, bad)
    worse = len(found.of("worse"))
    assert worse
    assert main(["compare", str(good), str(bad), "--format", "json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == "worse"
    assert sum(of["standing"] == "worse" for of in content["findings"]) == worse
    junit = ElementTree.fromstring(as_junit(found))
    assert junit.get("failures") == str(worse) == str(len(junit.findall(".//failure")))
    assert as_markdown(found).count("🔴") == worse
    assert as_text(found).startswith(f"Worse: {worse} worse")
    assert main(["compare", str(good), str(bad), "--format", "csv"]) == 1
    assert "--format csv: choose text, markdown, json, junit" in capsys.readouterr().err


def test_cases_of_one_side_alone_are_listed(folders: Callable[..., Path]) -> None:
    def fewer(record: Record) -> Record | None:
        return None if record.kind == "case" and record.set == "letters" else record

    def failing(record: Record) -> Record | None:
        if record.kind != "case" or record.set != "letters":
            return record
        nothing = {"metrics": None, "timing": None, "limit": None, "scores": None}
        return record.model_copy(update={**nothing, "status": "error", "reason": "it broke", "expected": False})

    base, new = folders("base"), folders("new", change=fewer)
    found = compared(base, new)
    assert found.verdict == "no worse"
    assert "digits/net/msp/letters: not there" in found.only_base
    assert not found.only_new
    assert "digits/net/msp/letters: not there" in compared(new, base).only_new
    broken = compared(base, folders("broken", change=failing))
    assert broken.verdict == "worse"
    assert "digits/net/msp/letters: error: it broke" in broken.only_base
    assert "digits/net/msp/letters" in broken.failed


def test_without_scores_the_comparison_is_unpaired_and_says_so(folders: Callable[..., Path]) -> None:
    base, new = folders("base"), folders("new")
    for file in new.rglob("*.parquet"):
        file.unlink()
    found = compared(base, new)
    assert not any(of.change.paired for of in found.findings if of.figure == "FPR@95")
    assert "compared as if of images of their own" in as_text(found)
    assert "not there" in as_text(found)


def test_a_renamed_model_is_compared(folders: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, new = folders("base", called="net-v1"), folders("new", called="net-v2")
    assert main(["compare", str(base), str(new)]) == 2
    assert capsys.readouterr().out.startswith("Nothing to compare; ")
    assert main(["compare", str(base), str(new), "--as", "net-v1=net-v2"]) == 0
    assert main(["compare", str(base), str(new), "--as", "net-v3=net-v2"]) == 1
    assert "--as net-v3: the base has no such model" in capsys.readouterr().err
    with pytest.raises(UserError, match="write OLD=NEW"):
        renamed(read_sides(str(base), base)[0], ["net-v1"])


def test_what_is_not_there_is_named(
    folders: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = folders("base")
    (tmp_path / "empty").mkdir()
    for text, says in {
        str(tmp_path / "gone"): "has no run",
        f"{base}:run-2": "has no run 'run-2' (did you mean 'run-1'?); the newest is run-1",
        str(tmp_path / "empty"): "no results are there",
    }.items():
        assert main(["compare", text, str(base), "--results", str(base)]) == 1
        assert says in capsys.readouterr().err
    assert main(["compare", "run-1", f"{base}:run-1", "--results", str(base)]) == 0


def test_two_detectors_are_compared(folders: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    base = folders("base")
    sides, _ = read_sides(str(base), base)
    found = compare_sides(of_detector(sides, "msp"), of_detector(sides, "mahalanobis++"))
    assert next(of.name for of in found.findings if of.figure == "FPR@95").startswith("digits/net/")
    assert main(["versus", "msp", "mahalanobis++", "--results", str(base)]) in (0, 1)
    capsys.readouterr()
    assert main(["versus", "msp", "mahalanobs", "--results", str(base)]) == 1
    assert "did you mean 'mahalanobis++'?" in capsys.readouterr().err


def test_hostile_names_are_harmless_in_markdown(folders: Callable[..., Path]) -> None:
    base = folders("base")
    found = compared(base, base)
    hostile = "<script>alert(1)</script> | [x](javascript:1) `a`"
    finding = replace(found.findings[0], name=hostile, standing="worse")
    text = as_markdown(replace(found, findings=[finding], only_base=[hostile]))
    assert "<script>" not in text
    assert "](" not in text
    assert all(line.count("|") == 7 for line in text.splitlines() if line.startswith("|"))
