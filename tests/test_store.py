import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.images.decoding import Decoding
from benchmark.images.image_set import ImageSet, image_set_of_pixels
from benchmark.models.classifier import Classifier
from benchmark.models.loading import load_model
from benchmark.models.model import Model
from benchmark.models.prepared_images import PreparedImages
from benchmark.running import forward as forward_module
from benchmark.running import store as store_module
from benchmark.running.forward import BATCH_ROWS, StoreError, forward, forward_ms_per_image
from benchmark.running.store import DamagedShardWarning, OtherCodeWarning, Shards, Store
from benchmark.suites.loading import load_suite
from benchmark.user.messages import told


@pytest.fixture
def load(world: Path) -> Callable[[], Model]:
    suite = load_suite(str(world / "colours.toml"))
    return lambda: load_model("net", suite.models, torch.device("cpu"), ["blue", "green", "red"])


@pytest.fixture
def model(load: Callable[[], Model]) -> Model:
    return load()


def pixels_set(count: int = 10, set_id: str = "set", seed: int = 0) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    return image_set_of_pixels(set_id, set_id, count, pixels.__getitem__, licence="l", source="s")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_ROWS", 4)


@pytest.fixture
def passes(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each batch that goes through the network."""
    seen: list[int] = []
    assert model.trial  # which is made before
    outputs = Classifier.outputs

    def counted(self: Classifier, images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(images))
        return outputs(self, images)

    monkeypatch.setattr(Classifier, "outputs", counted)
    return seen


def test_stored_outputs_are_those_of_the_network(model: Model, tmp_path: Path, small_shards: None) -> None:
    images = pixels_set()
    outputs = Store(tmp_path).outputs(model, images)
    with torch.inference_mode():
        features, logits = model.outputs(torch.stack([model.transform(images[i]) for i in range(len(images))])).values()
    torch.testing.assert_close(torch.as_tensor(outputs.features[0:10]), features)
    torch.testing.assert_close(torch.as_tensor(outputs.logits[0:10]), logits)
    torch.testing.assert_close(outputs.features[3:9], features[3:9])  # across two borders
    assert outputs.images[2:4].shape == (2, 3, 32, 32)


def test_the_batches_of_a_part_of_a_set_are_the_rows_of_that_part_in_order(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that begins and ends within a set, and that takes more than two batches."""
    images = pixels_set(BATCH_ROWS * 2 + 60)
    rows = slice(20, BATCH_ROWS * 2 + 50)
    sizes: list[int] = []
    outputs = Classifier.outputs

    def counted(self: Classifier, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(pixels))
        return outputs(self, pixels)

    monkeypatch.setattr(Classifier, "outputs", counted)
    found = forward(model, images, rows)
    monkeypatch.undo()
    assert sizes == [BATCH_ROWS, BATCH_ROWS, 30]
    with torch.inference_mode():
        expected = model.outputs(
            torch.stack([model.transform(images[index]) for index in range(rows.start, rows.stop)])
        )
    assert found.keys() == expected.keys() == {"features", "logits"}
    for name, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, expected[name])
    assert len(found["features"].unique(dim=0)) == len(found["features"])  # no two rows could be taken for each other


