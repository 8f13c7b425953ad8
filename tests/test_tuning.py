"""Options are chosen between the val split and an OOD set that serves this alone, and the records say so."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmark.images.image_set import ImageSetError
from benchmark.limits.limits import Limits
from benchmark.metrics import auroc
from benchmark.records import Record
from benchmark.results import ResultsFolder
from benchmark.running import store
from benchmark.running.evaluation import Evaluation
from benchmark.running.fitted_detector import choose_options
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.session import Draft, Session
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from benchmark.suites.suite import CaseId
from benchmark.suites.tuning import combinations, tune
from detectors import Detector, create

pytestmark = pytest.mark.usefixtures("one_thread")

CORRUPTED = 'images/{}"\ncorruption = {{ kind = "contrast", amount = 80 }}\n# "'
TUNING = """
[tuning]
ood = "mud"

[tuning.options.knn]
k = [30, 2, 1, 7]

[image_set.mud]
title = "Brown noise"
folder = "images/mud"
licence = "none needed"
source = "tests/test_tuning.py"
"""


def test_all_choices_of_one_value_an_option_are_tried_in_order() -> None:
    assert combinations({"a": (1, 2), "b": ("x",), "c": (True, False)}) == [
        {"a": 1, "b": "x", "c": True},
        {"a": 1, "b": "x", "c": False},
        {"a": 2, "b": "x", "c": True},
        {"a": 2, "b": "x", "c": False},
    ]


@given(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=1))
def test_the_first_of_the_best_is_chosen(aurocs: list[float]) -> None:
    tuned = tune("mud", {"k": range(len(aurocs))}, lambda options: aurocs[options["k"]])
    assert tuned.ood == "mud"
    assert tuned.options == {"k": int(np.argmax(aurocs))}
    assert tuned.tried == [{"options": {"k": k}, "auroc": value} for k, value in enumerate(aurocs)]


@pytest.fixture
def tuned_world(user_world: Path) -> Path:
    """The world of colours, with k-nearest-neighbours that is tuned on mud."""
    mud = user_world / "images" / "mud"
    mud.mkdir()
    random = np.random.default_rng(7)
    for index in range(10):
        pixels = np.array([120, 90, 60]) + random.integers(-90, 90, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(mud / f"{index}.png")
    file = user_world / "colours.toml"
    file.write_text(file.read_text().replace('["msp", "mahalanobis"]', '["msp", "knn"]') + TUNING)
    return user_world


def session_of(folder: Path) -> Session:
    suite = load_suite(str(folder / "colours.toml"), folder)
    limits = Limits(suite, {}, 1.0, None, recording=False)
    evaluation = Evaluation(LoadedSuite(suite, Store(folder / "store"), torch.device("cpu")))
    return Session(evaluation, limits, ResultsFolder(folder / "results"), "run")


def records_of(session: Session, detector: str, set_id: str) -> list[Record]:
    draft = Draft(CaseId("net", detector, set_id, "far"))
    prepared = session.prepare(draft, session.suite.image_set(set_id))
    prepared.judge(prepared.score())
    return draft.finished("run", session.suite.suite, "")


def test_the_options_with_the_best_auroc_on_val_and_the_tuning_set_run(tuned_world: Path) -> None:
    session = session_of(tuned_world)
    records = records_of(session, "knn", "noise")
    tuned = records[-1].tuned
    bench = session.evaluation.model("net")
    mud, noise = (bench.outputs(session.suite.image_set(set_id)) for set_id in ("mud", "noise"))
    fitted = {k: create("knn", k=k).fit(bench.split("train"), bench.model.head) for k in (30, 2, 1, 7)}
    expected = {k: auroc(detector.score(bench.split("val")), detector.score(mud)) for k, detector in fitted.items()}
    assert len(set(expected.values())) > 1  # or nothing is chosen
    assert tuned.ood == "mud"
    assert {one["options"]["k"]: one["auroc"] for one in tuned.tried} == expected
    best = max(expected, key=expected.get)
    assert tuned.options == {"k": best}
    case_scores = session.evaluation.detector("net", "knn").score(session.suite.image_set("noise")).values
    np.testing.assert_array_equal(case_scores, fitted[best].score(noise).numpy())

    assert {record.id: record.role for record in records if record.kind == "set"}["mud"] == "tuning"
    detector = next(record for record in records if record.kind == "detector")
    assert "k" not in detector.options_used  # it is another one for each model
    again = records_of(session, "msp", "noise")[-1]
    assert again.tuned is None


def test_nothing_that_is_evaluated_takes_part_and_no_network_runs_twice(
    tuned_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tuned_world)
    bench = session.evaluation.model("net")
    forward, score = store.forward, Detector.score
    ran: list[str] = []
    scored: list[object] = []
    monkeypatch.setattr(
        store, "forward", lambda model, images, rows: ran.append(images.id) or forward(model, images, rows)
    )
    monkeypatch.setattr(Detector, "score", lambda self, outputs: scored.append(outputs) or score(self, outputs))
    choose_options(bench, "knn")
    mud = bench.outputs(session.suite.image_set("mud"))
    assert sorted(ran) == ["colours-train", "colours-val", "mud"]
    assert scored == [bench.split("val"), mud] * 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('ood = "mud"', 'ood = "mut"', "no image set is called 'mut' .did you mean 'mud'"),
        ('ood = "mud"', 'ood = "greys"', "tuning.ood: greys holds images of greys, which the suite uses, too"),
        ('ood = "mud"', 'ood = "colours-test"', "tuning.ood: colours-test holds images of colours-test"),
        ("images/mud", "images/noise", "tuning.ood: mud holds images of noise"),
        ("images/mud", "images/colours-val", "tuning.ood: mud holds images of colours-val"),
        ('val = "colours-val"\n', "", "tuning: in_distribution.val is needed"),
        ('val = "colours-val"', 'val = "colours-test"', "in_distribution: colours-test holds images of colours-test"),
        ('train = "colours-train"', 'train = "colours-test"', "in_distribution: colours-test holds images of"),
        ("images/mud", CORRUPTED.format("noise"), "tuning.ood: mud holds images of noise"),
        ("images/mud", CORRUPTED.format("colours-test"), "tuning.ood: mud holds images of colours-test"),
        ("images/greys", CORRUPTED.format("colours-test"), "ood: greys holds images of colours-test"),
        ("images/mud", CORRUPTED.format("mud").replace("80", "100"), "`corruption`: contrast of 100 changes nothing"),
        ("options.knn]", "options.kn]", "no detector of the suite is called 'kn' .did you mean 'knn'"),
        ("k = [30", "kk = [30", "tuning.options.knn: knn has no option 'kk' .did you mean 'k'"),
        ("[30, 2", "[30, 0", "tuning.options.knn: knn.*k"),
        ("[30, 2, 1, 7]", "[]", "tuning.options.knn: k: name the values to try"),
        ("[tuning.options", "[options.knn]\nk = 5\n[tuning.options", "tuning.options.knn: k: fixed by options.knn"),
        ('models = ["net"]', 'models = ["net"]\nshifted = ["greys"]', "shifted: greys holds images of greys"),
        ('models = ["net"]', 'models = ["net"]\nshifted = ["mud"]', "tuning.ood: mud holds images of mud"),
        ('models = ["net"]', 'models = ["net"]\noutliers = "noise"', "outliers: noise holds images of noise"),
    ],
)
def test_a_mistake_is_refused_when_the_suite_is_read(tuned_world: Path, old: str, new: str, says: str) -> None:
    file = tuned_world / "colours.toml"
    load_suite(str(file))  # the twin
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=says):
        load_suite(str(file))


def shift_mud(folder: Path) -> None:
    """A shifted set of which one image is also in the tuning set."""
    shutil.copytree(folder / "images" / "colours-test", folder / "images" / "odd")
    copy_into(folder, "mud/3.png", "odd/red/leak.png")
    file = folder / "colours.toml"
    text = file.read_text().replace('models = ["net"]', 'models = ["net"]\nshifted = ["odd"]', 1)
    odd = '[image_set.odd]\ntitle = "Odd"\nfolder = "images/odd"\nclasses = ["blue", "green", "red"]\n'
    file.write_text(text + odd + 'licence = "none needed"\nsource = "tests/test_tuning.py"\n')


def copy_into(folder: Path, image: str, other: str) -> None:
    shutil.copy(folder / "images" / image, folder / "images" / other)


@pytest.mark.parametrize(
    ("leak", "says"),
    [
        (
            lambda world: copy_into(world, "colours-test/red/03.png", "mud/leak.png"),
            "image set mud: 1 of its 11 .* test",
        ),
        (lambda world: copy_into(world, "noise/03.png", "mud/leak.png"), "image set noise: 1 of its 20 .* also in mud"),
        (shift_mud, "image set odd: 1 of its 37 .* also in mud"),
    ],
)
def test_images_that_are_evaluated_are_found_among_those_to_tune_with(
    tuned_world: Path, leak: Callable[[Path], None], says: str
) -> None:
    leak(tuned_world)
    with pytest.raises(ImageSetError, match=says):
        records_of(session_of(tuned_world), "knn", "noise")
    assert records_of(session_of(tuned_world), "msp", "noise")[-1].status == "passed"  # it is not tuned


def test_options_that_do_not_fit_are_named(tuned_world: Path) -> None:
    file = tuned_world / "colours.toml"
    file.write_text(
        file.read_text().replace('"knn"', '"vim"').replace(".knn]\nk = [30, 2, 1, 7]", ".vim]\ndimension = [5000]")
    )
    with pytest.raises(ValueError, match=r"net/vim: tuning with .'dimension': 5000.: vim: .*"):
        records_of(session_of(tuned_world), "vim", "noise")
