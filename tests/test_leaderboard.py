"""The leaderboard, built from synthetic records of every kind and status."""

import csv
import hashlib
import html
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from benchmark.metrics import accuracy, fpr_at_tpr, measure
from benchmark.records import (
    Case,
    DetectorRecord,
    Estimate,
    Limit,
    ModelRecord,
    Record,
    Role,
    Run,
    ScoresFile,
    SetRecord,
    Timing,
    read_records,
)
from benchmark.results import ResultsFolder, RunId
from benchmark.scores import METADATA, ScoresOf, scores_sha256, scores_table, which_scores
from detectors.invariance import CHANGES
from leaderboard import site, view
from leaderboard.__main__ import main
from leaderboard.results import read_results

ROOT = Path(__file__).parent.parent
HOSTILE = 'Not /really/ <fast> & "x" </td><script>alert(1)</script>'
UNIT_TESTS = [f"unit-test-{number}" for number in range(1, 18)]
OOD: dict[str, Role] = {"digits-8-9": "near", "letters": "far", "photo-patches": "far"}
MODELS = {"digits-resnet": 1.0, "digits-vit": 1.4}
# Higher parts ID from OOD better. "knn" and "mahalanobis++" give nearly the same scores: no images can tell them apart.
DETECTORS = {"msp": 1.8, "mahalanobis++": 3.0, "knn": 3.0, "cosine": 2.2, "energy": 1.5}
IMAGES = 200


def write_suite(
    folder: Path,
    suite: str = "digits",
    run: str = "run-1",
    started: str = "2026-05-01T10:00:00+00:00",
    models: Iterable[str] = tuple(MODELS),
    detectors: Iterable[str] = tuple(DETECTORS),
    change: Callable[[Record], Record | None] = lambda record: record,
) -> Path:
    """The records and scores of a run; `change` replaces a record, or leaves it out where it gives null."""
    path = folder / suite / f"{run}.jsonl"
    ids = {"run": run, "suite": suite}

    def write(record: Record) -> None:
        if changed := change(record):
            ResultsFolder(folder).add(changed)

    write(run_record(started, **ids))
    for set_id, role in {"digits-test": "test", **OOD, **dict.fromkeys(UNIT_TESTS, "unit-test")}.items():
        write(set_record(set_id, role, **ids))
    for model in models:
        write(model_record(model, **ids))
        for detector in detectors:
            write(detector_record(detector, **ids))
            for case in _cases(folder, model, detector, ids):
                write(case)
    return path


def run_record(started: str, **ids: str) -> Run:
    return Run(
        suite_option="some folder/suite.toml",
        started=started,
        command=f"pytest {HOSTILE}",
        package_version="0.9",
        git_commit="0123456789abcdef0123456789abcdef01234567",
        git_dirty=True,
        user_git_commit="fedcba9876543210fedcba9876543210fedcba98",
        user_git_dirty=False,
        packages={"numpy": "2.0", "torch": "2.6"},
        python="3.11.9",
        platform=HOSTILE,
        device="cpu, 2 cores",
        **ids,
    )


def set_record(name: str, role: str, **ids: str) -> SetRecord:
    return SetRecord(
        id=name,
        role=role,
        title=HOSTILE,
        images=IMAGES,
        classes=["8", HOSTILE] if name == "digits-8-9" else [],
        content_sha256=sha256(name),
        coding="pixels",
        licence="CC-BY-4.0",
        source=HOSTILE,
        **ids,
    )


def model_record(model_id: str, **ids: str) -> ModelRecord:
    return ModelRecord(
        id=model_id,
        title=f"A model {HOSTILE}",
        source=f"local-dir:checkpoints/{model_id}",
        architecture="resnet",
        family="convolutional with ReLU",
        pretraining="none",
        weights_sha256=sha256(model_id),
        preprocessing={"mean": [0.5], "interpolation": HOSTILE},
        parameters=312_456,
        feature_dimensions=96,
        classes=8,
        id_accuracy=accuracy(356, 360),
        id_images=360,
        forward_ms_per_image=0.81,
        device="cpu",
        **ids,
    )


