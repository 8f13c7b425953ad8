"""A user's networks and images on the command line, detectors in a file, and every command of docs/your-own.md."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmark.images.image_set import load_image_set
from benchmark.records import Case, Record, read_records
from benchmark.running.summary import near_chance
from benchmark.user.command_line import Named
from benchmark.user.detectors import load_detectors
from benchmark.user.ids import id_of, split_name
from detectors import available
from detectors.catalogue import registry

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]
OOD, UNIT_TESTS = str(ROOT / "benchmark"), str(ROOT / "unit_tests_ood")

DETECTOR = '''
from dataclasses import dataclass

from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry


@registry.register
@dataclass(kw_only=True, eq=False)
class SecondLargest(Detector):
    """The largest logit, and a little of the second largest.

    Formula: S = o_1 + 0.1 o_2, the logits in falling order
    Paper: none
    Verified:
    - nothing yet
    """

    id = "my-detector"
    needs = frozenset({"logits"})

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.amax(dim=1)
'''


class Runs:
    """Runs pytest on a user's network and images, in a copy of the world of colours."""

    def __init__(self, pytester: pytest.Pytester, world: Path) -> None:
        self.pytester, self.world = pytester, world
        images = world / "images"
        self.user = [
            "--model", f"local-dir:{world / 'net'}",
            "--id", f"{images / 'colours-test'}",
            "--ood", f"{images / 'greys'}",
        ]  # fmt: skip
        self.train = ["--train", f"{images / 'colours-train'}"]

    def arguments(self, *arguments: str) -> list[str]:
        folders = ["--store", self.world / "store", "--results", self.world / "results"]
        return [
            *map(str, [f"--rootdir={ROOT}", "-c", ROOT / "tox.ini", "-p", "no:cacheprovider", *folders]),
            *arguments,
        ]

    def __call__(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*self.arguments(*arguments))

    def files(self, suite: str) -> list[Path]:
        return sorted((self.world / "results" / suite).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)

    def records(self, suite: str = "own-images-colours-test") -> list[Record]:
        return list(read_records(self.files(suite)[-1]))

    def cases(self, suite: str = "own-images-colours-test") -> dict[str, Case]:
        return {f"{r.model}/{r.detector}/{r.set}": r for r in self.records(suite) if isinstance(r, Case)}


@pytest.fixture
def run(pytester: pytest.Pytester, user_world: Path) -> Runs:
    return Runs(pytester, user_world)


@pytest.fixture
def named(world: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    """Options that name a user's network and images, in the folder of the world."""
    monkeypatch.chdir(world)
    return Named(
        suite="digits",
        data_dir=world / "data",
        models=["local-dir:net"],
        id="images/colours-test",
        train="images/colours-train",
        ood=["images/greys"],
    )


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the detectors that a test registers."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


# --- Networks and images. ---


def test_folders_become_a_suite_whose_cases_are_held_to_goals(run: Runs) -> None:
    result = run(OOD, UNIT_TESTS, *run.user, *run.train, "-k", "(msp or knn) and (greys or black)")
    assert set(run.cases()) == {"net/msp/greys", "net/knn/greys", "net/msp/black", "net/knn/black"} | {
        f"net/{detector_id}/greys" for detector_id in available() if "msp" in detector_id
    }
    assert {record.id: record.role for record in run.records() if record.kind == "set"} == {
        "colours-train": "train",
        "colours-test-val": "val",
        "colours-test": "test",
        "greys": "far",
        "black": "unit-test",
    }
    limit = run.cases()["net/msp/greys"].limit
    assert limit is not None
    assert (limit.fpr_at_95, limit.forward_ratio, limit.source) == (0.5, None, "goals in user.toml")
    result.stdout.fnmatch_lines(
        ["Without --val, the first 2 images of each class of colours-test, 6 in all, are held *"]
    )


def test_images_that_are_held_out_are_not_test_images(named: Named) -> None:
    suite = named.make_suite()
    val, test = (
        set(load_image_set(set_id, suite.image_sets).image_ids) for set_id in ("colours-test-val", "colours-test")
    )
    whole = load_image_set("all", {"all": suite.image_sets["colours-test"].model_copy(update={"part": None})})
    assert not val & test
    assert val | test == set(whole.image_ids)


def test_the_users_val_images_are_used_as_they_are(named: Named) -> None:
    suite = replace(named, val="images/colours-val").make_suite()
    assert dict(suite.splits()) == {"train": "colours-train", "val": "colours-val", "test": "colours-test"}
    assert suite.image_sets["colours-test"].part is None


def test_without_training_images_detectors_that_learn_have_no_cases(named: Named) -> None:
    suite = replace(named, train=None).make_suite()
    detectors = {case.detector for case in suite.ood_cases()}
    assert "msp" in detectors
    assert "knn" not in detectors
    assert "Without --train, " in suite.entry.about
    assert "knn" in {case.detector for case in named.make_suite().ood_cases()}  # the twin


def test_unit_tests_have_the_size_of_the_id_images(named: Named, tmp_path: Path) -> None:
    assert named.make_suite().entry.unit_tests.size == (32, 32)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (640, 480)).save(tmp_path / name / "large.png")
    assert replace(named, train=None, id=str(tmp_path)).make_suite().entry.unit_tests.size == (224, 224)


