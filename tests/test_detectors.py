"""Every detector keeps the contract; for each of its checks there is a twin that breaks it."""

import re
import textwrap
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors import Detector, Head, Outputs, available, contract, create
from detectors.base import Batch
from detectors.contract import (
    DEGENERATE,
    WIDTH,
    ExpectedFailureError,
    build_world,
    checks,
    convert,
    refusal,
    run_check,
)
from detectors.neighbours import default_k
from detectors.options import is_number, require
from detectors.outputs import as_tensor
from detectors.state import learned
from detectors.subspace import default_dimension

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = build_world()
CHECKS = checks()
fitted = partial(contract.fitted, world=WORLD)

# What a detector is made with that cannot be fitted as it comes.
OPTIONS: dict[str, dict[str, Any]] = {"neglabel": {"words": tuple(f"word {number}" for number in range(50))}}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("detector_id", available())
def test_contract(detector_id: str, check: str) -> None:
    try:
        run_check(check, partial(create, detector_id, **OPTIONS.get(detector_id, {})))
    except ExpectedFailureError as error:
        pytest.xfail(str(error))


# --- The broken twins: one a check, each wrong in the way that the check is there to find. ---


@dataclass(kw_only=True, eq=False)
class Twin(Detector):
    """A sound detector with all the ways to go wrong; its subclasses take one each."""

    id = "twin"
    needs = frozenset({"features", "logits", "train"})
    share: float = 0.01
    mean: Tensor = learned()

    def __post_init__(self) -> None:
        require(is_number(self.share) and self.share >= 0, self.id, "share", self.share, "a number from 0")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.mean = sum(batch.features.sum(dim=0) for batch in self._stream(train)) / len(train)

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.amax(dim=1) - self.share * (batch.features - self.mean).norm(dim=1)


class Single(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch).float()


