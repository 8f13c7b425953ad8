"""Detectors of pytorch-ood, and postprocessors with OpenOOD's interface, as detectors of this project."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_ood.api
import pytorch_ood.detector as theirs
import torch
from torch import Tensor, nn

from benchmark.records import Record
from benchmark.running.fitted_detector import source_sha256
from benchmark.user.detectors import load_detectors
from detectors import Registry, describe, restore
from detectors.catalogue import registry
from detectors.contract import ExpectedFailureError, World, build_world, fitted, run_check
from detectors.description import check_description
from detectors.foreign import NotAdaptableError, adapt
from tests.test_user import OOD, Runs

pytest_plugins = "pytester"
pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = build_world()


def _without_address(value: object) -> str:
    """The id of a parameter, the same in every process of pytest-xdist."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


@pytest.fixture
def run(pytester: pytest.Pytester, user_world: Path) -> Runs:
    return Runs(pytester, user_world)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the detectors that a test registers."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


# --- pytorch-ood: the scores are those that the library gives, with the other sign. ---


def head() -> nn.Linear:
    layer = nn.Linear(16, 4)
    layer.weight.data, layer.bias.data = WORLD.head.weight.float(), WORLD.head.bias.float()
    return layer


def of_logits(detector: Any) -> Tensor:
    detector.fit_logits(WORLD.train.logits.float(), WORLD.train.labels)
    return detector.predict_logits(WORLD.test.logits.float())


def of_features(detector: Any) -> Tensor:
    detector.fit_features(WORLD.train.features.float(), WORLD.train.labels)
    return detector.predict_features(WORLD.test.features.float())


def maps(images: Tensor) -> Tensor:
    return WORLD.model.feature_map(images).mT[..., None].contiguous()


def logits_of_maps(feature_maps: Tensor) -> Tensor:
    return WORLD.model.logits_of_map(feature_maps[..., 0].mT)


def of_maps(detector: Any) -> Tensor:
    detector.fit_feature_maps(maps(WORLD.train.images), WORLD.train.labels)
    return detector.predict_feature_maps(maps(WORLD.test.images))


def of_layers(detector: Any) -> Tensor:
    train, test = ([x.float() for x in WORLD.model.layers(part.images)] for part in (WORLD.train, WORLD.test))
    detector.alpha = [1.0, 1.0]
    return detector.fit_structured(train, WORLD.train.labels).predict_structured(test)


def of_images(detector: Any) -> Tensor:
    return detector.predict(WORLD.test.images)


def mahalanobis_odin() -> Tensor:
    detector = theirs.MahalanobisODIN(lambda images: WORLD.model.features(images).float())
    detector.fit_features(WORLD.train.features.float(), WORLD.train.labels)
    return detector.predict(WORLD.test.images)


