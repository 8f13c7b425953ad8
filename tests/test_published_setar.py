"""The ratios that SeTAR's paper publishes, as edits of the networks of open_clip and timm."""

import csv
import re
from pathlib import Path

import pytest
import timm
import torch

from benchmark.entries import read_entries
from benchmark.models.edits import Edit, load_edit
from benchmark.models.entries import BUILT_IN, ModelEntry
from benchmark.models.low_rank import removed_components

open_clip = pytest.importorskip("open_clip")

TABLES = Path(__file__).parents[2] / "shared" / "published" / "setar_tables.csv"
# By variant: the paper's model and ID set, and what SeTAR+FT trains and LoRA of a rank trains (authors' code).
PUBLISHED = {
    "clip-vit-b16+setar-imagenet": ("CLIP ViT-B/16", "ImageNet-1K"),
    "clip-vit-b16+setar-voc": ("CLIP ViT-B/16", "Pascal-VOC"),
    "clip-vit-l14+setar-imagenet": ("CLIP ViT-L/14", "ImageNet-1K"),
    "clip-vit-l14+setar-voc": ("CLIP ViT-L/14", "Pascal-VOC"),
    "swinv2-base+setar-imagenet": ("SwinV2-B (window16, 256px)", "ImageNet-1K"),
}
TRAINED_PARAMETERS = {
    "clip-vit-b16+setar-imagenet": (2_584_320, 32, 2_457_600),
    "clip-vit-l14+setar-imagenet": (11_700_480, 64, 10_813_440),
    "swinv2-base+setar-imagenet": (6_468_480, 112, 6_737_920),
}
# How open_clip and timm name what the paper calls a layer.
TENSORS = {
    "vision layer": "visual.transformer.resblocks.{}.mlp.c_fc.weight",
    "text layer": "transformer.resblocks.{}.mlp.c_fc.weight",
    "stage": "layers.{}.blocks.{}.mlp.fc1.weight",
}


def entries() -> dict[str, ModelEntry]:
    return read_entries(BUILT_IN, ModelEntry)


def edit_of(model_id: str) -> Edit:
    folder = entries()[model_id].edit
    assert folder is not None
    return load_edit(folder)


def shapes_of(model_id: str) -> dict[str, torch.Size]:
    """The tensors of the architecture that a base's entry names, without their values."""
    source = entries()[model_id].source
    with torch.device("meta"):
        if source.startswith("open-clip:"):
            architecture, _, _ = source.removeprefix("open-clip:").rpartition("/")
            network = open_clip.model.CLIP(**open_clip.get_model_config(architecture))
        else:
            network = timm.create_model(source)
    return {name: value.shape for name, value in network.state_dict().items()}


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_every_ratio_is_of_a_first_matrix_of_an_mlp_and_every_such_matrix_has_one(model_id):
    shapes = shapes_of(entries()[model_id].base)
    first_of_mlp = {name for name in shapes if re.search(r"resblocks\.\d+\.mlp\.c_fc\.weight$|mlp\.fc1\.weight$", name)}
    assert edit_of(model_id).ratios.keys() == first_of_mlp
    for name in first_of_mlp:
        outputs, inputs = shapes[name]
        assert outputs == 4 * inputs


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_ratios_are_candidates_of_the_search_from_the_last_block_to_the_first(model_id):
    ratios = edit_of(model_id).ratios
    assert set(ratios.values()) <= {step / 20 for step in range(9)}
    numbers = [[int(number) for number in re.findall(r"(?<=\.)\d+(?=\.)", name)] for name in ratios]
    towers = [name.split(".")[0] for name in ratios]
    for tower in dict.fromkeys(towers):
        of_tower = [number for number, its in zip(numbers, towers, strict=True) if its == tower]
        assert of_tower == sorted(of_tower, reverse=True)
    assert towers == sorted(towers, key=["visual", "layers", "transformer"].index)


@pytest.mark.parametrize(("model_id", "expected"), TRAINED_PARAMETERS.items())
def test_trained_parameters_are_those_of_the_authors_code(model_id, expected):
    shapes = shapes_of(entries()[model_id].base)
    ratios = edit_of(model_id).ratios
    minor = sum(removed_components(shapes[name], ratio) * sum(shapes[name]) for name, ratio in ratios.items())
    lora = sum(expected[1] * sum(shapes[name]) for name in ratios)
    assert (minor, lora) == (expected[0], expected[2])


@pytest.mark.skipif(not TABLES.is_file(), reason="the published tables are not part of this repository")
@pytest.mark.parametrize("model_id", PUBLISHED)
def test_ratios_are_the_published_ones_in_the_order_of_the_search(model_id):
    with TABLES.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "Figure 7"]
    rows = [row for row in rows if (row["model"], row["id_set"]) == PUBLISHED[model_id]]
    published = {}
    for row in rows:
        kind, *numbers = re.fullmatch(r"SeTAR\[W_up (\D+?) (\d+)(?: block (\d+))?\]", row["detector"]).groups()
        published[TENSORS[kind].format(*numbers)] = float(row["value"])
    assert list(edit_of(model_id).ratios.items()) == list(published.items())


def test_every_published_table_is_here():
    assert sum(len(edit_of(model_id).ratios) for model_id in PUBLISHED) == 144
