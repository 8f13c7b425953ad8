import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmark.errors import UserError
from benchmark.images import entries as image_sets
from benchmark.images.readers import read_list
from benchmark.suites.loading import load_suite, suite_names
from benchmark.training.optimisation import Schedule
from detectors import available, describe
from unit_tests_ood import generate, names


def test_every_shipped_suite_loads_and_has_cases() -> None:
    for name in suite_names():
        suite = load_suite(name)
        assert list(suite.ood_cases())


def test_a_list_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "openood" / "benchmark_imglist" / "cifar10"
    lists.mkdir(parents=True)
    (tmp_path / "openood" / "images_classic").mkdir()
    for name in ("train_cifar10", "test_cifar10", "test_cifar10c", "val_tin"):
        (lists / f"{name}.txt").write_text(f"{name}/0.png 0\n")
    read: list[str] = []
    monkeypatch.setattr(image_sets, "read_list", lambda file: read.append(file.name) or read_list(file))
    load_suite("openood-cifar10", tmp_path)
    assert len(read) == len(set(read)) == 4


def test_the_grid_is_models_times_detectors_times_sets(world: Path) -> None:
    suite = load_suite(str(world / "colours.toml"))
    assert [str(case) for case in suite.ood_cases()] == [
        "net/msp/greys",
        "net/msp/noise",
        "net/mahalanobis/greys",
        "net/mahalanobis/noise",
    ]
    assert [case.role for case in suite.ood_cases()] == ["near", "far"] * 2
    assert len(list(suite.unit_test_cases(names))) == 17


def test_unit_tests_meet_a_core_of_the_detectors_and_in_the_whole_suite_all(user_world: Path) -> None:
    file = user_world / "colours.toml"
    text = file.read_text()
    assert 'detectors = ["mahalanobis"]' in text.partition("[unit_tests]")[2]
    suite = load_suite(str(file))
    assert {case.detector for case in suite.unit_test_cases(names)} == {"mahalanobis"}
    assert {case.detector for case in suite.whole().unit_test_cases(names)} == {"msp", "mahalanobis"}
    assert list(suite.whole().ood_cases()) == list(suite.ood_cases())


def test_a_star_stands_for_the_detectors_that_a_suites_models_can_serve(user_world: Path) -> None:
    needs = {detector_id: {*describe(detector_id)["needs"]} for detector_id in available()}
    of_any = {detector_id for detector_id in available() if not needs[detector_id] & {"text", "patches"}}
    file = user_world / "colours.toml"
    file.write_text(file.read_text().replace('detectors = ["msp", "mahalanobis"]', 'detectors = ["*"]'))
    assert set(load_suite(str(file)).detectors) == of_any
    digits = load_suite("digits")
    assert set(digits.detectors) == {*of_any, "mcm", "gl-mcm"}  # neglabel needs words
    met = {
        model: {case.detector for case in digits.ood_cases() if case.model == model} for model in digits.entry.models
    }
    assert met["digits-resnet"] == of_any
    assert met["digits-clip"] == {*of_any, "mcm", "gl-mcm"}


def test_an_unknown_suite_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no suite 'digit' .did you mean 'digits'"):
        load_suite("digit")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('models = ["net"]', 'models = ["nett"]', "no model is called 'nett' .did you mean 'net'"),
        ('"msp", "mahalanobis"', '"mps"', "no detector is called 'mps' .did you mean 'msp'"),
        ('near = ["greys"]', 'near = ["grays"]', "no image set is called 'grays' .did you mean 'greys'"),
        ("near = 0.5", "near = 1.5", "goals.near: Input should be less than or equal to 1"),
        ("size = [32, 32]", "size = [32]", "unit_tests.size"),
        ('title = "Colours"', "", "title: Field required"),
        ('title = "Colours"', 'title = "Colours"\ncolour = 1', "colours.toml: colour: unknown key"),
        ('title = "Colours"', 'title = "Colours', "not valid TOML"),
        ('title = "Colours"', 'title = "Colours"\n[options.knn]\nk = 0', "no detector of the suite is called 'knn'"),
        ('title = "Colours"', 'title = "Colours"\n[options.mahalanobis]\nkk = 5', "mahalanobis has no option 'kk'"),
        ("[model.net]", '[model."my/net"]', "'my/net' cannot be an id"),
        ('folder = "images/greys"', "", "greys: .*one of `parquet`, `folder` and `local`"),
    ],
)
def test_a_mistake_in_a_suite_is_named_with_its_file(user_world: Path, old: str, new: str, says: str) -> None:
    file = user_world / "colours.toml"
    load_suite(str(file))  # the twin: without the mistake it loads
    text = file.read_text()
    assert old in text
    changed = text.replace(old, new, 1)
    if "[options" in new:  # a table has to follow the plain values
        changed = text + "\n" + new.partition("\n")[2]
    file.write_text(changed)
    with pytest.raises(ValueError, match=says) as error:
        load_suite(str(file))
    assert "colours.toml" in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "place", "bound"),
    [
        ("images = 12", "images = 1000000000000", "unit_tests.images", "100000"),
        ("images = 12", f"images = {10**400}", "unit_tests.images", "100000"),
        ("size = [32, 32]", "size = [32, 5000]", "unit_tests.size.1", "4096"),
        ('recipe = "', 'preprocessing = {input_size = [3, 99999, 8], mean = [0, 0, 0], std = [1, 1, 1]}\nrecipe = "',
         "net.preprocessing.input_size.1", "4096"),
    ],
)  # fmt: skip
def test_a_number_that_would_work_for_ever_is_refused_with_its_bound(
    user_world: Path, before: str, after: str, place: str, bound: str
) -> None:
    file = user_world / "colours.toml"
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=re.escape(f"{file}: {place}: Input should be less than or equal to {bound}")):
        load_suite(str(file))


def test_a_training_without_end_is_refused_with_its_bound() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 100000"):
        Schedule(epochs=10**12, learning_rate=0.1)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"count: 1000000000000 images of 224 x 224 pixels take 150\.5 PB, and this"):
        generate("black", count=10**12)
    with pytest.raises(ValueError, match="take more than 1,000 PB"):
        generate("black", count=10**30, size=(10**300, 2))
