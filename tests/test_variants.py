"""What all variants share: edits and their files, the training loop, recipes, and their place in a suite."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from benchmark.commands.app import main
from benchmark.entries import read_entries
from benchmark.images.entries import ImageSetEntry
from benchmark.models.edits import Edit, EditError, load_edit
from benchmark.models.entries import BUILT_IN as MODELS
from benchmark.models.entries import ModelEntry, ModelError, root_of
from benchmark.models.loading import load_model
from benchmark.models.model import Model
from benchmark.running.evaluation import Evaluation
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from benchmark.suites.suite import Suite
from benchmark.training.data import IN_MEMORY_BYTES, TrainingSet
from benchmark.training.from_scratch import RECIPES
from benchmark.training.optimisation import Progress, Schedule, optimise
from benchmark.user.messages import told
from benchmark.variants import making
from benchmark.variants.making import make_edit, method_of
from benchmark.variants.method import Method, TrainingData
from tests.conftest import IMAGE_SET
from unit_tests_ood import names

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
COLOURS = ("blue", "green", "red")

VARIANTS = """
outliers = "outliers"

[variants]
models = ["net+double", "net+double+blind"]
detectors = ["msp"]

[image_set.outliers]
title = "Outliers"
folder = "images/outliers"
licence = "none needed"
source = "tests/test_variants.py"

[model."net+double"]
title = "A doubled bias"
base = "net"
edit = "edits/double"
recipe = { method = "bias-times", factor = 2.0 }

[model."net+double+blind"]
title = "The same without a first layer"
base = "net+double"
edit = "edits/blind"
recipe = "by hand"
"""


class BiasTimes(Method):
    """The bias of the head times a factor."""

    id: ClassVar[str] = "bias-times"
    factor: float

    @property
    def uses_outliers(self) -> bool:
        return True

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        assert data.outliers is not None
        about = self.about(base, **self.about_outliers(data.outliers))
        return Edit(about, weights={"fc.bias": base.head.bias * self.factor})


@pytest.fixture
def variants(user_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The suite file of a world in which a network has a variant, and that one another."""
    monkeypatch.setitem(making.METHODS, "bias-times", BiasTimes)
    for index, path in enumerate(sorted((user_world / "images" / "greys").rglob("*.png"))[:4]):
        copy = user_world / "images" / "outliers" / f"{index}.png"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes() + b"\0")  # another file with the same picture
    file = user_world / "colours.toml"
    head, unit_tests, rest = file.read_text().partition("[in_distribution]")
    file.write_text(
        head + VARIANTS.partition("\n[variants]")[0] + "\n" + unit_tests + rest + VARIANTS.partition("\n\n")[2]
    )
    main(["variant", "net+double", "--suite", str(file), "--device", "cpu"])
    mask = torch.zeros(32, 3, 3, 3, dtype=torch.bool)
    suite = load_suite(str(file))
    first = dict(load_model("net", suite.known_models, CPU, COLOURS).network.named_parameters())["conv1.0.weight"]
    Edit({"classified_by_base": True}, masks={"conv1.0.weight": torch.zeros_like(first, dtype=torch.bool)}).save(
        user_world / "edits" / "blind"
    )
    assert mask is not None
    return file


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


# Edits


def edit_of(network: nn.Module) -> Edit:
    mask = torch.rand(3, 5) < 0.5
    return Edit({"method": "test"}, {"0.bias": torch.arange(5.0)}, {"2.weight": mask}, {"0.weight": 0.4})