def test_classes_that_are_numbers_are_ordered_by_value(named: Named, tmp_path: Path) -> None:
    for name in ("0", "1", "2", "10"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "image.png")
    suite = replace(named, train=None, id=str(tmp_path)).make_suite()
    assert suite.image_sets[tmp_path.name].classes == ("0", "1", "2", "10")


@pytest.mark.parametrize("labels", ["index", "name"])
def test_a_parquet_file_or_its_shards_become_an_image_set(named: Named, tmp_path: Path, labels: str) -> None:
    folders = Path("images/colours-test")
    images = [(path, path.parent.name) for path in sorted(folders.rglob("*.png"))]
    classes = sorted({name for _, name in images})
    table = pa.table(
        {
            "img": [{"bytes": path.read_bytes(), "path": path.name} for path, _ in images],
            "label": [classes.index(name) if labels == "index" else name for _, name in images],
        }
    )
    pq.write_table(table.slice(0, 20), tmp_path / "test-00000-of-00002.parquet")
    pq.write_table(table.slice(20), tmp_path / "test-00001-of-00002.parquet")
    for place in (tmp_path, tmp_path / "one.parquet"):
        if place.suffix:
            pq.write_table(table, place)
            for shard in tmp_path.glob("test-*"):
                shard.unlink()
        suite = replace(named, train=None, id=f"mine={place}").make_suite()
        test = load_image_set("mine", suite.image_sets)
        assert test.classes == (("0", "1", "2") if labels == "index" else tuple(classes))
        assert len(test) == 30


