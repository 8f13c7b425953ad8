"""Every reader of a user's files takes damaged ones: it reads them, or says in one line what is wrong with them.

Valid files are changed: bytes are flipped, cut, repeated and put in; values get other types; tensors other shapes. With
`FUZZ_EXAMPLES=2000` in the environment each test tries so many changes, and others in each run.
"""

import csv
import io
import json
import os
import shutil
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmark.entries import read_entries
from benchmark.errors import UserError
from benchmark.gate import ABOUT, TENSORS, Gate, _digest
from benchmark.images.decoding import Decoding, decode
from benchmark.images.entries import ImageSetEntry
from benchmark.images.image_set import load_image_set
from benchmark.images.origins import fetched
from benchmark.images.readers import read_list
from benchmark.limits.baselines import read_baselines
from benchmark.models.edits import Edit, load_edit
from benchmark.models.entries import ModelEntry
from benchmark.models.loading import load_model
from benchmark.models.state_dicts import load_state_dict
from benchmark.records import Case, read_records
from benchmark.results import ResultsFolder
from benchmark.run_records import read_folder
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.store import DamagedShardWarning, Store, _read_times
from benchmark.scores import read_case_scores
from benchmark.suites.loading import load_suite
from benchmark.suites.published import read_published
from benchmark.user.image_sets import named_set
from benchmark.user.messages import told
from benchmark.user.outputs import suite_of_outputs
from leaderboard.__main__ import main as leaderboard
from leaderboard.ranking import Comparisons
from leaderboard.results import read_results
from tests.test_leaderboard import write_suite

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
CPU = torch.device("cpu")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def fuzzed(most: int = 40) -> Callable[[Any], Any]:
    """Settings of a test. most: how many changes it tries where the environment does not say."""
    return settings(
        max_examples=int(EXAMPLES or most),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Takes an error that a user can read. Any other goes on."""
    message = None
    try:
        yield
    except UserError as error:
        message = told(error)
    if message is not None:
        assert message.strip()
        assert "\n" not in message


# --- Changes of bytes. ---

NASTY = [b"\0", b"\xff\xfe",
         b"\xef\xbb\xbf", b'"', b"'", b"[" * 3000, b"{" * 3000, b"a.b." * 3000, b"9" * 400, b"-1", b"nan",
         b"1e999", b"\n", b"\r", b",", b"=", b"x" * 140_000, b"\xf0\x9f\x92\xa9", b"\x1a", b"PK\x05\x06"]  # fmt: skip
Change = Callable[[bytes], bytes]


@st.composite
def changes_of_bytes(draw: st.DrawFn) -> Change:
    """One to three changes of a file: bytes are flipped, cut off, taken out, repeated, or put in."""
    kinds = st.sampled_from(["flip", "cut", "take out", "repeat", "put in", "overwrite"])
    place = st.floats(0, 1)
    steps = draw(
        st.lists(st.tuples(kinds, place, place, st.sampled_from(NASTY), st.integers(1, 255)), min_size=1, max_size=3)
    )

    def change(content: bytes) -> bytes:
        for kind, first, second, nasty, mask in steps:
            start, end = sorted((int(first * len(content)), int(second * len(content))))
            end = min(end, start + 64)
            if kind == "flip" and content:
                at = min(start, len(content) - 1)
                content = content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
            elif kind == "cut":
                content = content[:start]
            elif kind == "take out":
                content = content[:start] + content[end:]
            elif kind == "repeat":
                content = content[:end] + content[start:]
            elif kind == "put in":
                content = content[:start] + nasty + content[start:]
            elif kind == "overwrite":
                content = content[:start] + nasty[: len(content) - start] + content[start + len(nasty) :]
        return content

    return change


# --- Changes of values. ---

DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
VALUES = [None, True, False, 0, -1, 3, 10**12, 10**400,
          -0.5, 1e308, float("nan"), float("inf"), "", "x", "a/b", "../x", "\0", "=1",
          "junk", "é\n", [], {}, [1], ["x"], [None], [[]], {"x": 1}, {"": {}}, "9" * 5000]  # fmt: skip


@st.composite
def changes_of_values(draw: st.DrawFn) -> Callable[[Any], Any]:
    """One or two changes of what a JSON or TOML file says: a value is replaced, left out, put elsewhere, or added."""
    kinds = st.sampled_from(["replace", "leave out", "put elsewhere", "add", "wrap"])
    number = st.integers(0, 10_000)
    steps = draw(st.lists(st.tuples(kinds, number, number, st.sampled_from([*VALUES, DEEP])), min_size=1, max_size=2))

    def change(content: Any) -> Any:
        content = json.loads(json.dumps(content))
        for kind, first, second, value in steps:
            places = list(_places(content))
            if not places:
                continue
            inside, key = places[first % len(places)]
            value = json.loads(json.dumps(value))  # of its own, since a later step may change it
            if kind == "replace":
                inside[key] = value
            elif kind == "leave out":
                del inside[key]
            elif kind == "put elsewhere":
                other, other_key = places[second % len(places)]
                inside[key], other[other_key] = json.loads(json.dumps([other[other_key], inside[key]]))
            elif kind == "wrap":
                inside[key] = [inside[key]] if second % 2 else {"x": inside[key]}
            elif isinstance(inside, dict):
                inside["added" if second % 2 else "x.y"] = value
        return content

    return change


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in lists and tables."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables as TOML, in lines; null is left out."""
    return "".join(f"{json.dumps(key)} = {_toml_value(value)}\n" for key, value in tables.items() if value is not None)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)} = {_toml_value(one)}" for key, one in value.items() if one is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(one) for one in value if one is not None) + "]"
    if isinstance(value, float):
        return {float("inf"): "inf", float("-inf"): "-inf"}.get(value, "nan" if value != value else repr(value))
    return json.dumps(value)