def detector_record(detector_id: str, **ids: str) -> DetectorRecord:
    return DetectorRecord(
        id=detector_id,
        summary=f"Distance to the nearest class. {HOSTILE}",
        formula="S(x) = -min_c (f - m_c)' P (f - m_c) <= 0",
        paper=f'K. Lee et al., "A Simple Unified Framework", NeurIPS 2018, arXiv:1807.03888 {HOSTILE}',
        needs=["features", "train"],
        options={"k": f"neighbours {HOSTILE}"},
        defaults={"k": 50},
        deviations=[f"Fitted in float64. {HOSTILE}"],
        invariances={"logit shift": True, "feature unit": False, HOSTILE: False} if detector_id != "cosine" else {},
        invariances_declared=detector_id == "mahalanobis++",
        options_used={"k": 10},
        source_sha256=sha256(detector_id),
        **ids,
    )


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cases(folder: Path, model: str, detector: str, ids: dict[str, str]) -> list[Case]:
    """Cases of all verdicts, and the file of their scores. 'energy' lacks some figures, 'cosine' the unit tests."""
    scores = _scores(model, detector)
    scores_in = write_scores(folder, model, detector, scores, **ids)
    cases = []
    for set_id, role in {**OOD, **dict.fromkeys(UNIT_TESTS, "unit-test")}.items():
        if detector == "cosine" and role == "unit-test":
            continue
        keys = {"model": model, "detector": detector, "set": set_id, "role": role, **ids}
        cases.append(_case(scores["digits-test"], scores[set_id], scores_in(set_id), keys))
    return cases


def _case(id_scores: np.ndarray, ood_scores: np.ndarray, file: ScoresFile, keys: dict[str, str]) -> Case:
    nothing = {"expected": False, "metrics": None, "timing": None, "limit": None, "scores": None}
    if (keys["detector"], keys["set"]) == ("energy", "letters"):
        return Case(status="error", reason=f"ValueError: row 3 is not finite {HOSTILE}", **nothing, **keys)
    if (keys["detector"], keys["set"]) == ("energy", "photo-patches"):
        return Case(status="skipped", reason=f"data missing {HOSTILE}", **nothing, **keys)
    classes = np.arange(IMAGES) % 2 if keys["set"] == "digits-8-9" else None
    metrics = measure(id_scores, ood_scores, classes, ["8", HOSTILE] if classes is not None else [])
    goal = 0.1 if keys["role"] == "unit-test" else 0.2
    known = f"43.0% recorded 2026-04-01 {HOSTILE}" if goal < metrics.fpr_at_95.value <= 0.5 else None
    limit = Limit(goal=goal, fpr_at_95=0.5 if known else goal, forward_ratio=0.25, source=HOSTILE, known_failure=known)
    failed = metrics.fpr_at_95.value > goal
    speed = 0.01 * (1 + len(keys["detector"]))
    timing = Timing(
        device="cpu", fit_s=0.2, score_ms_per_image=speed, forward_ms_per_image=0.8, forward_ratio=speed / 0.8
    )
    return Case(
        status="failed" if failed else "passed",
        expected=bool(known),
        reason=f"known failure: {known}" if known else f"allowed 10.0% ({HOSTILE})" if failed else None,
        metrics=metrics,
        timing=timing,
        limit=limit,
        scores=file,
        warnings=[f"the logits are low {HOSTILE}"] if keys["detector"] == "knn" else [],
        **keys,
    )


def _scores(model: str, detector: str) -> dict[str, np.ndarray]:
    """Scores of every set; images are the same for all detectors, each of which adds a little noise of its own."""
    images = np.random.default_rng(len(model))
    own = np.random.default_rng(sum(detector.encode()))
    apart = MODELS.get(model, 1.0) * DETECTORS[detector]
    centres = {"digits-test": 0.0} | dict.fromkeys(OOD, -apart)
    centres |= {set_id: -apart - number / 8 for number, set_id in enumerate(UNIT_TESTS)}
    return {
        set_id: centre + images.normal(size=IMAGES) + 0.01 * own.normal(size=IMAGES)
        for set_id, centre in centres.items()
    }