def test_an_edit_changes_what_it_names_and_nothing_else(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    edit = edit_of(network)
    edit.apply(network)
    after = network.state_dict()
    assert torch.equal(after["0.bias"], torch.arange(5.0))
    assert torch.equal(after["2.weight"], before["2.weight"] * edit.masks["2.weight"])
    assert torch.linalg.matrix_rank(after["0.weight"]) == 3
    for name in after.keys() - {"0.bias", "2.weight", "0.weight"}:
        assert torch.equal(after[name], before[name])


@given(shape=some.lists(some.integers(1, 7), min_size=1, max_size=4), seed=some.integers(0, 2**31))
def test_an_edit_comes_back_from_its_files(
    shape: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.5
    weight = torch.randn(shape, generator=generator).half()
    folder = tmp_path_factory.mktemp("edit")
    Edit({"settings": {"a": [1, None]}}, {"w": weight}, {"m": mask}, {"r": 0.25}).save(folder)
    edit = load_edit(folder)
    assert edit.about == {"settings": {"a": [1, None]}}
    assert torch.equal(edit.weights["w"], weight)
    assert torch.equal(edit.masks["m"], mask)
    assert edit.ratios == {"r": 0.25}
    assert not list(folder.glob(".writing-*"))


def test_a_mask_needs_a_bit_an_entry(tmp_path: Path) -> None:
    Edit({}, masks={"m": torch.ones(1000, 80, dtype=torch.bool)}).save(tmp_path)
    assert (tmp_path / "edit.safetensors").stat().st_size < 10_200


def test_an_edit_of_ratios_alone_is_one_readable_file(tmp_path: Path) -> None:
    Edit({}, weights={"w": torch.ones(2)}).save(tmp_path)
    Edit({}, ratios={"w": 0.1}).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"edit.json", "SHA256SUMS"}
    assert load_edit(tmp_path).ratios == {"w": 0.1}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Edit({}, weights={"3.bias": torch.ones(3)}), "no tensor '3.bias'"),
        (Edit({}, weights={"0.bias": torch.ones(4)}), r"0.bias: the edit has shape \(4,\), not \(5,\)"),
        (Edit({}, masks={"0.weight": torch.ones(5, dtype=torch.bool)}), "0.weight: the edit has shape"),
        (Edit({}, ratios={"gone": 0.1}), "no tensor 'gone'"),
        (Edit({}, weights={"0.bias": torch.zeros(5)}, ratios={"0.weight": 1.5}), "0.weight.*between 0 and 1, got 1.5"),
        (Edit({}, weights={"0.bias": torch.zeros(5)}, ratios={"2.bias": 0.5}), "2.bias.*a matrix"),
        (Edit({}, weights={"0.bias": torch.full((5,), torch.nan)}), "0.bias.*not finite"),
        (Edit({}, weights={"0.bias": torch.full((5,), 1e300, dtype=torch.float64)}), "0.bias.*not finite numbers of"),
        (Edit({}, weights={"0.bias": torch.ones(5, dtype=torch.complex64)}), "0.bias.*not finite numbers of"),
    ],
)
def test_an_edit_of_another_network_is_refused_and_changes_nothing(network: nn.Module, edit: Edit, says: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(EditError, match=says):
        edit.apply(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def _spoil_tensors(folder: Path) -> None:
    content = bytearray((folder / "edit.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "edit.safetensors").write_bytes(content)


def _set(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        described = json.loads((folder / "edit.json").read_text())
        (folder / "edit.json").write_text(json.dumps(described | {key: value}))

    return change


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_spoil_tensors, "edit.safetensors is damaged"),
        (lambda folder: (folder / "edit.safetensors").unlink(), "there is no .*edit.safetensors"),
        (lambda folder: (folder / "edit.json").unlink(), "there is no .*edit.json"),
        (lambda folder: (folder / "edit.json").write_text('{"about": {'), "holds no edit"),
        (lambda folder: (folder / "edit.json").write_text("[]"), "holds no edit"),
        (_set("ratios", {"0.weight": "much"}), "holds no edit"),
        (_set("ratios", {"0.weight": "0.1"}), "ratios.0.weight: Input should be a valid number"),
        (_set("ratios", {"0.weight": True}), "ratios.0.weight: Input should be a valid number"),
        (_set("ratios", {"0.weight": 1.5}), "ratios.0.weight: Input should be less than or equal to 1"),
        (_set("mask_shapes", {"2.weight": [3, 500]}), r"a mask of shape \[3, 500\] is kept as"),
        (_set("mask_shapes", {"2.weight": [2**32, 2**32]}), "a mask of shape .* is kept as"),
        (_set("mask_shapes", {"2.weight": [-3, -5]}), "mask_shapes.2.weight.0: Input should be greater"),
        (_set("mask_shapes", {"other": [3, 5]}), "holds other tensors than edit.json says"),
        (_set("mask_shapes", {}), "holds other tensors than edit.json says"),
        (_set("sha256", None), "edit.safetensors belongs to no edit"),
        (_set("about", {"settings": []}), "about.settings: Input should be an object"),
        (_set("about", {"losses": None}), "about.losses: Input should be a valid array"),
        (lambda folder: (folder / "edit.json").write_text("[" * 10**5), "holds no edit"),
    ],
)
def test_a_damaged_folder_is_refused(
    network: nn.Module, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    edit_of(network).save(tmp_path)
    load_edit(tmp_path)
    spoil(tmp_path)
    with pytest.raises(EditError, match=says):
        load_edit(tmp_path)


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    Edit({}, weights={"w": torch.ones(2)}).save(tmp_path)
    with pytest.raises(EditError, match="w is not finite after the training"):
        Edit({}, weights={"w": torch.tensor([1.0, torch.inf])}).save(tmp_path)
    assert torch.equal(load_edit(tmp_path).weights["w"], torch.ones(2))


# Training


class Line:
    """A small regression with momentum, which counts its steps and can be killed."""

    def __init__(self, killed_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.inputs, self.targets = torch.randn(20, 4), torch.randn(20, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.0)
        self.killed_at, self.steps = killed_at, 0
        self.seen: list[list[int]] = []

    def update(self, rows: Tensor, generator: Generator) -> float:
        if self.steps == self.killed_at:
            raise KeyboardInterrupt
        self.steps += 1
        self.seen.append(rows.tolist())
        noise = 0.1 * torch.randn(len(rows), 4, generator=generator)
        loss = mse_loss(self.network(self.inputs[rows] + noise), self.targets[rows])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def train(self, progress: Progress, **schedule: Any) -> list[float]:
        settings = Schedule(**{"epochs": 6, "batch": 8, "learning_rate": 0.05, "warm_up": 0.2} | schedule)
        return optimise(self.optimizer, settings, 20, self.update, self.network.state_dict(), progress, "a line")


NOWHERE = Progress(None, {})


def test_a_training_learns_and_meets_every_row_once_an_epoch() -> None:
    line = Line()
    losses = line.train(NOWHERE)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    for epoch in range(6):
        assert sorted(row for rows in line.seen[3 * epoch : 3 * epoch + 3] for row in rows) == list(range(20))
    assert line.seen[:3] != line.seen[3:6]


@pytest.mark.parametrize("killed_at", [0, 1, 3, 7, 17])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(killed_at: int, tmp_path: Path) -> None:
    whole = Line()
    expected = whole.train(NOWHERE)
    progress = Progress(tmp_path / "run" / "progress.safetensors", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        Line(killed_at).train(progress)
    rest = Line()
    assert rest.train(progress) == expected
    assert rest.steps == 18 - killed_at // 3 * 3  # no finished epoch is trained again
    for name, value in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], value), name


def test_what_another_work_kept_is_not_taken_up(tmp_path: Path) -> None:
    file = tmp_path / "progress.safetensors"
    Progress(file, {"seed": 0}).save({"a": torch.ones(2)}, {"steps": 3})
    assert Progress(file, {"seed": 1}).load() is None
    tensors, about = Progress(file, {"seed": 0}).load()
    assert torch.equal(tensors["a"], torch.ones(2))
    assert about == {"steps": 3}
    file.write_bytes(file.read_bytes()[:-3])
    assert Progress(file, {"seed": 0}).load() is None
    Progress(file, {}).clear()
    assert not file.exists()


def test_a_training_that_diverges_ends_at_once() -> None:
    line = Line()
    line.targets *= 1e30
    with pytest.raises(ValueError, match=r"a line: the training diverged in step 1 of 18; .*allowed: a smaller one"):
        line.train(NOWHERE)
    assert line.steps == 1


def test_the_seed_decides_order_and_draws() -> None:
    one, same, other = Line(), Line(), Line()
    first = one.train(NOWHERE)
    torch.manual_seed(77)
    assert same.train(NOWHERE) == first
    assert other.train(NOWHERE, seed=1) != first


def test_the_rate_rises_then_falls_to_nothing() -> None:
    schedule = Schedule(epochs=1, learning_rate=2.0, warm_up=0.25)
    rates = [schedule.rate(step, 40) for step in range(41)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == max(rates) == 2.0
    assert rates[40] == pytest.approx(0.0)
    assert Schedule(epochs=1, learning_rate=2.0).rate(0, 40) == 2.0


# In a suite


def load(file: Path) -> Suite:
    return load_suite(str(file))


def test_variants_meet_their_detectors_and_no_unit_tests(variants: Path) -> None:
    suite = load(variants)
    met = {(case.model, case.detector) for case in suite.ood_cases()}
    assert met == {("net", "msp"), ("net", "mahalanobis"), ("net+double", "msp"), ("net+double+blind", "msp")}
    assert {case.model for case in suite.unit_test_cases(names)} == {"net"}
    everything = {(case.model, case.detector) for case in suite.whole().ood_cases()}
    assert ("net+double", "mahalanobis") in everything


def test_a_variant_is_its_base_with_the_edit_and_can_be_a_base(variants: Path) -> None:
    suite = load(variants)
    net, double, blind = (load_model(model_id, suite.known_models, CPU, COLOURS) for model_id in suite.models)
    torch.testing.assert_close(double.head.bias, 2 * net.head.bias)
    assert torch.equal(double.head.weight, net.head.weight)
    assert blind.network.state_dict()["conv1.0.weight"].abs().max() == 0
    assert len({model.weights_sha256 for model in (net, double, blind)}) == 3
    assert [len(model.edits) for model in (net, double, blind)] == [0, 1, 2]
    assert root_of("net+double+blind", suite.known_models).source == "local-dir:net"


def test_an_edit_of_other_weights_is_refused_with_what_makes_it_anew(variants: Path) -> None:
    weights = variants.parent / "net" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"fc.bias": tensors["fc.bias"] + 1}, weights)
    with pytest.raises(ModelError, match=r"net\+double: cannot apply .*other weights than those of net$") as refused:
        load_model("net+double", load(variants).known_models, CPU, COLOURS)
    assert "of net; make it again with: python -m benchmark variant net+double --suite" in told(refused.value)


def test_a_missing_edit_is_refused_with_what_makes_it(variants: Path) -> None:
    (variants.parent / "edits" / "double" / "edit.json").unlink()
    with pytest.raises(ModelError, match=r"there is no .*edit.json$") as refused:
        load_model("net+double", load(variants).known_models, CPU, COLOURS)
    assert "json; make it again with: python -m benchmark variant net+double --suite" in told(refused.value)


def test_under_a_mask_for_detection_the_base_classifies(variants: Path, tmp_path: Path) -> None:
    bench = Evaluation(LoadedSuite(load(variants), Store(tmp_path), CPU))
    double = bench.model("net+double").record("run", "colours")
    blind = bench.model("net+double+blind").record("run", "colours")
    assert not double.classified_by_base
    assert double.network_accuracy == double.id_accuracy
    assert (double.base, double.method, double.settings) == (
        "net",
        "bias-times",
        {"factor": 2.0, "outliers used": "outliers"},
    )
    assert blind.classified_by_base
    assert blind.id_accuracy == double.id_accuracy
    assert blind.network_accuracy.value == pytest.approx(1 / 3)  # the blind network sees all images alike


def test_a_checkpoint_that_is_a_variant_says_how_it_was_trained() -> None:
    for model_id, recipe in RECIPES.items():
        entry = read_entries(MODELS, ModelEntry)[model_id]
        assert (entry.base is not None) == (entry.method is not None) == (recipe.sharpness is not None)
        if recipe.sharpness:
            assert entry.settings == recipe.sharpness.model_dump(include={"variant", "scope", "rho"})
            assert entry.base == f"digits-thin-s{recipe.seed}"
        assert entry.seed is None or entry.seed == recipe.seed


def test_a_variant_is_not_evaluated_on_what_it_was_trained_with(variants: Path, tmp_path: Path) -> None:
    bench = Evaluation(LoadedSuite(load(variants), Store(tmp_path), CPU))
    bench.model("net").outputs(bench.suite.image_set("outliers"))
    with pytest.raises(ValueError, match=r"net\+double was trained with 4 of the 4 images of outliers as outliers"):
        bench.model("net+double").outputs(bench.suite.image_set("outliers"))
    with pytest.raises(ValueError, match=r"net\+double\+blind was trained with"):
        bench.model("net+double+blind").outputs(bench.suite.image_set("outliers"))


def test_nor_on_a_set_that_holds_one_of_them_under_another_name(variants: Path, tmp_path: Path) -> None:
    copied = next((variants.parent / "images" / "outliers").iterdir()).read_bytes()
    (variants.parent / "images" / "noise" / "other.png").write_bytes(copied)
    old = IMAGE_SET.format(id="noise", classes=[], images=20)
    assert old in variants.read_text()
    variants.write_text(variants.read_text().replace(old, IMAGE_SET.format(id="noise", classes=[], images=21)))
    bench = Evaluation(LoadedSuite(load(variants), Store(tmp_path), CPU))
    with pytest.raises(ValueError, match=r"trained with 1 of the 21 images of noise as outliers, such as other.png"):
        bench.model("net+double").outputs(bench.suite.image_set("noise"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('outliers = "outliers"', 'outliers = "greys"', "outliers: greys holds images of greys"),
        ('outliers = "outliers"', 'outliers = "colours-val"', "outliers: colours-val holds images of colours-val"),
        ('outliers = "outliers"', 'outliers = "outlier"', "no image set is called 'outlier'"),
        ("images/outliers", "images/noise/../noise", "outliers: outliers holds images of noise"),
        ('base = "net"', 'base = "nett"', "no model is called 'nett' .did you mean 'net'"),
        ('base = "net"', 'base = "net+double+blind"', "its bases go in a circle"),
        ('base = "net"\n', "", "an `edit` needs the `base`"),
        ('edit = "edits/double"', 'edit = ""', "`edit` must name a folder of its own"),
        ('edit = "edits/double"\n', "", "either `source`, or `base` and `edit`"),
        ('models = ["net+double", ', 'models = ["net", ', "net: listed twice"),
    ],
)
def test_a_mistake_in_the_suite_is_named(variants: Path, old: str, new: str, says: str) -> None:
    text = variants.read_text()
    assert text.count(old) == 1
    variants.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=says):
        load(variants)


def test_an_outlier_that_is_also_evaluated_is_found_by_its_content(variants: Path) -> None:
    folder = variants.parent / "images"
    (folder / "outliers" / "copied.png").write_bytes(next((folder / "noise").rglob("*.png")).read_bytes())
    with pytest.raises(ValueError, match=r"outliers shares 1 images with noise.*copied.png"):
        make_edit("net+double", load(variants), CPU)


def test_sets_overlap_where_their_rows_or_folders_may() -> None:
    def rows(**which: str) -> ImageSetEntry:
        return ImageSetEntry.in_file(Path("f"), title="", licence="", source="", parquet=Path("p"), rows=which)

    assert rows(set="a").may_overlap(rows(set="a", split="train"))
    assert rows(split="train").may_overlap(rows(set="a"))
    assert not rows(set="a").may_overlap(rows(set="b"))
    assert not rows(set="a", split="train").may_overlap(rows(set="a", split="val"))


# Recipes


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ('{ method = "bias-times", factor = "big" }', r"net\+double: recipe: factor: .*valid number.*got 'big'"),
        ('{ method = "bias-times", factor = true }', "recipe: factor: .*valid number, got True"),
        ('{ method = "bias-times" }', "recipe: factor: Field required"),
        ('{ method = "bias-times", factor = 2.0, facto = 1 }', "recipe: facto: Extra inputs are not permitted"),
        ('{ method = "bias-tims" }', "no method is called 'bias-tims' .did you mean 'bias-times'"),
        ('"some command"', "it needs `recipe = "),
        ('{ method = ["bias-times"] }', "no method is called"),
    ],
)
def test_a_wrong_recipe_is_named(variants: Path, recipe: str, says: str) -> None:
    text = variants.read_text()
    variants.write_text(text.replace('{ method = "bias-times", factor = 2.0 }', recipe))
    with pytest.raises(ValueError, match=says):
        method_of("net+double", load(variants))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net+dubble", "no model is called 'net+dubble' (did you mean 'net+double'?)"),
        ("net", "net is no edit of another model; its recipe is: see tests/conftest.py"),
        ("net+double+blind", "it needs `recipe = "),
    ],
)
def test_the_command_refuses_what_it_cannot_make(
    variants: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["variant", name, "--suite", str(variants), "--device", "cpu"]) == 1
    assert says in capsys.readouterr().err


