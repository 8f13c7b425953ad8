"""A gate gives single images the scores of the suite's run, and refuses what is not as it was saved."""

import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from benchmark import gate as module
from benchmark.commands.app import main
from benchmark.gate import ABOUT, TENSORS, Decision, Gate, GateError
from benchmark.images.decoding import Decoding
from benchmark.images.image_set import ImageSetError
from benchmark.metrics import accuracy
from benchmark.models.entries import ModelError
from benchmark.running.evaluation import Evaluation
from benchmark.running.fitted_detector import FittedDetector
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.provenance import package_git_state, package_version
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from detectors import create
from tests.conftest import save_network

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
CORE = (
    "msp", "max-logit", "energy", "odin", "react", "knn", "vim", "mahalanobis++", "mahalanobis-odin", "rankfeat",
)  # fmt: skip
VISION_LANGUAGE = ("mcm", "gl-mcm")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return Evaluation(LoadedSuite(load_suite("digits"), Store(tmp_path_factory.mktemp("store")), torch.device("cpu")))


def fitted(folder: Path, detector: str = "mahalanobis") -> FittedDetector:
    suite = LoadedSuite(load_suite(str(folder / "colours.toml")), Store(folder / "store"), torch.device("cpu"))
    return Evaluation(suite).detector("net", detector)


@pytest.fixture
def saved(user_world: Path) -> Path:
    """The folder of a gate of the tiny world, beside its suite."""
    Gate.of(fitted(user_world)).save(user_world / "gate")
    return user_world / "gate"


def change(folder: Path, edit: Callable[[dict[str, Any]], Any], *, sign: bool) -> None:
    """Edits gate.json; `sign`: with a hash that fits, so that the checks behind it are met."""
    about = json.loads((folder / ABOUT).read_text())
    edit(about)
    if sign:
        about.pop("sha256")
        about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    (folder / ABOUT).write_text(json.dumps(about))


# --- The scores are those of the suite's run. ---


@pytest.mark.parametrize(
    ("model", "detector"),
    [*(("digits-resnet", model_id) for model_id in CORE), *(("digits-clip", model_id) for model_id in VISION_LANGUAGE)],
)
def test_scores_and_verdicts_are_those_of_the_run(
    digits: Evaluation, model: str, detector: str, tmp_path: Path
) -> None:
    bench = digits.model(model)
    run = digits.detector(model, detector)
    Gate.of(run).save(tmp_path)
    gate = Gate.load(tmp_path, device="cpu")
    assert gate.threshold == run.metrics(run.id_scores).threshold
    for image_set in (bench.test_set, digits.suite.image_set("digits-8-9")):
        expected = run.score(image_set).values[:5]
        decisions = gate([image_set[index] for index in range(5)])
        assert [decision.score for decision in decisions] == pytest.approx(expected.tolist(), rel=1e-5)
        assert [decision.accepted for decision in decisions] == (expected >= gate.threshold).tolist()
    logits = next(bench.outputs(image_set).batches(5)).logits
    assert [decision.label for decision in decisions] == logits.argmax(dim=1).tolist()
    probabilities = logits.double().softmax(dim=1).amax(dim=1).tolist()
    assert [decision.probability for decision in decisions] == pytest.approx(probabilities, rel=1e-5)
    words = digits.suite.image_set("digits-train").class_names
    assert [decision.class_name for decision in decisions] == [words[decision.label] for decision in decisions]


def test_the_network_is_asked_once_for_a_list(saved: Path, user_world: Path) -> None:
    gate = Gate.load(saved)
    calls: list[int] = []
    gate.model.network.register_forward_pre_hook(lambda _, images: calls.append(len(images[0])))
    hooked = gate.model.network.forward_features
    gate.model.network.forward_features = lambda images: (calls.append(len(images)), hooked(images))[1]
    gate(sorted((user_world / "images" / "greys").iterdir()))
    assert calls == [20]
    assert gate([]) == []