def write_scores(
    folder: Path, model: str, detector: str, scores: dict[str, np.ndarray], **ids: str
) -> Callable[[str], ScoresFile]:
    """Keeps the scores of sets, as a run does. Gives what the record of a case on a set says of them."""
    tables = {}
    for set_id, values in scores.items():
        of = ScoresOf(**ids, model=model, detector=detector, set=set_id)
        labels = np.arange(len(values)) % 2 if set_id == "digits-8-9" else None
        tables[set_id] = scores_table(of, [f"{set_id}/{i}" for i in range(len(values))], values, labels)
        ResultsFolder(folder).write_scores(RunId(of.suite, of.run), of.path, tables[set_id])
    test = tables["digits-test"]
    return lambda set_id: ScoresFile(
        path=which_scores(tables[set_id]).path,
        id_path=which_scores(test).path,
        sha256=scores_sha256(test, tables[set_id]),
    )


class Page(HTMLParser):
    """What a page says, as a parser sees it: text of cells, ids, links, and the tags that checks count."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: Counter[str] = Counter()
        self.tables: list[dict[str, list[str]]] = []  # of each table its rows by their first cell
        self.cases: dict[str, list[str]] = {}  # the cells of a table's body by its id
        self.text = ""
        self.unscoped = 0
        self._row: list[str] = []
        self._body: list[str] = []
        self._cell: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] += 1
        self.unscoped += tag == "th" and "scope" not in values
        if "id" in values:
            self.ids.append(values["id"] or "")
        self.links += [values[name] or "" for name in ("href", "xlink:href") if name in values]
        self.sources += [values[name] or "" for name in ("src", "srcset", "data", "poster") if name in values]
        if tag == "table":
            self.tables.append({})
        if tag == "tr":
            self._row = []
        if tag == "tbody":
            self._body = self.cases[values.get("id") or ""] = []
        if tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self._row.append(" ".join(self._cell.split()))
            self._cell = None
        if tag == "tr":
            self.tables[-1][self._row[0] if self._row else ""] = self._row
            self._body += self._row

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell += data


def build(results: Path, output: Path) -> int:
    return main(["build", "--results", str(results), "--output", str(output)])


def pages(folder: Path) -> dict[str, Page]:
    return {path.relative_to(folder).as_posix(): Page(path) for path in sorted(folder.rglob("*.html"))}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Changes every record of a file as JSON, past all checks."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_suite(folder)
    write_suite(folder, "other", "run-2", models=["digits-vit"], detectors=["msp", "knn"])
    return folder


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "site"
    assert build(results, output) == 0
    return output


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The file of one run of one model and two detectors."""
    return write_suite(tmp_path / "results", models=["digits-vit"], detectors=["msp", "knn"])


def test_pages_are_well_formed_for_readers_of_every_kind(built: Path) -> None:
    found = pages(built)
    assert {"suites/other.html", "models/digits-vit.html", "detectors/mahalanobis++.html"} <= {*found}
    for name, page in found.items():
        assert page.tags["h1"] == 1, name
        assert page.tags["main"] == 1, name
        assert page.tags["caption"] == page.tags["table"], name
        assert page.unscoped == 0, name
        assert page.tags["script"] == 0, name
        assert page.sources == [], name
        assert [name for name, count in Counter(page.ids).items() if count > 1] == [], name
        assert "#content" in page.links, name


def test_every_link_leads_somewhere_on_this_disk_or_to_arxiv(built: Path) -> None:
    assert broken_links(built) == []


def test_the_link_check_finds_broken_links(built: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<a href="gone.html"></a><a href="#gone"></a><a href="https://example.org/x.css"></a><a href="page.html"></a>'
    )
    assert broken_links(tmp_path) == [
        "page.html: gone.html",
        "page.html: #gone",
        "page.html: https://example.org/x.css",
    ]


def broken_links(folder: Path) -> list[str]:
    found = pages(folder)
    broken = []
    for name, page in found.items():
        for link in page.links:
            url = urlsplit(link)
            target = (folder / name).parent / unquote(url.path) if url.path else folder / name
            key = target.resolve().relative_to(folder.resolve()).as_posix() if not url.netloc else ""
            inside = target.is_file() and (not url.fragment or unquote(url.fragment) in found[key].ids)
            if not (link.startswith("https://arxiv.org/abs/") if url.netloc or url.scheme else inside):
                broken.append(f"{name}: {link}")
    return broken


