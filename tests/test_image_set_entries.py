"""The built-in image sets and suites agree with the published facts about the sets, and with each other."""

import csv
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmark.entries import read_entries, read_toml
from benchmark.images.entries import BUILT_IN, ImageSetEntry
from benchmark.images.image_set import MissingImageSetError, load_image_set
from benchmark.images.sources import HubSource, ManualSource, UrlSource
from benchmark.records import ID_PATTERN
from benchmark.suites.entries import SuiteEntry
from benchmark.suites.loading import FOLDER, load_suite, suite_names
from benchmark.user.messages import told
from unit_tests_ood import names as unit_tests

SHARED = Path(__file__).parents[2] / "shared"
CLASSES = BUILT_IN.parent / "classes"
# Counts of OpenOOD's lists that the shared notes lack. A public report of a run of its CIFAR-10 protocol states them.
COUNTED_ELSEWHERE = {70_000, 35_195}

needs_spec = pytest.mark.skipif(not (SHARED / "spec").is_dir(), reason="../shared/spec is not there")
needs_data = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared/data is not there")


@pytest.fixture(scope="module")
def entries() -> dict[str, ImageSetEntry]:
    return read_entries(BUILT_IN, ImageSetEntry, data_dir=SHARED / "data")


def spec(*names: str) -> str:
    return "".join((SHARED / "spec" / f"{name}.md").read_text(encoding="utf-8") for name in names)