# A class -> its options, and its outlier scores of the test images where the library is called directly.
DIRECT: dict[Any, tuple[dict[str, Any], Callable[[], Tensor]]] = {
    theirs.MaxSoftmax: ({"t": 2.0}, lambda: of_logits(theirs.MaxSoftmax(None, t=2.0))),
    theirs.MaxLogit: ({}, lambda: of_logits(theirs.MaxLogit(None))),
    theirs.EnergyBased: ({}, lambda: of_logits(theirs.EnergyBased(None))),
    theirs.Entropy: ({}, lambda: of_logits(theirs.Entropy(None))),
    theirs.GEN: ({"M": 3}, lambda: of_logits(theirs.GEN(None, M=3))),
    theirs.KLMatching: ({}, lambda: of_logits(theirs.KLMatching(None))),
    theirs.TemperatureScaling: ({}, lambda: of_logits(theirs.TemperatureScaling(None))),
    theirs.OpenMax: ({"tailsize": 5}, lambda: of_logits(theirs.OpenMax(None, tailsize=5))),
    theirs.WeightedEBO: (
        {"weights": [1, 2, 3, 4]},
        lambda: of_logits(theirs.WeightedEBO(None, torch.tensor([1, 2, 3, 4]))),
    ),
    theirs.KNN: ({"k": 5}, lambda: of_features(theirs.KNN(None, k=5))),
    theirs.Mahalanobis: ({}, lambda: of_features(theirs.Mahalanobis(None))),
    theirs.RMD: ({}, lambda: of_features(theirs.RMD(None))),
    theirs.ViM: ({"d": 8}, lambda: of_features(theirs.ViM(None, 8, head().weight, head().bias))),
    theirs.DICE: ({"p": 0.7}, lambda: of_features(theirs.DICE(None, head().weight, head().bias, 0.7))),
    theirs.SHE: ({}, lambda: of_features(theirs.SHE(None, head()))),
    theirs.fDBD: ({}, lambda: of_features(theirs.fDBD(None, head()))),
    theirs.NCI: ({"alpha": 0.1}, lambda: of_features(theirs.NCI(None, head(), alpha=0.1))),
    theirs.NNGuide: ({}, lambda: of_features(theirs.NNGuide(None, head()))),
    theirs.GMM: ({}, lambda: of_features(theirs.GMM(None))),
    theirs.LTS: ({}, lambda: of_features(theirs.LTS(None, head()))),
    theirs.PNML: ({}, lambda: of_features(theirs.PNML(None, head()))),
    theirs.MCM: ({}, lambda: of_features(theirs.MCM(None, head().weight))),
    theirs.ASH: ({"variant": "ash-b"}, lambda: of_maps(theirs.ASH(maps, logits_of_maps, variant="ash-b"))),
    theirs.SCALE: ({}, lambda: of_maps(theirs.SCALE(maps, logits_of_maps))),
    theirs.ReAct: ({}, lambda: of_maps(theirs.ReAct(maps, logits_of_maps))),
    theirs.VRA: ({}, lambda: of_maps(theirs.VRA(maps, logits_of_maps))),
    theirs.RankFeat: ({}, lambda: of_maps(theirs.RankFeat(maps, logits_of_maps))),
    theirs.MultiMahalanobis: ({}, lambda: of_layers(theirs.MultiMahalanobis([nn.Identity()]))),
    theirs.ODIN: ({"eps": 0.01}, lambda: of_images(theirs.ODIN(WORLD.model, eps=0.01))),
    theirs.GradNorm: ({}, lambda: of_images(theirs.GradNorm(WORLD.model))),
    theirs.GradUncertainty: ({}, lambda: of_images(theirs.GradUncertainty(WORLD.model))),
    theirs.MCD: ({"samples": 3, "mode": "mean"}, lambda: of_images(theirs.MCD(WORLD.model, 3, "mean"))),
    theirs.MahalanobisODIN: ({}, mahalanobis_odin),
}
NOT_SERVED = {"Gram", "NACUE"}


@pytest.mark.parametrize("kind", DIRECT, ids=lambda kind: kind.__name__)
def test_scores_are_those_of_the_library_negated(kind: Any) -> None:
    options, direct = DIRECT[kind]
    scores = fitted(adapt(kind, **options), WORLD).score(WORLD.test)
    assert torch.equal(scores, -direct().detach().double())
    assert scores.unique().numel() > 1


def test_every_detector_of_the_library_is_served_or_refused() -> None:
    exported = {name for name in theirs.__all__ if isinstance(getattr(theirs, name), type)}
    assert {kind.__name__ for kind in DIRECT} | NOT_SERVED == exported


@pytest.mark.parametrize("kind", DIRECT, ids=lambda kind: kind.__name__)
def test_a_description_says_what_runs(kind: Any) -> None:
    adapted = adapt(kind, **DIRECT[kind][0])
    check_description(adapted)
    described = Registry()
    described.register(adapted)
    about = described.describe(f"pytorch_ood.{kind.__name__}")
    assert f"(the foreign detector {kind.__module__}.{kind.__name__} of pytorch-ood 0.4" in about["summary"]
    assert about["deviations"][0] == "The sign of its scores is turned: theirs are higher for OOD images."
    assert json.loads(json.dumps(about["defaults"])).keys() == about["options"].keys()