def test_every_record_is_two_clicks_away_at_most(built: Path, results: Path) -> None:
    found = pages(built)
    index_links = {unquote(urlsplit(link).path) for link in found["index.html"].links}
    for suite in read_results(results).suites:
        assert f"suites/{suite.id}.html" in index_links
        for run in suite.runs:
            assert f"{suite.id}/run/{run.run}" in found["index.html"].ids
        for set_id in suite.sets:
            assert f"set/{set_id}" in found[f"suites/{suite.id}.html"].ids
        for detector in suite.detectors:
            assert f"detectors/{detector}.html" in index_links
        for model, detector, set_id in suite.results:
            assert f"models/{model}.html" in index_links
            assert f"{suite.id}/{detector}/{set_id}" in found[f"models/{model}.html"].ids


def test_a_record_is_on_its_models_page(built: Path, results: Path) -> None:
    found = pages(built)
    for suite in read_results(results).suites:
        for (model, detector, set_id), result in suite.results.items():
            case = result.case
            row = found[f"models/{model}.html"].cases[f"{suite.id}/{detector}/{set_id}"]
            assert row[:2] == [set_id, case.role]
            assert row[2].endswith(view.verdict(case))
            assert row[8].startswith(case.reason or ("Doubtful: " if case.warnings else "record"))
            assert row[3] == (figure(case.metrics.fpr_at_95) if case.metrics else "")
            assert row[4] == (f"{100 * case.limit.fpr_at_95:.1f}" if case.limit else "no limit")
            assert row[5] == (figure(case.metrics.auroc) if case.metrics else "")
            assert view.rerun_command(result) in row[8]
            if case.metrics:
                assert figure(case.metrics.fpr_at_95_ood_positive).replace(" [", " % [") in row[8]
                for of_class in case.metrics.classes:
                    for page, column in ((f"models/{model}.html", detector), (f"detectors/{detector}.html", model)):
                        assert of_class_table(found[page], of_class.name, column) == figure(of_class.fpr_at_95)