class AtLeastOne(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return super().score(outputs).reshape(len(outputs), -1)[:, 0]


class Flipped(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return -super()._score(batch)


class Relative(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) - batch.logits.mean()


class Cautious(Twin):
    def _score(self, batch: Batch) -> Tensor:
        largest = batch.features.abs().max()
        return super()._score(batch) / (1.0 if largest < 1e9 else largest)


class CountsBatches(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self.mean = self.mean + sum(1 for _ in self._stream(train))


class LastCounts(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        for batch in self._stream(train):
            self.mean = batch.features[-1].clone()


class Greedy(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self.mean = as_tensor(train.features[:]).double().mean(dim=0)


class Scribbler(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(Batch(features=batch.features, logits=batch.logits.clamp_(max=5.0)))


class Hoarder(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        old = 0.0 if self.mean is None else self.mean
        super()._fit(train, head, val, model)
        self.mean = self.mean + old


class Moody(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self.mean = self.mean + 1e-12 * torch.rand(len(self.mean), dtype=torch.float64)


class Forgetful(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self._offset = 1.0

    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) + getattr(self, "_offset", 0.0)


class AsStored(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        self._stored = torch.float64 if outputs.logits is None else as_tensor(outputs.logits[:0]).dtype
        return super().score(outputs)

    def _score(self, batch: Batch) -> Tensor:
        return super()._score(Batch(features=batch.features, logits=1.1 * batch.logits.to(self._stored)))


class TensorsOnly(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        if type(outputs.logits) is np.ndarray:
            raise TypeError("logits are an array")
        return super().score(outputs)


class NoFiles(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        if isinstance(outputs.logits, np.memmap):
            raise TypeError("logits are a file")
        return super().score(outputs)


class Unguarded(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) + (batch.features / batch.features.norm(dim=1, keepdim=True)).sum(dim=1)


class FewClasses(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) + torch.zeros(100)[batch.logits.argmax(dim=1)]


class NeverRefuses(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return torch.zeros(len(outputs)) if self.mean is None else super().score(outputs)


class Imagines(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        if outputs.features is None or outputs.logits is None:
            return torch.zeros(len(outputs), dtype=torch.float64)
        return super().score(outputs)


class Nosy(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self.mean = self.mean + head.bias.mean()


class SwallowsNaN(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        def finite(rows: Any) -> Any:
            return torch.nan_to_num(rows) if isinstance(rows, Tensor) else rows

        return super().score(convert(outputs, finite, "features", "logits"))


class FirstColumns(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        def narrow(rows: Any) -> Any:
            return rows[:, :WIDTH] if isinstance(rows, Tensor) and rows.ndim == 2 else rows

        return super().score(convert(outputs, narrow, "features"))


class Lenient(Twin):
    def __post_init__(self) -> None:
        pass


class ClaimsTooMuch(Twin):
    """A twin.

    Invariant to: logit shift, logit scale, class order
    """


class StaysOnTheGPU(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        scores = super().score(outputs)
        return scores.to(outputs.logits.device) if isinstance(outputs.logits, Tensor) else scores


# The check -> its twin, and what the check says of it.
TWINS: dict[str, tuple[type[Twin], str]] = {
    "one_double_score_an_image": (Single, "scores are torch.float32"),
    "no_scores_for_no_images": (AtLeastOne, "cannot reshape tensor of 0 elements"),
    "higher_means_in_distribution": (Flipped, "the AUROC is 0.00"),
    "a_score_depends_on_its_own_row_only": (Relative, "with row 0 alone, scores change"),
    "batch_mates_change_nothing": (Cautious, "beside other rows times 1e+30, scores change"),
    "batch_size_changes_nothing": (CountsBatches, "with batches of 1, scores change"),
    "training_order_changes_nothing": (LastCounts, "fitted in another order, scores change"),
    "data_are_streamed": (Greedy, "48 rows of features were taken at once"),
    "inputs_and_network_stay_as_they_were": (Scribbler, "logits of test were written to"),
    "a_new_fit_forgets_the_old_one": (Hoarder, "fitted again after other data, scores differ"),
    "the_same_fit_gives_the_same_scores": (Moody, "fitted again, scores differ"),
    "a_saved_state_gives_the_same_scores": (Forgetful, "restored from its state, scores differ"),
    "half_precision_is_only_storage": (AsStored, "stored in torch.float16"),
    "arrays_serve_as_tensors": (TensorsOnly, "logits are an array"),
    "memory_maps_serve_as_tensors": (NoFiles, "logits are a file"),
    "degenerate_data_have_finite_scores": (Unguarded, "zero vectors: scores are not finite"),
    "a_thousand_classes_are_scored": (FewClasses, "IndexError"),
    "use_before_fit_is_refused": (NeverRefuses, "no RuntimeError was raised"),
    "what_is_missing_is_named": (Imagines, "no ValueError was raised"),
    "what_is_not_needed_is_not_read": (Nosy, "'NoneType' object has no attribute 'bias'"),
    "values_that_are_not_finite_are_refused": (SwallowsNaN, "no ValueError was raised"),
    "shapes_that_do_not_fit_are_refused": (FirstColumns, "with features twice as wide: no ValueError was raised"),
    "options_that_make_no_sense_are_refused": (Lenient, "share='nonsense': no ValueError was raised"),
    "invariances_are_as_declared": (ClaimsTooMuch, "it declares that it is invariant to logit scale, which exchanges"),
    "cpu_and_gpu_agree": (StaysOnTheGPU, "scores are on cuda"),
}
# What else a check cannot but find: the check whose twin it is -> others.
OVERLAPS = {
    "one_double_score_an_image": {"half_precision_is_only_storage"},
    "a_score_depends_on_its_own_row_only": {"batch_mates_change_nothing", "batch_size_changes_nothing"},
    "a_new_fit_forgets_the_old_one": {"the_same_fit_gives_the_same_scores"},
    "the_same_fit_gives_the_same_scores": {
        "inputs_and_network_stay_as_they_were",
        "a_new_fit_forgets_the_old_one",
        "half_precision_is_only_storage",
        "arrays_serve_as_tensors",
        "memory_maps_serve_as_tensors",
        "what_is_not_needed_is_not_read",
    },
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_sound_twin_passes(name: str) -> None:
    CHECKS[name](Twin)


@pytest.mark.parametrize("name", CHECKS)
def test_the_broken_twin_fails(name: str) -> None:
    twin, says = TWINS[name]
    with pytest.raises(AssertionError, match=f"^{name}: .*{re.escape(says)}"):
        CHECKS[name](twin)


@pytest.mark.parametrize("name", CHECKS)
def test_the_broken_twin_fails_on_nothing_else(name: str) -> None:
    twin, _ = TWINS[name]
    for other in CHECKS.keys() - {name} - OVERLAPS.get(name, set()):
        CHECKS[other](twin)


def test_the_example_of_the_docstring_runs() -> None:
    example = textwrap.dedent("\n".join(re.findall("^    .*", contract.__doc__ or "", flags=re.MULTILINE)))
    names = {"pytest": pytest, "contract": contract, "MyDetector": Twin}
    exec(example, names)
    for name in CHECKS:
        names["test_contract"](name)


class Declared(Flipped):
    expected_failures: ClassVar[dict[str, str]] = {"higher_means_in_distribution": "its sign is turned on purpose"}


class DeclaredInVain(Twin):
    expected_failures: ClassVar[dict[str, str]] = {"higher_means_in_distribution": "nobody has looked again"}


class DeclaredWrong(Twin):
    expected_failures: ClassVar[dict[str, str]] = {"higher_means_ood": "there is no such check"}


def test_a_declared_failure_is_an_expected_one() -> None:
    with pytest.raises(ExpectedFailureError, match=r"its sign is turned on purpose .*the AUROC is 0\.00"):
        run_check("higher_means_in_distribution", Declared)
    run_check("one_double_score_an_image", Declared)


def test_a_failure_that_nobody_declared_is_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"the AUROC is 0\.00"):
        run_check("higher_means_in_distribution", Flipped)


def test_a_declared_failure_that_passes_is_told() -> None:
    with pytest.raises(AssertionError, match="higher_means_in_distribution: it passes, though expected_failures"):
        run_check("higher_means_in_distribution", DeclaredInVain)


def test_a_declared_failure_of_no_check_is_told() -> None:
    with pytest.raises(
        AssertionError, match=r"'higher_means_ood', which is no check \(did you mean 'higher_means_in_d"
    ):
        run_check("one_double_score_an_image", DeclaredWrong)


def test_a_check_raises_nothing_but_assertion_errors() -> None:
    def make() -> Detector:
        raise OSError("the disk is full")

    for name, check in CHECKS.items():
        with pytest.raises(AssertionError, match=f"^{name}: .*OSError: the disk is full"):
            check(make)


def test_the_network_of_the_worlds_is_of_one_piece() -> None:
    for build in (build_world, *DEGENERATE.values()):
        world = build()
        model, scale = world.model, 1.0 + float(world.train.features.abs().max())
        for outputs in (world.train, world.val, world.test, world.ood):
            maps = model.feature_map(outputs.images)
            assert torch.equal(model.features(outputs.images), outputs.features)
            assert torch.equal(model(outputs.images), outputs.logits)
            assert torch.equal(maps, outputs.patches)
            assert torch.equal(model.layers(outputs.images)[-1], outputs.features)
            assert torch.allclose(maps.mean(dim=1), outputs.features, rtol=1e-12, atol=0.0)
            logits = outputs.features @ world.head.weight.T + world.head.bias
            assert torch.allclose(logits, outputs.logits, rtol=1e-12, atol=1e-9 * scale)
            assert torch.allclose(model.logits_of_map(maps), outputs.logits, rtol=1e-12, atol=1e-9 * scale)
        names = [f"class {index}" for index in range(len(world.head.weight))]
        assert torch.equal(model.text_features(names), world.head.weight)
    assert world.train.features.shape == (48, WIDTH)
    assert world.train.patches.shape == (48, 6, WIDTH)


# --- What only some detectors do. ---

USING_LABELS: dict[str, dict[str, Any]] = {
    "mahalanobis": {},
    "mahalanobis++": {},
    "relative-mahalanobis": {},
    "relative-mahalanobis++": {"global_fit": "raw"},
    "cosine": {},
    "relative-cosine": {},
    "kl-matching": {"classes": "true"},
    **{
        detector_id: {}
        for detector_id in (
            "openmax",
            "she",
            "mahalanobis-odin",
            "mahalanobis-layers",
            "itp",
            "ls",
            "himplos",
            "line",
            "gmm",
            "gmm++",
        )
    },
}


@pytest.mark.parametrize("detector_id", USING_LABELS)
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "labels"),
        (torch.arange(48) % 4 * 1.0, "float32"),
        (torch.arange(48) % 2 == 0, "bool"),
        ((torch.arange(48) % 4)[:, None], "(48, 1)"),
        (torch.arange(48) % 5, "label of row 4 is 4, but the head has 4 classes"),
        (torch.arange(48) % 4 - 1, "label of row 0 is -1"),
    ],
    ids=["missing", "fractions", "flags", "matrix", "too many classes", "negative"],
)
def test_labels_that_do_not_fit_are_refused(detector_id: str, labels: Tensor | None, says: str) -> None:
    assert says in refusal(
        ValueError,
        lambda: fitted(
            lambda: create(detector_id, **USING_LABELS[detector_id]), train=replace(WORLD.train, labels=labels)
        ),
    )


@pytest.mark.parametrize("detector_id", USING_LABELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_serve(detector_id: str, dtype: torch.dtype) -> None:
    make = partial(create, detector_id, **USING_LABELS[detector_id])
    small = replace(WORLD.train, labels=WORLD.train.labels.to(dtype))
    assert torch.equal(fitted(make, train=small).score(WORLD.test), fitted(make).score(WORLD.test))


def test_labels_are_held_to_the_logits_without_a_head() -> None:
    train = replace(WORLD.train, labels=torch.arange(48) % 5)
    assert "logits have 4 classes" in refusal(ValueError, lambda: create("mahalanobis").fit(train, None))


def test_a_head_of_another_network_is_refused() -> None:
    head = Head(torch.zeros(5, WIDTH), torch.zeros(5))
    assert "logits" in refusal(ValueError, lambda: fitted(lambda: create("vim"), head=head))
    head = Head(torch.zeros(4, WIDTH + 1), torch.zeros(4))
    assert "features" in refusal(ValueError, lambda: fitted(lambda: create("react"), head=head))


@pytest.mark.parametrize(
    ("detector_id", "option", "values"),
    [
        ("energy", "temperature", [0, -1.0, "1", True, float("nan"), float("inf"), None]),
        ("kl-matching", "classes", ["labels", None, True]),
        ("relative-mahalanobis++", "global_fit", ["normalized", None, 1]),
        ("vim", "dimension", [-1, 2.0, "3", True, float("nan")]),
        ("react", "percentile", [-1, 100.5, "90", True, float("nan"), None]),
        ("knn", "k", [0, -3, 2.0, "3", True, float("nan")]),
        ("odin", "temperature", [0, "1", True, float("nan")]),
        ("odin", "epsilon", [-0.1, "1", False, float("inf")]),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any]) -> None:
    for value in values:
        text = refusal(ValueError, lambda value=value: create(detector_id, **{option: value}))
        assert option in text
        assert repr(value) in text
        assert "allowed" in text


@pytest.mark.parametrize(
    ("detector_id", "option", "largest"), [("knn", "k", len(WORLD.train)), ("vim", "dimension", WIDTH - 1)]
)
def test_a_named_option_is_held_to_the_data_and_never_rescaled(detector_id: str, option: str, largest: int) -> None:
    fitted(lambda: create(detector_id, **{option: largest}))
    text = refusal(ValueError, lambda: fitted(lambda: create(detector_id, **{option: largest + 1})))
    assert f"{option} is {largest + 1}" in text
    assert str(largest) in text


@pytest.mark.parametrize(
    ("images", "k"), [(1, 1), (9, 9), (48, 10), (10_999, 10), (50_000, 50), (300_000, 300), (1_281_167, 1000)]
)
def test_the_default_k_follows_its_rule(images: int, k: int) -> None:
    assert default_k(images) == k


@pytest.mark.parametrize(
    ("width", "dimension"), [(1, 0), (16, 8), (17, 8), (767, 383), (768, 512), (2047, 512), (2048, 1000)]
)
def test_the_default_dimension_follows_its_rule(width: int, dimension: int) -> None:
    assert default_dimension(width) == dimension


def test_defaults_that_adapt_are_used() -> None:
    for detector_id, option, value in (("knn", "k", 10), ("vim", "dimension", 8)):
        expected, other = (
            fitted(partial(create, detector_id, **{option: number})).score(WORLD.test) for number in (value, 5)
        )
        assert torch.equal(fitted(partial(create, detector_id)).score(WORLD.test), expected)
        assert not torch.equal(expected, other)


def test_odin_refuses_a_network_that_is_training() -> None:
    assert "eval()" in refusal(ValueError, lambda: create("odin").fit(None, None, model=build_world().model.train()))


def test_odin_refuses_a_model_without_a_gradient() -> None:
    detector = create("odin").fit(None, None, model=torch.no_grad()(WORLD.model))
    assert "gradient" in refusal(ValueError, lambda: detector.score(WORLD.test))


def test_odin_refuses_logits_that_are_not_finite() -> None:
    detector = create("odin").fit(None, None, model=lambda images: WORLD.model(images) * torch.inf)
    assert "logits" in refusal(ValueError, lambda: detector.score(WORLD.test))


def test_odin_works_where_gradients_are_switched_off() -> None:
    detector = create("odin").fit(None, None, model=WORLD.model)
    expected = detector.score(WORLD.test)
    with torch.inference_mode():
        images = WORLD.test.images.clone()
        assert torch.equal(detector.score(Outputs(images=images)), expected)
