"""The contract of a detector: named checks that every detector passes, and for each check a twin that breaks it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors import Detector, Head, Outputs, available, create
from detectors.base import Batch
from detectors.neighbours import default_k
from detectors.subspace import default_dimension

CLASSES, WIDTH = 4, 16
STREAMED = ("features", "logits", "images")
UNITS_A_CLASS = 3  # the units 12 to 15 belong to no class: out-of-distribution images excite those

Make = Callable[[], Detector]


pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Images (N, 3, 4, 4) -> ReLU features (N, 16) -> logits."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        basis, _ = torch.linalg.qr(torch.randn(48, WIDTH, generator=random, dtype=torch.float64))
        self.body = nn.Linear(48, WIDTH, bias=False, dtype=torch.float64)
        self.body.weight.data = basis.T.contiguous()
        self.head = nn.Linear(*head.weight.shape[::-1], dtype=torch.float64)
        self.head.weight.data, self.head.bias.data = head.weight.clone(), head.bias.clone()

    def features(self, images: Tensor) -> Tensor:
        return self.body(images.double().flatten(1)).relu()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@dataclass(frozen=True)
class World:
    """What a detector gets: outputs of training, in-distribution test and out-of-distribution images of a network."""

    train: Outputs
    test: Outputs
    ood: Outputs
    head: Head
    model: Network


def build_world(
    *,
    samples_a_class: int = 12,
    labels: Callable[[Tensor], Tensor] = lambda labels: labels,
    features: Callable[[Tensor], Tensor] = lambda features: features,
    head: Callable[[Head], Head] = lambda head: head,
) -> World:
    """Classes that excite three units each; the arguments bend labels, features or head into a degenerate world."""
    random = torch.Generator().manual_seed(0)
    weight = torch.zeros(CLASSES, WIDTH, dtype=torch.float64)
    for unit in range(CLASSES * UNITS_A_CLASS):
        weight[unit // UNITS_A_CLASS, unit] = 0.5
    weight += 0.01 * torch.randn(weight.shape, generator=random, dtype=torch.float64)
    last_layer = head(Head(weight, torch.linspace(-0.1, 0.1, CLASSES, dtype=torch.float64)))
    model = Network(last_layer).eval()

    def outputs(units: Tensor, labels: Tensor | None) -> Outputs:
        noise = 0.3 * torch.randn(units.shape, generator=random, dtype=torch.float64)
        images = ((4 * units + noise) @ model.body.weight.detach()).reshape(-1, 3, 4, 4)
        rows = features(model.features(images).detach())
        logits = rows @ last_layer.weight.T + last_layer.bias
        return Outputs(features=rows, logits=logits, labels=labels, images=images)

    true = torch.arange(samples_a_class * CLASSES) % CLASSES
    excited = torch.eye(CLASSES, dtype=torch.float64).repeat_interleave(UNITS_A_CLASS, dim=1)
    excited = torch.cat([excited, torch.zeros(CLASSES, WIDTH - excited.shape[1], dtype=torch.float64)], dim=1)
    foreign = torch.zeros(15, WIDTH, dtype=torch.float64)
    foreign[:, CLASSES * UNITS_A_CLASS :] = 1.0
    return World(
        train=outputs(excited[true], labels(true)),
        test=outputs(excited[torch.arange(20) % CLASSES], None),
        ood=outputs(foreign, None),
        head=last_layer,
        model=model,
    )


WORLD = build_world()


def fitted(make: Make, world: World = WORLD, **changes: Any) -> Detector:
    given = {"train": world.train, "head": world.head, "val": world.test, "model": world.model, **changes}
    return make().fit(given["train"], given["head"], val=given["val"], model=given["model"])


def convert(outputs: Outputs, how: Callable[[Any], Any], *names: str) -> Outputs:
    names = names or tuple(field.name for field in fields(outputs))
    given = {name: getattr(outputs, name) for name in names if getattr(outputs, name) is not None}
    return replace(outputs, **{name: how(value) for name, value in given.items()})


def close(scores: Tensor, expected: Tensor) -> bool:
    floor = 1e-12 * float(expected.abs().max())
    return torch.allclose(scores, expected, rtol=1e-9, atol=floor)


def message(errors: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object]) -> str:
    """What the error says that the call must raise."""
    try:
        call()
    except errors as error:
        return str(error)
    raise AssertionError(f"no {errors} was raised")


# --- The checks: each takes a function that makes a new detector with default options. ---


def check_one_double_score_an_image(make: Make) -> None:
    scores = fitted(make).score(WORLD.test)
    assert isinstance(scores, Tensor)
    assert scores.dtype == torch.float64
    assert scores.shape == (20,)


def check_no_scores_for_no_images(make: Make) -> None:
    scores = fitted(make).score(convert(WORLD.test, lambda rows: rows[:0]))
    assert scores.shape == (0,)
    assert scores.dtype == torch.float64


def check_higher_means_in_distribution(make: Make) -> None:
    detector = fitted(make)
    id_scores, ood_scores = detector.score(WORLD.test), detector.score(WORLD.ood)
    auroc = (id_scores[:, None] > ood_scores).double().mean()
    assert auroc > 0.95


def check_a_score_depends_on_its_own_row_only(make: Make) -> None:
    detector = fitted(make)
    expected = detector.score(WORLD.test)
    backwards = detector.score(convert(WORLD.test, lambda rows: rows.flip(0)))
    assert close(backwards.flip(0), expected)
    for row in range(len(expected)):
        assert close(detector.score(convert(WORLD.test, lambda rows, row=row: rows[row : row + 1])), expected[[row]])


def check_batch_size_changes_nothing(make: Make) -> None:
    expected = fitted(make).score(WORLD.test)
    for rows in (1, 7):
        detector = make()
        detector.batch_rows = rows
        assert close(fitted(lambda detector=detector: detector).score(WORLD.test), expected)


def check_training_order_changes_nothing(make: Make) -> None:
    expected = fitted(make).score(WORLD.test)
    backwards = convert(WORLD.train, lambda rows: rows.flip(0))
    assert close(fitted(make, train=backwards).score(WORLD.test), expected)


class Spy:
    """Rows that remember the most that was ever taken at once."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.shape, self.most = rows, rows.shape, 0

    def __getitem__(self, rows: slice) -> Tensor:
        taken = self.rows[rows]
        self.most = max(self.most, len(taken))
        return taken


