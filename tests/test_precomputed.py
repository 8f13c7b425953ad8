"""Precomputed outputs: a folder of tensors gives the scores that its tensors give, and mistakes in it are named."""

import io
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from safetensors.torch import load_file, save_file

from benchmark import memory
from benchmark.records import Case, read_records
from benchmark.running.evaluation import Evaluation
from benchmark.user.outputs import LoadedOutputs, OutputsFolder, PrecomputedError, _rows, suite_of_outputs
from detectors import Outputs, create, describe

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]
CLASSES, WIDTH = 3, 8
ROWS = {"train": 60, "val": 12, "test": 40, "ood/near": 30, "ood/far": 20}
Tensors = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Random outputs of a network that does not exist. The features of a class are near its row of the head."""
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(CLASSES, WIDTH, generator=random), torch.randn(CLASSES, generator=random)
    (tmp_path / "net" / "ood").mkdir(parents=True)
    for name, rows in ROWS.items():
        labels = torch.arange(rows) % CLASSES
        features = torch.randn(rows, WIDTH, generator=random) + (0 if "ood" in name else 2 * weight[labels])
        tensors = {"features": features, "logits": features @ weight.T + bias}
        save_file(tensors | ({} if "ood" in name else {"labels": labels}), tmp_path / "net" / f"{name}.safetensors")
    save_file({"weight": weight, "bias": bias}, tmp_path / "net" / "head.safetensors")
    return tmp_path / "net"


def change(folder: Path, name: str, how: Callable[[Tensors], Tensors]) -> Path:
    file = folder / f"{name}.safetensors"
    save_file(how(load_file(file)), file.with_suffix(".new"))
    return file.with_suffix(".new").replace(file)


def to_npz(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        np.savez(file.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in load_file(file).items()})
        file.unlink()


@pytest.mark.parametrize("npz", [False, True])
@pytest.mark.parametrize("detector_id", ["msp", "mahalanobis++", "knn", "temperature-scaling"])
def test_scores_are_those_of_the_tensors(folder: Path, detector_id: str, npz: bool) -> None:
    train, val, ood = (load_file(folder / f"{name}.safetensors") for name in ("train", "val", "ood/near"))
    opened = OutputsFolder(folder)
    expected = create(detector_id).fit(Outputs(**train), opened.head, val=Outputs(**val)).score(Outputs(**ood))
    if npz:
        to_npz(folder)
    suite = suite_of_outputs(None, str(folder))
    evaluation = Evaluation(LoadedOutputs(suite, OutputsFolder(folder)))
    bench = evaluation.model("net")
    assert bench.forward_ms_per_image is None
    scores = evaluation.detector("net", detector_id).score(evaluation.suite.image_set("near"))
    np.testing.assert_array_equal(scores.values, expected.numpy())


def test_detectors_that_need_more_than_outputs_have_no_cases(folder: Path) -> None:
    suite = suite_of_outputs("mine", str(folder))
    assert suite.id == "own-mine"
    for case in suite.ood_cases():
        assert not {"model", "images", "patches", "text"} & set(describe(case.detector)["needs"])
    assert {case.set for case in suite.ood_cases()} == {"near", "far"}
    assert {"knn", "msp"} <= {case.detector for case in suite.ood_cases()}
    assert "Without the network and its images, " in suite.entry.about
    assert "odin" in suite.entry.about
    assert not list(suite.unit_test_cases(["black"]))


def test_without_train_and_val_detectors_that_need_them_have_no_cases(folder: Path) -> None:
    (folder / "train.safetensors").unlink()
    (folder / "val.safetensors").unlink()
    suite = suite_of_outputs(None, str(folder))
    detectors = {case.detector for case in suite.ood_cases()}
    assert "msp" in detectors
    assert not {"knn", "temperature-scaling"} & detectors
    assert "Without outputs called train, " in suite.entry.about


def test_ids_come_from_the_file_or_are_numbered(folder: Path) -> None:
    def with_ids(tensors: Tensors) -> Tensors:
        return tensors | {"ids": torch.arange(100, 130)}

    change(folder, "ood/near", with_ids)
    assert OutputsFolder(folder).rows["near"].ids[:2] == ("100", "101")
    assert OutputsFolder(folder).rows["far"].ids[:2] == ("far-0000000", "far-0000001")
    to_npz(folder)
    arrays = dict(np.load(folder / "test.npz"))
    np.savez(folder / "test.npz", **arrays, ids=np.array([f"img/{row}.png" for row in range(40)]))
    assert OutputsFolder(folder).rows["test"].ids[1] == "img/1.png"


def test_outputs_in_half_precision_agree_with_the_head(folder: Path) -> None:
    for name in ROWS:
        change(folder, name, lambda tensors: {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()})
    OutputsFolder(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps to look at")
def test_safetensors_files_are_memory_mapped(folder: Path) -> None:
    opened = OutputsFolder(folder)
    maps = Path("/proc/self/maps").read_text()
    assert all(str(file.resolve()) in maps for file in opened.files.values())


def test_two_files_that_make_one_id_are_refused(folder: Path) -> None:
    for name in ("a b", "a-b"):
        (folder / "ood" / f"{name}.safetensors").write_bytes((folder / "ood" / "near.safetensors").read_bytes())
    with pytest.raises(PrecomputedError, match="two of a b, a-b, far, near make one id"):
        OutputsFolder(folder)


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def _with(**values: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | values


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("test", _without("logits"), "test.safetensors: it holds no logits, only "),
        ("train", _without("labels"), "train.safetensors: it holds no labels, only "),
        ("test", _with(label=torch.zeros(40)), "test.safetensors: it holds label (did you mean 'labels'?)"),
        ("test", _with(features=torch.zeros(40, 9)), "features (40, 9) do not fit the head's weight (3, 8)"),
        ("ood/far", _with(logits=torch.zeros(20, 4)), "logits (20, 4) do not fit the head's weight (3, 8)"),
        ("ood/far", _with(features=torch.zeros(20)), "features must be floating-point (rows, 8), not torch.float32"),
        ("ood/far", _with(features=torch.zeros(20, 8).int()), "not torch.int32 (20, 8)"),
        ("ood/far", _with(logits=torch.zeros(19, 3)), "20 rows of features, 19 of logits"),
        ("train", _with(labels=torch.zeros(60)), "labels must be integers (60,), not torch.float32 (60,)"),
        ("train", _with(labels=torch.arange(60)), "labels 0 to 59, but the head has 3 classes"),
        ("val", _with(ids=torch.zeros(12).int()), "1 different ids for 12 rows"),
        ("head", _with(bias=torch.zeros(4)), "head.safetensors: a head needs a weight of shape (C, D)"),
        ("head", _with(bias=torch.tensor([0.0, 0.0, torch.nan])), "head.safetensors: NaN or infinite values"),
        ("head", lambda head: {"weight": -head["weight"], "bias": head["bias"]}, "features @ weight.T + bias differs"),
        ("ood/far", lambda rows: {**rows, "logits": rows["logits"].flip(0)}, "far.safetensors: features @ weight"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named(
    folder: Path, name: str, how: Callable[[Tensors], Tensors], says: str
) -> None:
    OutputsFolder(folder)
    change(folder, name, lambda tensors: {key: value.contiguous() for key, value in how(tensors).items()})
    with pytest.raises(PrecomputedError, match=re.escape(says)) as caught:
        OutputsFolder(folder)
    assert str(folder) in str(caught.value)


def test_files_that_are_missing_or_damaged_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PrecomputedError, match="there is no such folder"):
        OutputsFolder(tmp_path / "gone")
    (folder / "ood" / "far.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PrecomputedError, match=r"far\.safetensors: cannot read it: "):
        OutputsFolder(folder)
    (folder / "ood" / "far.safetensors").rename(folder / "ood" / "far.npz")
    with pytest.raises(PrecomputedError, match=r"far\.npz: cannot read it: "):
        OutputsFolder(folder)
    np.savez(folder / "ood" / "far.npz", features=np.array([{}], dtype=object))
    with pytest.raises(PrecomputedError, match=r"far\.npz: cannot read it: .*allow_pickle"):
        OutputsFolder(folder)
    (folder / "ood" / "far.npz").rename(folder / "test.npz")
    with pytest.raises(PrecomputedError, match="which one counts"):
        OutputsFolder(folder)
    (folder / "test.npz").unlink()
    (folder / "test.safetensors").unlink()
    with pytest.raises(PrecomputedError, match=r"there is neither test\.safetensors nor test\.npz"):
        OutputsFolder(folder)


def test_a_folder_without_ood_outputs_is_refused(folder: Path) -> None:
    for file in (folder / "ood").iterdir():
        file.unlink()
    with pytest.raises(PrecomputedError, match=r"there is no ood/NAME\.safetensors and no ood/NAME\.npz"):
        OutputsFolder(folder)


class Run:
    def __init__(self, pytester: pytest.Pytester, folder: Path) -> None:
        self.pytester, self.folder = pytester, folder

    def __call__(self, *arguments: str) -> pytest.RunResult:
        folders = ["--outputs", self.folder, "--results", self.folder.parent / "results"]
        fixed = [f"--rootdir={ROOT}", "-c", ROOT / "tox.ini", "-p", "no:cacheprovider", ROOT / "benchmark", *folders]
        return self.pytester.runpytest_inprocess(*map(str, fixed), *arguments)

    def cases(self) -> dict[str, Case]:
        file = next((self.folder.parent / "results" / "own-net").glob("*.jsonl"))
        return {f"{r.model}/{r.detector}/{r.set}": r for r in read_records(file) if isinstance(r, Case)}


@pytest.fixture
def run(pytester: pytest.Pytester, folder: Path) -> Run:
    return Run(pytester, folder)


def test_a_run_on_outputs_is_recorded_without_times_of_the_network(run: Run) -> None:
    result = run("-k", "knn/ or msp/", "--fpr-limit", "1")
    result.assert_outcomes(passed=4)
    assert set(run.cases()) == {
        f"net/{detector_id}/{set_id}" for detector_id in ("knn", "msp") for set_id in ("near", "far")
    }
    for case in run.cases().values():
        assert case.timing is not None
        assert case.timing.forward_ms_per_image is None
        assert case.timing.forward_ratio is None
    result.stdout.fnmatch_lines(["net (ID accuracy *", "Without the network and its images, *"])


def test_no_unit_tests_are_run_on_outputs(run: Run) -> None:
    for arguments in ([], ["--full"]):
        result = run(str(ROOT / "unit_tests_ood"), "--collect-only", "-q", *arguments)
        assert any("test_case[net/knn/near]" in line for line in result.outlines)
        assert not any("test_unit_tests.py" in line for line in result.outlines)


@pytest.mark.parametrize("role", ["ood/far", "test"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinite_logits_are_named_with_their_row(run: Run, role: str, value: float) -> None:
    def poisoned(tensors: Tensors) -> Tensors:
        tensors["logits"][3, 1] = value
        return tensors

    change(run.folder, role, poisoned)
    run("-k", "msp/", "--fpr-limit", "1")
    assert f"{role}.safetensors: the logits of row 3 are NaN or infinite" in str(run.cases()["net/msp/far"].reason)


@pytest.mark.parametrize("ids", [np.array("one"), np.array([["a", "b"]])])
def test_ids_without_an_axis_of_rows_are_refused(tmp_path: Path, ids: np.ndarray) -> None:
    from detectors import Head

    found = {"features": torch.zeros(2, 3), "logits": torch.zeros(2, 2), "ids": ids}
    with pytest.raises(PrecomputedError, match=r"test\.npz: ids must be \(2,\), one for each row"):
        _rows("test", tmp_path / "test.npz", found, Head(torch.zeros(2, 3), torch.zeros(2)))


def test_a_value_that_is_not_finite_is_an_error_of_its_set(run: Run) -> None:
    def poisoned(tensors: Tensors) -> Tensors:
        tensors["features"][7, 2] = torch.nan
        return tensors

    change(run.folder, "ood/far", poisoned)
    result = run("-k", "msp/", "--fpr-limit", "1")
    result.assert_outcomes(passed=1, errors=1)
    assert "far.safetensors: the features of row 7 are NaN or infinite" in str(run.cases()["net/msp/far"].reason)


def test_an_ood_set_with_in_distribution_rows_is_refused(run: Run) -> None:
    test = load_file(run.folder / "test.safetensors")
    change(run.folder, "ood/far", lambda _: {name: test[name][:5].clone() for name in ("features", "logits")})
    run("-k", "msp/", "--fpr-limit", "1").assert_outcomes(passed=1, errors=1)
    assert "what is ID cannot be OOD" in str(run.cases()["net/msp/far"].reason)


def test_a_mistake_in_the_folder_is_a_usage_error(run: Run) -> None:
    (run.folder / "head.safetensors").unlink()
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "there is neither head.safetensors nor head.npz" in result.stderr.str()


# --- Files that declare more than they hold. ---


def _npz(file: Path, shape: tuple[int, ...], content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    """An .npz file whose array `weight` declares a shape of float64, over some content."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("weight.npy", header.getvalue() + content)
    return file


