import errno
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.images.image_set import ImageSet, image_set_of_pixels
from benchmark.models.classifier import Classifier
from benchmark.models.loading import load_model
from benchmark.models.model import Model
from benchmark.models.prepared_images import PreparedImages
from benchmark.running import store as store_module
from benchmark.running.forward import StoreError
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


def test_an_output_that_depends_on_its_batch_is_told_from_a_head_that_is_not_linear(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = model.network.forward_features
    monkeypatch.setattr(
        model.network, "forward_features", lambda pixels: (found := hidden(pixels)) - 0.5 * found.mean(dim=0)
    )
    with pytest.raises(StoreError, match="model net: its output for an image depends on the other images of its batch"):
        Store(tmp_path).outputs(model, pixels_set())


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


def test_a_head_that_does_not_explain_the_logits_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "__call__", lambda self, images: self.network(images) + 0.01)
    with pytest.raises(StoreError, match=r"features @ weight.T \+ bias differs from its logits by 0.01"):
        Store(tmp_path).outputs(model, pixels_set())


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


@pytest.mark.parametrize(
    "rows", [slice(None), slice(3, 7), slice(7, 3), slice(-2, None), slice(0, 9, 2), slice(20, 30)]
)
def test_prepared_images_slice_like_the_tensor_they_are(model: Model, rows: slice) -> None:
    images = pixels_set()
    whole = torch.stack([model.transform(images[index]) for index in range(len(images))])
    assert torch.equal(PreparedImages(model, images)[rows], whole[rows])
