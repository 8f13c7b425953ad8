"""Vision-language detectors against plain loops, pytorch-ood and the laws of their formulas."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy.special import expit

from detectors import Detector, Head, Outputs, create, restore
from detectors.contract import refusal
from tests.references.data import DATA, Data, agree, make_data
from tests.references.language import gl_mcm, mcm, neglabel

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = tuple(f"word {number}" for number in range(40))


class Texts:
    """A text encoder that knows some words."""

    def __init__(self, width: int, seed: int = 0) -> None:
        embeddings = np.random.default_rng(seed).normal(size=(len(WORDS), width))
        self.known = dict(zip(WORDS, embeddings, strict=True))
        self.asked: list[str] = []

    def text_features(self, words: Sequence[str]) -> torch.Tensor:
        self.asked += words
        return torch.from_numpy(np.array([self.known[word] for word in words]))

    @property
    def embeddings(self) -> np.ndarray:
        return np.array(list(self.known.values()))


def head_of(data: Data) -> Head:
    return Head(data.weight, data.bias)


def patches_of(data: Data, seed: int = 0) -> np.ndarray:
    rows, width = data.test.shape
    return np.random.default_rng(seed).normal(size=(rows, 5, width)) + data.test[:, None]


def gl_scores(data: Data, patches: np.ndarray, **options: Any) -> np.ndarray:
    detector = create("gl-mcm", **options).fit(None, head_of(data))
    detector.batch_rows = 7
    return detector.score(Outputs(features=data.test, patches=patches)).numpy()


def fitted_neglabel(data: Data, model: Any = None, **options: Any) -> Detector:
    detector = create("neglabel", **{"words": WORDS, **options})
    detector.batch_rows = 7
    return detector.fit(None, head_of(data), model=model or Texts(data.test.shape[1]))


def negative_scores(data: Data, **options: Any) -> np.ndarray:
    return fitted_neglabel(data, **options).score(Outputs(features=data.test)).numpy()


# --- Independent implementations. ---


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    "options", [{}, {"form": "printed"}, {"temperature": 0.1, "local_temperature": 0.05}], ids=repr
)
def test_gl_mcm_agrees_with_the_formula(options: dict[str, Any], kind: str) -> None:
    data = DATA[kind]
    patches = patches_of(data)
    assert agree(gl_scores(data, patches, **options), gl_mcm(data, patches, **options))


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    "options", [{}, {"keep": 0.5, "percentile": 60.0}, {"keep": 1.0, "groups": 7, "temperature": 0.3}], ids=repr
)
def test_neglabel_agrees_with_the_formula(options: dict[str, Any], kind: str) -> None:
    data = DATA[kind]
    embeddings = Texts(data.test.shape[1]).embeddings
    assert agree(negative_scores(data, **options), neglabel(data, embeddings, **options))


def test_mcm_agrees_with_pytorch_ood() -> None:
    data = DATA["ReLU"]
    features, weight = torch.from_numpy(data.test), torch.from_numpy(data.weight)
    for temperature in (1.0, 0.1):
        theirs = peer.MCM(None, weight, temperature).predict_features(features)
        np.testing.assert_allclose(expit(data.scores("mcm", temperature=temperature)), -theirs.numpy(), rtol=1e-5)


# --- Laws. ---


@few
@given(seeds)
def test_only_directions_count(seed: int) -> None:
    data = make_data(20, 6, 3, seed)
    random = np.random.default_rng(seed)

    def stretched(vectors: np.ndarray) -> np.ndarray:
        return vectors * 10 ** random.uniform(-6, 6, (*vectors.shape[:-1], 1))

    other = Data(data.train, data.labels, stretched(data.test), stretched(data.weight), data.bias + 5)
    patches = patches_of(data)
    assert agree(other.scores("mcm"), data.scores("mcm").tolist())
    assert agree(gl_scores(other, stretched(patches)), gl_scores(data, patches).tolist())
    assert agree(negative_scores(other), negative_scores(data).tolist())


@few
@given(seeds)
def test_the_forms_of_the_local_term_are_ordered(seed: int) -> None:
    """With one patch they are one; the best patch by itself is never less sure than the best cosines of all patches."""
    data = make_data(20, 6, 3, seed)
    patches = patches_of(data)
    code, printed = (gl_scores(data, patches, form=form, local_temperature=0.1) for form in ("code", "printed"))
    assert (code >= printed - 1e-12).all()
    assert not np.allclose(code, printed)
    alone = patches[:, :1]
    np.testing.assert_allclose(gl_scores(data, alone), gl_scores(data, alone, form="printed"), rtol=1e-12)


@few
@given(seeds)
def test_a_patch_like_the_image_leaves_its_odds(seed: int) -> None:
    data = make_data(20, 6, 3, seed)
    np.testing.assert_allclose(gl_scores(data, data.test[:, None]), mcm(data), rtol=1e-9, atol=1e-12)


@few
@given(seeds)
def test_the_order_and_number_of_patches_do_not_matter(seed: int) -> None:
    data = make_data(20, 6, 3, seed)
    patches = patches_of(data)
    twice = np.concatenate([patches[:, ::-1], patches], axis=1)
    for form in ("code", "printed"):
        np.testing.assert_allclose(gl_scores(data, twice, form=form), gl_scores(data, patches, form=form), rtol=1e-12)


def test_a_high_temperature_makes_all_classes_equal() -> None:
    data = DATA["random"]  # 5 classes
    np.testing.assert_allclose(data.scores("mcm", temperature=1e9), -math.log(4), rtol=1e-8)


def test_negative_words_are_the_ones_far_from_the_classes() -> None:
    data = DATA["random"]
    texts = Texts(12)
    for number, text in enumerate(data.weight):  # words that mean the classes
        texts.known[f"word {number}"] = text
    found = fitted_neglabel(data, texts, keep=0.5, percentile=100).negatives
    cosines = found.flatten(0, 1) @ torch.nn.functional.normalize(torch.from_numpy(data.weight)).T
    assert found.shape == (20, 1, 12)
    assert cosines.max() < 0.99
    rest = fitted_neglabel(data, texts, keep=1.0, percentile=100).negatives.flatten(0, 1)
    assert (rest @ torch.nn.functional.normalize(torch.from_numpy(data.weight)).T).max() > 0.99


def test_groups_share_out_the_words_nearest_last() -> None:
    data = DATA["random"]
    ranked = fitted_neglabel(data, keep=1.0, groups=40).negatives[:, 0]
    dealt = fitted_neglabel(data, keep=1.0, groups=7).negatives
    assert dealt.shape == (7, 5, 12)
    assert torch.equal(dealt, ranked[:35].view(5, 7, 12).transpose(0, 1))


@few
@given(seeds)
def test_one_group_is_the_plain_softmax_over_all_words(seed: int) -> None:
    data = make_data(20, 6, 3, seed)
    negatives = fitted_neglabel(data, groups=1).negatives[0].numpy()
    cosines = np.array([row / np.linalg.norm(row) for row in data.test])
    classes = np.array([row / np.linalg.norm(row) for row in data.weight])
    known = np.exp(cosines @ classes.T / 0.3).sum(axis=1)
    others = np.exp(cosines @ negatives.T / 0.3).sum(axis=1)
    np.testing.assert_allclose(negative_scores(data, groups=1, temperature=0.3), np.log(known / others), rtol=1e-9)


def test_log_odds_do_not_saturate() -> None:
    """At T = 0.001 all probabilities round to 0 or 1, and still no two images tie."""
    found = negative_scores(DATA["random"], temperature=0.001, groups=1)
    assert len(set(found)) == len(found)
    assert np.abs(found).max() > 100


@pytest.mark.parametrize("form", ["code", "printed"])
def test_cosines_at_a_low_temperature_do_not_tie(form: str) -> None:
    """At T = 0.00001 cosines that differ by 0.007 or more have a probability of 1."""
    data = DATA["random"]
    found = data.scores("mcm", temperature=1e-5)
    assert len(set(found)) == len(set(map(tuple, data.test)))
    found = gl_scores(data, patches_of(data), temperature=1e-5, local_temperature=1e-5, form=form)
    assert len(set(found)) == len(found)


def test_words_are_stripped_and_count_once() -> None:
    data = DATA["random"]
    texts = Texts(12)
    repeated = [f" {WORDS[0]}", *WORDS, WORDS[3], f"{WORDS[5]}\n"]
    expected = negative_scores(data)
    found = fitted_neglabel(data, texts, words=repeated).score(Outputs(features=data.test)).numpy()
    assert texts.asked == list(WORDS)
    np.testing.assert_array_equal(found, expected)


def test_many_words_are_asked_for_in_parts() -> None:
    data = DATA["random"]
    most = []

    class Encoder:
        def text_features(self, words: Sequence[str]) -> torch.Tensor:
            most.append(len(words))
            return torch.from_numpy(np.random.default_rng(len(most)).normal(size=(len(words), 12)))

    detector = fitted_neglabel(data, Encoder(), words=tuple(map(str, range(3000))))
    assert max(most) <= 1024
    assert sum(most) == 3000
    assert detector.negatives.shape == (100, 4, 12)  # 450 words, less 50 that 100 groups cannot share


def test_a_saved_neglabel_scores_without_the_model() -> None:
    data = DATA["random"]
    detector = fitted_neglabel(data)
    tensors, about = detector.state()
    again = restore(tensors, json.loads(json.dumps(about)))
    outputs = Outputs(features=data.test)
    assert torch.equal(again.score(outputs), detector.score(outputs))


# --- What is refused. ---


@pytest.mark.parametrize(
    ("detector_id", "option", "values"),
    [
        ("mcm", "temperature", [0, -1.0, "1", True, math.nan, None]),
        ("gl-mcm", "temperature", [0, True, None]),
        ("gl-mcm", "local_temperature", [0, -1.0, "1", True, math.inf, None]),
        ("gl-mcm", "form", ["paper", None, 1]),
        ("neglabel", "words", ["dog", None, 3, ("dog", 3), ("dog", " ")]),
        ("neglabel", "keep", [0, 1.5, "1", True, math.nan, None]),
        ("neglabel", "percentile", [-1, 100.5, "95", True, None]),
        ("neglabel", "groups", [0, 2.0, "3", True]),
        ("neglabel", "temperature", [0, True, None]),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any]) -> None:
    for value in values:
        text = refusal(ValueError, create, detector_id, **{option: value})
        assert f"{option} is {value!r}" in text
        assert "allowed" in text


def test_no_words_are_refused_at_fit() -> None:
    data = DATA["random"]
    assert "words is (); allowed: at least one word" in refusal(ValueError, fitted_neglabel, data, words=())


def test_groups_are_held_to_the_words_and_never_rescaled() -> None:
    data = DATA["random"]
    fitted_neglabel(data, groups=6)  # 15 % of 40 words
    assert "groups is 7; allowed: up to 6" in refusal(ValueError, fitted_neglabel, data, groups=7)


@pytest.mark.parametrize(
    "answer",
    [np.ones((40, 11)), np.ones((39, 12)), np.full((40, 12), np.nan), np.ones(40)],
    ids=["width", "count", "nan", "flat"],
)
def test_text_embeddings_that_do_not_fit_are_refused(answer: np.ndarray) -> None:
    class Encoder:
        def text_features(self, words: Sequence[str]) -> torch.Tensor:
            return torch.from_numpy(answer)

    assert "text_features" in refusal(ValueError, fitted_neglabel, DATA["random"], Encoder())


def test_a_model_without_text_is_refused_by_name() -> None:
    assert "text_features" in refusal(ValueError, fitted_neglabel, DATA["random"], object())


def test_patches_of_another_width_are_refused() -> None:
    data = DATA["random"]
    assert "patches" in refusal(ValueError, gl_scores, data, patches_of(data)[:, :, 1:])