def test_a_path_its_bytes_and_its_pixels_are_one_image(saved: Path, user_world: Path) -> None:
    path = user_world / "images" / "greys" / "00.png"
    gate = Gate.load(saved)
    one = gate(path)
    assert isinstance(one, Decision)
    for same in (str(path), path.read_bytes(), Image.open(path)):
        assert gate(same) == one
    assert gate([path, str(path)])[1].score == pytest.approx(one.score)


def test_pixels_of_16_bits_are_those_of_their_file(saved: Path) -> None:
    grey = Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8))
    file = io.BytesIO()
    grey.save(file, "png")
    gate = Gate.load(saved)
    assert gate(grey) == gate(file.getvalue())
    with pytest.raises(ImageSetError, match="cannot read image 0: its pixels are floating-point numbers"):
        gate(Image.new("F", (8, 8)))


def test_files_are_decoded_as_those_of_the_test_images(user_world: Path) -> None:
    suite = user_world / "colours.toml"
    entry = "[image_set.colours-test]\n"
    suite.write_text(suite.read_text().replace(entry, f'{entry}decoding = {{ orientation = "exif" }}\n'))
    Gate.of(fitted(user_world)).save(user_world / "gate")
    gate = Gate.load(user_world / "gate")
    upright = Image.open(user_world / "images" / "greys" / "00.png")
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90).save(file, "png", exif=exif)
    assert gate(file.getvalue()) == gate(upright)
    assert gate(file.getvalue()) != replace(gate, decoding=Decoding())(file.getvalue())


def test_a_variant_that_leaves_classifying_to_its_base(saved: Path, user_world: Path) -> None:
    gate, image = Gate.load(saved), user_world / "images" / "greys" / "00.png"
    base, before = gate.model.copy(), gate(image)
    other = (before.label + 1) % 3
    with torch.no_grad():
        base.network.get_classifier().bias[other] = 100
    after = replace(gate, classifier=base)(image)
    assert (after.score, after.accepted) == (before.score, before.accepted)
    assert (after.label, after.class_name) == (other, gate.class_names[other])


def test_a_variant_is_saved_with_its_bases(digits: Evaluation, tmp_path: Path) -> None:
    bench = digits.model("digits-resnet+umap")
    Gate.of(digits.detector("digits-resnet+umap", "msp")).save(tmp_path)
    gate = Gate.load(tmp_path)
    assert gate.model.weights_sha256 == bench.model.weights_sha256
    assert gate.entries.keys() == {"digits-resnet", "digits-resnet+umap"}
    assert (gate.classifier is gate.model) != bench.model.classified_by_base
    assert gate(bench.test_set[0]).score == pytest.approx(
        digits.detector("digits-resnet+umap", "msp").id_scores.values[0], rel=1e-5
    )


def test_the_accepted_share_is_that_of_the_test_images(saved: Path, user_world: Path) -> None:
    gate = Gate.load(saved)
    scores = fitted(user_world).id_scores.values
    assert gate.accepted == accuracy(int((scores >= gate.threshold).sum()), 36)
    assert gate.accepted.value >= 0.95


@pytest.mark.parametrize(("threshold", "accepted"), [(math.inf, False), (-math.inf, True)])
def test_infinite_thresholds_are_kept(saved: Path, user_world: Path, threshold: float, accepted: bool) -> None:
    replace(Gate.load(saved), threshold=threshold).save(user_world / "other")
    text = (user_world / "other" / ABOUT).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    gate = Gate.load(user_world / "other")
    assert gate.threshold == threshold
    assert gate(user_world / "images" / "greys" / "00.png").accepted is accepted


@given(st.floats(allow_nan=False))
def test_every_threshold_is_kept_to_the_last_bit(threshold: float) -> None:
    written = json.dumps(module.SavedGate.model_construct(threshold=threshold).model_dump(mode="json", warnings=False))
    assert float(json.loads(written)["threshold"]) == threshold