def figure(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def of_class_table(page: Page, class_name: str, column: str) -> str:
    """The figure of a class in the first table of classes."""
    table = next(table for table in page.tables if "Class" in table)
    return table[class_name][table["Class"].index(column)]


def test_the_tables_of_a_suite_say_what_the_records_say(built: Path, results: Path) -> None:
    page = pages(built)["suites/digits.html"]
    suite = read_results(results).suites[0]
    for number, model in enumerate(MODELS):
        of_sets, _, of_unit_tests = page.tables[3 * number : 3 * number + 3]
        for detector in ("msp", "knn", "mahalanobis++"):
            metrics = {set_id: suite.results[model, detector, set_id].case.metrics for set_id in (*OOD, *UNIT_TESTS)}
            fprs = {set_id: value.fpr_at_95.value for set_id, value in metrics.items() if value}
            failed = sum(fprs[set_id] > 0.1 for set_id in UNIT_TESTS)
            row = of_sets[f"{detector} k = 10"]  # the option that the suite set
            assert plain(row[1]).startswith(f"{100 * sum(fprs[set_id] for set_id in OOD) / 3:.1f} [")
            assert plain(row[2]) == f"{failed} of 17"
            for column, set_id in enumerate(OOD):
                verdict = view.verdict(suite.results[model, detector, set_id].case)
                assert plain(row[3 + 2 * column]).startswith(figure(metrics[set_id].fpr_at_95))
                assert row[3 + 2 * column].endswith(verdict)
                assert row[4 + 2 * column] == figure(metrics[set_id].auroc)
            row = of_unit_tests[detector]
            assert plain(row[1]) == f"{failed} of 17"
            assert row[2].startswith(f"{100 * max(fprs[set_id] for set_id in UNIT_TESTS):.1f} ")
            expected = [f"{100 * fprs[set_id]:.1f}" + "✗ failed" * (fprs[set_id] > 0.1) for set_id in UNIT_TESTS]
            assert row[3:] == expected


def plain(cell: str) -> str:
    """A cell without the marks of rank."""
    for mark in ("★ best", "≈ tied with the best", "? not compared with the best"):
        cell = cell.replace(mark, "")
    return " ".join(cell.split())


def test_errors_say_why_in_the_suite_table_and_skips_lead_to_their_record(built: Path) -> None:
    row = pages(built)["suites/digits.html"].tables[0]["energy k = 10"]
    assert "error" in row[5]
    assert "row 3 is not finite" in row[5]
    assert row[7] == "– skipped record"
    assert "data missing" in pages(built)["models/digits-resnet.html"].text


def test_incomplete_rows_are_not_averaged(built: Path) -> None:
    overview = pages(built)["index.html"].tables[0]
    assert overview["energy"][1] == "1 of 3 sets"
    assert overview["cosine"][2] == "not run"
    assert list(overview)[-1] == "energy"


def test_downloads_hold_the_records(built: Path, results: Path) -> None:
    records = TypeAdapter(list[Record]).validate_json((built / "records.json").read_bytes())
    assert records == read_results(results).records
    with (built / "records.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cases = [record for record in records if isinstance(record, Case)]
    assert len(rows) == len(cases)
    for row, case in zip(rows, cases, strict=True):
        assert [row[name] for name in ("model", "detector", "set")] == [case.model, case.detector, case.set]
        assert row["status"] == case.status
        assert row["fpr_at_95_high"] == (repr(case.metrics.fpr_at_95.high) if case.metrics else "")
        assert row["reason"] == (case.reason or "")
    assert json.loads((built / "schema.json").read_text())["type"] == "array"


def test_the_same_records_give_the_same_bytes_without_torch(small: Path, tmp_path: Path) -> None:
    """In another process that cannot import torch or timm, has another time zone and other matplotlib settings."""
    folder = small.parent.parent
    assert build(folder, tmp_path / "one") == 0
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\n")
    block = "import sys; sys.modules.update(torch=None, timm=None, torchvision=None)"
    command = ["build", "--results", str(folder), "--output", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\nfrom leaderboard.__main__ import main\nsys.exit(main({command!r}))"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert b"<svg" in files(tmp_path / "one")["models/digits-vit.html"]


def test_hostile_text_stays_text(built: Path) -> None:
    assert unescaped(built) == []


def test_pages_without_escaping_are_caught(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safe = site._environment

    def unsafe() -> jinja2.Environment:
        environment = safe()
        environment.autoescape = False
        return environment

    monkeypatch.setattr(site, "_environment", unsafe)
    build(small.parent.parent, tmp_path / "site")
    assert "models/digits-vit.html" in unescaped(tmp_path / "site")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model 'a b' --id ./val", ["--model", "a b", "--id", "./val"]),
        ("my suite.toml", ["--suite", "my suite.toml"]),
        ("--suite x; curl evil | sh #", ["--suite", "x;", "curl", "evil", "|", "sh", "#"]),
        ("--suite $(evil) 'x", ["--suite $(evil) 'x"]),
    ],
)
def test_a_command_to_copy_runs_nothing_else(small: Path, option: str, words: list[str]) -> None:
    result = next(iter(read_results(small.parent.parent).suites[0].results.values()))
    hostile = replace(result, run=result.run.model_copy(update={"suite_option": option}))
    command = shlex.shlex(view.rerun_command(hostile), posix=True, punctuation_chars=True)
    command.whitespace_split = True
    assert list(command)[:-1] == ["pytest", *words]


def unescaped(folder: Path) -> list[str]:
    """Pages in which hostile text became markup."""
    return [name for name, page in pages(folder).items() if page.tags["script"] or page.tags["fast"]]


def test_the_newest_run_wins_cell_by_cell(small: Path, tmp_path: Path) -> None:
    def perfect(record: Record) -> Record | None:
        if not isinstance(record, Case):
            return record
        if record.set != "letters" or not record.metrics:
            return None
        best = record.metrics.model_copy(update={"fpr_at_95": Estimate(value=0.123, low=0.1, high=0.2)})
        return record.model_copy(update={"metrics": best})

    folder = small.parent.parent
    # Later by the clock, though not by the text of its date; and first by its name.
    write_suite(folder, "digits", "a", "2026-05-01T09:00:00-09:00", ["digits-vit"], ["msp"], perfect)
    assert build(folder, tmp_path / "site") == 0
    page = pages(tmp_path / "site")["models/digits-vit.html"]
    assert page.cases["digits/msp/letters"][3] == "12.3 [10.0, 20.0]"
    assert page.cases["digits/msp/letters"][8].endswith("Runa, 2026-05-01T09:00:00-09:00")
    assert page.cases["digits/msp/photo-patches"][8].endswith("Runrun-1, 2026-05-01T10:00:00+00:00")
    assert [run.run for run in read_results(folder).runs] == ["a", "run-1"]


def test_a_case_that_is_skipped_later_keeps_its_figure(small: Path, tmp_path: Path) -> None:
    def skipped(record: Record) -> Record | None:
        if not isinstance(record, Case):
            return record
        nothing = {"status": "skipped", "reason": "data missing", "metrics": None, "timing": None, "limit": None}
        return record.model_copy(update={**nothing, "scores": None}) if record.set == "letters" else None

    folder = small.parent.parent
    before = read_results(folder).suites[0].results["digits-vit", "msp", "letters"]
    write_suite(folder, run="b", started="2026-06-01", models=["digits-vit"], detectors=["msp"], change=skipped)
    assert read_results(folder).suites[0].results["digits-vit", "msp", "letters"].case == before.case
    small.unlink()
    assert read_results(folder).suites[0].results["digits-vit", "msp", "letters"].case.status == "skipped"  # the twin


def test_figures_of_an_older_checkpoint_are_stale_and_not_averaged(small: Path, tmp_path: Path) -> None:
    def retrained(record: Record) -> Record | None:
        if isinstance(record, ModelRecord):
            return record.model_copy(update={"weights_sha256": sha256("other")})
        return record if not isinstance(record, Case) or record.set == "letters" else None

    folder = small.parent.parent
    write_suite(folder, run="b", started="2026-06-01", models=["digits-vit"], detectors=["msp"], change=retrained)
    assert build(folder, tmp_path / "site") == 0
    found = pages(tmp_path / "site")
    row = found["suites/digits.html"].tables[0]["msp k = 10"]
    assert row[1] == "1 of 3 sets"
    assert "Stale: made with an older checkpoint of the model." in row[3]
    assert "Stale" not in row[5]


def test_close_detectors_are_tied_and_distant_ones_are_not(built: Path) -> None:
    overview = pages(built)["index.html"].tables[0]
    by_mark = {name: row[1] for name, row in overview.items() if name in DETECTORS}
    assert "best" in by_mark["mahalanobis++"]
    assert "best" in by_mark["knn"]
    assert by_mark["msp"] == plain(by_mark["msp"])


@pytest.mark.parametrize("of", ["digits-test", "letters"])
@pytest.mark.parametrize("damage", ["gone", "not parquet", "other scores", "nan", "other images", "newer schema"])
def test_scores_that_do_not_fit_give_no_tie(small: Path, damage: str, of: str) -> None:
    path = small.parent / "run-1" / "digits-vit" / "msp" / f"{of}.parquet"
    table = pq.read_table(path, partitioning=None)
    if damage == "gone":
        path.unlink()
    elif damage == "not parquet":
        path.write_bytes(b"no parquet")
    elif damage == "other images":
        images = pa.array([f"other/{i}" for i in range(len(table))])
        pq.write_table(table.set_column(1, "image", images), path)
    elif damage == "newer schema":
        pq.write_table(table.replace_schema_metadata({METADATA: '{"schema": 4}'}), path)
    else:
        scores = table["score"].to_numpy() * (np.nan if damage == "nan" else -1)
        pq.write_table(table.set_column(3, "score", pa.array(scores)), path)
    tables, problems = view.model_tables(read_results(small.parent.parent).suites[0])
    row = tables[0].by_detector["msp"]
    assert [row.mean.standing, row.ood[1].standing] == ["unknown"] * 2
    assert [cell.standing for cell in row.ood].count("unknown") == (3 if of == "digits-test" else 1)
    assert problems
    for problem in problems:
        assert problem.startswith("digits/run-1/digits-vit/msp/")
        assert str(small.parent) not in problem


def test_a_comparison_that_was_impossible_is_mentioned(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.parent / "run-1" / "digits-vit" / "msp" / "digits-test.parquet").unlink()
    assert build(small.parent.parent, tmp_path / "site") == 0
    page = pages(tmp_path / "site")["index.html"]
    assert page.tables[0]["msp"][1].startswith(f"{100 * _mean_fpr(_scores('digits-vit', 'msp')):.1f}? not compared")
    for text in (page.text, capsys.readouterr().err):
        assert (
            "no comparison with the best detector: digits/run-1/digits-vit/msp/digits-test.parquet: not there" in text
        )


def _mean_fpr(scores: dict[str, np.ndarray]) -> float:
    return float(np.mean([fpr_at_tpr(scores["digits-test"], scores[set_id]) for set_id in OOD]))


def test_intervals_of_a_mean_average_the_ends(built: Path, results: Path) -> None:
    suite = read_results(results).suites[0]
    ends = [suite.results["digits-vit", "msp", set_id].case.metrics.fpr_at_95 for set_id in OOD]
    low, high = sum(end.low for end in ends) / 3, sum(end.high for end in ends) / 3
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in pages(built)["index.html"].tables[0]["msp"][3]


def _newer_schema(record: dict) -> None:
    record["schema_version"] = 4


def _no_run(record: dict) -> None:
    record["run"] = record["run"] if record["kind"] == "run" else "another"


def _no_date(record: dict) -> None:
    if record["kind"] == "run":
        record["started"] = "yesterday"


def _path_out(record: dict) -> None:
    if record["kind"] == "case" and record["scores"]:
        record["scores"]["path"] = "../../secret.parquet"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_newer_schema, "digits/bad.jsonl:1: not a record of schema 3"),
        (_no_run, "digits/bad.jsonl: no record of kind 'run' for run 'another'"),
        (_no_date, "digits/bad.jsonl: run 'bad' started at 'yesterday'"),
        (_path_out, "digits/bad.jsonl:25: not a record of schema 3: case.scores.path"),
    ],
)
def test_a_damaged_file_is_named_and_left_out(small: Path, change: Callable[[dict], None], says: str) -> None:
    bad = write_suite(small.parent.parent, run="bad", models=["digits-resnet"], detectors=["msp"])
    edit(bad, change)
    found = read_results(small.parent.parent)
    assert len(found.damage) == 1
    assert found.damage[0].startswith(says)
    assert found.suites[0].model_ids == ["digits-vit"]