def test_a_value_that_is_not_finite_in_a_later_batch_names_its_image(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Classifier.outputs
    calls: list[int] = []

    def broken(self: Classifier, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(pixels))
        found = {name: values.clone() for name, values in outputs(self, pixels).items()}
        if len(calls) == 2:
            found["features"][7, 3] = float("nan")
        return found

    monkeypatch.setattr(Classifier, "outputs", broken)
    with pytest.raises(
        StoreError, match=f"gives NaN or infinite features for image set-{20 + BATCH_ROWS + 7:05d} of set"
    ):
        forward(model, pixels_set(BATCH_ROWS + 60), slice(20, BATCH_ROWS + 60))


def test_the_labels_of_the_images_come_with_the_outputs(model: Model, tmp_path: Path) -> None:
    images = replace(pixels_set(6), labels=np.array([2, 0, 1, 1, 0, 2]), classes=("blue", "green", "red"))
    assert Store(tmp_path).outputs(model, images).labels.tolist() == [2, 0, 1, 1, 0, 2]
    assert Store(tmp_path).outputs(model, pixels_set(6)).labels is None


def test_a_second_run_reads_and_runs_no_network(model: Model, tmp_path: Path, passes: list[int]) -> None:
    Store(tmp_path).outputs(model, pixels_set())
    assert sum(passes) == 10
    Store(tmp_path).outputs(model, pixels_set())
    assert sum(passes) == 10


def test_the_key_of_what_was_stored_before_stays(tmp_path: Path) -> None:
    """As hours of forward passes lie under it. A change of this key is a change of the store's layout."""
    model: Any = SimpleNamespace(weights_sha256="a" * 64, preprocessing={"input_size": [3, 32, 32]})
    decoding = SimpleNamespace(model_dump=lambda **_: {})
    image_set: Any = SimpleNamespace(content_sha256="b" * 64, decoding=decoding)
    assert Store(tmp_path).key(model, image_set) == "b5827ca8760255bf8010c513a9f6d6f1af61a987"
    other: Any = SimpleNamespace(**{**vars(image_set), "decoding": SimpleNamespace(model_dump=lambda **_: {"exif": 1})})
    assert Store(tmp_path).key(model, other) != Store(tmp_path).key(model, image_set)


def test_outputs_that_other_code_made_are_computed_again(
    model: Model, load: Callable[[], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights and the preprocessing stay: what the network's library computes has changed."""
    store, images = Store(tmp_path), pixels_set()
    before = store.outputs(model, images).logits[0:10].clone()
    outputs = Classifier.outputs
    monkeypatch.setattr(
        Classifier, "outputs", lambda self, pixels: {name: 1.5 * of for name, of in outputs(self, pixels).items()}
    )
    monkeypatch.setattr(Classifier, "__call__", lambda self, pixels: 1.5 * self.network(pixels))
    with pytest.warns(OtherCodeWarning, match="its code, or a library that it uses, has changed"):
        after = store.outputs(load(), images).logits[0:10].clone()
    torch.testing.assert_close(after, 1.5 * before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(store.outputs(load(), images).logits[0:10], after)


def test_outputs_that_are_older_than_trials_are_trusted_once(model: Model, tmp_path: Path, passes: list[int]) -> None:
    store, images = Store(tmp_path), pixels_set()
    store.outputs(model, images)
    [file] = tmp_path.rglob("trial.json")
    content = file.read_bytes()
    file.unlink()
    passes.clear()
    store.outputs(model, images)
    assert not passes
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'["x"]', b"[" * 9999, b"null"])
def test_a_damaged_trial_costs_no_figure(model: Model, tmp_path: Path, content: bytes) -> None:
    store, images = Store(tmp_path), pixels_set()
    before = store.outputs(model, images).logits[0:10].clone()
    [file] = tmp_path.rglob("trial.json")
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OtherCodeWarning)
        assert torch.equal(store.outputs(model, images).logits[0:10], before)


@pytest.mark.parametrize("images", [2, 6, 10])
def test_an_output_that_depends_on_its_batch_is_told_from_a_head_that_is_not_linear(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    hidden = model.network.forward_features
    monkeypatch.setattr(
        model.network, "forward_features", lambda pixels: (found := hidden(pixels)) - 0.5 * found.mean(dim=0)
    )
    with pytest.raises(StoreError, match="model net: its output for an image depends on the other images of its batch"):
        Store(tmp_path).outputs(model, pixels_set(images))


@pytest.mark.parametrize("change", ["weights", "preprocessing", "images"])
def test_the_key_follows_all_that_the_outputs_depend_on(
    model: Model, load: Callable[[], Model], tmp_path: Path, change: str
) -> None:
    store, images = Store(tmp_path), pixels_set()
    key = store.key(model, images)
    assert store.key(load(), pixels_set()) == key
    model = load()
    if change == "weights":
        with torch.no_grad():
            model.classifier.bias[0] += 1
    if change == "preprocessing":
        model.preprocessing["mean"] = [0.1, 0.1, 0.1]
    if change == "images":
        images = pixels_set(seed=1)
    assert store.key(model, images) != key


def test_what_earlier_versions_stored_is_found(model: Model) -> None:
    """Its key, the rows of a shard and the name of a file of forward times stay as they are: all would be made anew."""
    images = pixels_set()
    said = (
        f'{{"dtype": "float32", "images_sha256": "{images.content_sha256}", "layout": 1, '
        f'"preprocessing": {json.dumps(model.preprocessing, sort_keys=True)}, '
        f'"weights_sha256": "{model.weights_sha256}"}}'
    )
    assert Store.key(Store(Path()), model, images) == hashlib.sha256(said.encode()).hexdigest()[:40]
    assert store_module.SHARD_ROWS == 4096
    turned = replace(images, decoding=Decoding(orientation="exif"))
    of_turned = f'{{"decoding": {{"orientation": "exif"}}, {said[1:]}'
    assert Store.key(Store(Path()), model, turned) == hashlib.sha256(of_turned.encode()).hexdigest()[:40]


def test_the_key_does_not_hang_on_the_order_of_settings(model: Model) -> None:
    turned = replace(model, preprocessing=dict(reversed(model.preprocessing.items())))
    assert list(turned.preprocessing) != list(model.preprocessing)
    assert Store.key(Store(Path()), turned, pixels_set()) == Store.key(Store(Path()), model, pixels_set())


def test_a_shard_that_another_process_wrote_meanwhile_is_not_computed_again(
    model: Model, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path / "theirs").outputs(model, pixels_set())
    passes.clear()
    acquire = store_module.FileLock.acquire

    def wait(self: store_module.FileLock) -> object:
        shutil.copytree(tmp_path / "theirs", tmp_path / "ours", dirs_exist_ok=True)
        return acquire(self)

    monkeypatch.setattr(store_module.FileLock, "acquire", wait)
    assert len(Store(tmp_path / "ours").outputs(model, pixels_set())) == 10
    assert not passes


def test_a_damaged_shard_is_found_and_computed_again(
    model: Model, tmp_path: Path, passes: list[int], small_shards: None
) -> None:
    store, images = Store(tmp_path), pixels_set()
    before = store.outputs(model, images).logits[0:10].clone()
    shard = next(tmp_path.rglob("00001.*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1  # one bit
    shard.write_bytes(content)
    passes.clear()
    with pytest.warns(DamagedShardWarning, match=r"00001\..* is damaged"):
        after = store.outputs(model, images)
    assert sum(passes) == 4
    assert torch.equal(after.logits[0:10], before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.outputs(model, images)  # the twin: a whole shard is not damaged


def test_a_killed_run_leaves_nothing_that_is_trusted(
    model: Model, tmp_path: Path, passes: list[int], small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).outputs(model, pixels_set())
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob(".writing-*"))
    (next(tmp_path.iterdir()) / ".writing-left").write_bytes(b"what a hard kill would leave")
    passes.clear()
    assert len(Store(tmp_path).outputs(model, pixels_set())) == 10
    assert sum(passes) == 10


def test_an_interrupted_run_goes_on_at_the_next_shard(
    model: Model, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[slice] = []
    forward = store_module.forward

    def counted(model: Model, images: ImageSet, rows: slice) -> dict[str, torch.Tensor]:
        computed.append(rows)
        if len(computed) == 2:
            raise KeyboardInterrupt
        return forward(model, images, rows)

    monkeypatch.setattr(store_module, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).outputs(model, pixels_set())
    Store(tmp_path).outputs(model, pixels_set())
    assert [rows.start for rows in computed] == [0, 4, 4, 8]


TWO_AT_ONCE = """
import sys, torch
from pathlib import Path
from benchmark.models.loading import load_model
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from benchmark.images.image_set import load_image_set
suite = load_suite(sys.argv[1])
model = load_model("net", suite.models, torch.device("cpu"), ["blue", "green", "red"])
images = load_image_set("colours-train", suite.image_sets)
outputs = Store(Path(sys.argv[2])).outputs(model, images)
print(float(outputs.logits[0:36].double().sum()))
"""


def test_two_processes_at_once_agree(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_AT_ONCE, str(world / "colours.toml"), str(tmp_path)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) for _ in range(2)
    ]
    sums = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sums[0] == sums[1]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def failing_write(error: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


def test_a_lock_that_cannot_be_written_is_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.FileLock, "acquire", failing_write(errno.EROFS))
    with pytest.raises(StoreError, match=r"cannot write to the store .*Read-only") as refused:
        Store(tmp_path).outputs(model, pixels_set())
    assert "--" not in str(refused.value)
    assert told(refused.value).endswith("; name another folder with --store")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_store_says_so_and_keeps_what_is_there(
    model: Model, tmp_path: Path, error: int, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.outputs(model, pixels_set())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_write(error))
        with pytest.raises(StoreError, match=rf"cannot write to the store {tmp_path}.*{os.strerror(error)}"):
            store.outputs(model, pixels_set(seed=1))
    passes.clear()
    store.outputs(model, pixels_set())
    assert not passes


def test_a_complete_store_that_cannot_be_written_is_read(
    model: Model, load: Callable[[], Model], tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    before = store.outputs(model, pixels_set()).logits[0:10].clone()
    for place in (Path, store_module.FileLock, os):
        for name in ("mkdir", "acquire", "replace", "fsync", "unlink"):
            if hasattr(place, name):
                monkeypatch.setattr(place, name, failing_write(errno.EROFS))
    passes.clear()
    outputs = store.outputs(model, pixels_set())
    assert torch.equal(outputs.logits[0:10], before)
    assert not passes
    assert store.forward_ms_per_image(model, outputs) > 0


def test_a_store_that_cannot_be_made_is_named_before_any_forward_pass(
    model: Model, tmp_path: Path, passes: list[int]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write to the store"):
        Store(tmp_path / "file").outputs(model, pixels_set())
    assert not passes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_model_and_image(model: Model, tmp_path: Path, value: float) -> None:
    with torch.no_grad():
        model.classifier.bias[0] = value
    with pytest.raises(StoreError, match="model net gives NaN or infinite logits for image set-00000 of set"):
        Store(tmp_path).outputs(model, pixels_set())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("far", [0.01, 0.001, float("nan")])
def test_a_head_that_does_not_explain_the_logits_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: float
) -> None:
    monkeypatch.setattr(Classifier, "__call__", lambda self, images: self.network(images) + far)
    told = "inf" if np.isnan(far) else f"{far}"
    with pytest.raises(StoreError, match=rf"features @ weight.T \+ bias differs from its logits by {told}"):
        Store(tmp_path).outputs(model, pixels_set())


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_logits_that_differ_by_rounding_are_no_fault_of_the_head(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    with torch.no_grad():
        model.classifier.weight *= scale
        model.classifier.bias.fill_(scale)
    monkeypatch.setattr(Classifier, "__call__", lambda self, images: self.network(images) + 0.5e-4 * max(1.0, scale))
    assert len(Store(tmp_path).outputs(model, pixels_set())) == 10


def test_a_forward_time_from_a_busy_machine_does_not_last(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([3.0, 0.5, 0.7, 20.0])
    monkeypatch.setattr(store_module, "forward_ms_per_image", lambda *_: next(measured))
    store = Store(tmp_path)
    outputs = store.outputs(model, pixels_set())
    assert [store.forward_ms_per_image(model, outputs) for _ in range(3)] == [3.0, 0.5, 0.5]
    monkeypatch.setattr(store_module, "device_name", lambda _: "another device")
    assert store.forward_ms_per_image(model, outputs) == 20.0
    assert store.forward_ms_per_image(model, outputs) == 20.0  # too long to be measured again


def test_forward_times_are_of_a_network_and_keep_those_of_other_devices(
    model: Model, load: Callable[[], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    outputs = store.outputs(model, pixels_set())
    measured: list[int] = []
    known = tmp_path / "forward-times" / f"{model.weights_sha256[:40]}.json"

    def measure(model: Model, images: torch.Tensor) -> float:
        measured.append(len(images))
        if known.is_file():  # another process has measured it on another device meanwhile
            known.write_text(json.dumps(json.loads(known.read_text()) | {"theirs": 7.0}))
        return 10.0 + len(measured)

    monkeypatch.setattr(store_module, "forward_ms_per_image", measure)
    monkeypatch.setattr(store_module, "device_name", lambda _: "ours")
    assert store.forward_ms_per_image(model, outputs) == 11.0
    assert store.forward_ms_per_image(replace(model, id="another name"), outputs) == 11.0
    known.write_text(json.dumps({"ours": 3.0, "here": 5.0}))
    assert store.forward_ms_per_image(model, outputs) == 3.0  # which a moment of images takes, so it is measured again
    assert json.loads(known.read_text()) == {"ours": 3.0, "here": 5.0, "theirs": 7.0}
    assert measured == [10, 10]
    other = load()
    with torch.no_grad():
        other.classifier.bias[0] += 1
    many = store.outputs(other, pixels_set(BATCH_ROWS + 9))
    assert store.forward_ms_per_image(other, many) == 13.0
    assert measured == [10, 10, BATCH_ROWS]
    assert len(list(known.parent.glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("seconds", "passes", "ms_per_image"),
    [
        ([0.2, 0.08, 0.3], 3, 20.0),  # of four images: the shortest of those within half a second
        ([0.02, 0.04] * 5, 10, 5.0),  # ten are enough
        ([0.9], 1, 225.0),
    ],
)
def test_a_forward_time_is_the_shortest_pass_divided_by_the_number_of_images(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], passes: int, ms_per_image: float
) -> None:
    durations = [
        100.0,
        *seconds,
        *[1e-9] * 20,
    ]  # of the first pass, which warms up, and of those that would be too many
    clock, started = 5.0, []

    def network(images: torch.Tensor) -> None:
        nonlocal clock
        clock += durations[len(started)]
        started.append(len(images))

    monkeypatch.setattr(forward_module.time, "perf_counter", lambda: clock)
    assert forward_ms_per_image(network, torch.zeros(4, 3, 2, 2)) == pytest.approx(ms_per_image)  # type: ignore[arg-type]
    assert started == [4] * (1 + passes)


@pytest.mark.parametrize(
    "content",
    ["EACH Infinity", "EACH 1e9", "EACH -1", "EACH NaN", "", "[1]", '{"AMD": null}', '{"AMD": "fast"}', "not json"],
)
def test_a_damaged_file_of_forward_times_is_measured_again(model: Model, tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    outputs = store.outputs(model, pixels_set())
    store.forward_ms_per_image(model, outputs)
    file = next((tmp_path / "forward-times").iterdir())
    devices = json.loads(file.read_text())
    if content.startswith("EACH"):
        content = json.dumps(dict.fromkeys(devices, float(content.removeprefix("EACH "))))
    file.write_text(content)
    assert 0 < store.forward_ms_per_image(model, outputs) < 1000


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 7), (3, 3), (4, 100), (8, 9)])
def test_shards_slice_like_the_tensor_they_are(start: int, stop: int) -> None:
    whole = torch.arange(18.0).reshape(9, 2)
    shards = Shards([whole[:4], whole[4:5], whole[5:]])
    assert shards.shape == (9, 2)
    assert torch.equal(shards[start:stop], whole[start:stop])
    for step in (2, -1):
        with pytest.raises(ValueError, match="without a step"):
            shards[::step]


@pytest.mark.parametrize(
    "rows", [slice(None), slice(3, 7), slice(7, 3), slice(-2, None), slice(0, 9, 2), slice(20, 30)]
)
def test_prepared_images_slice_like_the_tensor_they_are(model: Model, rows: slice) -> None:
    images = pixels_set()
    whole = torch.stack([model.transform(images[index]) for index in range(len(images))])
    assert torch.equal(PreparedImages(model, images)[rows], whole[rows])