@st.composite
def changes_of_text(draw: st.DrawFn, load: Callable[[str], Any], dump: Callable[[Any], str]) -> Change:
    """Changes of the bytes or of the values of a text file."""
    if draw(st.booleans()):
        return draw(changes_of_bytes())
    change = draw(changes_of_values())
    return lambda content: dump(change(load(content.decode()))).encode("utf-8", "surrogatepass")


TOML = changes_of_text(tomllib.loads, to_toml)
JSON = changes_of_text(json.loads, json.dumps)
LINES = changes_of_text(
    lambda text: [json.loads(line) for line in text.splitlines()],
    lambda lines: "".join(json.dumps(line) + "\n" for line in lines) if isinstance(lines, list) else json.dumps(lines),
)


@st.composite
def _changes_of_cells(draw: st.DrawFn) -> Change:
    """Changes of a CSV file: of its bytes, or of a cell."""
    if draw(st.booleans()):
        return draw(changes_of_bytes())
    row, column = draw(st.integers(0, 50)), draw(st.integers(0, 8))
    value = draw(
        st.sampled_from(["", "nan", "-1", "1e400", "inf", "x" * 140_000, 'a"b', "a,b\nc", "\0", "=1", "é", "1_0", "٣"])
    )

    def change(content: bytes) -> bytes:
        rows = list(csv.reader(io.StringIO(content.decode())))
        cells = rows[row % len(rows)]
        cells[column % len(cells)] = value
        lines = io.StringIO()
        csv.writer(lines).writerows(rows)
        return lines.getvalue().encode()

    return change


CELLS = _changes_of_cells()


# --- Changes of tensors. ---


@st.composite
def changes_of_tensors(draw: st.DrawFn) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A change of named tensors: one is left out, renamed, or gets another type, shape, number of rows or value."""
    number = draw(st.integers(0, 10_000))
    kind = draw(st.sampled_from(sorted(_TENSOR_CHANGES)))

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = sorted(tensors)[number % len(tensors)]
        rest = {other: value for other, value in tensors.items() if other != name}
        return rest | _TENSOR_CHANGES[kind](name, tensors[name])

    return change


_TENSOR_CHANGES: dict[str, Callable[[str, torch.Tensor], dict[str, torch.Tensor]]] = {
    "left out": lambda name, value: {},
    "renamed": lambda name, value: {f"{name}2": value},
    "with another beside it": lambda name, value: {name: value, "extra": torch.zeros(3)},
    "integers": lambda name, value: {name: value.to(torch.int64)},
    "half": lambda name, value: {name: value.half()},
    "double": lambda name, value: {name: value.double()},
    "bool": lambda name, value: {name: value.bool()},
    "complex": lambda name, value: {name: value.to(torch.complex64)},
    "bfloat16": lambda name, value: {name: value.to(torch.bfloat16)},
    "float8": lambda name, value: {name: value.float().to(torch.float8_e4m3fn)},
    "scalar": lambda name, value: {name: value.flatten()[:1].reshape(())},
    "one axis more": lambda name, value: {name: value[None].clone()},
    "one axis less": lambda name, value: {name: value.flatten().clone()},
    "no rows": lambda name, value: {name: value[:0].clone() if value.ndim else value},
    "fewer rows": lambda name, value: {name: value[:-1].clone() if value.ndim else value},
    "more rows": lambda name, value: {name: torch.cat([value, value]) if value.ndim else value},
    "transposed": lambda name, value: {name: value.T.contiguous() if value.ndim == 2 else value},
    "not finite": lambda name, value: {name: _with_first(value, float("nan"))},
    "infinite": lambda name, value: {name: _with_first(value, float("inf"))},
    "large": lambda name, value: {name: value.double() * 1e300},
    "negative": lambda name, value: {name: -value.to(torch.int64) - 1},
    "zeros": lambda name, value: {name: torch.zeros_like(value)},
}


def _with_first(value: torch.Tensor, number: float) -> torch.Tensor:
    changed = value.double() if not value.is_floating_point() else value.clone()
    changed.view(-1)[:1] = number
    return changed


def _rewrite(file: Path, content: bytes, change: Change) -> None:
    file.write_bytes(change(content))


# --- TOML and CSV files. ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A copy of the world of colours. Each test changes files of its own."""
    folder = tmp_path_factory.mktemp("fuzzed")
    shutil.copytree(world, folder, dirs_exist_ok=True)
    return folder