def class_list(name: str) -> dict[str, str]:
    with (CLASSES / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        return {row["class"]: row["name"] for row in csv.DictReader(lines)}


def test_every_entry_has_an_id_and_a_licence_and_says_whether_it_may_be_passed_on(
    entries: dict[str, ImageSetEntry],
) -> None:
    for set_id, entry in entries.items():
        assert re.fullmatch(ID_PATTERN, set_id)
        assert all(text.strip() for text in (entry.title, entry.licence, entry.source)), set_id
        assert entry.redistributable is not None, set_id
        entry.with_classes()


def test_every_set_outside_of_the_repository_has_sources(entries: dict[str, ImageSetEntry]) -> None:
    for set_id, entry in entries.items():
        assert bool(entry.local) == bool(entry.sources), set_id
        for source in entry.sources:
            if isinstance(source, UrlSource):
                assert source.md5 or source.sha256, f"{set_id}: {source.url} has no checksum"
                assert not source.url.endswith((".mat", "python.tar.gz")), f"{set_id}: pickled arrays or MATLAB"
            elif isinstance(source, ManualSource):
                assert not source.manual.endswith("."), f"{set_id}: the message goes on after it"


def test_sets_at_one_place_have_the_same_sources(entries: dict[str, ImageSetEntry]) -> None:
    """Otherwise the files that are fetched for one set would be wrong for the other."""
    at: dict[str, tuple[object, ...]] = {}
    for set_id, entry in entries.items():
        if entry.local and not entry.list_file:
            assert at.setdefault(entry.local, entry.sources) == entry.sources, set_id


@pytest.mark.parametrize("name", suite_names())
def test_every_set_that_a_suite_names_has_an_entry(entries: dict[str, ImageSetEntry], name: str) -> None:
    file = FOLDER / f"{name}.toml"
    tables = read_toml(file)
    known = entries.keys() | tables.pop("image_set", {}).keys()
    tables.pop("model", None)
    suite = SuiteEntry.parse(tables, file, "")
    assert set(suite.image_sets()) <= known
    assert {set_id for sets in suite.means.values() for set_id in sets} <= {set_id for set_id, _ in suite.ood.by_role()}


def test_suites_that_share_published_figures_take_a_mean_over_the_same_sets() -> None:
    """A published mean is compared with the mean of that name in every suite that names the file."""
    means: dict[tuple[Path, str], set[str]] = {}
    for name in suite_names():
        suite = load_suite(name).entry
        for file in suite.published:
            for mean, sets in suite.means.items():
                assert means.setdefault((file.resolve(), mean), {*sets}) == {*sets}, f"{name}: {mean}"


@needs_spec
def test_checksums_and_counts_are_those_of_the_notes(entries: dict[str, ImageSetEntry]) -> None:
    text = spec("data_and_hub", "ninco", "setar")
    numbers = {int(re.sub("[ ,]", "", number)) for number in re.findall(r"\b\d{1,3}(?:[ ,]\d{3})+\b|\b\d+\b", text)}
    numbers |= {1000 * int(number) for number in re.findall(r"\b(\d+)k\b", text)}
    for set_id, entry in entries.items():
        if entry.local is None:
            continue
        for source in entry.sources:
            if isinstance(source, UrlSource):
                assert str(source.md5) in text, f"{set_id}: {source.md5}"
            if isinstance(source, HubSource):
                assert source.hub in text, f"{set_id}: {source.hub}"
        if isinstance(entry.images, int):
            assert entry.images in numbers | COUNTED_ELSEWHERE, f"{set_id}: {entry.images}"


@needs_spec
def test_contamination_is_that_of_nincos_table(entries: dict[str, ImageSetEntry]) -> None:
    rows = re.findall(r"^\| ([\w -]+) \| [^|]+ \| ([\d.]+) \| (\d+) \|", spec("ninco"), flags=re.M)
    table = {name: (round(float(share) / 100, 3), int(inspected)) for name, share, inspected in rows}
    ids = {
        "places": "Places",
        "species": "Species",
        "ssb-easy": "SSB-easy",
        "ssb-hard": "SSB-hard",
        "textures": "Textures",
        "textures-43": "Textures43",
        "imagenet-o": "ImageNet-O",
        "openimage-o": "OpenImage-O",
        "inaturalist": "iNaturalist OOD Plants",
        "cood": "COOD",
        "imagenet-1k-ood": "IN-1K-OOD",
        "360openset": "360OpenSet",
    }
    stated = {set_id: entry.contamination for set_id, entry in entries.items() if entry.contamination}
    assert stated.keys() == ids.keys()
    for set_id, (found,) in stated.items():
        assert (found.share, found.inspected) == table[ids[set_id]]
        assert found.of == "ImageNet-1k"


def test_ninco_has_64_classes_nine_of_which_imagenet_21k_lacks(entries: dict[str, ImageSetEntry]) -> None:
    ninco = entries["ninco"].with_classes()
    groups = ninco.class_groups
    assert len(ninco.classes) == 64
    assert {name: len(members) for name, members in groups.items()} == {"in21k-overlap": 55, "no-in21k-overlap": 9}
    assert {*groups["in21k-overlap"], *groups["no-in21k-overlap"]} == {*ninco.classes}


@needs_spec
def test_the_classes_of_ninco_are_those_of_the_notes(entries: dict[str, ImageSetEntry]) -> None:
    """Only the letters of the names are compared, since the notes write a few of them differently."""
    counts = {name: int(corrected or count) for name, count, corrected, _ in _rows()}
    assert len(counts) == 64
    assert sum(counts.values()) == entries["ninco"].images == 5_879
    names = class_list("ninco")
    without = {_letters(names[name]) for name in entries["ninco"].class_groups["no-in21k-overlap"]}
    assert {_letters(name) for name, *_, overlap in _rows() if overlap.strip() == "-"} == without


def _table() -> str:
    return spec("ninco").partition("Per-class list")[2].partition("Notes on the list")[0]


def _rows() -> list[tuple[str, str, str, str]]:
    found = []
    for line in _table().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (count := re.match(r"(\d+)(?: \(\*\*(\d+)\*\*)?", cells[2])):
            found.append((cells[0], count[1], count[2] or "", cells[4]))
    return found


def _letters(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.partition(" (")[0].lower())
    return re.sub(r"[^a-z]", "", plain).removesuffix("s")


@needs_spec
def test_cleaned_sets_have_the_counts_of_the_notes(entries: dict[str, ImageSetEntry]) -> None:
    line = next(line for line in spec("data_and_hub").splitlines() if line.startswith("- Subsamples:"))
    counted = dict(re.findall(r"([\w]+) (\d+)", line.removeprefix("- Subsamples: ")))
    cleaned = {set_id: entry for set_id, entry in entries.items() if set_id.startswith("ninco-clean-")}
    assert {Path(str(entry.local)).name: entry.images for entry in cleaned.values()} == {
        name: int(count) for name, count in counted.items()
    }
    assert sum(int(count) for count in counted.values()) == 2_715


def test_nincos_unit_tests_have_our_names(entries: dict[str, ImageSetEntry]) -> None:
    published = {set_id for set_id, entry in entries.items() if "OOD_unit_tests" in str(entry.local)}
    assert published == {f"ninco-{name}" for name in unit_tests}
    assert len({entries[set_id].local for set_id in published}) == len(unit_tests)


def test_the_classes_of_imagenet_are_those_of_timm_with_the_names_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    from timm.data import ImageNetInfo

    classes = class_list("imagenet-1k")
    assert list(classes) == ImageNetInfo().label_names()
    differing = {
        wnid for (wnid, name), clip in zip(classes.items(), open_clip.IMAGENET_CLASSNAMES, strict=True) if name != clip
    }
    assert differing == {"n04008634", "n04355933"}  # open_clip gives them the names of other classes


@needs_data
@pytest.mark.parametrize(("name", "column"), [("cifar10", "label"), ("cifar100", "fine_label")])
def test_the_classes_of_cifar_are_those_of_the_hub(name: str, column: str) -> None:
    schema = pq.read_schema(SHARED / "data" / name / "test.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(class_list(name)) == features[column]["names"]


@needs_data
@pytest.mark.parametrize(("name", "per_class"), [("cifar10", 100), ("cifar100", 10)])
def test_cifar_loads_and_its_test_images_are_split_by_class(
    entries: dict[str, ImageSetEntry], name: str, per_class: int
) -> None:
    whole, val, test = (load_image_set(f"{name}{part}", entries) for part in ("", "-val", "-test"))
    assert whole.labels is None
    assert val.labels is not None
    assert test.labels is not None
    assert {*np.bincount(val.labels)} == {per_class}
    assert {*np.bincount(test.labels)} == {9 * per_class}
    contents = [{image_set.encoded(row) for row in range(len(image_set))} for image_set in (whole, val, test)]
    assert contents[1].isdisjoint(contents[2])
    assert contents[1] | contents[2] == contents[0]
    assert len(load_image_set(f"{name}-train", entries)) == 10_000


def test_the_error_for_each_missing_built_in_set_says_how_to_get_it(tmp_path: Path) -> None:
    for set_id, entry in read_entries(BUILT_IN, ImageSetEntry, data_dir=tmp_path).items():
        if entry.local is None:
            continue
        with pytest.raises(MissingImageSetError) as raised:
            load_image_set(set_id, {set_id: entry})
        message = told(raised.value)
        assert f"fetch {set_id} --data-dir {tmp_path}" in message or "get it by hand" in message, message
        assert "\n" not in message