def test_a_score_on_the_threshold_is_accepted(saved: Path, user_world: Path) -> None:
    gate, image = Gate.load(saved), user_world / "images" / "greys" / "00.png"
    score = gate(image).score
    assert replace(gate, threshold=score)(image).accepted
    assert not replace(gate, threshold=math.nextafter(score, math.inf))(image).accepted


def test_a_score_that_is_no_number_is_an_error(saved: Path, user_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate.load(saved)
    monkeypatch.setattr(gate.detector, "score", lambda outputs: torch.full((len(outputs),), torch.nan))
    with pytest.raises(ValueError, match="net/mahalanobis: the score of an image is NaN"):
        gate(user_world / "images" / "greys" / "00.png")


# --- Images that are damaged are named. ---


def test_damaged_images_are_named(saved: Path, tmp_path: Path) -> None:
    gate = Gate.load(saved)
    whole = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(whole, "jpeg")
    (tmp_path / "torn.jpg").write_bytes(whole.getvalue()[:400])
    (tmp_path / "empty.png").touch()
    for image in ("torn.jpg", "empty.png", "missing.png"):
        with pytest.raises(ImageSetError, match=re.escape(str(tmp_path / image))):
            gate(tmp_path / image)
    with pytest.raises(ImageSetError, match="image 1"):
        gate([whole.getvalue(), b"no image"])
    with pytest.raises(ImageSetError, match="torn"):
        gate(Image.open(tmp_path / "torn.jpg"))


# --- What is not as it was saved is refused. ---


@pytest.mark.parametrize("file", [ABOUT, TENSORS])
def test_a_folder_without_a_file_is_refused(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(GateError, match=f"{saved} holds no gate: there is no {file}"):
        Gate.load(saved)


def test_changed_tensors_are_refused(saved: Path) -> None:
    content = bytearray((saved / TENSORS).read_bytes())
    content[-1] ^= 1
    (saved / TENSORS).write_bytes(content)
    with pytest.raises(GateError, match=f"{saved / TENSORS} is not the file"):
        Gate.load(saved)


@pytest.mark.parametrize("cut", [0, 200, -1])
def test_a_cut_json_is_refused(saved: Path, cut: int) -> None:
    (saved / ABOUT).write_text((saved / ABOUT).read_text()[:cut])
    with pytest.raises(GateError, match=str(saved)):
        Gate.load(saved)


@pytest.mark.parametrize(
    "edit",
    [
        lambda about: about.update(threshold=-1e9),
        lambda about: about["class_names"].reverse(),
        lambda about: about["model"]["preprocessing"].update(crop_pct=0.5),
        lambda about: about.pop("sha256"),
        lambda about: about["decoding"].update(orientation="exif"),
    ],
)
def test_a_changed_json_is_refused(saved: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    change(saved, edit, sign=False)
    with pytest.raises(GateError, match=f"{saved / ABOUT} was changed after it was saved"):
        Gate.load(saved)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda about: about.update(schema_version=2), "no gate of schema 1"),
        (lambda about: about.pop("threshold"), "threshold: Field required"),
        (lambda about: about.update(threshold="nan"), "threshold: "),
        (lambda about: about.update(more=1), "more: "),
        (lambda about: about["detector"].pop("options"), "options"),
        (lambda about: about["detector"].update(id="no-such"), "no-such"),
        (lambda about: about["model"].update(weights_sha256="0" * 64), "fitted on other weights than those of"),
        (lambda about: about["model"]["preprocessing"].update(crop_pct=0.5), "crop_pct is 1.0, not 0.5"),
    ],
)
def test_what_does_not_fit_is_refused(saved: Path, edit: Callable[[dict[str, Any]], Any], says: str) -> None:
    change(saved, edit, sign=True)
    with pytest.raises(GateError, match=says) as error:
        Gate.load(saved)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gate_whose_scores_are_doubtful_warns(user_world: Path) -> None:
    doubtful = fitted(user_world)
    doubtful.warnings = ("the scores are doubtful",)
    with pytest.warns(UserWarning, match="net/mahalanobis: the scores are doubtful"):
        Gate.of(doubtful)


