"""`evaluate` and `load_results`: the figures of a pytest run from Python, whatever the images and the network are."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import datasets
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmark import evaluate, load_results
from benchmark.api.inputs import core_detectors
from benchmark.api.results import EvaluationResults
from benchmark.limits.limits import FPR_MARGIN
from benchmark.records import Case, Record, read_records
from benchmark.results import ResultsFolder
from benchmark.running.session import PreparedCase
from benchmark.user.given_images import SAMPLE, given_set
from detectors import Head, Outputs, create
from detectors.gaussian import Mahalanobis

pytest_plugins = "pytester"
pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
COLOURS = ["blue", "green", "red"]
SETS = ["greys", "noise", "black", "blobs"]
Call = Callable[..., EvaluationResults]


def _without_address(value: object) -> str:
    """The id of a parameter, the same in every process of pytest-xdist."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


@pytest.fixture
def given(user_world: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of a call in the folder of the world."""
    monkeypatch.chdir(user_world)
    return {
        "model": "local-dir:net",
        "in_distribution": "images/colours-test",
        "train": "images/colours-train",
        "ood": {"greys": "images/greys", "noise": "images/noise"},
        "detectors": ["msp", "mahalanobis"],
    }


def metrics_of(results: EvaluationResults) -> dict[tuple[str, str], Any]:
    return {(case.detector, case.set): case.metrics for case in results.cases}


# --- The same as pytest. ---


def comparable(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records without what differs between two runs: their ids, times and the command."""
    found = []
    for record in records:
        if record.kind != "run":
            content = record.model_dump(mode="json", exclude={"run", "forward_ms_per_image", "timing", "source"})
            if content.get("scores"):
                for name in ("path", "id_path"):
                    content["scores"][name] = content["scores"][name].partition("/")[2]
            if content["kind"] == "case" and "its time" in str(content["reason"]):
                content["reason"] = "of its time"
            found.append(content)
    return sorted(found, key=lambda content: json.dumps(content, sort_keys=True))


def test_the_records_are_those_of_a_pytest_run(pytester: pytest.Pytester, given: dict[str, Any]) -> None:
    here = Path.cwd()
    named = ["--model", "local-dir:net", "--id", "images/colours-test", "--train", "images/colours-train"]
    named += ["--ood", "images/greys", "--ood", "images/noise", "--store", here / "store", "--results", here / "pytest"]
    fixed = [f"--rootdir={ROOT}", "-c", ROOT / "tox.ini", "-p", "no:cacheprovider"]
    detectors = ["msp", "mahalanobis", "knn", "odin"]
    chosen = ["-k", f"({' or '.join(f'net/{name}/' for name in detectors)}) and ({' or '.join(SETS)}) and not -noise"]
    os.chdir(here)
    pytester.runpytest_inprocess(*map(str, [*fixed, ROOT / "benchmark", ROOT / "unit_tests_ood", *named, *chosen]))
    [file] = (here / "pytest").glob("*/*.jsonl")
    by_pytest = list(read_records(file))
    assert len([record for record in by_pytest if record.kind == "case"]) == len(detectors) * len(SETS)
    results = evaluate(
        **given | {"detectors": detectors}, unit_tests=["black", "blobs"], results="by-evaluate", store="another-store"
    )
    assert file.parent.name == results.cases[0].suite == "own-images-colours-test"
    assert comparable(results.to_records()) == comparable(by_pytest)
    [written] = Path("by-evaluate/own-images-colours-test").glob("*.jsonl")
    assert list(read_records(written)) == results.to_records()


def test_a_network_of_a_program_is_that_of_a_module(given: dict[str, Any]) -> None:
    Path("my_nets_of_api.py").write_text(
        "import torch\nfrom torchvision import transforms as t\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 8), torch.nn.ReLU())\n"
        "        self.head = torch.nn.Linear(8, 3)\n"
        "    def forward(self, x):\n        return self.head(self.body(x))\n"
        "transform = t.Compose([t.Resize((32, 32)), t.ToTensor()])\n"
        "def make():\n    torch.manual_seed(3)\n    return Net(), transform\n"
    )
    by_name = evaluate(**given | {"model": "my_nets_of_api:make"})
    module = sys.modules["my_nets_of_api"]
    network, transform = module.make()
    results = evaluate(**given | {"model": network}, transform=transform)
    assert metrics_of(results) == metrics_of(by_name)
    assert {case.model for case in results.cases} == {"Net"}
    assert {case.model for case in evaluate(**given | {"model": network}, transform=transform, name="mine").cases} == {
        "mine"
    }


# --- Networks. ---


class Net(nn.Module):
    """A network whose weights do not tell all that it does: a factor of this module counts too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(FACTOR * self.body(images))


FACTOR = 1.0


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 255


def test_the_network_of_a_program_stays_as_it_is(given: dict[str, Any]) -> None:
    network = Net().train()
    network.body[1].requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(**given | {"model": network, "detectors": ["msp"]}, transform=to_tensor)
    assert network.training
    assert network.body[3].training
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network._forward_hooks


def test_code_that_changes_makes_outputs_anew(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = given | {"model": Net(), "detectors": ["energy"]}
    first = evaluate(**chosen, transform=to_tensor, store="store")
    monkeypatch.setitem(globals(), "FACTOR", 20.0)
    second = evaluate(**chosen, transform=to_tensor, store="store")
    assert metrics_of(first) != metrics_of(second)


def test_a_network_of_timm_brings_its_transform(given: dict[str, Any]) -> None:
    import timm

    network = timm.create_model("local-dir:net", pretrained=True)
    assert metrics_of(evaluate(**given | {"model": network})) == metrics_of(evaluate(**given))


# --- Image sets. ---


class Listed:
    """A data set as those of torch are, which counts how often it is read."""

    def __init__(self, folder: str, *, targets: bool = False) -> None:
        self.files = sorted(Path(folder).rglob("*.png"))
        self.classes = COLOURS
        self.reads = 0
        if targets:
            self.targets = [COLOURS.index(file.parent.name) for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads += 1
        file = self.files[index]
        return Image.open(file), COLOURS.index(file.parent.name)


def as_dataset(folder: str) -> datasets.Dataset:
    files = sorted(Path(folder).rglob("*.png"))
    images: dict[str, Any] = {"image": [str(file) for file in files]}
    features = {"image": datasets.Image()}
    if files[0].parent.name in COLOURS:
        images["label"] = [COLOURS.index(file.parent.name) for file in files]
        features["label"] = datasets.ClassLabel(names=COLOURS)
    return datasets.Dataset.from_dict(images, features=datasets.Features(features))


def as_pixels(folder: str) -> Any:
    files = sorted(Path(folder).rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = [file.parent.name for file in files]
    return list(zip(pixels, labels, strict=True)) if labels[0] in COLOURS else pixels


@pytest.mark.parametrize("kind", [Listed, as_dataset, as_pixels])
def test_images_of_a_program_are_those_of_the_folders(given: dict[str, Any], kind: Callable[[str], Any]) -> None:
    expected = evaluate(**given)
    objects = {name: kind(given[name]) for name in ("in_distribution", "train")}
    ood = {"greys": "images/greys", "noise": list(map(Image.open, sorted(Path("images/noise").glob("*.png"))))}
    if kind is not Listed:
        ood = {name: kind(folder) for name, folder in given["ood"].items()}
    results = evaluate(**given | objects | {"ood": ood})
    assert metrics_of(results) == metrics_of(expected)
    assert results.cases[0].suite == "own-in-distribution"
    assert {record.id for record in results.to_records() if record.kind == "set"} == {
        "in-distribution", "in-distribution-val", "train", "greys", "noise"
    }  # fmt: skip


def test_images_are_read_when_they_are_needed(given: dict[str, Any]) -> None:
    known = Listed(given["in_distribution"], targets=True)
    named = given_set("in_distribution", "test", "test", known)
    assert known.reads < 2 * SAMPLE + 8
    assert named.given.classes == tuple(COLOURS)
    unknown = Listed(given["in_distribution"])
    given_set("in_distribution", "test", "test", unknown)
    assert unknown.reads >= len(unknown)
    assert given_set("ood", "ood", "x", Listed(given["in_distribution"])).given.classes is None


def test_lists_of_labels_that_are_others_are_not_believed(given: dict[str, Any]) -> None:
    images = Listed(given["in_distribution"], targets=True)
    images.targets = [2 - label for label in images.targets]
    named = given_set("in_distribution", "test", "test", images)
    assert [names[0] for names in named.given.images.names] == [file.parent.name for file in images.files]


def test_classes_in_another_order_are_the_same_classes(given: dict[str, Any]) -> None:
    turned = as_dataset(given["in_distribution"])
    names = ["red", "blue", "green"]
    labels = [names.index(COLOURS[label]) for label in turned["label"]]
    turned = turned.remove_columns("label").add_column("label", labels)
    turned = turned.cast_column("label", datasets.ClassLabel(names=names))
    accuracies = [
        evaluate(**given | {"in_distribution": images, "detectors": ["msp"]}).to_pandas()["id_accuracy"].iloc[0]
        for images in (turned, as_dataset(given["in_distribution"]))
    ]
    assert accuracies[0] == accuracies[1]


def test_a_split_of_ours_is_left_alone_where_the_caller_names_one(given: dict[str, Any]) -> None:
    results = evaluate(**given, val="images/colours-val")
    sizes = {record.id: record.images for record in results.to_records() if record.kind == "set"}
    assert (sizes["colours-test"], sizes["colours-val"]) == (36, 12)
    assert not [text for text in results.remarks if "held out" in text]
    assert [text for text in evaluate(**given).remarks if "Without val, the first 2 images" in text]  # the twin


# --- Outputs. ---


@pytest.fixture
def arrays() -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, 8, generator=random), torch.randn(3, generator=random))

    def outputs(rows: int, *, known: bool) -> Outputs:
        labels = torch.arange(rows) % 3
        features = torch.randn(rows, 8, generator=random) + (2 * head.weight[labels] if known else 0)
        return Outputs(features, features @ head.weight.T + head.bias, labels if known else None)

    return {
        "model": head,
        "in_distribution": outputs(40, known=True),
        "train": outputs(60, known=True),
        "ood": {"near": outputs(30, known=False), "far": outputs(20, known=False)},
    }


def test_arrays_are_a_folder_of_them(arrays: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "net" / "ood").mkdir(parents=True)
    sets = {"test": arrays["in_distribution"], "train": arrays["train"]}
    sets |= {f"ood/{name}": given for name, given in arrays["ood"].items()}
    for name, given in sets.items():
        save_file(given._present(), tmp_path / "net" / f"{name}.safetensors")
    save_file({"weight": arrays["model"].weight, "bias": arrays["model"].bias}, tmp_path / "net" / "head.safetensors")
    results, of_folder = evaluate(**arrays, name="net"), evaluate(tmp_path / "net")
    assert metrics_of(results) == metrics_of(of_folder)
    assert {case.model for case in of_folder.cases} == {"net"}
    detector = create("knn").fit(arrays["train"], arrays["model"])
    table = results.select(detectors="knn", sets="near").scores()
    np.testing.assert_array_equal(
        table[~table.in_distribution].score.to_numpy(), detector.score(arrays["ood"]["near"]).numpy()
    )
    assert "odin" not in {case.detector for case in results.cases}
    assert any(
        "Without the network and its images, 1 detectors have no cases: odin." in text for text in results.remarks
    )


def test_arrays_of_numpy_and_memory_maps_are_taken(arrays: dict[str, Any], tmp_path: Path) -> None:
    def mapped(name: str, given: Outputs) -> Outputs:
        values = {}
        for field, value in given._present().items():
            np.save(tmp_path / f"{name}-{field}.npy", value.numpy())
            values[field] = np.load(tmp_path / f"{name}-{field}.npy", mmap_mode="r")
        return Outputs(**values)

    sets = {name: mapped(name, arrays[name]) for name in ("in_distribution", "train")}
    sets |= {"ood": {name: mapped(name, given) for name, given in arrays["ood"].items()}}
    assert metrics_of(evaluate(**arrays | sets)) == metrics_of(evaluate(**arrays))


# --- What goes wrong. ---


def test_a_damaged_image_is_a_row_with_its_reason(given: dict[str, Any]) -> None:
    Path("images/greys/07.png").write_bytes(b"")
    results = evaluate(**given)
    table = results.to_pandas().set_index(["detector", "set"])
    assert table.loc[("msp", "greys"), "status"] == "error"
    assert "cannot decode 07.png: the file is empty" in table.loc[("msp", "greys"), "reason"]
    assert np.isnan(table.loc[("msp", "greys"), "fpr_at_95"])
    assert set(table.xs("noise", level="set").status) <= {"passed", "failed"}
    assert "net/msp/greys: error: image set greys: cannot decode 07.png" in repr(results)


def test_a_bug_in_a_detector_costs_its_cases_alone(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Mahalanobis, "_score", lambda self, batch: batch.features.no_such_thing)
    results = evaluate(**given)
    assert {(case.detector, case.status) for case in results.cases if case.status == "error"} == {
        ("mahalanobis", "error")
    }
    reasons = {case.reason for case in results.cases if case.status == "error"}
    assert all("AttributeError" in reason and "test_api.py, line" in reason for reason in reasons)
    assert "Traceback" in caplog.text


def test_shared_images_are_an_error_of_their_set(given: dict[str, Any]) -> None:
    shutil.copy("images/colours-test/red/03.png", "images/greys/red.png")
    results = evaluate(**given)
    reasons = {case.set: case.reason for case in results.cases if case.status == "error"}
    assert reasons.keys() == {"greys"}
    assert "what is ID cannot be OOD" in reasons["greys"]


def test_an_interruption_keeps_what_is_done(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    score = PreparedCase.score
    calls: list[PreparedCase] = []

    def interrupted(self: PreparedCase) -> Any:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self)

    monkeypatch.setattr(PreparedCase, "score", interrupted)
    results = evaluate(**given, results="results")
    assert len(results.cases) == 2
    assert "interrupted: 2 of 4 cases were done" in results.remarks
    assert metrics_of(load_results("results")) == metrics_of(results)


def test_records_that_cannot_be_written_do_not_cost_the_results(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ResultsFolder, "add", full_disk)
    results = evaluate(**given, results="results")
    assert len(results.cases) == 4
    assert any("cannot be written: No space left on device" in text for text in results.remarks)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": Net()}, "transform: an nn.Module needs one"),
        ({"model": Net}, "model: the class Net is none: give an nn.Module"),
        ({"model": 3}, "model: a int is none"),
        ({"model": "digits-resnt"}, "model digits-resnt: no model of benchmark/models/models.toml or of timm"),
        ({"model": "digits-resnet"}, "3, 4, 5, 6, 7), the in-distribution images have 3"),
        ({"model": "images/greys"}, "in_distribution: the folder images/greys holds the outputs of all sets"),
        ({"transform": to_tensor}, "transform: it goes with an nn.Module"),
        ({"model": Net(), "transform": lambda image: torch.rand(3, 32, 32)}, "gives another result for the same image"),
        ({"name": "a b"}, "name: 'a b' cannot be a name"),
        ({"in_distribution": None}, "in_distribution: name the in-distribution test images"),
        ({"in_distribution": "images/gone"}, "in_distribution images/gone: there is no such folder or file"),
        ({"in_distribution": "images/greys", "ood": {"x": "images/noise"}}, "images/greys: 00.png has no class"),
        ({"in_distribution": [Image.new("RGB", (8, 8))]}, "in_distribution: in-distribution images need their classes"),
        ({"in_distribution": []}, "in_distribution: it has no images"),
        ({"in_distribution": 5}, "in_distribution: a int is no image set: give a folder"),
        ({"train": "images/colours-test"}, "each split needs images of its own"),
        ({"train": "images/noise", "ood": {"x": "images/greys"}}, "train images/noise: 00.png has no class"),
        ({"ood": {}}, "ood: name at least one OOD set"),
        ({"ood": None}, "ood: name at least one OOD set"),
        ({"ood": ["images/greys"]}, "ood: name at least one OOD set"),
        ({"ood": {"a b": "images/greys"}}, "ood: 'a b' cannot be a name"),
        ({"ood": {"greys": "images/gone"}}, "ood['greys'] images/gone: there is no such folder or file"),
        ({"ood": {"strange": "letters"}}, "ood['strange']: letters is an id of image_sets.toml, which it keeps"),
        ({"ood": {"x": "images/colours-test/red"}}, "what is in-distribution cannot be OOD"),
        ({"ood": {"x": [torch.zeros(3, 8, 8)]}}, "item 0 is a Tensor torch.float32 (3, 8, 8), not a PIL image"),
        ({"ood": {"x": [1, 2]}}, "ood['x']: item 0 is a int, not a PIL image"),
        ({"ood": {"x": np.zeros((2, 8, 8, 3))}}, "ood['x']: item 0 is a ndarray float64 (8, 8, 3), not a PIL image"),
        ({"ood": {"x": Outputs(np.zeros((2, 8)))}}, "ood['x']: Outputs go with a Head as the model"),
        ({"detectors": ["mspp"]}, "detectors: no detector is called 'mspp' (did you mean 'msp'?)"),
        ({"detectors": []}, "detectors: name some"),
        ({"detectors": ["knn"], "train": None}, "detectors: knn needs train=...: give it, or leave this one out"),
        ({"detectors": ["mcm"]}, "detectors: mcm needs a vision-language model"),
        ({"options": {"msp": {"temperatur": 2}}}, "options: msp has no option 'temperatur'"),
        ({"options": {"knn": {"k": 2}}}, "options: 'knn' is none of the detectors"),
        ({"detectors": ["knn"], "options": {"knn": {"k": 0}}}, "options: "),
        ({"device": "abacus"}, "device abacus: "),
        ({"unit_tests": ["blak"]}, "unit_tests: none is called 'blak' (did you mean 'black'?)"),
        ({"unit_tests": True, "ood": {"black": "images/greys"}}, "'black' is the name of a unit test"),
        ({"results": "colours.toml"}, "results: colours.toml is a file"),
    ],
    ids=_without_address,
)  # fmt: skip
def test_a_mistake_is_named_in_one_line(given: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        evaluate(**given | changes)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_one_object_is_not_two_sets(given: dict[str, Any]) -> None:
    images = Listed(given["in_distribution"])
    with pytest.raises(ValueError, match="ood\\['x'\\]: these are images of in_distribution: what is in-distribution"):
        evaluate(**given | {"in_distribution": images, "ood": {"x": images}})
    with pytest.raises(ValueError, match="each split needs images of its own"):
        evaluate(**given | {"in_distribution": images, "train": images})


def test_data_sets_that_are_read_in_order_alone_are_refused(given: dict[str, Any]) -> None:
    images = as_dataset(given["in_distribution"])
    with pytest.raises(ValueError, match="which a IterableDataset cannot do: give a Dataset"):
        evaluate(**given | {"in_distribution": images.to_iterable_dataset()})
    with pytest.raises(ValueError, match="has several splits: name one of 'test'"):
        evaluate(**given | {"in_distribution": datasets.DatasetDict(test=images)})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_distribution": Outputs(torch.zeros(4, 9), torch.zeros(4, 3))}, "features (4, 9) do not fit the head's"),
        ({"in_distribution": Outputs(torch.zeros(4, 8))}, "in_distribution: it holds no logits, only features"),
        ({"ood": {"x": Outputs(torch.zeros(4, 8), torch.ones(4, 3))}}, "ood x: features @ weight.T + bias differs"),
        ({"train": Outputs(torch.zeros(4, 8), torch.zeros(4, 3))}, "train: it holds no labels"),
        ({"ood": {"x": "images"}}, "ood x: beside a Head this must be Outputs, not str"),
        ({"ood": {"train": Outputs()}}, "ood: 'train' is the name of a split"),
        ({"unit_tests": True}, "unit_tests: they need the network"),
        ({"detectors": ["odin"]}, "detectors: odin needs the network"),
        ({"options": {"odin": {}}}, "detectors: odin needs the network"),
    ],
    ids=_without_address,
)  # fmt: skip
def test_arrays_that_do_not_fit_are_named_in_one_line(
    arrays: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        evaluate(**arrays | changes)
    assert "\n" not in str(caught.value)


# --- Results. ---


def test_nothing_is_written_where_nobody_names_a_folder(given: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    evaluate(**given)
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before


def test_the_next_call_finds_the_outputs_of_this_process(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(**given)
    monkeypatch.setattr("benchmark.running.store.forward", lambda *_: pytest.fail("a forward pass"))
    assert len(evaluate(**given).cases) == 4


@pytest.mark.usefixtures("given")
def test_the_default_is_the_core(given: dict[str, Any]) -> None:
    del given["detectors"]
    results = evaluate(**given | {"ood": {"greys": "images/greys"}})
    assert {case.detector for case in results.cases} == set(core_detectors())
    documented = re.search(r"By default a core: ([^.]*)\.", str(evaluate.__doc__))
    assert documented
    assert tuple(re.split(r",\s+", documented[1])) == core_detectors()
    without = evaluate(**given | {"ood": {"greys": "images/greys"}, "train": None})
    assert "knn" not in {case.detector for case in without.cases}
    assert any("Without train, 10 detectors have no cases: kl-matching, " in text for text in without.remarks)


def test_a_table_has_numbers(given: dict[str, Any]) -> None:
    results = evaluate(**given)
    table = results.to_pandas()
    assert len(table) == 4
    case, row = results.cases[0], table.iloc[0]
    assert row.fpr_at_95 == case.metrics.fpr_at_95.value
    assert (row.auroc_low, row.auroc_high) == (case.metrics.auroc.low, case.metrics.auroc.high)
    assert row.id_images == 30
    kinds = {name: str(kind) for name, kind in table.dtypes.items()}
    assert {kinds[name] for name in ("fpr_at_95", "aupr_ood_low", "fit_s", "limit", "threshold")} == {"float64"}
    assert kinds["ood_images"] == "Int64"
    assert list(results.select(statuses=[]).to_pandas().columns) == list(table.columns)


def test_a_choice_of_cases(given: dict[str, Any]) -> None:
    results = evaluate(**given)
    chosen = results.select(detectors="msp", sets=["noise"])
    assert [(case.detector, case.set) for case in chosen.cases] == [("msp", "noise")]
    assert len(chosen.to_records()) == len(results.to_records()) - 3
    with pytest.raises(ValueError, match=re.escape("no case has the detector 'knm'")):
        results.select(detectors="knm")


def test_a_figure(given: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    results = evaluate(**given, unit_tests=["black"])
    figure = results.plot()
    assert isinstance(figure, Figure)
    assert [panel.get_title() for panel in figure.axes] == ["greys", "noise", "black"]
    assert not plt.get_fignums()
    assert figure._repr_png_().startswith(b"\x89PNG")
    points = {float(x) for x in figure.axes[0].containers[0].lines[0].get_xdata()}
    assert points == {100 * case.metrics.fpr_at_95.value for case in results.cases if case.set == "greys"}
    with pytest.raises(ValueError, match="there is nothing to plot"):
        results.select(statuses=[]).plot()


def test_what_a_reader_sees_is_escaped(given: dict[str, Any]) -> None:
    results = evaluate(**given)
    case = results.cases[0].model_copy(update={"metrics": None, "status": "error", "reason": "<script>alert(1)"})
    changed = replace(results, records=(*results.records, case), remarks=("<b>",))
    shown = changed._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert "own-images-colours-test: " in repr(changed)
    assert "mahalanobis" in shown
    assert repr(results.select(statuses=[])).startswith("no cases")


# --- Results of a folder. ---


@pytest.fixture
def folder(given: dict[str, Any]) -> Path:
    evaluate(**given, results="results")
    return Path("results")


def test_loaded_results_are_those_that_were_written(given: dict[str, Any]) -> None:
    results = evaluate(**given, results="results")
    loaded = load_results("results", suite="own-images-colours-test")
    keys = ["model", "detector", "set", "image"]
    assert metrics_of(loaded) == metrics_of(results)
    assert set(map(repr, loaded.to_records())) == set(map(repr, results.to_records()))
    for table in ("to_pandas", "scores"):
        one, two = getattr(results, table)(), getattr(loaded, table)()
        by = [key for key in keys if key in one]
        assert one.sort_values(by).reset_index(drop=True).equals(two.sort_values(by).reset_index(drop=True))


def test_the_newest_run_counts_in_which_a_case_was_not_skipped(folder: Path) -> None:
    [file] = folder.glob("*/*.jsonl")
    records = list(read_records(file))
    soon = [(datetime.now(UTC) + timedelta(hours=hours)).isoformat() for hours in (1, 2)]  # no clock is that far ahead
    for run, started, status in (("b", soon[0], "failed"), ("c", soon[1], "skipped")):
        lines = []
        for record in records:
            changes: dict[str, Any] = {"run": run} | ({"started": started} if record.kind == "run" else {})
            if isinstance(record, Case):
                changes |= {"status": status, "reason": run} | ({"metrics": None} if status == "skipped" else {})
            if record.kind != "case" or record.detector == "msp":
                lines.append(record.model_copy(update=changes).model_dump_json() + "\n")
        (file.parent / f"{run}.jsonl").write_text("".join(lines))
    loaded = load_results(folder)
    assert {(case.detector, case.run) for case in loaded.cases} == {("msp", "b"), ("mahalanobis", records[0].run)}


def test_of_two_runs_begun_within_a_second_the_later_counts(given: dict[str, Any]) -> None:
    runs = []
    for _ in range(2):
        evaluate(**given | {"detectors": ["msp"]}, results="results")
        runs.append({path.stem for path in Path("results").glob("*/*.jsonl")})
    assert {case.run for case in load_results("results").cases} == runs[1] - runs[0]
    files = Path("results").glob("*/*.jsonl")
    starts = [record.started for file in files for record in read_records(file) if record.kind == "run"]
    assert len(set(starts)) == 2


def test_cases_that_do_not_compare_are_told(folder: Path, given: dict[str, Any]) -> None:
    assert not [text for text in load_results(folder).remarks if "compare" in text]
    Path("images/colours-test/red/11.png").unlink()
    evaluate(**given | {"detectors": ["msp"]}, results=folder)
    [remark] = load_results(folder).remarks
    assert remark.startswith("2 of the 4 cases of own-images-colours-test do not compare with the others: made with an")


def test_a_file_that_is_damaged_is_left_out(folder: Path) -> None:
    (folder / "own-images-colours-test" / "damaged.jsonl").write_text("{}\n")
    with pytest.warns(UserWarning, match=r"own-images-colours-test/damaged.jsonl:1: not a record"):
        assert len(load_results(folder).cases) == 4


def test_a_folder_that_is_no_results_folder_is_told_apart(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    [file] = folder.glob("*/*.jsonl")
    for place, says in {
        tmp_path / "gone": "there is no such folder",
        file: "this is a file",
        tmp_path / "empty": "no results are there",
        file.parent: f"this is the folder of one suite; load {folder.resolve()} with suite='own-images-colours-test'",
        folder.resolve().parent: f"the results are one level further down; load {folder.resolve()}",
        "hf://me/results": "is no dataset repository on the Hub: write ORG/NAME",
    }.items():
        with pytest.raises(ValueError, match=re.escape(says)) as caught:
            load_results(place)
        assert "\n" not in str(caught.value)
        assert str(place) in str(caught.value)
    with pytest.raises(ValueError, match="no case has the suite 'digits'; there are: own-images-colours-test"):
        load_results(folder, suite="digits")


def test_scores_that_are_gone_are_named(folder: Path) -> None:
    loaded = load_results(folder)
    for file in folder.rglob("*.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match=r"/net/mahalanobis/colours-test\.parquet: not there"):
        loaded.scores()
    assert len(loaded.to_pandas()) == 4


# --- The page and the notebook. ---


def test_the_names_are_there_without_what_they_load() -> None:
    code = (
        "import sys, benchmark\n"
        "assert not {'torch', 'pydantic', 'pandas', 'datasets'} & {*sys.modules}\n"
        "assert {'evaluate', 'load_results'} <= {*benchmark.__all__}\n"
        "from benchmark import load_results\n"
        "assert not {'torch', 'timm', 'datasets', 'matplotlib'} & {*sys.modules}\n"
        "from benchmark import evaluate\n"
        "assert callable(evaluate) and callable(load_results)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [table] = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shown, printed = table.split(), done.stdout.split()[: len(table.split())]
    assert [word for word in shown if "." not in word] == [word for word in printed if "." not in word]
    numbers = [[float(word) for word in words if re.fullmatch(r"\d+\.\d", word)] for words in (shown, printed)]
    assert numbers[0] == pytest.approx(numbers[1], abs=100 * FPR_MARGIN)
    listed = re.search(r"a core of fourteen: ([^.]*)\.", page)
    assert listed
    assert tuple(re.split(r",\s+", listed[1])) == core_detectors()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        set(output["data"])
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "execute_result"
    ]
    assert ["text/html" in kinds for kinds in shown] == [True, False, True, True, True, False]
    assert ["image/png" in kinds for kinds in shown] == [False, True, False, False, False, True]
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    ]