def test_the_command_writes_the_edit_and_leaves_no_progress(variants: Path, tmp_path: Path) -> None:
    main(["variant", "net+double", "--suite", str(variants), "--output", str(tmp_path / "mine"), "--device", "cpu"])
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"edit.json", "edit.safetensors", "SHA256SUMS"}
    shipped, made = load_edit(variants.parent / "edits" / "double"), load_edit(tmp_path / "mine")
    assert made.about == shipped.about
    assert made.about["settings"] == {"factor": 2.0}


def test_two_makings_at_once_do_not_meet(variants: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / ".progress.lock"):
        code = main(["variant", "net+double", "--suite", str(variants), "--output", str(tmp_path), "--device", "cpu"])
    assert code == 1
    assert "another process is making it" in capsys.readouterr().err


def test_a_full_disk_is_named_with_what_to_do(
    variants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["--suite", str(variants), "--output", str(tmp_path), "--device", "cpu"]
    assert main(["variant", "net+double", *arguments]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"cannot write to {tmp_path}: No space left on device; free some space, or name another folder" in said


def test_training_images_are_decoded_once_where_they_fit(variants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load(variants)
    bench = Evaluation(LoadedSuite(suite, Store(variants.parent), CPU))
    model = load_model("net", suite.known_models, CPU, COLOURS)
    image_set = bench.suite.image_set("colours-val")
    rows = torch.tensor([5, 0, 5])
    expected = torch.stack([model.transform(image_set[row]) for row in rows.tolist()])
    assert torch.equal(TrainingSet(model, image_set).images(rows), expected)
    monkeypatch.setattr("benchmark.training.data.IN_MEMORY_BYTES", 0)
    assert IN_MEMORY_BYTES > 0
    assert torch.equal(TrainingSet(model, image_set).images(rows), expected)