def test_a_gate_of_a_version_with_another_scale_of_scores_is_refused(user_world: Path) -> None:
    """Its threshold is the logarithm of a probability, where the score is its log-odds now."""
    Gate.of(fitted(user_world, "msp")).save(user_world / "gate")

    def as_it_was(about: dict[str, Any]) -> None:
        detector = about["detector"]
        del detector["score_scale"], detector["sha256"]
        detector["sha256"] = hashlib.sha256(json.dumps(detector, sort_keys=True).encode()).hexdigest()

    change(user_world / "gate", as_it_was, sign=True)
    with pytest.raises(
        GateError, match=r"this state of msp is of a version whose scores are other numbers: .*; save it"
    ):
        Gate.load(user_world / "gate")


def test_a_gate_says_which_version_made_it_and_older_ones_that_do_not_are_loaded(saved: Path) -> None:
    made = Gate.load(saved).made
    assert made["package_version"] == package_version() is not None
    assert (made["git_commit"], made["git_dirty"]) == package_git_state()
    change(saved, lambda about: about["made"].pop("package_version"), sign=True)
    assert Gate.load(saved).made == {name: value for name, value in made.items() if name != "package_version"}


def test_other_weights_are_refused(saved: Path, user_world: Path) -> None:
    shutil.rmtree(user_world / "net")
    with pytest.raises(ModelError, match="model net: cannot load local-dir:net"):
        Gate.load(saved)
    torch.manual_seed(1)
    save_network(user_world / "net", classes=3)
    Gate.load(saved)  # the same weights again, from the same seed
    from safetensors.torch import load_file, save_file

    file = user_world / "net" / "model.safetensors"
    weights = load_file(file)
    weights["fc.bias"] += 1e-3
    save_file(weights, file)
    with pytest.raises(GateError, match="fitted on other weights than those of local-dir:net"):
        Gate.load(saved)


def test_a_gate_moves_with_its_suite(saved: Path, user_world: Path, tmp_path: Path) -> None:
    image = user_world / "images" / "greys" / "00.png"
    before = Gate.load(saved)(image)
    moved = user_world.rename(tmp_path / "elsewhere")
    assert Gate.load(moved / "gate")(moved / "images" / "greys" / "00.png") == before


def test_a_folder_that_cannot_be_written_is_named(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GateError, match="cannot write the gate"):
        Gate.load(saved).save(tmp_path / "file" / "gate")


# --- The command and the document. ---


def test_the_command_saves_a_gate(user_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, store, folder = (str(user_world / name) for name in ("colours.toml", "store", "gate"))
    options = ["--suite", suite, "--store", store, "--device", "cpu"]
    assert main(["save", "net", "mahalanobis", folder, *options]) == 0
    gate = Gate.load(folder)
    assert "net with mahalanobis accepts scores from" in (said := capsys.readouterr().out)
    assert f"{gate.accepted.value:.1%} of the 36 images of colours-test" in said
    image = user_world / "images" / "greys" / "00.png"
    expected = fitted(user_world).score(fitted(user_world).model.suite.image_set("greys"))
    assert gate(image).score == pytest.approx(expected.values[0], rel=1e-5)


@pytest.mark.parametrize(("model", "detector", "says"), [("nets", "msp", "'net'"), ("net", "mps", "'msp'")])
def test_a_wrong_name_gets_a_hint(user_world: Path, model: str, detector: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {says}"):
        Gate.fit(model, detector, suite=str(user_world / "colours.toml"), store=user_world / "store", device="cpu")


def test_the_code_of_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    stopped: list[str] = []
    names = {"camera": [Image.fromarray(pixels)] * 2, "stop": stopped.append}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "gate.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out.startswith("rejected ")
    assert len(stopped) == 2


def test_every_detector_of_the_document_is_one() -> None:
    commands = re.findall(
        r"python -m benchmark save \S+ (\S+)", (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    )
    assert [create(model_id).id for model_id in commands] == commands