def test_a_folder_with_the_splits_of_the_hub_is_refused_by_the_option_that_names_it(
    named: Named, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": [b""], "label": [0]}), tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=f"^--id: {re.escape(str(tmp_path))} holds several splits: test, train; name"):
        replace(named, id=str(tmp_path)).make_suite()


def test_built_in_image_sets_and_models_can_be_named_by_their_ids(named: Named) -> None:
    suite = replace(
        named, models=["digits-resnet"], id="digits-test", train="digits-train", val="digits-val", ood=["letters"]
    ).make_suite()
    assert suite.id == "own-digits-test"
    assert next(iter(suite.ood_cases())).model == "digits-resnet"
    assert suite.image_sets["digits-test"].title == "Handwritten digits 0-7, test split"


def test_the_users_network_replaces_those_of_a_suite(named: Named) -> None:
    changes: dict[str, Any] = {"models": ["mine=local-dir:net"], "id": None, "train": None, "ood": ()}
    suite = replace(named, suite="colours.toml", **changes).make_suite()
    assert suite.id == "colours"
    assert {(case.model, case.set) for case in suite.ood_cases()} == {("mine", "greys"), ("mine", "noise")}
    assert suite.entry.baselines == Path(
        "colours.csv"
    )  # what is called like a model of the suite is held to its baselines
    assert not suite.entry.variants.models


def test_a_function_of_the_user_can_be_named_as_a_network(named: Named) -> None:
    suite = replace(named, models=["my_nets:make"]).make_suite()
    assert suite.models["my_nets-make"].source == "module:my_nets:make"


def test_a_name_is_split_off_and_an_id_is_made_of_any_text() -> None:
    assert split_name("mine=./a=b") == ("mine", "./a=b")
    assert split_name("./a=b") == (None, "./a=b")
    assert id_of("ViT-B-16/openai") == "ViT-B-16-openai"
    assert id_of("näpfe") == "n-pfe"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "images/gone"}, "--id images/gone: there is no such folder or file, and no image set of that id"),
        ({"id": "digits-tset"}, "did you mean 'digits-test'?"),
        ({"id": "images/greys", "ood": ()}, "--id images/greys: 00.png has no class: put the images of each class"),
        ({"id": "images", "train": None, "ood": ()}, "colours-test holds folders, not images: name the folder"),
        ({"id": "empty"}, "--id empty: no images there"),
        ({"ood": ["empty"]}, "--ood empty: no images there"),
        ({"ood": ["images/colours-test"]}, "--ood images/colours-test: these are images of --id"),
        ({"ood": ["images/colours-test/red"]}, "what is in-distribution cannot be OOD"),
        ({"train": "images/colours-test"}, "each split needs images of its own"),
        ({"train": "two"}, "--id images/colours-test: unknown classes blue, green"),
        ({"models": ()}, "--id images/colours-test: name the network that is run on these images with --model"),
        ({"id": None}, "--train and --ood: name the in-distribution test images with --id, too"),
        ({"outputs": "out"}, "--outputs: a run has either precomputed outputs or --model and --id and --train"),
        ({"suite": "colours.toml"}, "--suite colours.toml: it has images of its own"),
        ({"models": ["net"]}, "--model net: of a folder in timm's hub format, say local-dir:net"),
        ({"models": ["digits-resnt"]}, "(did you mean 'digits-resnet'?)"),
        ({"models": ["local-dir:images"]}, "--model local-dir:images: there is no images/config.json"),
        ({"models": ["local-dir:net"] * 2}, "two models are called net; name one: --model NAME=local-dir:net"),
        ({"ood": ["images/greys", "greys=images/noise"]}, "is called greys, too: name one, as in --ood NAME="),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_in_the_options_is_named_before_anything_is_computed(
    named: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    shutil.copytree(Path.cwd(), tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    Path("empty").mkdir()
    shutil.copytree("images/colours-train/red", "two/red")
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        replace(named, **changes).make_suite()
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_options_is_a_usage_error(run: Runs) -> None:
    result = run(OOD, *run.user[2:])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "name the network that is run on these images with --model" in result.stderr.str()
    result = run(OOD, *run.user, "--record-baselines")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "baselines are of what their suite file names, without --model" in result.stderr.str()


def test_a_network_for_other_classes_is_an_error_of_its_cases(run: Runs) -> None:
    model = f"local-dir:{ROOT / 'benchmark/models/checkpoints/digits-resnet'}"
    result = run(OOD, "--model", model, *run.user[2:], "-k", "msp/")
    result.assert_outcomes(errors=1)
    assert (
        "it has 8 classes (its checkpoint names them 0, 1, 2, 3, 4, 5, 6, 7), the in-distribution images have 3"
        in str(run.cases()["digits-resnet/msp/greys"].reason)
    )


def test_a_run_warns_of_an_accuracy_near_chance(run: Runs) -> None:
    result = run(OOD, *run.user, "-k", "msp/")  # an untrained network
    result.stdout.fnmatch_lines(["WARNING: net classifies * of the ID images right, chance is 33.3%: *"])


@pytest.mark.parametrize(("accuracy", "classes", "warned"), [(0.1, 8, True), (0.3, 8, False), (0.0, 2, True)])
def test_an_accuracy_counts_as_near_chance_up_to_a_bound(accuracy: float, classes: int, warned: bool) -> None:
    model: Any = SimpleNamespace(id="net", id_accuracy=SimpleNamespace(value=accuracy), classes=classes, remarks=[])
    assert bool(list(near_chance([model]))) == warned
    model.remarks = ["its outputs seem to stand for other classes"]
    assert not list(near_chance([model]))  # of which that would be a consequence


def test_a_failing_case_says_how_to_run_it_alone(run: Runs) -> None:
    chosen = [*run.user[:-1], str(run.world / "images/noise")]
    result = run(OOD, *chosen, "-k", "msp/", "--fpr-limit", "0")
    line = next(line for line in result.outlines if line.startswith("net/msp/noise: FPR@95"))
    assert f"{' '.join(chosen)} --store" in line


def test_two_processes_give_the_figures_of_one(run: Runs) -> None:
    chosen = [*run.user, *run.train, "-k", "msp/ or knn/", "--fpr-limit", "1"]
    run(OOD, *chosen).assert_outcomes(passed=2)
    alone = run.cases()
    command = [sys.executable, "-m", "pytest", *run.arguments(OOD, *chosen, "-n", "2")]
    done = subprocess.run(command, cwd=run.world, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert {name: case.metrics for name, case in run.cases().items()} == {
        name: case.metrics for name, case in alone.items()
    }


def test_collecting_computes_no_outputs(run: Runs) -> None:
    result = run(OOD, *run.user, "--collect-only", "-q")
    assert any("test_case[net/msp/greys]" in line for line in result.outlines)
    assert not (run.world / "store").exists()
    assert not run.files("own-images-colours-test")


# --- Image sets that have not been fetched. ---


def _remove_sets(run: Runs, *ids: str) -> list[str]:
    """Makes these image sets of the suite missing ones, and gives the options of a run."""
    suite = run.world / "colours.toml"
    for set_id in ids:
        suite.write_text(suite.read_text().replace(f'folder = "images/{set_id}"', f'local = "{set_id}"'))
    return ["--suite", str(suite), "--fpr-limit", "1", "-k", "msp"]


def test_a_run_that_lacks_all_of_its_image_sets_does_not_succeed(run: Runs) -> None:
    result = run(OOD, *_remove_sets(run, "greys", "noise"))
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(
        ["data missing: image set greys: * (1 cases skipped)", "data missing: image set noise: *", "no case ran"]
    )


def test_cases_without_their_in_distribution_images_are_skipped(run: Runs) -> None:
    arguments = _remove_sets(run, "colours-test")
    assert run(OOD, *arguments).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert {case.status for case in run.cases("colours").values()} == {"skipped"}


def test_a_run_names_the_image_sets_that_it_lacks(run: Runs) -> None:
    result = run(OOD, *_remove_sets(run, "greys"))
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["data missing: image set greys: *"])
    result.stdout.no_fnmatch_line("no case ran")


# --- Detectors in a file of the user. ---


@pytest.mark.usefixtures("_registry")
def test_the_contract_and_the_cases_are_run_on_a_detector_in_a_file(run: Runs) -> None:
    file = run.world / "my_detectors.py"
    file.write_text(DETECTOR)
    chosen = ["--suite", str(run.world / "colours.toml"), "--detectors", str(file), "-k", "my-detector"]
    result = run(OOD, UNIT_TESTS, *chosen, "--collect-only", "-q")
    collected = [line for line in result.outlines if "::" in line]
    assert sum("test_contract[my-detector/" in line for line in collected) > 15
    assert sum("test_case[net/my-detector/" in line for line in collected) == 2 + 17


@pytest.mark.usefixtures("_registry")
def test_a_detector_in_a_file_is_held_to_the_goals(run: Runs) -> None:
    file = run.world / "my_detectors.py"
    file.write_text(DETECTOR)
    chosen = ["--suite", str(run.world / "colours.toml"), "--detectors", str(file), "-k", "my-detector/greys"]
    run(OOD, *chosen)
    case = run.cases("colours")["net/my-detector/greys"]
    assert case.limit is not None
    assert case.limit.source == "goals in colours.toml"


@pytest.mark.usefixtures("_registry")
def test_a_detector_that_breaks_the_contract_fails(run: Runs) -> None:
    file = run.world / "my_detectors.py"
    file.write_text(DETECTOR.replace("batch.logits.amax(dim=1)", "-batch.logits.amax(dim=1)"))
    result = run(OOD, "--detectors", str(file), "-k", "my-detector/higher_means or my-detector/no_scores")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["my-detector: higher_means_in_distribution: the AUROC is 0.*"])


def test_the_source_hash_of_a_detector_changes_with_its_file(run: Runs) -> None:
    hashes = []
    for text in (DETECTOR, DETECTOR + "# changed\n"):
        file = run.world / "my_detectors.py"
        file.write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_classes", dict(registry._classes))
            run(OOD, "--suite", str(run.world / "colours.toml"), "--detectors", str(file), "-k", "my-detector/greys")
        hashes += [record.source_sha256 for record in run.records("colours") if record.kind == "detector"]
    assert len(set(hashes)) == 2


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def broken(:\n", "line 1: SyntaxError"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\n", "it registers no detector; see `Add a detector` in CONTRIBUTING.md"),
        (DETECTOR.replace("my-detector", "msp"), "ValueError: two detectors are called 'msp'"),
        (DETECTOR.replace("    Paper: none\n", ""), "its docstring lacks Paper"),
    ],
)
def test_a_mistake_in_a_detector_file_is_a_usage_error(run: Runs, text: str, says: str) -> None:
    file = run.world / "my_detectors.py"
    file.write_text(text)
    result = run(OOD, "--detectors", str(file))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--detectors {file}: " in result.stderr.str()
    assert says in result.stderr.str()