@fuzzed(120)
@given(change=TOML)
def test_suite_files(place: Path, change: Change) -> None:
    file = place / "fuzzed.toml"
    text = (place / "colours.toml").read_text() + (
        '[options.mahalanobis]\n[tuning]\nood = "digits-8-9"\n[tuning.options.msp]\n[means]\nall = ["noise"]\n'
        '[variants]\nmodels = ["net+e"]\ndetectors = ["msp"]\n'
        '[model."net+e"]\ntitle = "t"\nbase = "net"\nedit = "edits/e"\nrecipe = {method = "umap", kept = 0.8}\n'
    )
    file.write_bytes(change(text.encode()))
    with told_in_one_line():
        suite = load_suite(str(file), place / "data")
        list(suite.ood_cases())
        for detector_id in suite.detectors:
            suite.options(detector_id)


MODELS = """
[a]
title = "A"
source = "state-dict:test_resnet"
weights = "a.safetensors"
weights_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
sources = [{url = "https://host.org/a"}, {hub = "a/b", files = ["c"]}, {manual = "ask"}]
preprocessing = {input_size = [3, 32, 32], mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5], crop_pct = 0.9}
papers = {x = "y"}
seed = 3
["a+b"]
title = "AB"
base = "a"
edit = "edits/ab"
recipe = {method = "um", epochs = 3}
"""
IMAGE_SETS = """
[s]
title = "S"
licence = "l"
source = "s"
images = [3, 4]
local = "s"
sources = [{url = "https://host.org/s.zip", inside = "x"}]
classes = ["a", "b"]
class_names = ["an a", "a b"]
class_groups = {g = ["a"]}
columns = {image = "img", label = "l", id = "i"}
rows = {split = "test"}
leave_out = ["b"]
part = {per_class = 3, others = true}
contamination = [{of = "x", share = 0.5, inspected = 3, source = "y"}]
decoding = {orientation = "exif", truncated = "grey"}
corruption = {kind = "noise", amount = 30}
"""


@fuzzed(120)
@given(change=TOML, kind=st.sampled_from([(MODELS, ModelEntry), (IMAGE_SETS, ImageSetEntry)]))
def test_files_of_entries(place: Path, change: Change, kind: tuple[str, Any]) -> None:
    file = place / "entries.toml"
    file.write_bytes(change(kind[0].encode()))
    with told_in_one_line():
        read_entries(file, kind[1])


BASELINES = "model,detector,set,fpr_at_95,forward_ratio,source,date\n" + "".join(
    f"net,{detector},{name},0.25,0.1,run r,2026-01-01\n" for detector in ("msp", "knn") for name in ("greys", "noise")
)


@fuzzed(80)
@given(change=CELLS)
def test_baselines(place: Path, change: Change) -> None:
    file = place / "baselines.csv"
    file.write_bytes(change(BASELINES.encode()))
    with told_in_one_line():
        read_baselines(file, [f"net/{detector}/{name}" for detector in ("msp", "knn") for name in ("greys", "noise")])


PUBLISHED = "model,detector,set,fpr_at_95_percent,tolerance_points,source,note\n" + "".join(
    f"net,msp,{name},25.5,2,Table {number},\n" for number in (1, 2) for name in ("greys", "noise")
)


@fuzzed(80)
@given(change=CELLS)
def test_published_figures(place: Path, change: Change) -> None:
    file = place / "published.csv"
    file.write_bytes(change(PUBLISHED.encode()))
    with told_in_one_line():
        read_published([file], ["net"], ["msp"], ["greys", "noise"])


@fuzzed(60)
@given(change=CELLS, ending=st.sampled_from(["csv", "txt"]))
def test_lists_of_images_and_of_classes(place: Path, change: Change, ending: str) -> None:
    listed = place / f"list.{ending}"
    listed.write_bytes(
        change(b"path,class\na/1.png,a\nb/2.png,b\n" if ending == "csv" else b"a/1.png 0\nb/2 c.png -1\n")
    )
    with told_in_one_line():
        read_list(listed)
    classes = place / "classes.csv"
    classes.write_bytes(change(b"class,name\na,an a\nb,a b\n"))
    entry = {"title": "t", "licence": "l", "source": "s", "local": "x", "class_list": classes}
    with told_in_one_line():
        ImageSetEntry.in_file(place / "x.toml", **entry).with_classes()


