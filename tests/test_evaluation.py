"""The full spectrum: shifted in-distribution images are classified, accepted or not, and count as ID with the clean."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmark import evaluate
from benchmark.images.image_set import ImageSetError, MissingImageSetError
from benchmark.limits.limits import Limits
from benchmark.metrics import accepted, accuracy, fpr_at_tpr, measure
from benchmark.records import Case, ModelRecord, Record
from benchmark.results import ResultsFolder, ResultsInMemory, RunId
from benchmark.running.evaluation import Evaluation
from benchmark.running.loaded_model import LoadedModel
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.once import Once
from benchmark.running.session import Draft, Session
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from benchmark.suites.suite import CaseId

pytestmark = pytest.mark.usefixtures("one_thread")

SHIFTED = """
[image_set.dark]
title = "Colours of little contrast"
folder = "images/colours-test"
classes = ["blue", "green", "red"]
corruption = { kind = "contrast", amount = 20 }
licence = "none needed"
source = "tests/conftest.py"

[image_set.two]
title = "Two of the colours, in another order, blurred"
folder = "images/two"
classes = ["red", "blue"]
corruption = { kind = "blur", amount = 2 }
licence = "none needed"
source = "tests/conftest.py"

[image_set.gone]
title = "Nobody has fetched it"
local = "gone"
classes = ["blue", "green", "red"]
licence = "none needed"
source = "tests/test_evaluation.py"
"""


def session_of(folder: Path, shifted: str, change: tuple[str, str] = ("", "")) -> Session:
    """The suite of colours with some shifted sets, at work in a folder."""
    file = folder / "colours.toml"
    text = file.read_text().replace('models = ["net"]', f'models = ["net"]\nshifted = {shifted}', 1) + SHIFTED
    assert change[0] in text
    file.write_text(text.replace(*change, 1))
    two = folder / "images" / "two"
    for colour in ("red", "blue"):
        (two / colour).mkdir(parents=True)
        for image in sorted((folder / "images" / "colours-test" / colour).iterdir())[:5]:
            (two / colour / image.name).write_bytes(image.read_bytes())
    suite = load_suite(str(file), folder)
    limits = Limits(suite, {}, 1.0, None, recording=False)
    evaluation = Evaluation(LoadedSuite(suite, Store(folder / "store"), torch.device("cpu")))
    return Session(evaluation, limits, ResultsFolder(folder / "results"), "run")


def records_of(session: Session, detector: str = "msp", set_id: str = "noise") -> list[Record]:
    draft = Draft(CaseId("net", detector, set_id, "far"))
    prepared = session.prepare(draft, session.suite.image_set(set_id))
    prepared.judge(prepared.score())
    return draft.finished("run", session.suite.suite, "")


def case_of(session: Session, detector: str = "msp", set_id: str = "noise") -> Case:
    case = records_of(session, detector, set_id)[-1]
    assert isinstance(case, Case)
    return case


def correct_by_hand(bench: LoadedModel, set_id: str) -> np.ndarray:
    """Whether the class of the largest logit has the name of the folder that the image lies in."""
    image_set = bench.suite.image_set(set_id)
    names = ["blue", "green", "red"]
    predicted = bench.outputs(image_set).logits[:].argmax(dim=1)
    folders = [image.split("/")[0] for image in image_set.image_ids]
    return np.array([names[index] == folder for index, folder in zip(predicted, folders, strict=True)])


@pytest.mark.parametrize("detector", ["msp", "mahalanobis"])
def test_shifted_images_count_as_in_distribution(user_world: Path, detector: str) -> None:
    session = session_of(user_world, '["dark", "two"]')
    case = case_of(session, detector)
    bench = session.evaluation.model("net")
    scored = session.evaluation.detector("net", detector)
    clean, dark, two, ood = (
        scored.score(session.suite.image_set(set_id)).values for set_id in ("colours-test", "dark", "two", "noise")
    )
    right = [correct_by_hand(bench, set_id) for set_id in ("colours-test", "dark", "two")]
    assert case.metrics == measure(clean, ood, id_correct=right[0])
    pooled = np.concatenate([clean, dark, two])
    assert case.full_spectrum == measure(pooled, ood, id_correct=np.concatenate(right))
    assert case.full_spectrum.id_images == len(clean) + len(dark) + len(two) == 36 + 36 + 10
    assert case.full_spectrum.fpr_at_95.value == fpr_at_tpr(pooled, ood)  # their threshold, not that of the clean
    assert case.shifted_accepted == {"dark": accepted(clean, dark), "two": accepted(clean, two)}


def test_accuracy_on_shifted_sets_goes_by_the_names_of_their_classes(user_world: Path) -> None:
    session = session_of(user_world, '["dark", "two"]')
    model = next(record for record in records_of(session) if isinstance(record, ModelRecord))
    bench = session.evaluation.model("net")
    for set_id, estimate in ({"colours-test": model.id_accuracy} | model.shifted_accuracy).items():
        right = correct_by_hand(bench, set_id)
        assert estimate == accuracy(int(right.sum()), len(right))
    assert model.shifted_accuracy.keys() == {"dark", "two"}
    two = session.suite.image_set("two")
    assert (
        session.suite.id_labels(two, ("blue", "green", "red")).tolist() == [0] * 5 + [2] * 5 != two.labels.tolist()
    )  # the twin


def test_the_records_hold_the_shifted_sets_and_their_scores(user_world: Path) -> None:
    session = session_of(user_world, '["dark", "two"]')
    records = records_of(session)
    roles = {record.id: record.role for record in records if record.kind == "set"}
    assert roles["dark"] == roles["two"] == "shifted"
    case = records[-1]
    folder = user_world / "results" / "colours"
    paths = {"noise": case.scores.path, "colours-test": case.scores.id_path, **case.scores.shifted_paths}
    images = {set_id: pq.ParquetFile(folder / path).metadata.num_rows for set_id, path in paths.items()}
    assert images == {"colours-test": 36, "dark": 36, "two": 10, "noise": 20}
    assert case.tuned is None


def test_results_in_memory_are_those_of_a_folder(user_world: Path) -> None:
    session = session_of(user_world, '["dark"]')
    before = case_of(session)
    folder = (user_world / "results").rename(user_world / "away")
    memory = ResultsInMemory()
    case = case_of(replace(session, results=memory, evaluation=Evaluation(session.suite)))
    assert (case.scores, case.metrics) == (before.scores, before.metrics)
    kept, written = (one.scores(RunId("colours", "run"), case.scores.path) for one in (memory, ResultsFolder(folder)))
    assert kept.equals(written)
    assert not (user_world / "results").exists()


def test_a_detector_that_is_fitted_anew_keeps_the_scores_of_the_first(user_world: Path) -> None:
    session = session_of(user_world, "[]")
    case_of(session, set_id="noise")
    again = replace(session, evaluation=Evaluation(session.suite))
    scores = case_of(again, set_id="greys").scores
    files = {file.relative_to(user_world / "results" / "colours").as_posix() for file in user_world.rglob("*.parquet")}
    assert files == {f"run/net/msp/{set_id}.parquet" for set_id in ("colours-test", "noise", "greys")}
    assert {scores.path, scores.id_path} < files


def test_a_shifted_set_that_nobody_has_fetched_stops_no_case(user_world: Path) -> None:
    session = session_of(user_world, '["gone", "dark"]')
    case = case_of(session)
    assert case.status == "passed"
    assert case.full_spectrum is None
    assert case.shifted_accepted.keys() == {"dark"}


def test_a_suite_without_shifted_sets_has_no_full_spectrum(user_world: Path) -> None:
    case = case_of(session_of(user_world, "[]"))
    assert case.full_spectrum is None
    assert case.shifted_accepted == {}
    assert case.metrics.oscr is not None


def test_a_unit_test_is_no_part_of_the_full_spectrum(user_world: Path) -> None:
    session = session_of(user_world, '["dark"]')
    draft = Draft(CaseId("net", "msp", "noise", "unit-test"))
    prepared = session.prepare(draft, session.suite.image_set("noise"))
    prepared.judge(prepared.score())
    case = draft.finished("run", session.suite.suite, "")[-1]
    assert case.full_spectrum is None
    assert case.shifted_accepted.keys() == {"dark"}


@pytest.mark.parametrize(("unlabelled", "shifted_labelled"), [("colours-test", False), ("dark", True)])
def test_images_without_labels_have_no_errors_to_count(
    user_world: Path, unlabelled: str, shifted_labelled: bool
) -> None:
    text = (
        "classes = ['blue', 'green', 'red']" if unlabelled == "colours-test" else 'classes = ["blue", "green", "red"]'
    )
    place = f'folder = "images/{unlabelled}"\n' if unlabelled == "colours-test" else 'folder = "images/colours-test"\n'
    session = session_of(user_world, '["dark"]', (place + text, place))
    records = records_of(session)
    model = next(record for record in records if isinstance(record, ModelRecord))
    case = records[-1]
    assert case.full_spectrum.oscr is None
    assert case.full_spectrum.aurc is None
    if shifted_labelled:
        assert model.shifted_accuracy == {}
        assert case.metrics.oscr is not None
    else:
        assert model.id_accuracy is None
        assert case.metrics.oscr is None


def test_a_class_that_is_not_in_distribution_is_named(user_world: Path) -> None:
    session = session_of(user_world, '["two"]', ('classes = ["red", "blue"]', 'classes = ["yellow", "blue"]'))
    (user_world / "images" / "two" / "red").rename(user_world / "images" / "two" / "yellow")
    with pytest.raises(ImageSetError, match=r"image set two: 1 of its classes are none of .* such as 'yellow'"):
        case_of(session)


def test_errors_are_those_of_the_network_that_classifies(user_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(user_world, '["dark"]')
    model = session.evaluation.model("net").model
    base = model.copy()
    with torch.no_grad():
        base.network.get_classifier().bias[2] += 1e4  # it takes all for red
    monkeypatch.setattr(session.suite, "base_of", lambda model: base)
    edit = SimpleNamespace(about={"classified_by_base": True}, sha256="0" * 64, ratios={})
    variant = LoadedModel(session.suite, replace(model, edits=(edit,), base_sha256=model.weights_sha256))
    reds = (variant.test_set.labels == 2).tolist()
    assert variant.correct(variant.test_set).tolist() == reds != correct_by_hand(variant, "colours-test").tolist()
    assert variant.correct(variant.shifted_sets[0]).tolist() == reds


def test_a_suite_without_a_training_split_serves_what_needs_none(user_world: Path) -> None:
    session = session_of(user_world, '["dark"]', ('train = "colours-train"\nval = "colours-val"\n', ""))
    assert session.evaluation.model("net").split("train") is None
    assert case_of(session).full_spectrum is not None


def test_outputs_of_a_split_are_made_for_those_who_learn_from_it(user_world: Path) -> None:
    session = session_of(user_world, "[]")

    def stored() -> set[str]:
        return {json.loads(file.read_text())["image_set"] for file in (user_world / "store").glob("*/about.json")}

    case_of(session, "msp")
    assert stored() == {"colours-test", "noise"}
    case_of(session, "mahalanobis")
    assert stored() == {"colours-test", "noise", "colours-train"}


def test_test_images_may_name_their_classes_in_another_order(user_world: Path) -> None:
    here = 'folder = "images/colours-test"\n'
    order = "classes = ['blue', 'green', 'red']"
    session = session_of(user_world, "[]", (here + order, here + "classes = ['red', 'green', 'blue']"))
    test = session.suite.image_set("colours-test")
    colours = [image.split("/")[0] for image in test.image_ids]
    assert session.suite.id_labels(test, ("blue", "green", "red")).tolist() == [
        ["blue", "green", "red"].index(name) for name in colours
    ]


def test_a_failure_does_not_grow_with_each_time_that_it_is_raised() -> None:
    once = Once()

    def frames() -> list[str]:
        with pytest.raises(ZeroDivisionError) as failure:
            once("it", lambda: 1 // 0)  # type: ignore[arg-type]
        return [entry.name for entry in failure.traceback]

    first = frames()
    assert first[-1] == "<lambda>"  # where it went wrong is still said
    assert frames() == frames() == first


def test_without_training_images_only_the_detectors_that_learn_lack_theirs(user_world: Path) -> None:
    session = session_of(user_world, "[]", ('folder = "images/colours-train"', 'local = "gone-too"'))
    assert case_of(session, "msp").status == "passed"
    assert {record.id for record in records_of(session, "msp", "greys") if record.kind == "set"} == {"greys"}
    with pytest.raises(MissingImageSetError, match="colours-train"):
        case_of(session, "mahalanobis")


def test_without_test_images_no_detector_runs(user_world: Path) -> None:
    session = session_of(user_world, "[]", ('folder = "images/colours-test"', 'local = "gone-too"'))
    with pytest.raises(MissingImageSetError, match="colours-test"):
        case_of(session, "msp")


def test_labels_of_val_are_in_the_order_of_the_networks_classes(user_world: Path) -> None:
    other = ("folder = \"images/colours-val\"\nclasses = ['blue', 'green', 'red']", "")
    text = (user_world / "colours.toml").read_text()
    assert other[0] in text
    turned = other[0].replace("['blue', 'green', 'red']", "['red', 'green', 'blue']")
    session = session_of(user_world, "[]", (other[0], turned))
    val = session.suite.image_set("colours-val")
    labels = session.evaluation.model("net").split("val").labels
    names = [("blue", "green", "red")[label] for label in labels]
    assert names == [image.split("/")[0] for image in val.image_ids]
    assert val.labels.tolist() != labels.tolist()


# --- Splits that share images. ---


def shared(world: Path, images: int, copies: int) -> Path:
    """Test and training images, that many more of each, some of which are the same under other names."""
    from PIL import Image

    random = np.random.default_rng(0)
    folder = world / "images" / "colours-test" / "red"
    for number in range(images):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"more-{number}.png")
        other = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(other).save(world / "images" / "colours-train" / "red" / f"other-{number}.png")
    for number in range(copies):
        train = world / "images" / "colours-train" / "red" / f"copy-{number}.png"
        train.write_bytes((folder / f"more-{number}.png").read_bytes())
    return world / "images"


@pytest.mark.parametrize("role", ["train", "val"])
def test_splits_that_share_more_than_a_few_images_are_refused(user_world: Path, role: str) -> None:
    images = shared(user_world, 4, 4)
    given = {"in_distribution": str(images / "colours-test"), role: str(images / "colours-train")}
    ood = {"noise": str(images / "noise")}
    result = evaluate(f"local-dir:{user_world / 'net'}", **given, ood=ood, detectors="msp")
    [case] = result.cases
    assert case.status == "error"
    assert re.search(
        rf"4 of the \d+ {role} images .*colours-train.* are also among the test images .*red/", case.reason
    )


def test_a_few_shared_images_are_told(user_world: Path) -> None:
    images = shared(user_world, 100, 1)
    result = evaluate(
        f"local-dir:{user_world / 'net'}",
        in_distribution=str(images / "colours-test"),
        train=str(images / "colours-train"),
        val=str(images / "colours-val"),
        ood={"noise": str(images / "noise")},
        detectors=["msp", "knn"],
    )
    assert not [case.reason for case in result.cases if not case.metrics]
    [told] = [remark for remark in result.remarks if "are also among" in remark]
    assert told.startswith("WARNING: net: 1 of the ")


def test_a_test_set_may_lack_classes_that_train_has(user_world: Path) -> None:
    images = user_world / "images"
    shutil.rmtree(images / "colours-test" / "green")
    given = {"train": str(images / "colours-train"), "val": str(images / "colours-val")}
    ood = {"noise": str(images / "noise")}
    for splits in ({"train": given["train"]}, given):
        result = evaluate(
            f"local-dir:{user_world / 'net'}",
            in_distribution=str(images / "colours-test"),
            **splits,
            ood=ood,
            detectors=["msp", "mahalanobis"],
        )
        assert not [case.reason for case in result.cases if not case.metrics]
        assert {case.metrics.id_images for case in result.cases} == {24 if "val" in splits else 20}
        test = next(record for record in result.records if record.kind == "set" and record.role == "test")
        assert test.classes == ["blue", "green", "red"]
    (images / "colours-test" / "green").mkdir()
    with pytest.raises(ValueError, match=r"no image of class green in .*remove the folders without images"):
        evaluate(
            f"local-dir:{user_world / 'net'}",
            in_distribution=str(images / "colours-test"),
            **given,
            ood=ood,
            detectors="msp",
        )