def test_a_missing_detector_file_is_named(run: Runs) -> None:
    result = run(OOD, "--detectors", "gone.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--detectors gone.py: there is no such file" in result.stderr.str()


# --- docs/your-own.md. ---


def test_every_command_of_the_page_on_a_users_network_runs(tmp_path: Path) -> None:
    for name in ("benchmark", "conftest.py", "detectors", "leaderboard", "tox.ini", "unit_tests_ood"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = (ROOT / "docs" / "your-own.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        named = re.match(r"# (\S+\.(py|toml))\n", block)
        if named:
            (tmp_path / named[1]).write_text(block)
            continue
        command = [sys.executable, "-c", block] if language == "python" else ["bash", "-e", "-c", block]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
    suites = {path.name for path in (tmp_path / "results").iterdir()}
    assert suites == {"own-mine-val", "digits", "my-digits", "own-digits"}
    assert "own-mine-val" in (tmp_path / "site" / "index.html").read_text()


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize("detector_id", ["../x <b>", "x" * 300])
def test_a_detector_with_an_odd_id_is_refused(tmp_path: Path, detector_id: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(DETECTOR.replace("my-detector", detector_id))
    with pytest.raises(ValueError, match=r"--detectors .*mine\.py: .* cannot be an id"):
        load_detectors(str(file))


def test_a_detector_file_that_exits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import sys\nsys.exit(3)")
    with pytest.raises(ValueError, match=r"--detectors .*mine\.py: line 2: SystemExit: 3"):
        load_detectors(str(file))


@pytest.mark.usefixtures("_registry")
def test_an_error_in_a_detector_is_reported_with_its_file_and_line(run: Runs) -> None:
    file = run.pytester.path / "mine.py"
    file.write_text(DETECTOR.replace("return batch.logits.amax(dim=1)", "raise KeyError('mine')"))
    result = run(OOD, *run.user, "--detectors", str(file), "-k", "my-detector and test_case and not contract")
    text = result.stdout.str()
    assert "KeyError: 'mine' (" in text
    assert "mine.py, line " in text
    assert "Traceback" not in text
    assert "direct cause" not in text