def test_an_npz_that_declares_more_than_it_holds_is_refused_before_memory_is_taken(folder: Path) -> None:
    (folder / "head.safetensors").unlink()
    file = _npz(folder / "head.npz", (300 * 10**9 // 8,), b"\0" * 80)
    tracemalloc.start()
    with pytest.raises(PrecomputedError) as refused:
        OutputsFolder(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(refused.value) == (f"{file}: cannot read it: weight declares 300.0 GB and holds 80 bytes: it is damaged")
    assert peak < 50e6


def test_an_npz_that_is_larger_than_the_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may hold much: zeros are compressed a thousand times."""
    monkeypatch.setattr(memory, "memory_bytes", lambda: 10**6)
    (folder / "head.safetensors").unlink()
    file = _npz(folder / "head.npz", (250_000,), b"\0" * 2_000_000, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10_000
    with pytest.raises(PrecomputedError, match=r"its arrays take 2.0 MB, and this machine has 1.0 MB of memory; take"):
        OutputsFolder(folder)


@pytest.mark.parametrize(
    ("shape", "content"), [((2**62, 8), b""), ((-1,), b"\0" * 8), ((3,), b"\0" * 80), ((2**31, 2**31, 2**31), b"x")]
)
def test_an_npz_with_another_size_than_its_shape_is_refused(
    folder: Path, shape: tuple[int, ...], content: bytes
) -> None:
    (folder / "head.safetensors").unlink()
    _npz(folder / "head.npz", shape, content)
    with pytest.raises(PrecomputedError, match=r"head\.npz: cannot read it: .* (holds|has the shape)"):
        OutputsFolder(folder)


@pytest.mark.parametrize("ids", [torch.tensor(3), torch.zeros(12, 2).int()])
def test_ids_of_a_file_without_an_axis_of_rows_are_refused(folder: Path, ids: torch.Tensor) -> None:
    change(folder, "val", _with(ids=ids))
    with pytest.raises(PrecomputedError, match=r"ids must be \(12,\), one for each row, not torch.int"):
        OutputsFolder(folder)