def test_options_have_the_meaning_that_the_library_gives() -> None:
    registry.register(adapt(theirs.ViM, d=8))
    about = describe("pytorch_ood.ViM")
    assert about["options"] == {"d": "dimensionality of the principal subspace"}
    assert about["defaults"] == {"d": 8}
    assert about["needs"] == ["features", "head", "train"]
    assert about["paper"].startswith('As pytorch-ood 0.4.0 names it, "ViM: Out-Of-Distribution')
    assert (
        describe_of(theirs.GradNorm)["deviations"][-1] == "param_filter: left at the default, which is no plain value."
    )


def describe_of(kind: Any) -> dict[str, Any]:
    one = Registry()
    one.register(adapt(kind))
    return one.describe(f"pytorch_ood.{kind.__name__}")


def test_the_hash_of_the_source_covers_that_of_the_library() -> None:
    assert source_sha256(adapt(theirs.KNN)) != source_sha256(adapt(theirs.GMM))


def test_what_a_detector_needs_follows_from_what_it_takes() -> None:
    needs = {kind.__name__: adapt(kind, **options).needs for kind, (options, _) in DIRECT.items()}
    assert needs["MaxSoftmax"] == {"logits"}
    assert needs["KLMatching"] == {"logits", "train"}
    assert needs["SHE"] == {"features", "head", "train"}
    assert needs["MCM"] == {"features", "head", "text"}
    assert needs["ReAct"] == {"images", "model", "train"}
    assert needs["MahalanobisODIN"] == {"features", "images", "model", "train"}


def test_the_same_arguments_give_the_same_class() -> None:
    assert adapt(theirs.KNN, k=5) is adapt(theirs.KNN, k=5)
    assert adapt(theirs.KNN, k=5) is not adapt(theirs.KNN, k=6)


def test_a_foreign_detector_has_no_state() -> None:
    detector = fitted(adapt(theirs.KNN, k=5), WORLD)
    with pytest.raises(
        RuntimeError, match=r"pytorch_ood\.KNN is a detector of pytorch-ood 0\.4.*cannot be saved"
    ) as caught:
        detector.state()
    assert "\n" not in str(caught.value)
    registry.register(adapt(theirs.KNN, k=5))
    with pytest.raises(ValueError, match="cannot be saved and restored; fit it where it is used"):
        restore({}, {"id": "pytorch_ood.KNN", "options": {"k": 5}})