def check_data_are_streamed(make: Make) -> None:
    train, test = convert(WORLD.train, Spy, *STREAMED), convert(WORLD.test, Spy, *STREAMED)
    detector = make()
    detector.batch_rows = 5
    fitted(lambda: detector, train=train).score(test)
    assert all(getattr(outputs, name).most <= 5 for outputs in (train, test) for name in STREAMED)


def check_inputs_and_network_stay_as_they_were(make: Make) -> None:
    world = copy.deepcopy(WORLD)
    convert(world.test, lambda rows: rows.requires_grad_(), "features", "logits")
    scores = fitted(make, world).score(world.test)
    assert not scores.requires_grad
    for mine, theirs in ((world.train, WORLD.train), (world.test, WORLD.test)):
        for field in fields(mine):
            if getattr(mine, field.name) is not None:
                assert torch.equal(getattr(mine, field.name), getattr(theirs, field.name))
    assert torch.equal(world.head.weight, WORLD.head.weight)
    assert torch.equal(world.head.bias, WORLD.head.bias)
    for parameter in world.model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None


def check_a_new_fit_forgets_the_old_one(make: Make) -> None:
    detector = fitted(make)
    expected = detector.score(WORLD.test)
    other = build_world(samples_a_class=7, features=lambda features: features + 1.0)
    fitted(lambda: detector, other)
    assert torch.equal(fitted(lambda: detector).score(WORLD.test), expected)


def check_half_precision_is_only_storage(make: Make) -> None:
    # Images go through the network, which has a precision of its own.
    tolerance = 1e-6 if "images" in make().needs else 0.0
    for dtype in (torch.float16, torch.bfloat16):
        half, double = (partial(Tensor.to, dtype=kind) for kind in (dtype, torch.float64))
        train, test = (convert(outputs, half, *STREAMED) for outputs in (WORLD.train, WORLD.test))
        head = Head(half(WORLD.head.weight), half(WORLD.head.bias))
        scores = fitted(make, train=train, head=head).score(test)
        assert scores.dtype == torch.float64
        train, test = (convert(outputs, double, *STREAMED) for outputs in (train, test))
        expected = fitted(make, train=train, head=head.double()).score(test)
        assert torch.allclose(scores, expected, rtol=tolerance, atol=0.0)


def check_arrays_serve_as_tensors(make: Make) -> None:
    expected = fitted(make).score(WORLD.test)
    read_only = [convert(outputs, lambda rows: _frozen(rows.numpy())) for outputs in (WORLD.train, WORLD.test)]
    assert torch.equal(fitted(make, train=read_only[0]).score(read_only[1]), expected)


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def one_class(head: Head) -> Head:
    return Head(head.weight[:1], head.bias[:1])


