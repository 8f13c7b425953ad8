"""SeTAR: the loss, low-rank weights, towers of timm networks, and the search against one that keeps nothing."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmark.models.classifier import Classifier
from benchmark.models.edits import Edit, load_edit
from benchmark.models.low_rank import decompose, drop_minor_components, removed_components
from benchmark.models.model import Model
from benchmark.training.data import images_of_each_class
from benchmark.training.optimisation import Progress
from benchmark.variants import setar
from benchmark.variants.locoop import locoop_loss
from benchmark.variants.method import TrainingData
from benchmark.variants.network_towers import vision_tower
from benchmark.variants.setar import Evaluator, SeTAR
from tests.references.networks import clip_network, model_fields, zero_shot
from tests.references.setar import losses_of_batch, plain_search

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, SIZE = 4, 16
RATIOS = (0.0, 0.2, 0.4)
NOTHING_KEPT = Progress(None, {})


class TestLoss:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5), st.integers(2, 6), st.data())
    def test_it_is_the_naive_one(self, seed: int, images: int, patches: int, classes: int, data: st.DataObject) -> None:
        rank = data.draw(st.integers(0, classes))
        generator = torch.Generator().manual_seed(seed)
        # Halves are often equal, so that the order among equals counts.
        logits, local = (
            (torch.randn(*shape, classes, generator=generator, dtype=torch.float64) * 4).round() / 2
            for shape in ((images,), (images, patches))
        )
        labels = torch.randint(classes, (images,), generator=generator)
        loss = locoop_loss(logits, local, labels, 0.3, rank)
        expected_id, expected_ood, share = losses_of_batch(logits.numpy(), local.numpy(), labels.numpy(), rank)
        assert float(loss.id) == pytest.approx(expected_id, abs=1e-12)
        assert float(loss.ood) == pytest.approx(expected_ood, abs=1e-12)
        assert float(loss.total) == pytest.approx(expected_id + 0.3 * expected_ood, abs=1e-12)
        assert loss.share == share

    def test_rank_0_takes_every_patch_and_the_number_of_classes_none(self) -> None:
        logits, local, labels = torch.randn(3, 5), torch.randn(3, 7, 5), torch.tensor([0, 4, 2])
        assert locoop_loss(logits, local, labels, 1.0, 0).share == 1
        none = locoop_loss(logits, local, labels, 1.0, 5)
        assert (none.share, float(none.ood), float(none.total)) == (0, 0, float(none.id))

    def test_uniform_patches_have_the_lowest_loss(self) -> None:
        loss = locoop_loss(torch.zeros(2, 8), torch.zeros(2, 3, 8), torch.tensor([5, 7]), 1.0, 2)
        assert float(loss.ood) == pytest.approx(-math.log(8), abs=1e-4)

    def test_of_equally_probable_classes_the_first_are_the_most_probable(self) -> None:
        of_label = [locoop_loss(torch.zeros(1, 4), torch.zeros(1, 1, 4), torch.tensor([y]), 1.0, 2) for y in range(4)]
        assert [loss.share for loss in of_label] == [0, 0, 1, 1]

    def test_patches_of_a_batch_are_pooled_and_gradients_flow(self) -> None:
        local = torch.randn(2, 3, 5, requires_grad=True)
        loss = locoop_loss(torch.randn(2, 5, requires_grad=True), local, torch.tensor([0, 1]), 0.5, 0)
        (gradient,) = torch.autograd.grad(loss.total, local)
        assert gradient.abs().sum() > 0

    @pytest.mark.parametrize("rank", [-1, 6])
    def test_a_rank_outside_the_classes_is_refused(self, rank: int) -> None:
        with pytest.raises(ValueError, match=f"rank is {rank}; allowed: an integer from 0 to .* 5"):
            locoop_loss(torch.zeros(1, 5), torch.zeros(1, 1, 5), torch.tensor([0]), 1.0, rank)

    def test_a_network_without_local_features_has_the_cross_entropy_alone(self) -> None:
        logits, labels = torch.randn(3, 5), torch.tensor([0, 4, 2])
        assert torch.equal(locoop_loss(logits, None, labels, 0, 1).total, cross_entropy(logits, labels))
        with pytest.raises(ValueError, match=r"ood_weight is 0\.1; allowed: 0, since"):
            locoop_loss(logits, None, labels, 0.1, 1)


class TestLowRank:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**31))
    def test_it_is_the_best_approximation_of_its_rank(self, rows: int, columns: int, ratio: float, seed: int) -> None:
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        dropped = removed_components(weight.shape, ratio)
        assert dropped == round(ratio * min(rows, columns))
        approximation = drop_minor_components(weight, ratio)
        values = torch.linalg.svdvals(weight)
        kept = len(values) - dropped
        assert int((torch.linalg.svdvals(approximation) > 1e-9).sum()) <= kept
        # Eckart and Young: the error is made of the dropped singular values, in both norms.
        error = weight - approximation
        assert float(error.norm()) == pytest.approx(float(values[kept:].norm()), abs=1e-9)
        largest = float(values[kept]) if dropped else 0.0
        assert float(torch.linalg.matrix_norm(error, 2)) == pytest.approx(largest, abs=1e-9)

    def test_ratio_0_is_the_weight_itself_and_1_is_nothing(self) -> None:
        weight = torch.randn(6, 4)
        assert drop_minor_components(weight, 0.0) is weight
        assert not drop_minor_components(weight, 1.0).any()

    def test_half_a_component_rounds_to_the_even_number(self) -> None:
        assert [removed_components((5, 9), ratio) for ratio in (0.1, 0.3, 0.5)] == [0, 2, 2]

    def test_every_kernel_position_is_a_matrix(self) -> None:
        weight = torch.randn(6, 5, 3, 2)
        approximation = drop_minor_components(weight, 0.4)
        for row in range(3):
            for column in range(2):
                expected = drop_minor_components(weight[:, :, row, column].contiguous(), 0.4)
                assert torch.allclose(approximation[:, :, row, column], expected, atol=1e-6)
        assert (approximation.is_contiguous(), approximation.dtype) == (True, weight.dtype)

    @pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 3, 2, 2)])
    def test_any_components_and_the_others_make_the_weight(self, shape: tuple[int, ...]) -> None:
        weight = torch.randn(shape, dtype=torch.float64)
        components = decompose(weight)
        some = [0, 2]
        others = [index for index in range(components.rank) if index not in some]
        assert torch.allclose(components.without(some) + components.without(others), weight, atol=1e-12)

    def test_it_has_the_same_bits_on_any_number_of_threads(self) -> None:
        weight = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0))
        alone = drop_minor_components(weight, 0.2)
        torch.set_num_threads(2)
        try:
            assert torch.equal(drop_minor_components(weight, 0.2), alone)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)

    @pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
    def test_another_ratio_is_refused(self, ratio: float) -> None:
        with pytest.raises(ValueError, match="a ratio lies between 0 and 1"):
            drop_minor_components(torch.ones(2, 2), ratio)


SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2), "num_classes": CLASSES}
VIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
TRANSFORMERS = {
    "vit": lambda: VisionTransformer(**VIT),
    "vit, mean of tokens": lambda: VisionTransformer(**VIT, global_pool="avg", class_token=False, qkv_bias=False),
    "vit, registers, layer scale": lambda: VisionTransformer(**VIT, reg_tokens=2, init_values=0.5, pre_norm=True),
    "vit, post-norm": lambda: VisionTransformer(**VIT, block_fn=ResPostBlock, scale_attn_norm=True),
    "swin": lambda: SwinTransformer(**SWIN, window_size=4),
    "swin v2": lambda: SwinTransformerV2(**SWIN, window_size=4),
    "swin v2, no bias": lambda: SwinTransformerV2(**SWIN, window_size=4, qkv_bias=False),
}
CONVNEXT = {"patch_size": 1, "depths": (1, 1, 2, 1), "dims": (8, 8, 8, 8), "num_classes": CLASSES}
WITHOUT_LOCAL_FEATURES = {
    "convnext": lambda: ConvNeXt(**CONVNEXT),
    "convnext, 1x1": lambda: ConvNeXt(**CONVNEXT, conv_mlp=True),
    "resnet": lambda: timm.create_model("test_resnet", num_classes=CLASSES),
    "vit, attention pool": lambda: VisionTransformer(**VIT, global_pool="map"),
    "vit, parallel": lambda: VisionTransformer(**VIT, block_fn=ParallelScalingBlock),
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=CLASSES),
}


def network_of(make: Any) -> Any:
    """With random values in every parameter, since many start as 0 or 1, where much would go unseen."""
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class TestTowers:
    @pytest.mark.parametrize("name", [*TRANSFORMERS, *WITHOUT_LOCAL_FEATURES])
    def test_the_pieces_make_the_network(self, name: str) -> None:
        network = network_of((TRANSFORMERS | WITHOUT_LOCAL_FEATURES)[name])
        features, local = vision_tower(network)(pictures(3))
        assert torch.allclose(network.get_classifier()(features), network(pictures(3)), atol=1e-5)
        assert (local is not None) == (name in TRANSFORMERS)

    @pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # timm, where it resizes Swin's windows
    @pytest.mark.parametrize("name", TRANSFORMERS)
    def test_local_features_are_those_of_positions_that_attend_to_themselves_alone(self, name: str) -> None:
        network = network_of(TRANSFORMERS[name])
        tower, images = vision_tower(network), pictures(3)
        hidden = tower.start(images)
        for index in range(tower.depth - 1):
            hidden = tower.block(index, hidden)
        _, local = tower.finish(images, hidden)
        assert local is not None
        # Every position as an image of its own, of one window with one position, through the block itself.
        if isinstance(network, VisionTransformer):
            block = network.blocks[-1]
            alone = block(hidden.flatten(0, 1)[:, None]).unflatten(0, hidden.shape[:2])[:, :, 0]
            expected = network.fc_norm(network.norm(alone))[:, network.num_prefix_tokens :]
        else:
            block = copy.deepcopy(network.layers[-1].blocks[-1])
            block.set_input_size((1, 1), (1, 1))
            alone = torch.stack([block(hidden[:, i : i + 1, j : j + 1]) for i in range(4) for j in range(4)], dim=1)
            expected = network.norm(alone.flatten(2, 4).unflatten(2, (-1,)))
        assert torch.allclose(local, expected, atol=1e-5)

    def test_swin_is_searched_through_all_stages(self) -> None:
        matrices = vision_tower(network_of(TRANSFORMERS["swin v2"])).matrices
        assert [matrix.tensor for matrix in matrices["up"]] == [
            f"layers.{stage}.blocks.{block}.mlp.fc1.weight" for stage, block in ((0, 0), (1, 0), (1, 1))
        ]
        assert set(matrices) == {"up", "down", "output", "query", "key", "value"}

    def test_query_key_and_value_share_a_tensor(self) -> None:
        matrices = vision_tower(network_of(TRANSFORMERS["vit"])).matrices
        rows = [matrices[kind][1].rows for kind in ("query", "key", "value")]
        assert rows == [slice(0, 16), slice(16, 32), slice(32, 48)]

    def test_of_a_convolutional_network_all_ungrouped_kernels_but_the_first(self) -> None:
        network = network_of(WITHOUT_LOCAL_FEATURES["resnet"])
        expected = [name for name, value in network.named_parameters() if value.ndim == 4][1:]
        assert [matrix.tensor for matrix in vision_tower(network).matrices["up"]] == expected


def clip(vision_layers: int = 2, text_layers: int = 2) -> Model:
    return zero_shot(network_of(lambda: clip_network(vision_layers, text_layers)))


def timm_model(make: Any) -> Model:
    return Classifier(*model_fields("net", network_of(make)))


@dataclass
class Images:
    labels: Tensor
    pixels: Tensor

    def images(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]


def search_images(per_class: int = 3) -> Images:
    """Each class has a pattern of its own; as they are, no image has to be drawn."""
    labels = torch.arange(CLASSES).repeat(per_class)
    return Images(labels, pictures(CLASSES, seed=2)[labels] + 0.5 * pictures(len(labels), seed=3))


def make(method: SeTAR, base: Model, progress: Progress = NOTHING_KEPT, per_class: int = 3) -> Edit:
    return method.make_edit(base, TrainingData(search_images(per_class)), progress)  # type: ignore[arg-type]


def decisions(edit: Edit) -> list[tuple[str, int, float, float]]:
    return [(step["tower"], step["layer"], step["ratio"], step["total"]) for step in edit.about["trace"]]


@torch.no_grad()
def plain(method: SeTAR, base: Model, about: dict[str, Any], per_class: int = 3) -> Any:
    """The reference on the images that the search draws."""
    every = search_images(per_class)
    rows = images_of_each_class(every.labels, CLASSES, method.images_per_class, method.seed)
    return plain_search(method, base, every.pixels[rows], every.labels[rows], about["ood_weight"], about["rank"])


class TestSearch:
    @pytest.mark.parametrize("search", ["greedy", "best-pair"])
    @pytest.mark.parametrize("towers", ["vision-then-text", "text-then-vision", "vision", "text", "alternating"])
    def test_it_decides_as_one_that_keeps_nothing(self, towers: Any, search: Any) -> None:
        base = clip()
        method = SeTAR(towers=towers, search=search, ratios=RATIOS, images_per_class=3, batch=5)
        edit = make(method, base)
        assert (decisions(edit), edit.about["trace"][-1]["evaluations"]) == plain(method, base, edit.about)
        assert any(ratio for _, _, ratio, _ in decisions(edit))

    def test_a_tower_whose_last_layer_is_fixed_while_the_other_is_tried(self) -> None:
        base = clip(3, 1)
        method = SeTAR(towers="text-then-vision", search="best-pair", ratios=RATIOS, images_per_class=3)
        edit = make(method, base)
        assert edit.about["trace"][0]["tower"] == "text"
        assert decisions(edit) == plain(method, base, edit.about)[0]

    @pytest.mark.parametrize("weight", ["up", "query", "key", "value", "output", "down"])
    @pytest.mark.parametrize("prune", ["minor", "principal", "random"])
    def test_whatever_the_components_and_the_weight(self, prune: Any, weight: Any) -> None:
        base = clip()
        method = SeTAR(prune=prune, weight=weight, ratios=RATIOS, images_per_class=2)
        edit = make(method, base)
        assert (decisions(edit), edit.about["trace"][-1]["evaluations"]) == plain(method, base, edit.about)

    @pytest.mark.parametrize("name", ["vit", "vit, mean of tokens", "swin", "swin v2", "convnext", "resnet"])
    def test_networks_of_timm(self, name: str) -> None:
        base = timm_model((TRANSFORMERS | WITHOUT_LOCAL_FEATURES)[name])
        method = SeTAR(ratios=(0.3,), images_per_class=2)
        edit = make(method, base)
        assert (decisions(edit), edit.about["trace"][-1]["evaluations"]) == plain(method, base, edit.about)
        assert edit.about["ood_weight"] == (0.01 if name in TRANSFORMERS else 0)

    def test_what_does_not_fit_into_memory_is_computed_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base, method = clip(), SeTAR(ratios=RATIOS, images_per_class=3, batch=5)
        embedded = []
        base.network.visual.conv1.register_forward_hook(lambda *_: embedded.append(1))  # type: ignore[union-attr]
        everything = make(method, base)
        batches_kept = len(embedded)
        monkeypatch.setattr(setar, "KEPT_BYTES", 5 * 5 * 32 * 4)  # what enters a block, of one batch of three
        assert make(method, base).about == everything.about
        # In each of two layers, the other two at each of two ratios, but the last not in advance.
        assert len(embedded) - batches_kept == batches_kept + 2 * (2 * 2 - 1)

    @pytest.mark.parametrize("prune", ["minor", "principal", "random"])
    @pytest.mark.parametrize("weight", ["up", "value"])
    def test_the_edit_gives_the_network_of_the_last_step(self, weight: Any, prune: Any, tmp_path: Path) -> None:
        base = clip()
        before = base.weights_sha256
        method = SeTAR(weight=weight, prune=prune, ratios=RATIOS, images_per_class=3)
        edit = make(method, base)
        assert replace(base).weights_sha256 == before == edit.about["base_sha256"]
        edit.save(tmp_path)
        changed = replace(base, network=copy.deepcopy(base.network))
        load_edit(tmp_path).apply(changed.network)
        again = make(method.model_copy(update={"ratios": (0.0,)}), changed)
        last = edit.about["trace"][-1]
        assert again.about["start"] == {name: last[name] for name in again.about["start"]}
        assert bool(edit.ratios) == (weight == "up" and prune == "minor")

    def test_losses_are_those_of_the_model(self) -> None:
        base = clip()
        start = make(SeTAR(images_per_class=3, ood_weight=0, ratios=(0.0,)), base).about["start"]
        images = search_images()
        logits = base(images.pixels)
        assert start["total"] == pytest.approx(float(cross_entropy(logits, images.labels)), rel=1e-5)
        assert start["accuracy"] == float((logits.argmax(1) == images.labels).double().mean())

    def test_of_equal_losses_the_smaller_ratio_stands(self) -> None:
        base = clip()
        for name in ("visual.transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
            base.network.get_parameter(name).zero_()  # whatever it loses, it stays the same
        # Both drop as many components.
        trace = make(SeTAR(ratios=(0.4, 0.405), images_per_class=3), base).about["trace"]
        found = {(step["tower"], step["layer"]): step["ratio"] for step in trace}
        assert found["vision", 1] == found["text", 0] == 0
        assert set(found.values()) == {0, 0.4}

    def test_the_loss_never_rises_and_every_candidate_counts(self) -> None:
        about = make(SeTAR(images_per_class=3), clip(3, 2)).about
        totals = [about["start"]["total"], *(step["total"] for step in about["trace"])]
        assert totals == sorted(totals, reverse=True)
        assert [step["evaluations"] for step in about["trace"]] == [1 + 8 * (index + 1) for index in range(5)]
        for step in about["trace"]:
            assert step["total"] == pytest.approx(step["id"] + about["ood_weight"] * step["ood"])

    def test_random_components_hang_on_the_seed_and_are_nested(self) -> None:
        layer = setar.layers_of(clip().vision_tower(), "up")[0]  # type: ignore[attr-defined]
        dropped = partial(SeTAR(prune="random", seed=3).removed_indices, layer, shape=(10, 20))
        assert set(dropped(0.2)) < set(dropped(0.4))
        assert dropped(0.4) == SeTAR(prune="random", seed=3).removed_indices(layer, 0.4, (10, 20))
        assert dropped(0.4) != SeTAR(prune="random", seed=4).removed_indices(layer, 0.4, (10, 20))

    def test_rank_is_30_percent_of_the_classes(self) -> None:
        assert [SeTAR()._loss_rank(classes) for classes in (1000, 14, 2)] == [300, 4, 1]
        assert make(SeTAR(ratios=(0.0,)), clip()).about["rank"] == 1


class TestResume:
    @pytest.mark.parametrize(
        "method",
        [
            SeTAR(ratios=RATIOS, images_per_class=3),
            SeTAR(ratios=RATIOS, images_per_class=3, towers="alternating", prune="random", weight="key"),
            SeTAR(ratios=RATIOS, images_per_class=3, search="best-pair"),
        ],
        ids=["greedy", "alternating", "best-pair"],
    )
    def test_a_search_killed_anywhere_ends_alike(
        self, method: SeTAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = make(method, clip())
        evaluations = whole.about["trace"][-1]["evaluations"]
        evaluate = Evaluator.__call__
        for killed_after in range(0, evaluations, 3):
            progress = Progress(tmp_path / f"{killed_after}.safetensors", {"key": 1})
            calls = 0

            def dying(evaluator: Evaluator, last: int = killed_after) -> Any:
                nonlocal calls
                calls += 1
                if calls > last:
                    raise KeyboardInterrupt
                return evaluate(evaluator)

            monkeypatch.setattr(Evaluator, "__call__", dying)
            with pytest.raises(KeyboardInterrupt):
                make(method, clip(), progress)
            kept = progress.load()
            monkeypatch.setattr(Evaluator, "__call__", evaluate)
            resumed = make(method, clip(), progress)
            assert (resumed.about, resumed.ratios) == (whole.about, whole.ratios)
            assert resumed.weights.keys() == whole.weights.keys()
            assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())
            # Greedy decides after every two candidates, and after the start.
            if method.search == "greedy":
                assert len(kept[1]["trace"] if kept else []) == max(0, (killed_after - 1) // 2)


class TestRefused:
    @pytest.mark.parametrize(
        "ratios", [(), (0.2, 0.1), (0.1, 0.1), (-0.1,), (1.1,), (math.nan,)], ids=lambda ratios: str(ratios)
    )
    def test_ratios(self, ratios: Any) -> None:
        with pytest.raises(ValidationError, match="ratios"):
            SeTAR(ratios=ratios)

    @pytest.mark.parametrize(
        "bad",
        [
            {"ood_weight": -1},
            {"ood_weight": math.inf},
            {"rank": -1},
            {"towers": "both"},
            {"search": "all"},
            {"weight": "head"},
            {"prune": "most"},
            {"images_per_class": 0},
            {"batch": 0},
            {"seed": -1},
            {"temperature": 1},
        ],
        ids=str,
    )
    def test_settings(self, bad: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=next(iter(bad))):
            SeTAR(**bad)

    @pytest.mark.parametrize(
        ("method", "base", "message"),
        [
            (SeTAR(rank=5), clip, "rank is 5; allowed: an integer from 0 to the number of classes, 4"),
            (
                SeTAR(images_per_class=4),
                clip,
                "images_per_class is 4; allowed: at most the images of each class, but class 0",
            ),
            (
                SeTAR(towers="alternating"),
                partial(clip, 3, 2),
                "towers is 'alternating'; allowed: .* have 3 and 2 blocks",
            ),
            (
                SeTAR(towers="text"),
                partial(timm_model, TRANSFORMERS["vit"]),
                "towers is 'text'; allowed: .* net has no text tower",
            ),
            (
                SeTAR(weight="query"),
                partial(timm_model, WITHOUT_LOCAL_FEATURES["convnext"]),
                "weight is 'query'; allowed: 'up' or 'down'",
            ),
            (
                SeTAR(weight="down"),
                partial(timm_model, WITHOUT_LOCAL_FEATURES["resnet"]),
                "weight is 'down'; allowed: 'up'",
            ),
            (
                SeTAR(ood_weight=0.1),
                partial(timm_model, WITHOUT_LOCAL_FEATURES["resnet"]),
                "ood_weight is 0.1; allowed: 0, since net has no local features",
            ),
            (
                SeTAR(),
                partial(timm_model, partial(MlpMixer, 4, SIZE, patch_size=8, num_blocks=1, embed_dim=8)),
                "weight is 'up'; allowed: nothing",
            ),
        ],
        ids=lambda value: value.split(";")[0] if isinstance(value, str) else "",
    )
    def test_what_does_not_fit_the_network_or_the_data(self, method: SeTAR, base: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make(method, base())

    def test_a_loss_that_is_no_number(self) -> None:
        base = clip()
        base.network.get_parameter("logit_scale").fill_(math.nan)
        with pytest.raises(ValueError, match=r"the loss .* is nan"):
            make(SeTAR(), base)