# --- Records and scores. ---


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with one small run."""
    folder = tmp_path_factory.mktemp("results")
    write_suite(folder, models=["digits-resnet"], detectors=["msp", "knn"])
    file = folder / "digits" / "run-1.jsonl"
    kept = [line for line in file.read_text().splitlines() if '"role":"unit-test"' not in line]
    file.write_text("\n".join(kept) + "\n")
    return folder


@fuzzed(100)
@given(change=LINES)
def test_records(results: Path, tmp_path_factory: pytest.TempPathFactory, change: Change) -> None:
    file = results / "fuzzed" / "run-1.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(change((results / "digits" / "run-1.jsonl").read_bytes()))
    with told_in_one_line():
        list(read_records(file))
    found = read_folder(results)  # a file that cannot be read is left out, and told
    assert all("\n" not in text for text in (*found.damage, *found.notes))
    assert found.suites["digits"].cases
    for newest in found.suites.values():
        assert newest.runs


@fuzzed(15)
@given(change=changes_of_values())
def test_pages_of_records(
    results: Path, tmp_path_factory: pytest.TempPathFactory, change: Callable[[Any], Any]
) -> None:
    """A record that fits the schema has pages, whatever it says."""
    folder = tmp_path_factory.mktemp("pages")
    file = folder / "results" / "digits" / "run-1.jsonl"
    file.parent.mkdir(parents=True)
    lines = [json.loads(line) for line in (results / "digits" / "run-1.jsonl").read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    assert leaderboard(["build", "--results", str(folder / "results"), "--output", str(folder / "site")]) in (0, 1, 2)


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


CHANGED_SCORES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "renamed": lambda table: table.rename_columns(
        ["picture" if name == "image" else name for name in table.column_names]
    ),
    "texts": lambda table: _replaced(table, "score", pa.array(["x"] * len(table))),
    "nulls": lambda table: _replaced(table, "score", pa.array([None] * len(table), pa.float64())),
    "none": lambda table: table.slice(0, 0),
    "nested": lambda table: _replaced(table, "image", pa.array([[1]] * len(table))),
}


@fuzzed(60)
@given(
    change=changes_of_bytes(), columns=st.sampled_from(["as they are", "renamed", "texts", "nulls", "none", "nested"])
)
def test_scores(results: Path, change: Change, columns: str) -> None:
    case = next(record for record in read_records(results / "digits" / "run-1.jsonl") if isinstance(record, Case))
    assert case.scores is not None
    file = results / "digits" / case.scores.path
    before = file.read_bytes()
    try:
        table = pq.read_table(io.BytesIO(before))
        if columns != "as they are":
            pq.write_table(CHANGED_SCORES[columns](table), file)
        else:
            file.write_bytes(change(before))
        with told_in_one_line():
            read_case_scores(ResultsFolder(results), case)
        comparisons = Comparisons()
        found = next(suite for suite in read_results(results).suites if suite.id == "digits").results.values()
        of = [[result for result in found if result.case.detector == detector] for detector in ("msp", "knn")]
        comparisons.difference(*of)
    finally:
        file.write_bytes(before)


@fuzzed(40)
@given(change=JSON)
def test_what_we_keep_for_later_runs(place: Path, change: Change) -> None:
    """A damaged one is made again."""
    times = place / "times.json"
    times.write_bytes(change(b'{"cpu": 3.5, "cuda": 0.25}'))
    assert all(0 < time < 1e5 for time in _read_times(times).values())
    origin = place / "data" / ".fetched" / "a.json"
    origin.parent.mkdir(parents=True, exist_ok=True)
    origin.write_bytes(change(b'{"source": "https://x", "checksums": {"a": "md5:0"}, "date": "d", "verified": true}'))
    fetched(place / "data" / "a", place / "data")


# --- Networks. ---


def _load_net(folder: Path) -> None:
    entry = ModelEntry.in_file(folder / "x.toml", title="t", source=f"local-dir:{folder}")
    model = load_model("net", {"net": entry}, CPU, ["a", "b", "c"])
    images = torch.stack([model.transform(Image.new("RGB", size)) for size in ((32, 32), (40, 28))])
    model.outputs(images)


@pytest.fixture(scope="module")
def net(place: Path, world: Path) -> Path:
    return Path(shutil.copytree(place / "net", place / "fuzzed-net"))


@fuzzed(60)
@given(change=JSON)
def test_configs_of_checkpoints(net: Path, world: Path, change: Change) -> None:
    _rewrite(net / "config.json", (world / "net" / "config.json").read_bytes(), change)
    (net / "model.safetensors").write_bytes((world / "net" / "model.safetensors").read_bytes())
    with told_in_one_line():
        _load_net(net)


@fuzzed(50)
@given(change=st.one_of(changes_of_bytes(), changes_of_tensors()))
def test_weights_of_checkpoints(net: Path, world: Path, change: Any) -> None:
    shutil.copyfile(world / "net" / "config.json", net / "config.json")
    _change_tensors(world / "net" / "model.safetensors", net / "model.safetensors", change)
    with told_in_one_line():
        _load_net(net)


def _change_tensors(source: Path, target: Path, change: Any) -> None:
    """Writes a changed .safetensors file; change: of its bytes, or of its tensors."""
    if change.__qualname__.startswith("changes_of_tensors"):
        save_file(change(load_file(source)), target)
    else:
        target.write_bytes(change(source.read_bytes()))


@fuzzed(50)
@given(
    change=st.one_of(changes_of_bytes(), changes_of_tensors()), ending=st.sampled_from(["safetensors", "pth", "npz"])
)
def test_state_dicts(place: Path, world: Path, change: Any, ending: str) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=3)
    source, file = world / "net" / "model.safetensors", place / f"weights.{ending}"
    tensors = load_file(source)
    of_tensors = change.__qualname__.startswith("changes_of_tensors")
    tensors = change(tensors) if of_tensors else tensors
    if ending == "pth":
        torch.save({"state_dict": tensors, "epoch": 3}, file)
    elif ending == "npz":
        np.savez(file, **{name: _to_numpy(value) for name, value in tensors.items()})
    else:
        save_file(tensors, file)
    if not of_tensors:
        file.write_bytes(change(file.read_bytes()))
    with told_in_one_line():
        load_state_dict(network, file)


def _to_numpy(value: torch.Tensor) -> np.ndarray:
    known = value.dtype not in (torch.bfloat16, torch.float8_e4m3fn)
    return (value if known else value.float()).numpy()


@pytest.fixture(scope="module")
def edit(place: Path) -> Path:
    """An edit with weights, masks and ratios of the network."""
    tensors = load_file(place / "net" / "model.safetensors")
    names = [name for name, value in tensors.items() if value.ndim == 4]
    edit = Edit(
        {"method": "um", "settings": {"epochs": 3}, "losses": [0.5], "trace": [{"step": 1, "loss": 0.5}]},
        {names[0]: tensors[names[0]]},
        {names[1]: tensors[names[1]] > 0},
        {names[2]: 0.5},
    )
    edit.save(place / "edits" / "e")
    return place / "edits" / "e"


@fuzzed(60)
@given(change=JSON, of_tensors=st.one_of(st.none(), changes_of_tensors(), changes_of_bytes()))
def test_edits(place: Path, edit: Path, change: Change, of_tensors: Any) -> None:
    import hashlib

    folder = place / "edits" / "fuzzed"
    folder.mkdir(exist_ok=True)
    about = (edit / "edit.json").read_bytes()
    shutil.copyfile(edit / "edit.safetensors", folder / "edit.safetensors")
    if of_tensors is None:
        (folder / "edit.json").write_bytes(change(about))
    else:
        _change_tensors(edit / "edit.safetensors", folder / "edit.safetensors", of_tensors)
        digest = hashlib.sha256((folder / "edit.safetensors").read_bytes()).hexdigest()
        (folder / "edit.json").write_text(json.dumps(json.loads(about) | {"sha256": digest}))
    entries = {
        "net": ModelEntry.in_file(place / "x.toml", title="t", source="local-dir:net"),
        "net+e": ModelEntry.in_file(place / "x.toml", title="t", base="net", edit=folder),
    }
    with told_in_one_line():
        load_edit(folder)
    with told_in_one_line():
        load_model("net+e", entries, CPU, ["a", "b", "c"])


# --- Outputs. ---


def _outputs(folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 4, generator=random), torch.randn(3, generator=random)
    (folder / "ood").mkdir(parents=True)
    for name in ("train", "val", "test", "ood/far"):
        features = torch.randn(12, 4, generator=random)
        tensors = {"features": features, "logits": features @ weight.T + bias, "labels": torch.arange(12) % 3}
        tensors["ids"] = torch.arange(12)
        if "ood" in name:
            del tensors["labels"]
        save_file(tensors, folder / f"{name}.safetensors")
    save_file({"weight": weight, "bias": bias}, folder / "head.safetensors")


@pytest.fixture(scope="module")
def outputs(place: Path) -> Path:
    _outputs(place / "outputs")
    return place / "outputs"


@fuzzed(100)
@given(
    change=st.one_of(changes_of_bytes(), changes_of_tensors()),
    name=st.sampled_from(["head", "train", "val", "test", "ood/far"]),
    npz=st.booleans(),
    texts=st.booleans(),
)
def test_outputs(place: Path, outputs: Path, change: Any, name: str, npz: bool, texts: bool) -> None:
    from benchmark.running.evaluation import Evaluation
    from benchmark.user.outputs import LoadedOutputs, OutputsFolder

    folder = place / "changed-outputs"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(outputs, folder)
    file = folder / f"{name}.safetensors"
    if npz:
        of_tensors = change.__qualname__.startswith("changes_of_tensors")
        tensors = change(load_file(file)) if of_tensors else load_file(file)
        arrays = {key: _to_numpy(value) for key, value in tensors.items()}
        if texts and arrays:
            arrays[sorted(arrays)[0]] = np.array([f"é{index}" for index in range(12)])
        np.savez(file.with_suffix(".npz"), **arrays)
        file.unlink()
        if not of_tensors:
            file = file.with_suffix(".npz")
            file.write_bytes(change(file.read_bytes()))
    else:
        _change_tensors(outputs / f"{name}.safetensors", file, change)
    with told_in_one_line():
        suite = suite_of_outputs(None, str(folder))
        evaluation = Evaluation(LoadedOutputs(suite, OutputsFolder(folder)))
        evaluation.detector("changed-outputs", "msp").score(evaluation.suite.image_set("far"))


@fuzzed(25)
@given(change=st.one_of(changes_of_bytes(), changes_of_tensors()), named_right=st.booleans())
def test_shards_of_the_store(place: Path, change: Any, named_right: bool) -> None:
    """A shard of other tensors than the network makes is computed again."""
    import hashlib

    suite = load_suite(str(place / "colours.toml"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedShardWarning)
        loaded = LoadedSuite(suite, Store(place / "store"), CPU)
        model, images = loaded.load_model("net"), loaded.image_set("greys")
        expected = loaded.store.outputs(model, images)
        [shard] = (place / "store" / loaded.store.key(model, images)).glob("*.safetensors")
        before = {"features": expected.features[:].clone(), "logits": expected.logits[:].clone()}
        source = place / "shard.safetensors"
        source.write_bytes(shard.read_bytes())
        changed = shard.with_name("changed")
        _change_tensors(source, changed, change)
        digest = hashlib.sha256(changed.read_bytes()).hexdigest()
        shard.unlink()
        changed.rename(shard.with_name(f"00000.{digest}.safetensors") if named_right else shard)
        again = loaded.store.outputs(model, images)
    assert again.features.shape == before["features"].shape
    assert again.logits.shape == before["logits"].shape
    assert again.features.dtype == again.logits.dtype == torch.float32
    if not named_right:
        assert torch.equal(again.features[:], before["features"])
    for file in (place / "store").rglob("*.safetensors"):
        file.unlink()


# --- Images. ---


def _encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


IMAGES = {kind: _encoded(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO")}


@fuzzed(400)
@given(change=changes_of_bytes(), kind=st.sampled_from(sorted(IMAGES)), truncated=st.sampled_from(["refuse", "grey"]))
def test_images(change: Change, kind: str, truncated: Any) -> None:
    with told_in_one_line():
        image = decode(change(IMAGES[kind]), Decoding(orientation="exif", truncated=truncated))
        assert image.mode == "RGB"


def _table(rows: int = 12) -> pa.Table:
    images = [{"bytes": IMAGES["PNG"], "path": f"{row}.png"} for row in range(rows)]
    return pa.table(
        {"image": images, "label": [row % 3 for row in range(rows)], "id": [f"i{row}" for row in range(rows)]}
    )


_CHANGED_IMAGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "nothing": lambda table: table,
    "no rows": lambda table: table.slice(0, 0),
    "a row twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "no images": lambda table: table.drop_columns(["image"]),
    "no labels": lambda table: table.drop_columns(["label"]),
    "null images": lambda table: table.set_column(0, "image", pa.array([None] * 12, table.schema.field("image").type)),
    "images as texts": lambda table: table.set_column(0, "image", pa.array(["x.png"] * 12)),
    "images as numbers": lambda table: table.set_column(0, "image", pa.array(range(12))),
    "images as bytes": lambda table: table.set_column(0, "image", pa.array([IMAGES["PNG"]] * 12)),
    "images as lists": lambda table: table.set_column(0, "image", pa.array([[1]] * 12)),
    "images without bytes": lambda table: table.set_column(0, "image", pa.array([{"path": "x"}] * 12)),
    "images of other bytes": lambda table: table.set_column(0, "image", pa.array([{"bytes": b"x", "path": "x"}] * 12)),
    "null labels": lambda table: table.set_column(1, "label", pa.array([None] * 12, pa.int64())),
    "negative labels": lambda table: table.set_column(1, "label", pa.array([-1] * 12)),
    "labels as texts": lambda table: table.set_column(1, "label", pa.array(["b", "a", "é"] * 4)),
    "labels as fractions": lambda table: table.set_column(1, "label", pa.array([0.5, 1.0, float("nan")] * 4)),
    "labels as bools": lambda table: table.set_column(1, "label", pa.array([True, False] * 6)),
    "labels as lists": lambda table: table.set_column(1, "label", pa.array([[0]] * 12)),
    "labels as structs": lambda table: table.set_column(1, "label", pa.array([{"x": 0}] * 12)),
    "large labels": lambda table: table.set_column(1, "label", pa.array([2**62] * 12)),
    "labels as bytes": lambda table: table.set_column(1, "label", pa.array([b"\xff"] * 12)),
    "ids as lists": lambda table: table.set_column(2, "id", pa.array([[0]] * 12)),
    "null ids": lambda table: table.set_column(2, "id", pa.array([None] * 12, pa.string())),
    "equal ids": lambda table: table.set_column(2, "id", pa.array(["a"] * 12)),
    "other metadata": lambda table: table.replace_schema_metadata({"huggingface": "{not json"}),
    "metadata of other types": lambda table: table.replace_schema_metadata({"huggingface": '{"info": [1]}'}),
    "names of other types": lambda table: table.replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"label": {"names": 3, "_type": "ClassLabel"}}}}'}
    ),
    "a column twice": lambda table: table.append_column("image", table.column("id")),
}


@fuzzed(60)
@given(
    change=st.one_of(st.none(), changes_of_bytes()),
    columns=st.sampled_from(sorted(_CHANGED_IMAGES)),
    role=st.sampled_from(["test", "ood"]),
)
def test_parquet_image_sets(
    place: Path, tmp_path_factory: pytest.TempPathFactory, change: Change | None, columns: str, role: str
) -> None:
    folder = tmp_path_factory.mktemp("table")
    file = folder / "images.parquet"
    pq.write_table(_CHANGED_IMAGES[columns](_table()) if change is None else _table(), file)
    if change is not None:
        file.write_bytes(change(file.read_bytes()))
    with told_in_one_line():
        _read_images(role, file, folder)
    entry = {"title": "t", "licence": "l", "source": "s", "parquet": file, "classes": ("0", "1", "2")}
    with told_in_one_line():
        images = load_image_set("s", {"s": ImageSetEntry.in_file(folder / "x.toml", folder, **entry)})
        images[len(images) - 1]
        assert images.content_sha256


def _read_images(role: str, place: Path, data_dir: Path) -> None:
    from benchmark.user.image_suites import NamedImages

    given = named_set(role, str(place), {}, data_dir)
    if role == "test":
        given = NamedImages(given, {}, []).with_one_order_of_classes().test
    images = given.load({})
    for index in range(len(images)):
        images[index]


# --- Gates. ---


@pytest.fixture(scope="module")
def gate(place: Path) -> Path:
    gate = Gate.fit("net", "mahalanobis", suite=str(place / "colours.toml"), store=place / "gate-store", device="cpu")
    gate.save(place / "gate")
    return place / "gate"


@fuzzed(40)
@given(change=st.one_of(JSON, changes_of_tensors()), of_tensors=st.booleans())
def test_gates(place: Path, gate: Path, change: Any, of_tensors: bool) -> None:
    import hashlib

    folder = place / "changed-gate"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(gate, folder)
    about = json.loads((gate / ABOUT).read_text())
    if change.__qualname__.startswith("changes_of_tensors"):
        _change_tensors(gate / TENSORS, folder / TENSORS, change)
        about["tensors_sha256"] = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
        content = json.dumps(about).encode()
    else:
        content = change(json.dumps({name: value for name, value in about.items() if name != "sha256"}).encode())
    try:
        about = json.loads(content)
        about["sha256"] = _digest({name: value for name, value in about.items() if name != "sha256"})
        content = json.dumps(about).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    (folder / ABOUT).write_bytes(content)
    with told_in_one_line():
        Gate.load(folder, device="cpu")(Image.new("RGB", (32, 32)))


# --- What was found once. ---


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('[[model.x]]\ntitle = "t"\n', r"x: a table is expected, not \[\{'title': 't'\}\]"),
        (
            "deep = " + "[" * 5000 + "]" * 5000,
            "not valid TOML: its tables or lists stand too deep inside of each other",
        ),
        ("many = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
    ],
)
def test_a_suite_file_with_a_slip_is_named(user_world: Path, more: str, says: str) -> None:
    file = user_world / "colours.toml"
    file.write_text(more + "\n" + file.read_text() if "=" in more.split("\n")[0] else file.read_text() + more)
    with pytest.raises(UserError, match=rf"{file}: {says}"):
        load_suite(str(file))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe\x00", "it is no text in UTF-8: .*; save it as such"),
        (BASELINES.encode().replace(b"run r", b"x" * 140_000, 1), "not readable as CSV: field larger than field limit"),
        (b"\0" * 99, r":1: .*columns are|line contains NUL"),
        (BASELINES.encode().replace(b"run r", b"\xff", 1), "it is no text in UTF-8"),
    ],
)
def test_a_table_of_baselines_or_published_figures_that_is_none_is_named(
    tmp_path: Path, content: bytes, says: str
) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.csv.*({says})"):
        read_baselines(file, ["net/msp/greys"])
    with pytest.raises(UserError, match=r"x\.csv:1: the columns are|it is no text in UTF-8|NUL"):
        read_published([file], ["net"], ["msp"], ["greys"])


def test_baselines_that_a_spreadsheet_saved_with_its_mark_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(b"\xef\xbb\xbf" + BASELINES.encode())
    assert len(read_baselines(file, [f"net/{d}/{s}" for d in ("msp", "knn") for s in ("greys", "noise")])) == 4


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("interpolation", "junk", "images cannot be prepared as it says: .*junk"),
        ("input_size", [3, 10**9, 10**9], r"its input_size is \(3, 1000000000, 1000000000\), not \[3, HEIGHT, WIDTH\]"),
        ("std", [0.5, 0.0, 0.5], "images cannot be prepared as it says"),
        ("mean", ["a", "b", "c"], "images cannot be prepared as it says"),
    ],
)
def test_a_checkpoint_with_a_preprocessing_that_cannot_be_done_is_named(
    net: Path, world: Path, name: str, value: Any, says: str
) -> None:
    config = json.loads((world / "net" / "config.json").read_text())
    config["pretrained_cfg"][name] = value
    (net / "config.json").write_text(json.dumps(config))
    shutil.copyfile(world / "net" / "model.safetensors", net / "model.safetensors")
    with pytest.raises(UserError, match=rf"model net: local-dir:.*{says}"):
        _load_net(net)


@pytest.mark.parametrize(
    "tensors", [{"other": torch.zeros(20, 3)}, {"features": torch.zeros(20, 1), "logits": torch.zeros(20, 3)}]
)
def test_a_shard_of_other_tensors_is_computed_again_with_a_warning(
    place: Path, tensors: dict[str, torch.Tensor]
) -> None:
    import hashlib

    from safetensors.torch import save

    loaded = LoadedSuite(load_suite(str(place / "colours.toml")), Store(place / "other-store"), CPU)
    model, images = loaded.load_model("net"), loaded.image_set("greys")
    folder = place / "other-store" / loaded.store.key(model, images)
    folder.mkdir(parents=True, exist_ok=True)
    content = save(tensors)
    wrong = folder / f"00000.{hashlib.sha256(content).hexdigest()}.safetensors"
    wrong.write_bytes(content)
    with pytest.warns(DamagedShardWarning, match="is damaged; it is removed and computed again"):
        found = loaded.store.outputs(model, images)
    assert found.features.shape == (20, model.feature_dimensions)
    assert not wrong.exists()
    shutil.rmtree(folder)


def test_a_class_index_of_4e18_does_not_work_for_ever(tmp_path: Path) -> None:
    pq.write_table(_CHANGED_IMAGES["large labels"](_table()), tmp_path / "x.parquet")
    with pytest.raises(
        UserError, match=r"column label: 4611686018427387904 is no index of a class; there may be 1000000"
    ):
        named_set("test", str(tmp_path / "x.parquet"), {}, tmp_path)


def test_scores_that_declare_more_than_the_memory_are_refused(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import memory

    case = next(record for record in read_records(results / "digits" / "run-1.jsonl") if isinstance(record, Case))
    assert read_case_scores(ResultsFolder(results), case)
    monkeypatch.setattr(memory, "memory_bytes", lambda: 100)
    with pytest.raises(UserError, match=r"its rows take .*, and this machine has 100 bytes of memory: it is damaged"):
        read_case_scores(ResultsFolder(results), case)


def test_safetensors_that_declare_300_gb_are_refused(place: Path, outputs: Path) -> None:
    folder = place / "declaring"
    shutil.copytree(outputs, folder)
    about = {"weight": {"dtype": "F64", "shape": [37_500_000_000], "data_offsets": [0, 300_000_000_000]}}
    header = json.dumps(about).encode()
    (folder / "head.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 80)
    with pytest.raises(UserError, match=r"head\.safetensors: cannot read it: .*header"):
        suite_of_outputs(None, str(folder))


# --- The checks themselves. ---


def test_an_error_that_is_none_of_ours_is_seen() -> None:
    """The broken twin: a reader that lets an error of a library through."""
    with pytest.raises(json.JSONDecodeError), told_in_one_line():
        json.loads("{")
    with pytest.raises(AssertionError), told_in_one_line():
        raise UserError(" ")