def change_columns(value: Callable[[Tensor], Tensor], *columns: int) -> Callable[[Tensor], Tensor]:
    def changed(features: Tensor) -> Tensor:
        features = features.clone()
        features[:, list(columns)] = value(features)
        return features

    return changed


def zero_rows(features: Tensor) -> Tensor:
    return features * (torch.arange(len(features)) % 3 > 0)[:, None]


DEGENERATE: dict[str, Callable[[], World]] = {
    "zero vectors": partial(build_world, features=zero_rows),
    "only zero vectors": partial(build_world, features=torch.zeros_like),
    "constant features": partial(build_world, features=lambda features: torch.full_like(features, 0.1)),
    "dead and constant dimensions": partial(
        build_world, features=change_columns(lambda features: torch.tensor([0.0, 0.0, 0.1]).double(), 0, 1, 2)
    ),
    "duplicated dimensions": partial(
        build_world, features=change_columns(lambda features: features[:, [3, 3, 6]], 0, 1, 7)
    ),
    "features constant within a class": partial(
        build_world, features=lambda features: 0.1 * (features > 2).double() + 0.3, samples_a_class=9
    ),
    "tiny features": partial(build_world, features=lambda features: 1e-30 * features),
    "huge features": partial(build_world, features=lambda features: 1e30 * features),
    "one class": partial(build_world, head=one_class, labels=torch.zeros_like),
    "a class without images": partial(build_world, labels=lambda labels: labels.where(labels != 2, 0)),
    "two images a class": partial(build_world, samples_a_class=2),
    "one image a class": partial(build_world, samples_a_class=1),
    "constant logits": partial(
        build_world, head=lambda head: Head(torch.zeros_like(head.weight), torch.full_like(head.bias, 0.7))
    ),
    "huge logits": partial(build_world, head=lambda head: Head(1e6 * head.weight, head.bias)),
}


def check_degenerate_data_have_finite_scores(make: Make) -> None:
    for name, build in DEGENERATE.items():
        world = build()
        detector = fitted(make, world)
        for outputs in (world.train, world.test, world.ood, WORLD.ood if name != "one class" else world.ood):
            assert torch.isfinite(detector.score(outputs)).all(), name


def check_use_before_fit_is_refused(make: Make) -> None:
    detector = make()
    assert "fit" in message(RuntimeError, lambda: detector.score(WORLD.test))
    broken = convert(WORLD.train, lambda rows: rows * torch.nan, "features", "logits")
    if {"train", "model"} & detector.needs:
        message(ValueError, lambda: fitted(lambda: detector).fit(broken, None))
        assert "fit" in message(RuntimeError, lambda: detector.score(WORLD.test))


def check_what_is_missing_is_named(make: Make) -> None:
    detector = fitted(make)
    for name in detector.needs & {"features", "logits", "images"}:
        partly = replace(WORLD.test, **{name: None})
        assert name in message(ValueError, lambda partly=partly: detector.score(partly))
    for name in detector.needs & {"train", "head", "val", "model"}:
        assert name in message(ValueError, lambda name=name: fitted(make, **{name: None}))
    if "train" in detector.needs:
        no_rows = convert(WORLD.train, lambda rows: rows[:0])
        assert "rows" in message(ValueError, lambda: fitted(make, train=no_rows))


def check_what_is_not_needed_is_not_read(make: Make) -> None:
    expected = fitted(make).score(WORLD.test)
    needs = make().needs
    only = [outputs.only(needs | {"labels"}) for outputs in (WORLD.train, WORLD.test)]
    given = {"train": only[0], "head": WORLD.head, "val": WORLD.test, "model": WORLD.model}
    detector = fitted(make, **{name: value if name in needs else None for name, value in given.items()})
    assert torch.equal(detector.score(only[1]), expected)


def check_values_that_are_not_finite_are_refused(make: Make) -> None:
    detector = fitted(make)
    for value in (torch.nan, torch.inf, -torch.inf):
        for name in detector.needs & {"features", "logits", "images"}:
            poisoned = convert(WORLD.test, lambda rows, value=value: poison(rows, 6, value), name)
            text = message(ValueError, lambda poisoned=poisoned: detector.score(poisoned))
            assert "row 6 " in text
            assert name in text
            if "train" in detector.needs:
                poisoned = convert(WORLD.train, lambda rows, value=value: poison(rows, 40, value), name)
                assert "row 40 " in message(ValueError, lambda poisoned=poisoned: fitted(make, train=poisoned))
    if "head" in detector.needs:
        head = Head(poison(WORLD.head.weight, 1, torch.nan), WORLD.head.bias)
        assert "head" in message(ValueError, lambda: fitted(make, head=head))