def test_the_others_are_shown_when_a_file_is_damaged(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(write_suite(small.parent.parent, run="bad", models=["digits-resnet"]), _newer_schema)
    assert build(small.parent.parent, tmp_path / "site") == 1
    found = pages(tmp_path / "site")
    for text in (found["index.html"].text, capsys.readouterr().err):
        assert "digits/bad.jsonl:1: not a record of schema 3" in text
    assert "models/digits-vit.html" in found
    assert "models/digits-resnet.html" not in found


def test_a_line_that_is_cut_off_is_mentioned(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_text(small.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert build(small.parent.parent, tmp_path / "site") == 0
    assert "digits/run-1.jsonl: its last line was cut off" in capsys.readouterr().err


def test_without_results_nothing_is_built_and_the_old_site_stays(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(small.parent.parent, tmp_path / "site") == 0
    before = files(tmp_path / "site")
    capsys.readouterr()
    assert build(tmp_path / "nowhere", tmp_path / "site") == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "nowhere") in message
    assert "python -m benchmark run" in message
    assert files(tmp_path / "site") == before


def test_an_interrupted_build_leaves_the_old_site(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(small.parent.parent, tmp_path / "site") == 0
    before = files(tmp_path / "site")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site, "_write_downloads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(small.parent.parent, tmp_path / "site")
    assert files(tmp_path / "site") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "site"]


def test_a_new_site_replaces_the_old_one(small: Path, tmp_path: Path) -> None:
    assert build(small.parent.parent, tmp_path / "site") == 0
    (tmp_path / "site" / "models" / "gone.html").write_text("a model of an earlier time")
    assert build(small.parent.parent, tmp_path / "site") == 0
    assert not (tmp_path / "site" / "models" / "gone.html").exists()


def test_a_folder_of_something_else_is_not_replaced(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    assert build(small.parent.parent, tmp_path / "home") == 2
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    assert "is not a site of this leaderboard" in capsys.readouterr().err


def test_runs_show_the_version_and_both_commits(built: Path) -> None:
    (runs,) = (table for table in pages(built)["index.html"].tables if "run-1" in table)
    expected = "0.9, 0123456789 with uncommitted changes; run in a repository at fedcba9876"
    assert " ".join(runs["run-1"][3].split()) == expected


def test_runs_of_an_older_schema_are_shown(tmp_path: Path) -> None:
    old = Path(__file__).parent / "data" / "schema-1"
    assert build(old, tmp_path / "site") == 0
    found = pages(tmp_path / "site")
    (runs,) = (table for table in found["index.html"].tables if "checkout" in table)
    assert runs["checkout"][3].split() == ["unknown", "version,", "e7d84c7348", "clean"]
    assert "msp" in found["suites/colours.html"].text
    (suite,) = read_results(old).suites
    assert {key: result.case.status for key, result in suite.results.items()} == {
        ("net", "msp", "greys"): "error",  # of the run `elsewhere`, which is newer
        ("net", "msp", "noise"): "failed",  # of the run `checkout`, since `elsewhere` skipped it
    }


def test_the_page_of_a_detector_has_its_invariances(built: Path) -> None:
    declared, measured, unknown = (
        (built / "detectors" / f"{name}.html").read_text() for name in ("mahalanobis++", "knn", "cosine")
    )
    for page in (declared, measured):
        rows = re.findall(r'<tr><th scope="row">([\w ]+)</th><td class="text">(.*?)</td><td>(?:<strong>)?(\w+)', page)
        assert rows[:2] == [
            ("logit shift", view.CHANGES["logit shift"], "yes"),
            ("feature unit", view.CHANGES["feature unit"], "no"),
        ]
    assert "The detector declares this" in declared
    assert "This was measured in toy" in measured
    assert "Invariances of" not in unknown


def test_the_pages_explain_the_changes_that_detectors_are_tried_with(built: Path) -> None:
    assert view.CHANGES == CHANGES
    text = html.unescape((built / "methods.html").read_text())
    assert all(f"<dt>{name}</dt><dd>{meaning}</dd>" in text for name, meaning in CHANGES.items())


def test_doubtful_cases_say_why(built: Path) -> None:
    assert "<strong>Doubtful</strong>: the logits are low" in (built / "detectors" / "knn.html").read_text()
    assert "Doubtful" not in (built / "detectors" / "cosine.html").read_text()


def test_models_without_a_record_have_a_page(small: Path, tmp_path: Path) -> None:
    records = [record for record in read_records(small) if isinstance(record, Run | Case)]
    small.unlink()
    for record in records:
        ResultsFolder(small.parents[1]).add(record)
    assert build(small.parent.parent, tmp_path / "site") == 0
    assert "There is no record of this model" in pages(tmp_path / "site")["models/digits-vit.html"].text
    assert broken_links(tmp_path / "site") == []


def test_colours_have_contrast() -> None:
    style = (Path(site.__file__).parent / "static" / "style.css").read_text(encoding="utf-8")
    for part in style.split("@media")[:2]:  # light, dark
        colours = dict(re.findall(r"--(\w+): ([^;]+);", part))
        page, text = _rgb(colours["page"]), _rgb(colours["text"])
        darkest = page + 0.5 * (np.array(colours["heat"].split(), float) - page)
        assert _contrast(text, darkest) >= 4.5
        for name in ("text", "muted", "link", "good", "bad", "known"):
            assert _contrast(_rgb(colours[name]), page) >= 4.5, name


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)


def _contrast(one: np.ndarray, other: np.ndarray) -> float:
    """The contrast ratio of WCAG 2."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(rgb: np.ndarray) -> float:
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_pages_tell_the_remarks_on_models_and_image_sets(tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        told = f"a remark on {record.kind} {HOSTILE}"
        return record.model_copy(update={"remarks": [told]}) if record.kind in ("model", "set") else record

    write_suite(tmp_path / "results", models=["digits-vit"], detectors=["msp"], change=change)
    build(tmp_path / "results", tmp_path / "site")
    found = pages(tmp_path / "site")
    assert f"Take care: a remark on model {HOSTILE}" in found["models/digits-vit.html"].text
    assert f"a remark on set {HOSTILE}" in found["suites/digits.html"].text
