"""Detectors by id, and what their docstrings have to say."""

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from detectors import Detector, Registry, available, create, describe
from detectors.base import Batch
from detectors.description import check_description
from detectors.invariance import CHANGES

IDS = [
    "ash-b",
    "ash-p",
    "ash-s",
    "bats",
    "constant",
    "cosine",
    "dice",
    "dice+react",
    "energy",
    "entropy",
    "fdbd",
    "fm",
    "fm+le+react",
    "fm+ls",
    "fm+react",
    "gen",
    "gl-mcm",
    "gmm",
    "gmm++",
    "gradnorm",
    "gradnorm+itp",
    "himplos",
    "itp",
    "itp+react",
    "itp-crp",
    "itp-ftp",
    "kl-matching",
    "knn",
    "laps",
    "line",
    "line+ls",
    "ls",
    "ls+react",
    "mahalanobis",
    "mahalanobis++",
    "mahalanobis-layers",
    "mahalanobis-odin",
    "max-logit",
    "max-logit+itp",
    "mcm",
    "msp",
    "msp+himplos",
    "msp+itp",
    "msp+react",
    "neco",
    "neglabel",
    "nnguide",
    "odin",
    "odin+himplos",
    "odin+itp",
    "odin+react",
    "openmax",
    "opnp",
    "opnp+react",
    "random",
    "rankfeat",
    "react",
    "relative-cosine",
    "relative-mahalanobis",
    "relative-mahalanobis++",
    "residual",
    "scale",
    "she",
    "ssc",
    "ssd",
    "temperature-scaling",
    "vim",
    "vra",
]
# Options whose names and defaults other people's suites rely on.
DEFAULTS: dict[str, dict[str, Any]] = {
    "energy": {"temperature": 1.0},
    "kl-matching": {"classes": "predicted"},
    "knn": {"k": None},
    "odin": {"temperature": 1000.0, "epsilon": 0.0014},
    "react": {"percentile": 99.0},
    "relative-mahalanobis++": {"global_fit": "normalised"},
    "vim": {"dimension": None},
}


@dataclass(kw_only=True, eq=False)
class Sample(Detector):
    """A detector that is described in full,
    over two lines.

    Formula: S = o_0
        + size
    Paper: A. Author, "A Title", Venue 2020, arXiv:2001.00001
    Options:
    - size: how much: a number
    - kind: what kind,
        in two lines
    Deviations:
    - The first.
    - The second,
        in two lines.
    Verified:
    - scipy, 1e-6
    """

    id = "sample"
    needs = frozenset({"logits"})
    size: float = 1.0
    kind: str = "plain"

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits[:, 0] + self.size


def variant(**attributes: Any) -> type[Sample]:
    """The sample with other attributes; `doc` takes a pair (old, new) to replace in its docstring."""
    old, new = attributes.pop("doc", ("", ""))
    made = type("Variant", (Sample,), {"__doc__": (Sample.__doc__ or "").replace(old, new), **attributes})
    return dataclass(kw_only=True, eq=False)(made)


def test_a_class_that_is_no_dataclass_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="Plain needs @dataclass"):
        Registry().register(type("Plain", (Sample,), {}))


def test_a_class_without_an_id_is_refused() -> None:
    @dataclass(kw_only=True, eq=False)
    class Nameless(Detector):
        def _score(self, batch: Batch) -> Tensor:
            return batch.logits[:, 0]

    with pytest.raises(ValueError, match="Nameless lacks id and needs"):
        Registry().register(Nameless)


def test_all_ids_are_there() -> None:
    assert [detector_id for detector_id in IDS if detector_id not in available()] == []
    assert available() == sorted(available())


@pytest.mark.parametrize("detector_id", available())
def test_create_gives_that_detector_with_its_defaults(detector_id: str) -> None:
    detector, defaults = create(detector_id), describe(detector_id)["defaults"]
    assert detector.id == detector_id
    assert {name: getattr(detector, name) for name in defaults} == defaults


@pytest.mark.parametrize("detector_id", DEFAULTS)
def test_the_defaults_of_the_contract_stay(detector_id: str) -> None:
    assert describe(detector_id)["defaults"] == DEFAULTS[detector_id]


def test_options_override_the_defaults() -> None:
    assert create("odin", epsilon=0.002).epsilon == 0.002
    assert create("odin", epsilon=0.002).temperature == 1000.0


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("mahalanobs++", "mahalanobis++"), ("maxlogit", "max-logit"), ("relative_cosine", "relative-cosine")],
)
def test_an_unknown_id_says_what_was_meant(wrong: str, meant: str) -> None:
    for call in (create, describe):
        with pytest.raises(ValueError, match=re.escape(repr(wrong)) + ".*did you mean " + re.escape(repr(meant))):
            call(wrong)