def poison(rows: Tensor, row: int, value: float) -> Tensor:
    rows = rows.clone()
    rows[row].view(-1)[2] = value
    return rows


def check_shapes_that_do_not_fit_are_refused(make: Make) -> None:
    detector = fitted(make)
    for name in detector.needs & {"features", "logits"}:
        flat = convert(WORLD.test, lambda rows: rows[:, 0], name)
        assert name in message(ValueError, lambda flat=flat: detector.score(flat))
        if {"train", "head"} & detector.needs:
            wider = convert(WORLD.test, lambda rows: torch.cat([rows, rows], dim=1), name)
            assert name in message(ValueError, lambda wider=wider: detector.score(wider))


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("id", available())
def test_contract(id: str, check: Callable[[Make], None]) -> None:
    check(lambda: create(id))


# --- The broken twins: one a check, each wrong in the way that the check is there to find. ---


class Twin(Detector):
    """A sound detector with all the ways to go wrong; its subclasses take one each."""

    id = "twin"
    needs = frozenset({"features", "logits", "train"})

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self._mean = sum(batch.features.sum(dim=0) for batch in self._stream(train)) / len(train)

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.amax(dim=1) - 0.01 * (batch.features - self._mean).norm(dim=1)


class Single(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch).float()


class AtLeastOne(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return torch.cat([self._score(batch) for batch in self._stream(outputs)])


class Flipped(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return -super()._score(batch)


class Relative(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) - batch.logits.mean()


class CountsBatches(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self._mean = self._mean + sum(1 for _ in self._stream(train))


class LastCounts(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        for batch in self._stream(train):
            self._mean = 0.5 * self._mean + 0.5 * batch.features[-1]


class Greedy(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self._mean = torch.as_tensor(train.features[:]).double().mean(dim=0)


class Scribbler(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(Batch(features=batch.features, logits=batch.logits.sub_(1.0)))


class Hoarder(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        old = getattr(self, "_mean", 0.0)
        super()._fit(train, head, val, model)
        self._mean = self._mean + old


class AsStored(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return torch.as_tensor(outputs.logits[:]).logsumexp(dim=1).double()


class TensorsOnly(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return outputs.logits.double().amax(dim=1)


class Unguarded(Twin):
    def _score(self, batch: Batch) -> Tensor:
        return super()._score(batch) + (batch.features / batch.features.norm(dim=1, keepdim=True)).sum(dim=1)


class NeverRefuses(Twin):
    _fitted = True
    _mean = torch.zeros(WIDTH, dtype=torch.float64)


class Imagines(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return torch.zeros(len(outputs), dtype=torch.float64)


class Nosy(Twin):
    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        super()._fit(train, head, val, model)
        self._mean = self._mean + head.bias.mean()


class SwallowsNaN(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return super().score(convert(outputs, torch.nan_to_num, "features", "logits"))


class FirstColumns(Twin):
    def score(self, outputs: Outputs) -> Tensor:
        return super().score(convert(outputs, lambda rows: rows.reshape(len(rows), -1)[:, :1], "features", "logits"))


TWINS: dict[str, type[Twin]] = {
    "check_one_double_score_an_image": Single,
    "check_no_scores_for_no_images": AtLeastOne,
    "check_higher_means_in_distribution": Flipped,
    "check_a_score_depends_on_its_own_row_only": Relative,
    "check_batch_size_changes_nothing": CountsBatches,
    "check_training_order_changes_nothing": LastCounts,
    "check_data_are_streamed": Greedy,
    "check_inputs_and_network_stay_as_they_were": Scribbler,
    "check_a_new_fit_forgets_the_old_one": Hoarder,
    "check_half_precision_is_only_storage": AsStored,
    "check_arrays_serve_as_tensors": TensorsOnly,
    "check_degenerate_data_have_finite_scores": Unguarded,
    "check_use_before_fit_is_refused": NeverRefuses,
    "check_what_is_missing_is_named": Imagines,
    "check_what_is_not_needed_is_not_read": Nosy,
    "check_values_that_are_not_finite_are_refused": SwallowsNaN,
    "check_shapes_that_do_not_fit_are_refused": FirstColumns,
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_sound_twin_passes(name: str) -> None:
    CHECKS[name](Twin)


@pytest.mark.parametrize("name", CHECKS)
def test_the_broken_twin_fails(name: str) -> None:
    with pytest.raises((AssertionError, AttributeError, RuntimeError, ValueError)):
        CHECKS[name](TWINS[name])


# --- What only some detectors do. ---

USING_LABELS: dict[str, dict[str, Any]] = {
    "mahalanobis": {},
    "mahalanobis++": {},
    "relative-mahalanobis": {},
    "relative-mahalanobis++": {"global_fit": "raw"},
    "cosine": {},
    "relative-cosine": {},
    "kl-matching": {"classes": "true"},
}


@pytest.mark.parametrize("id", USING_LABELS)
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
def test_labels_that_do_not_fit_are_refused(id: str, labels: Tensor | None, says: str) -> None:
    assert says in message(
        ValueError, lambda: fitted(lambda: create(id, **USING_LABELS[id]), train=replace(WORLD.train, labels=labels))
    )


@pytest.mark.parametrize("id", USING_LABELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_serve(id: str, dtype: torch.dtype) -> None:
    make = partial(create, id, **USING_LABELS[id])
    small = replace(WORLD.train, labels=WORLD.train.labels.to(dtype))
    assert torch.equal(fitted(make, train=small).score(WORLD.test), fitted(make).score(WORLD.test))


def test_labels_are_held_to_the_logits_without_a_head() -> None:
    train = replace(WORLD.train, labels=torch.arange(48) % 5)
    assert "logits have 4 classes" in message(ValueError, lambda: create("mahalanobis").fit(train, None))


def test_a_head_of_another_network_is_refused() -> None:
    head = Head(torch.zeros(5, WIDTH), torch.zeros(5))
    assert "logits" in message(ValueError, lambda: fitted(lambda: create("vim"), head=head))
    head = Head(torch.zeros(4, WIDTH + 1), torch.zeros(4))
    assert "features" in message(ValueError, lambda: fitted(lambda: create("react"), head=head))


@pytest.mark.parametrize(
    ("id", "option", "values"),
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
def test_bad_options_are_refused(id: str, option: str, values: list[Any]) -> None:
    for value in values:
        text = message(ValueError, lambda value=value: create(id, **{option: value}))
        assert option in text
        assert repr(value) in text
        assert "allowed" in text


@pytest.mark.parametrize(("id", "option", "largest"), [("knn", "k", len(WORLD.train)), ("vim", "dimension", WIDTH - 1)])
def test_a_named_option_is_held_to_the_data_and_never_rescaled(id: str, option: str, largest: int) -> None:
    fitted(lambda: create(id, **{option: largest}))
    text = message(ValueError, lambda: fitted(lambda: create(id, **{option: largest + 1})))
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
    for id, option, value in (("knn", "k", 10), ("vim", "dimension", 8)):
        expected, other = (fitted(partial(create, id, **{option: number})).score(WORLD.test) for number in (value, 5))
        assert torch.equal(fitted(partial(create, id)).score(WORLD.test), expected)
        assert not torch.equal(expected, other)


def test_memory_maps_of_a_file_serve(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", WORLD.train.features.numpy())
    train = replace(WORLD.train, features=np.load(tmp_path / "features.npy", mmap_mode="r"))
    for id in ("knn", "mahalanobis++", "vim", "react"):
        expected = fitted(lambda id=id: create(id)).score(WORLD.test)
        assert torch.equal(fitted(lambda id=id: create(id), train=train).score(WORLD.test), expected)


def test_odin_refuses_a_network_that_is_training() -> None:
    assert "eval()" in message(ValueError, lambda: create("odin").fit(None, None, model=Network(WORLD.head).train()))


def test_odin_refuses_a_model_without_a_gradient() -> None:
    detector = create("odin").fit(None, None, model=torch.no_grad()(WORLD.model))
    assert "gradient" in message(ValueError, lambda: detector.score(WORLD.test))


def test_odin_refuses_logits_that_are_not_finite() -> None:
    detector = create("odin").fit(None, None, model=lambda images: WORLD.model(images) * torch.inf)
    assert "logits" in message(ValueError, lambda: detector.score(WORLD.test))


def test_odin_works_where_gradients_are_switched_off() -> None:
    detector = create("odin").fit(None, None, model=WORLD.model)
    expected = detector.score(WORLD.test)
    with torch.inference_mode():
        images = WORLD.test.images.clone()
        assert torch.equal(detector.score(Outputs(images=images)), expected)
