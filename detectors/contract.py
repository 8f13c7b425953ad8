"""The contract of a detector as named checks, for the detectors of this project and for anyone's own.

    @pytest.mark.parametrize("name", contract.checks())
    def test_contract(name: str) -> None:
        try:
            contract.run_check(name, MyDetector)  # or partial(MyDetector, option=...)
        except contract.ExpectedFailureError as error:
            pytest.xfail(str(error))

A check takes a function that makes a new detector, runs it in toy worlds, and raises AssertionError saying what broke.
A class that cannot pass a check names it in `expected_failures`, with the reason: `run_check` then raises
ExpectedFailureError where the check fails, and AssertionError where it passes.
"""

import copy
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial, wraps
from operator import itemgetter, mul
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from detectors.base import option_fields
from detectors.description import declared_invariances
from detectors.invariance import broken_by
from detectors.outputs import Head, Outputs
from detectors.spelling import did_you_mean
from detectors.worlds import CLASSES, WIDTH, Make, World, build_world, fit, fitted

Check = Callable[[Make], None]

STREAMED = ("features", "logits", "patches", "images")


def _one_class(head: Head) -> Head:
    return Head(head.weight[:1], head.bias[:1])


def _a_thousand_classes(head: Head) -> Head:
    random = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(1000, WIDTH, generator=random, dtype=torch.float64)
    return Head(head.weight.repeat(1000 // CLASSES, 1) + noise, head.bias.repeat(1000 // CLASSES))


def _change_columns(value: Callable[[Tensor], Tensor], *columns: int) -> Callable[[Tensor], Tensor]:
    def changed(features: Tensor) -> Tensor:
        features = features.clone()
        features[:, list(columns)] = value(features)
        return features

    return changed


def _zero_some_rows(features: Tensor) -> Tensor:
    return features * ((100 * features.sum(dim=1, keepdim=True)).floor() % 3 > 0)


# Degenerate worlds. Features that are constant still depend on the image, with gradient 0, as in a dead network.
DEGENERATE: dict[str, Callable[[], World]] = {
    "zero vectors": partial(build_world, features=_zero_some_rows),
    "only zero vectors": partial(build_world, features=lambda features: 0.0 * features),
    "constant features": partial(build_world, features=lambda features: 0.0 * features + 0.1),
    "dead and constant dimensions": partial(
        build_world, features=_change_columns(lambda features: features.new_tensor([0.0, 0.0, 0.1]), 0, 1, 2)
    ),
    "duplicated dimensions": partial(
        build_world, features=_change_columns(lambda features: features[:, [3, 3, 6]], 0, 1, 7)
    ),
    "a feature in another unit": partial(
        build_world, features=_change_columns(lambda features: 1e7 * features[:, [3]], 3)
    ),
    "features constant within a class": partial(
        build_world,
        features=lambda features: 0.0 * features + 0.1 * (features > 2).double() + 0.3,
        samples_a_class=9,
    ),
    "tiny features": partial(build_world, features=lambda features: 1e-30 * features),
    "huge features": partial(build_world, features=lambda features: 1e30 * features),
    "one class": partial(build_world, head=_one_class, labels=torch.zeros_like),
    "a class without images": partial(build_world, labels=lambda labels: labels.where(labels != 2, 0)),
    "two images a class": partial(build_world, samples_a_class=2),
    "one image a class": partial(build_world, samples_a_class=1),
    "constant logits": partial(
        build_world, head=lambda head: Head(torch.zeros_like(head.weight), torch.full_like(head.bias, 0.7))
    ),
    "huge logits": partial(build_world, head=lambda head: Head(1e6 * head.weight, head.bias)),
}


# --- What the checks are made of. ---


def convert(outputs: Outputs, how: Callable[[Any], Any], *names: str) -> Outputs:
    """The outputs with the named fields (or all of them) changed. A field that is None stays None."""
    names = names or tuple(field.name for field in fields(outputs))
    given = {name: getattr(outputs, name) for name in names if getattr(outputs, name) is not None}
    return replace(outputs, **{name: how(value) for name, value in given.items()})


def refusal(
    errors: type[Exception] | tuple[type[Exception], ...], call: Callable[..., object], *arguments: Any, **named: Any
) -> str:
    """What the error says that the call must raise."""
    try:
        call(*arguments, **named)
    except errors as error:
        return str(error)
    names = [kind.__name__ for kind in (errors if isinstance(errors, tuple) else (errors,))]
    raise AssertionError(f"no {' or '.join(names)} was raised")


def expect(ok: bool, broken: str) -> None:
    """Raises AssertionError(broken) unless `ok`; unlike `assert`, in optimised Python too."""
    if not ok:
        raise AssertionError(broken)


@contextmanager
def _name_in_errors(what: str) -> Iterator[None]:
    """Turns errors into AssertionErrors that begin with `what`: what was going on."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def _expect_close(scores: Tensor, expected: Tensor, when: str, precision: float) -> None:
    """Raises AssertionError where scores change by more than `precision`, relatively.

    Scores near 0 may change by a thousandth of it, relatively to the largest score.
    """
    floor = 1e-3 * precision * float(expected.abs().max())
    expect(scores.shape == expected.shape, f"{when}: {tuple(scores.shape)} scores for {tuple(expected.shape)}")
    off = (scores - expected).abs()
    ok = torch.allclose(scores, expected, rtol=precision, atol=floor)
    expect(ok, f"{when}, scores change by up to {float(off.max()):.3g} (they reach {float(expected.abs().max()):.3g})")


def _expect_equal(scores: Tensor, expected: Tensor, when: str) -> None:
    ok = torch.equal(scores, expected)
    expect(ok, f"{when}, scores differ: {scores[:3].tolist()}... in place of {expected[:3].tolist()}...")


def _expect_named(name: str, text: str) -> None:
    expect(re.search(rf"\b{re.escape(name)}\b", text) is not None, f"the error does not name {name!r}: {text}")


_CHECKS: dict[str, Check] = {}


def _public_check(function: Check) -> Check:
    """Decorator: makes a function a check of the contract, which raises nothing but AssertionError."""

    @wraps(function)
    def check(make: Make) -> None:
        with _name_in_errors(function.__name__):
            function(make)

    _CHECKS[function.__name__] = check
    return check


def checks() -> dict[str, Check]:
    """All checks by name. That of the GPU is among them where there is one."""
    return {name: check for name, check in _CHECKS.items() if name != "cpu_and_gpu_agree" or torch.cuda.is_available()}


class ExpectedFailureError(Exception):
    """A check failed, as the class of the detector declares; the message holds the reason and what was found."""


def run_check(name: str, make: Make) -> None:
    """Runs one check on the detector that `make` makes, and holds it to what its class declares.

    Raises AssertionError where the check fails, where it passes though `expected_failures` names it, and where that
    names no check. Raises ExpectedFailureError where the check fails and `expected_failures` names it.
    """
    declared = _expected_failures(make)
    for unknown in declared.keys() - _CHECKS.keys():
        raise AssertionError(f"expected_failures names {unknown!r}, which is no check{did_you_mean(unknown, _CHECKS)}")
    if name not in declared:
        checks()[name](make)
        return
    try:
        checks()[name](make)
    except AssertionError as error:
        raise ExpectedFailureError(f"{declared[name]} ({error})") from error
    raise AssertionError(f"{name}: it passes, though expected_failures says that it fails: remove it there")


def _expected_failures(make: Make) -> Mapping[str, str]:
    try:
        return make().expected_failures
    except Exception:  # what is wrong with it is for the checks to say
        return {}


# --- The checks. ---


@_public_check
def one_double_score_an_image(make: Make) -> None:
    world = build_world()
    scores = fitted(make, world).score(world.test)
    expect(isinstance(scores, Tensor), f"scores are a {type(scores).__name__}, not a tensor")
    expect(scores.dtype == torch.float64, f"scores are {scores.dtype}, not torch.float64")
    expect(scores.shape == (20,), f"20 images have scores of shape {tuple(scores.shape)}")


@_public_check
def no_scores_for_no_images(make: Make) -> None:
    world = build_world()
    scores = fitted(make, world).score(convert(world.test, lambda rows: rows[:0]))
    expect(scores.shape == (0,), f"no images have scores of shape {tuple(scores.shape)}")
    expect(scores.dtype == torch.float64, f"scores are {scores.dtype}, not torch.float64")


@_public_check
def higher_means_in_distribution(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    id_scores, ood_scores = detector.score(world.test), detector.score(world.ood)
    auroc = float((id_scores[:, None] > ood_scores).double().mean())
    expect(auroc >= 0.9, f"the AUROC is {auroc:.2f} where classes and other images lie far apart; higher must mean ID")


@_public_check
def a_score_depends_on_its_own_row_only(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    expected = detector.score(world.test)
    backwards = detector.score(convert(world.test, lambda rows: rows.flip(0)))
    _expect_close(backwards.flip(0), expected, "in another order", detector.precision)
    for row in range(0, len(expected), 3):
        alone = detector.score(convert(world.test, itemgetter(slice(row, row + 1))))
        _expect_close(alone, expected[[row]], f"with row {row} alone", detector.precision)


@_public_check
def batch_mates_change_nothing(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    expected = detector.score(world.test)
    for size in (0.0, 1e30, -1e30):
        # Images go through the network, which may refuse more than this.
        mates = convert(world.ood, partial(mul, size), "features", "logits", "patches")
        mates = convert(mates, partial(mul, max(-1e3, min(size, 1e3))), "images")
        rows = {name: torch.cat([getattr(mates, name), getattr(world.test, name)]) for name in STREAMED}
        beside = detector.score(Outputs(**rows))[len(mates) :]
        _expect_close(beside, expected, f"beside other rows times {size:g}", detector.precision)


@_public_check
def batch_size_changes_nothing(make: Make) -> None:
    world = build_world()
    expected = fitted(make, world).score(world.test)
    for rows in (1, 7):
        detector = make()
        detector.batch_rows = rows  # type: ignore[misc]
        scores = fit(detector, world).score(world.test)
        _expect_close(scores, expected, f"with batches of {rows}", detector.precision)


@_public_check
def training_order_changes_nothing(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    scores = fitted(make, world, train=convert(world.train, lambda rows: rows.flip(0))).score(world.test)
    _expect_close(scores, detector.score(world.test), "fitted in another order", detector.precision)


class Spy:
    """Rows that remember the most that was ever taken at once."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.shape, self.most = rows, rows.shape, 0

    def __getitem__(self, rows: slice) -> Tensor:
        taken = self.rows[rows]
        self.most = max(self.most, len(taken))
        return taken


@_public_check
def data_are_streamed(make: Make) -> None:
    world = build_world()
    train, test = convert(world.train, Spy, *STREAMED), convert(world.test, Spy, *STREAMED)
    detector = make()
    detector.batch_rows = 5  # type: ignore[misc]
    fit(detector, world, train=train).score(test)
    for outputs in (train, test):
        for name in STREAMED:
            most = getattr(outputs, name).most
            expect(most <= 5, f"{most} rows of {name} were taken at once, with batches of 5")


@_public_check
def inputs_and_network_stay_as_they_were(make: Make) -> None:
    world, before = build_world(), build_world()
    convert(world.test, lambda rows: rows.requires_grad_(), "features", "logits", "patches")
    random_state = torch.get_rng_state()
    scores = fitted(make, world).score(world.test)
    expect(torch.equal(torch.get_rng_state(), random_state), "torch's global random numbers were drawn or seeded")
    expect(not scores.requires_grad, "scores require a gradient")
    for part in ("train", "val", "test"):
        for name in (field.name for field in fields(Outputs)):
            mine, theirs = getattr(getattr(world, part), name), getattr(getattr(before, part), name)
            expect(mine is None or torch.equal(mine, theirs), f"{name} of {part} were written to")
    expect(torch.equal(world.head.weight, before.head.weight), "the head's weight was written to")
    expect(torch.equal(world.head.bias, before.head.bias), "the head's bias was written to")
    expected = before.model.state_dict()
    for name, value in world.model.state_dict().items():
        expect(torch.equal(value, expected[name]), f"the network's {name} was written to")
    for name, parameter in world.model.named_parameters():
        expect(parameter.requires_grad, f"the network's {name} requires no gradient any more")
        expect(parameter.grad is None, f"the network's {name} was given a gradient")


@_public_check
def a_new_fit_forgets_the_old_one(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    expected = detector.score(world.test)
    fit(detector, build_world(samples_a_class=7, features=lambda features: features + 1.0))
    _expect_equal(fit(detector, world).score(world.test), expected, "fitted again after other data")


@_public_check
def the_same_fit_gives_the_same_scores(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    expected = detector.score(world.test)
    _expect_equal(detector.score(world.test), expected, "scored again")
    _expect_equal(fit(detector, world).score(world.test), expected, "fitted again")
    _expect_equal(fitted(make, world).score(world.test), expected, "fitted anew")


@_public_check
def a_saved_state_gives_the_same_scores(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    tensors, about = detector.state()
    for name, tensor in tensors.items():
        expect(tensor.device.type == "cpu", f"the learned {name} is on {tensor.device}")
    text = json.dumps(about, allow_nan=False)
    stored, about = safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(text)
    restored = type(detector)(**about["options"])
    restored._take_state(stored, about, world.model if {"model", "images"} <= detector.needs else None)
    _expect_equal(restored.score(world.test), detector.score(world.test), "restored from its state")
    tensors_again, about_again = restored.state()
    expect(json.dumps(about_again) == text, f"the state says {json.dumps(about_again)} after restoring, {text} before")
    expect(tensors_again.keys() == tensors.keys(), f"the state holds {sorted(tensors_again)} after restoring")


@_public_check
def half_precision_is_only_storage(make: Make) -> None:
    world = build_world()
    # Images go through the network, which has a precision of its own.
    tolerance = 1e-6 if "images" in make().needs else 0.0
    for dtype in (torch.float16, torch.bfloat16):
        half, double = (partial(Tensor.to, dtype=kind) for kind in (dtype, torch.float64))
        train, val, test = (convert(outputs, half, *STREAMED) for outputs in (world.train, world.val, world.test))
        head = Head(half(world.head.weight), half(world.head.bias))
        scores = fitted(make, world, train=train, val=val, head=head).score(test)
        expect(scores.dtype == torch.float64, f"scores of {dtype} are {scores.dtype}, not torch.float64")
        train, val, test = (convert(outputs, double, *STREAMED) for outputs in (train, val, test))
        expected = fitted(make, world, train=train, val=val, head=head.double()).score(test)
        off = float((scores - expected).abs().max())
        ok = torch.allclose(scores, expected, rtol=tolerance, atol=0.0)
        expect(ok, f"scores of the same values differ by up to {off:.3g} where those are stored in {dtype}")


@_public_check
def arrays_serve_as_tensors(make: Make) -> None:
    world = build_world()
    expected = fitted(make, world).score(world.test)
    train, val, test = (convert(outputs, _read_only) for outputs in (world.train, world.val, world.test))
    _expect_equal(fitted(make, world, train=train, val=val).score(test), expected, "of read-only arrays")


def _read_only(rows: Tensor) -> np.ndarray:
    array = rows.numpy().copy()
    array.flags.writeable = False
    return array


@_public_check
def memory_maps_serve_as_tensors(make: Make) -> None:
    world = build_world()
    expected = fitted(make, world).score(world.test)
    # A map keeps its file in use, which some systems then do not delete.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        paths = iter(Path(folder) / f"{number}.npy" for number in range(100))
        train, val, test = (
            convert(outputs, lambda rows: _memory_map(rows, next(paths)))
            for outputs in (world.train, world.val, world.test)
        )
        _expect_equal(fitted(make, world, train=train, val=val).score(test), expected, "of memory-mapped files")


def _memory_map(rows: Tensor, path: Path) -> np.ndarray:
    np.save(path, rows.numpy())
    return np.load(path, mmap_mode="r")


@_public_check
def degenerate_data_have_finite_scores(make: Make) -> None:
    usual = build_world()
    for name, build in DEGENERATE.items():
        with _name_in_errors(name):
            world = build()
            detector = fitted(make, world)
            for part in (world.train, world.test, world.ood, *([] if name == "one class" else [usual.ood])):
                scores = detector.score(part)
                expect(bool(torch.isfinite(scores).all()), f"scores are not finite: {scores[~scores.isfinite()]}")


@_public_check
def a_thousand_classes_are_scored(make: Make) -> None:
    world = build_world(head=_a_thousand_classes, labels=lambda labels: 37 * torch.arange(len(labels)) % 1000)
    detector = fitted(make, world)
    for part in (world.train, world.test, world.ood):
        scores = detector.score(part)
        expect(scores.shape == (len(part),), f"{len(part)} images have scores of shape {tuple(scores.shape)}")
        expect(bool(torch.isfinite(scores).all()), f"scores are not finite: {scores[~scores.isfinite()]}")


@_public_check
def use_before_fit_is_refused(make: Make) -> None:
    world = build_world()
    detector = make()
    _expect_named("fit", refusal(RuntimeError, detector.score, world.test))
    _expect_named("fit", refusal(RuntimeError, detector.state))
    if {"train", "model"} & detector.needs:
        broken = convert(world.train, lambda rows: rows * torch.nan, *STREAMED)
        refusal(ValueError, fit(detector, world).fit, broken, None)
        with _name_in_errors("after a fit that failed"):
            _expect_named("fit", refusal(RuntimeError, detector.score, world.test))


@_public_check
def what_is_missing_is_named(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    for name in detector.needs & set(STREAMED):
        with _name_in_errors(f"without {name}"):
            partly = replace(world.test, **{name: None})
            _expect_named(name, refusal(ValueError, detector.score, partly))
    for name in detector.needs & {"train", "head", "val", "model"}:
        with _name_in_errors(f"fitted without {name}"):
            _expect_named(name, refusal(ValueError, fitted, make, world, **{name: None}))
    for name in detector.needs & {"train", "val"}:
        with _name_in_errors(f"fitted on no rows of {name}"):
            empty = convert(getattr(world, name), lambda rows: rows[:0])
            text = refusal(ValueError, fitted, make, world, **{name: empty})
            _expect_named(name, text)
            _expect_named("rows", text)


@_public_check
def what_is_not_needed_is_not_read(make: Make) -> None:
    world = build_world()
    expected = fitted(make, world).score(world.test)
    needs = make().needs
    train, val, test = (outputs.only(needs | {"labels"}) for outputs in (world.train, world.val, world.test))
    given = {"train": train, "head": world.head, "val": val, "model": world.model}
    detector = fitted(make, world, **{name: value if name in needs else None for name, value in given.items()})
    _expect_equal(detector.score(test), expected, "given only what it needs")


@_public_check
def values_that_are_not_finite_are_refused(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    for value in (torch.nan, torch.inf, -torch.inf):
        for name in detector.needs & set(STREAMED):
            with _name_in_errors(f"with {value} in row 6 of {name}"):
                poisoned = convert(world.test, partial(_poison, row=6, value=value), name)
                text = refusal(ValueError, detector.score, poisoned)
                _expect_named("row 6", text)
                _expect_named(name, text)
    if "train" in detector.needs:
        for name in detector.needs & {"features", "logits", "patches"}:
            with _name_in_errors(f"with NaN in row 40 of the training {name}"):
                poisoned = convert(world.train, partial(_poison, row=40, value=torch.nan), name)
                text = refusal(ValueError, fitted, make, world, train=poisoned)
                _expect_named("row 40", text)
    if "head" in detector.needs:
        with _name_in_errors("with NaN in the head"):
            head = Head(_poison(world.head.weight, 1, torch.nan), world.head.bias)
            _expect_named("head", refusal(ValueError, fitted, make, world, head=head))


def _poison(rows: Tensor, row: int, value: float) -> Tensor:
    rows = rows.clone()
    rows[row].view(-1)[2] = value
    return rows


@_public_check
def shapes_that_do_not_fit_are_refused(make: Make) -> None:
    world = build_world()
    detector = fitted(make, world)
    for name in detector.needs & {"features", "logits", "patches"}:
        with _name_in_errors(f"with {name} that lack an axis"):
            flat = convert(world.test, lambda rows: rows[:, 0], name)
            _expect_named(name, refusal(ValueError, detector.score, flat))
        if {"train", "head"} & detector.needs:
            with _name_in_errors(f"with {name} twice as wide"):
                wider = convert(world.test, lambda rows: torch.cat([rows, rows], dim=-1), name)
                _expect_named(name, refusal(ValueError, detector.score, wider))


@_public_check
def options_that_make_no_sense_are_refused(make: Make) -> None:
    world = build_world()
    detector = make()
    kind, options = type(detector), {option.name: getattr(detector, option.name) for option in option_fields(detector)}
    _expect_named("no_such_option", refusal((TypeError, ValueError), kind, **options, no_such_option=1))
    for option in option_fields(detector):
        for value in ("nonsense", math.nan, -(10**30), *([] if option.default is None else [None])):
            with _name_in_errors(f"{option.name}={value!r}"):
                make_wrong = partial(kind, **{**options, option.name: value})
                # What only the data can tell is refused when they are there.
                _expect_named(option.name, refusal(ValueError, fitted, make_wrong, world))


@_public_check
def invariances_are_as_declared(make: Make) -> None:
    """`Invariant to` of a docstring, if there, names the changes that leave the order of the scores, and no others."""
    declared = declared_invariances(type(make()))
    if declared is None:  # it is measured where somebody asks for it
        return
    broken = broken_by(make)
    for name, pairs in broken.items():
        if name in declared:
            expect(pairs == 0, f"it declares that it is invariant to {name}, which exchanges {pairs} pairs of images")
        else:
            expect(pairs > 0, f"it is invariant to {name}, but does not declare it: add it to `Invariant to`")


@_public_check
def cpu_and_gpu_agree(make: Make) -> None:
    world = build_world()
    expected = fitted(make, world).score(world.test)
    train, val, test = (convert(outputs, Tensor.cuda) for outputs in (world.train, world.val, world.test))
    head = Head(world.head.weight.cuda(), world.head.bias.cuda())
    scores = fitted(make, world, train=train, val=val, head=head, model=copy.deepcopy(world.model).cuda()).score(test)
    expect(scores.device.type == "cpu", f"scores are on {scores.device}")
    off = float((scores - expected).abs().max())
    ok = torch.allclose(scores, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    expect(ok, f"scores from the GPU and from the CPU differ by up to {off:.3g}")