def test_an_error_of_their_code_is_one_line_with_the_options() -> None:
    with pytest.raises(
        ValueError, match=r"pytorch_ood\.KNN: KNN\(k=100, normalize=True\)\.fit_features: ValueError: k=100 ex"
    ):
        fitted(adapt(theirs.KNN, k=100), WORLD)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (theirs.Gram, {}, "Gram takes head, a part of a network, which no option can name: it is not served"),
        (theirs.NACUE, {}, "NACUE takes layers, a part of a network"),
        (theirs.ViM, {}, "ViM needs d: name it, as in pytorch_ood:ViM,d=..."),
        (theirs.ODIN, {"epss": 0.1}, "has no option 'epss' (did you mean 'eps'?); its options: eps, temperature"),
        (theirs.GradNorm, {"param_filter": "fc"}, "no option 'param_filter' (it is a part of a network)"),
        (theirs.KNN, {"k": {1: 2}}, "k is {1: 2}; an option is a number"),
        (nn.Linear, {}, "Linear is neither a pytorch_ood.api.Detector nor a postprocessor"),
    ],
    ids=_without_address,
)
def test_what_cannot_be_served_is_told_in_one_line(kind: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(NotAdaptableError, match=re.escape(says)) as caught:
        adapt(kind, **options)
    assert "\n" not in str(caught.value)


# --- pytorch-ood: the contract says what it finds. ---


class TurnedSign(pytorch_ood.api.LogitsDetector):
    """Gives a high score to images of the classes."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict_logits(self, logits: Tensor) -> Tensor:
        return logits.amax(dim=1)


class Distance(pytorch_ood.api.Detector):
    """The distance of an image to the mean of the training images."""

    requires_fit = True

    def __init__(self, model: Any, power: float = 2.0) -> None:
        self.model, self.power = model, power

    def fit(self, data_loader: Any) -> "Distance":
        assert {len(labels) for _, labels in data_loader} != {0}
        self.mean = self.model(torch.cat([images for images, _ in data_loader])).mean(dim=0)
        return self

    def predict(self, x: Tensor) -> Tensor:
        return (self.model(x) - self.mean).abs().pow(self.power).sum(dim=1)


def test_the_contract_passes_what_keeps_it() -> None:
    for check in ("one_double_score_an_image", "higher_means_in_distribution", "data_are_streamed"):
        run_check(check, adapt(theirs.MaxLogit))
    with pytest.raises(ExpectedFailureError, match="what a detector of another library learned is not saved"):
        run_check("a_saved_state_gives_the_same_scores", adapt(theirs.MaxLogit))


def test_the_contract_finds_a_sign_that_is_not_as_the_library_has_it() -> None:
    with pytest.raises(AssertionError, match=r"the AUROC is 0\.00"):
        run_check("higher_means_in_distribution", adapt(TurnedSign))


def test_the_contract_finds_that_openmax_depends_on_the_other_images_of_a_batch() -> None:
    with pytest.raises(AssertionError, match="with row 0 alone, scores change"):
        run_check("a_score_depends_on_its_own_row_only", adapt(theirs.OpenMax))


def test_the_contract_leaves_single_precision_alone() -> None:
    run_check("a_score_depends_on_its_own_row_only", adapt(theirs.ViM, d=8))
    run_check("batch_size_changes_nothing", adapt(theirs.RMD))


def test_a_detector_of_images_gets_a_loader_and_the_network() -> None:
    adapted = adapt(Distance)
    assert adapted.needs == {"images", "model", "train"}
    assert adapted.id == "tests.Distance"
    mean = WORLD.model(WORLD.train.images).mean(dim=0)
    expected = -(WORLD.model(WORLD.test.images) - mean).square().sum(dim=1)
    assert torch.allclose(fitted(adapted, WORLD).score(WORLD.test), expected)
    run_check("inputs_and_network_stay_as_they_were", adapted)


# --- OpenOOD's interface. ---


class BasePostprocessor:
    """Maximum softmax probability."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        pass

    def postprocess(self, net: Any, data: Any) -> tuple[Tensor, Tensor]:
        conf, pred = net(data).softmax(dim=1).max(dim=1)
        return pred, conf


class Nearest(BasePostprocessor):
    """The distance to the K-th nearest training feature, and the largest logit of all validation images."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.k = config.postprocessor.postprocessor_args.K
        self.sweep = config.postprocessor.postprocessor_sweep

    @torch.no_grad()
    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        net.eval()
        loader = id_loader_dict["train"]
        assert len(loader) == len(iter(loader)) == len(list(loader))
        self.bank = torch.cat([net(batch["data"].cuda(), return_feature=True)[1] for batch in loader])
        self.labels = torch.cat([batch["label"] for batch in loader])
        self.weight, self.bias = net.get_fc()
        self.top = max(net(batch["data"].cuda()).max() for batch in id_loader_dict["val"])

    @torch.no_grad()
    def postprocess(self, net: Any, data: Any) -> tuple[Tensor, Any]:
        logits, features = net(data, return_feature=True)
        assert np.allclose(features.numpy() @ self.weight.T + self.bias, logits.numpy(), atol=1e-4)
        distances = torch.cdist(features, self.bank).sort(dim=1).values
        return logits.argmax(dim=1), (self.top - distances[:, self.k - 1]).numpy()


class Keywords(BasePostprocessor):
    """The largest logit times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        """
        :param factor: what it is multiplied by
        """
        self.factor = factor

    def postprocess(self, net: Any, data: Any) -> tuple[Tensor, Tensor]:
        conf, pred = net(data).max(dim=1)
        return pred, self.factor * conf


class AsksForGradients(BasePostprocessor):
    def postprocess(self, net: Any, data: Any) -> tuple[Tensor, Tensor]:
        data.requires_grad = True
        logits = net(data)
        logits.max(dim=1).values.sum().backward()
        return logits.argmax(dim=1), data.grad.abs().flatten(1).sum(dim=1)


class AsksForLists(BasePostprocessor):
    def postprocess(self, net: Any, data: Any) -> tuple[Tensor, Tensor]:
        return net(data, return_feature_list=True)


class AsksForOOD(BasePostprocessor):
    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        ood_loader_dict["val"]


class PlainNetwork(nn.Module):
    """A network as OpenOOD's are, for the direct call."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.fc = world, head()

    def forward(self, images: Tensor, return_feature: bool = False) -> Any:
        features = self.world.model.features(images).float()
        logits = self.world.model(images).float()
        return (logits, features) if return_feature else logits

    def get_fc(self) -> tuple[Any, Any]:
        return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()


class Batch:
    """A loader of one batch, and its iterator."""

    def __init__(self, outputs: Any) -> None:
        self.batch = {"data": outputs.images, "label": outputs.labels}
        self.left: Any = None

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        self.left = iter([self.batch])
        return self

    def __next__(self) -> Any:
        return next(self.left)


def nearest_directly() -> Any:
    arguments = SimpleNamespace(postprocessor_args=SimpleNamespace(K=3), postprocessor_sweep=None)
    postprocessor, net = Nearest(SimpleNamespace(postprocessor=arguments)), PlainNetwork(WORLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "cuda", lambda self: self)
        postprocessor.setup(net, {"train": Batch(WORLD.train), "val": Batch(WORLD.val)}, {})
    return postprocessor.postprocess(net, WORLD.test.images)[1]


def test_confidences_are_the_scores() -> None:
    scores = fitted(adapt(Nearest, K=3), WORLD).score(WORLD.test)
    assert torch.allclose(scores, torch.as_tensor(nearest_directly()).double(), rtol=1e-5)
    assert torch.equal(
        fitted(adapt(BasePostprocessor), WORLD).score(WORLD.test),
        WORLD.test.logits.float().softmax(dim=1).amax(dim=1).double(),
    )


def test_a_postprocessor_may_take_the_images() -> None:
    stored, through_network = adapt(Nearest, K=3), adapt(Nearest, K=3, network=True)
    assert stored.needs == {"features", "logits", "head", "train", "val"}
    assert through_network.needs == {"images", "model", "head", "train", "val"}
    scores = fitted(through_network, WORLD).score(WORLD.test)
    assert torch.allclose(scores, fitted(stored, WORLD).score(WORLD.test), rtol=1e-5)


def test_a_postprocessor_without_a_setup_needs_no_training_images() -> None:
    assert adapt(BasePostprocessor).needs == {"features", "logits", "head"}


def test_postprocessors_without_a_config_take_keywords_or_are_objects() -> None:
    doubled = fitted(adapt(Keywords, factor=2.0), WORLD).score(WORLD.test)
    assert torch.equal(doubled, 2 * fitted(adapt(Keywords(), "mine"), WORLD).score(WORLD.test))
    assert adapt(Keywords(), "mine").id == "mine"
    check_description(adapt(Keywords, factor=2.0))
    described = Registry()
    described.register(adapt(Keywords, factor=2.0))
    assert described.describe("tests.Keywords")["options"] == {"factor": "what it is multiplied by"}


def test_an_object_is_copied_for_each_fit() -> None:
    class Counts(Keywords):
        fits = 0

        def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
            self.fits += 1

    mine = Counts()
    run_check("the_same_fit_gives_the_same_scores", adapt(mine))
    assert mine.fits == 0


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (Nearest, {}, "it reads the setting 'K': name it, as in tests:Nearest,K=..."),
        (AsksForGradients, {}, "it asks for gradients in the images, and stored outputs have none: say network=True"),
        (AsksForLists, {}, "it asks for the features of several layers"),
        (AsksForOOD, {}, "it asks for the loader 'val', and here there is none"),
        (Keywords(), {"factor": 1.0}, "is an object, and not a class: it takes no options"),
    ],
    ids=_without_address,
)
def test_what_a_postprocessor_cannot_have_is_told_in_one_line(kind: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        fitted(adapt(kind, **options), WORLD).score(WORLD.test)
    assert "\n" not in str(caught.value)


def test_gradients_in_the_images_are_there_through_the_network() -> None:
    scores = fitted(adapt(AsksForGradients, network=True), WORLD).score(WORLD.test)
    assert (scores > 0).all()
    run_check("inputs_and_network_stay_as_they_were", adapt(Nearest, K=3, network=True))


@pytest.mark.parametrize("check", ["higher_means_in_distribution", "data_are_streamed", "batch_size_changes_nothing"])
@pytest.mark.parametrize("network", [False, True])
def test_postprocessors_keep_the_contract(check: str, network: bool) -> None:
    run_check(check, adapt(Nearest, K=3, network=network))


# --- The command line. ---


def test_options_of_the_command_line() -> None:
    (detector_id,) = load_detectors("pytorch_ood:KNN,k=10,normalize=False,metric=cosine")
    assert detector_id == "pytorch_ood.KNN"
    assert describe(detector_id)["defaults"] == {"k": 10, "normalize": False, "metric": "cosine"}
    assert load_detectors("pytorch_ood:KNN,k=10,normalize=False,metric=cosine") == [detector_id]
    assert load_detectors("knn-5=pytorch_ood:KNN,k=5") == ["knn-5"]
    assert load_detectors("odin2=pytorch_ood:ODIN,norm_std=0.2,0.2,0.3,eps=1e-3") == ["odin2"]
    assert describe("odin2")["defaults"]["norm_std"] == (0.2, 0.2, 0.3)
    assert load_detectors("tests.test_foreign_detectors:Nearest,K=3") == ["tests.Nearest"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pytorch_ood:KNNN", "pytorch_ood.detector has no KNNN (did you mean 'KNN'?)"),
        ("pytorch_ood:ViM", "ViM needs d: name it, as in pytorch_ood:ViM,d=..."),
        ("pytorch_ood:KNN,k", "'k' is no option: write OPTION=VALUE, with commas between them"),
        ("pytorch_ood:KNN,k=1,k=2", "the option 'k' is named twice"),
        ("pytorch_ood:KNN,k=__import__('os')", "k=__import__('os'): write a number, a word"),
        ("pytorch_ood:KNN,k=3,", "k=3,: write a number, a word"),
        ("no_such_module:Detector", "No module named 'no_such_module'"),
        ("openood:KNNPostprocessor,K=50", "No module named 'openood': install it from its repository"),
        ("msp=pytorch_ood:KNN", "two detectors are called 'msp'; name one, as in --detectors NAME=pytorch_ood:KNN"),
        ("pytorch_ood:odin_preprocessing", "odin_preprocessing is neither a pytorch_ood.api.Detector"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        load_detectors(text)
    assert str(caught.value).startswith(f"--detectors {text}: ")
    assert "\n" not in str(caught.value)


def test_foreign_detectors_run_as_cases(run: Runs) -> None:
    chosen = ["--suite", str(run.world / "colours.toml"), "--fpr-limit", "1"]
    named = ["--detectors", "pytorch_ood:KNN,k=5", "--detectors", "vim-8=pytorch_ood:ViM,d=8"]
    result = run(OOD, *chosen, *named, "-k", "test_case and (pytorch_ood or vim-8)")
    result.assert_outcomes(passed=4)
    assert {f"net/{name}/{set_id}" for name in ("pytorch_ood.KNN", "vim-8") for set_id in ("greys", "noise")} == set(
        run.cases("colours")
    )
    knn = record_of(run.records("colours"), "pytorch_ood.KNN")
    assert knn.options_used == {"k": 5, "normalize": True}
    assert "pytorch_ood.detector.knn.KNN of pytorch-ood 0.4" in knn.summary


def record_of(records: list[Record], detector_id: str) -> Any:
    return next(record for record in records if record.kind == "detector" and record.id == detector_id)


def test_foreign_detectors_go_through_the_contract(run: Runs) -> None:
    chosen = ["--detectors", "pytorch_ood:EnergyBased", "-k", "contract and (higher or saved or no_sense)"]
    result = run(OOD, *chosen)
    result.assert_outcomes(passed=1, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["pytorch_ood.EnergyBased: options_that_make_no_sense_are_refused: *"])


def test_a_mistake_of_the_command_line_is_a_usage_error(run: Runs) -> None:
    result = run(OOD, "--detectors", "pytorch_ood:Gram")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--detectors pytorch_ood:Gram: pytorch_ood.detector.gram.Gram takes head" in result.stderr.str()