def test_an_id_like_no_other_gets_the_list() -> None:
    with pytest.raises(ValueError, match="available: " + ", ".join(available()[:3])) as error:
        create("zzzz")
    assert "did you mean" not in str(error.value)


def test_an_unknown_option_says_what_was_meant() -> None:
    with pytest.raises(
        ValueError, match=r"no option 'temprature' \(did you mean 'temperature'\?\).*temperature, epsilon"
    ):
        create("odin", temprature=1.0)
    with pytest.raises(ValueError, match="msp has no option 'k'; its options: none"):
        create("msp", k=1)


@pytest.mark.parametrize("detector_id", available())
def test_a_description_is_complete_and_plain(detector_id: str) -> None:
    text = json.dumps(describe(detector_id), allow_nan=False)
    assert json.dumps(json.loads(text)) == text
    for kind in (type(create(detector_id)), *type(create(detector_id)).made_of):
        check_description(kind)


def test_a_docstring_is_read_section_by_section() -> None:
    registry = Registry()
    registry.register(Sample)
    assert registry.describe("sample") == {
        "id": "sample",
        "summary": "A detector that is described in full, over two lines.",
        "formula": "S = o_0 + size",
        "paper": 'A. Author, "A Title", Venue 2020, arXiv:2001.00001',
        "needs": ["logits"],
        "options": {"size": "how much: a number", "kind": "what kind, in two lines"},
        "defaults": {"size": 1.0, "kind": "plain"},
        "deviations": ["The first.", "The second, in two lines."],
        "verified": ["scipy, 1e-6"],
        # S is that of class 0 alone, so that it is not the same where the classes have another order.
        "invariances": {name: name != "class order" for name in CHANGES},
        "invariances_declared": False,
    }


def test_invariances_are_measured_once_and_what_cannot_be_fitted_has_none() -> None:
    registry, made = Registry(), []

    @registry.register
    @dataclass(kw_only=True, eq=False)
    class Counted(Sample):
        __doc__ = Sample.__doc__
        id = "counted"

        def __post_init__(self) -> None:
            made.append(self)

    first = registry.describe("counted")
    count = len(made)
    assert first == registry.describe("counted")
    assert len(made) == count > 0

    @registry.register
    @dataclass(kw_only=True, eq=False)
    class Broken(Sample):
        __doc__ = Sample.__doc__
        id = "broken"

        def _score(self, batch: Batch) -> Tensor:
            raise MemoryError("no room")

    described = registry.describe("broken")
    assert (described["invariances"], described["invariances_declared"]) == ({}, False)


def test_the_detectors_of_this_project_declare_their_invariances() -> None:
    assert [detector_id for detector_id in available() if not describe(detector_id)["invariances_declared"]] == []


def test_registries_are_apart() -> None:
    registry = Registry()
    assert registry.register(Sample) is Sample
    assert registry.available() == ["sample"]
    assert "sample" not in available()


def test_an_id_is_given_once() -> None:
    registry = Registry()
    registry.register(Sample)
    registry.register(Sample)
    with pytest.raises(ValueError, match="two detectors are called 'sample'"):
        registry.register(variant())


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"needs": frozenset({"logits", "lables"})}, "unknown needs.*lables"),
        ({"doc": ("over two lines.", "over two lines")}, "does not begin with a whole sentence"),
        ({"doc": ("Formula:", "In short:")}, "lacks Formula"),
        ({"doc": ("S = o_0", "the first logit")}, "does not say what the score S is"),
        ({"doc": ("Paper:", "Source:")}, "lacks Paper"),
        ({"doc": ('A. Author, "A Title", Venue 2020', "A Title")}, "its Paper is not of the form"),
        ({"doc": (", arXiv:2001.00001", "")}, "its Paper does not say where it is"),
        ({"doc": ("Verified:\n    - scipy, 1e-6", "")}, "lacks Verified"),
        ({"doc": ("- scipy, 1e-6", "")}, "lacks Verified"),
        ({"doc": ("- size:", "- sizes:")}, "sizes.*its options are.*size"),
        ({"doc": ("Options:", "Settings:")}, "explains \\[\\]"),
        ({"doc": (" how much: a number", "")}, "does not say what the option size means"),
        ({"doc": ("The first.", "The first")}, "no full stop: The first"),
        ({"size": float("inf"), "__annotations__": {"size": float}}, "the default of its option size is inf"),
        ({"__doc__": None}, "lacks Formula and Paper and Verified"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_gap_in_the_description_is_refused(attributes: dict[str, Any], says: str) -> None:
    registry = Registry()
    with pytest.raises(ValueError, match=says) as caught:
        registry.register(variant(**attributes))
    assert registry.available() == []
    if "unknown needs" not in says:
        assert str(caught.value).startswith("Variant (sample): ")
        assert "CONTRIBUTING.md" in str(caught.value)
