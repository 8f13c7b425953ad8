"""The suite `imagenet` from end to end, on tiny images in the same folders as those of the real sets."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmark.entries import read_entries
from benchmark.images.entries import BUILT_IN, ImageSetEntry
from benchmark.images.image_set import ImageSetError, load_image_set
from benchmark.limits.comparisons import comparisons
from benchmark.records import Case, ModelRecord, Record, SetRecord, read_records
from benchmark.suites.loading import FOLDER, load_suite
from tests.conftest import save_network
from unit_tests_ood import names as unit_tests

ROOT = Path(__file__).parents[1]
CLASS_LISTS = BUILT_IN.parent / "classes"
# The files in NINCO's archive have all these endings.
ENDINGS = ("jpg", "jpeg", "JPG", "JPEG", "png", "gif")
IMAGES = {
    "imagenet-train": 2_000,
    "imagenet-val": 1_000,
    "imagenet-test": 1_000,
    "imagenet-v2": 8,
    "ninco": 64 * 2,
    "ninco-uniform-noise": 4,
    "ssb-hard": 6,
    "textures": 5,
    "imagenet-o": 4,
    "openimage-o": 4,
    "places": 4,
}
CLEANED = 3
PUBLISHED = """model,detector,set,fpr_at_95_percent,tolerance_points,source,note
net,msp,ninco,50,100,"a paper, Table 1",
net,msp,ninco:in21k-overlap,50,100,"a paper, Table 2",
net,msp,ninco:no-in21k-overlap,50,100,"a paper, Table 2",
net,msp,mean-of-cleaned,50,100,"a paper, Table 3",
net,msp,mean-of-five,50,100,"a paper, Table 3",
"""
NOT_FETCHED = {"inaturalist", "species", "ssb-easy", "sun"}


def wnids() -> list[str]:
    return [line.partition(",")[0] for line in (CLASS_LISTS / "imagenet-1k.csv").read_text().splitlines()[1:]]


class Tree:
    """Writes small images, each with other pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._random = folder, np.random.default_rng(0)

    def pixels(self) -> np.ndarray:
        return self._random.integers(256, size=(8, 8, 3), dtype=np.uint8)

    def write(self, *paths: str) -> None:
        for path in paths:
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels()).save(file)

    def write_shards(self, folder: str, labels: list[list[int]]) -> None:
        """Writes shards as the Hub has them: a struct of bytes and path, and the index of the class."""
        (self.folder / folder).mkdir(parents=True)
        for number, shard in enumerate(labels):
            contents = [self._png() for _ in shard]
            images = pa.array([{"bytes": content, "path": None} for content in contents])
            name = f"validation-{number:05d}-of-{len(labels):05d}.parquet"
            pq.write_table(pa.table({"image": images, "label": shard}), self.folder / folder / name)

    def _png(self) -> bytes:
        content = io.BytesIO()
        Image.fromarray(self.pixels()).save(content, "png")
        return content.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = Tree(tmp_path_factory.mktemp("data"))
    for wnid in wnids():
        tree.write(*(f"imagenet/train/{wnid}/{wnid}_{number}.JPEG" for number in (10, 9)))
        tree.write(*(f"imagenet/val/{wnid}/ILSVRC2012_val_{number}_{wnid}.JPEG" for number in ("00001", "00002")))
    tree.write(*(f"imagenet-v2/{index}/{image}.jpeg" for index in (0, 2, 10, 999) for image in "ab"))
    ninco = read_entries(BUILT_IN, ImageSetEntry)["ninco"].with_classes()
    for row, name in enumerate(ninco.classes):
        endings = [ENDINGS[(row + more) % len(ENDINGS)] for more in range(2)]
        tree.write(*(f"NINCO/NINCO_OOD_classes/{name}/{name}_{row:03d}.{ending}" for ending in endings))
    tree.write(*(f"NINCO/NINCO_OOD_unit_tests/uni/uni_{number}.png" for number in range(4)))
    for entry in cleaned().values():
        tree.write(*(f"{entry.local}/sample_{number:03d}.jpg" for number in range(CLEANED)))
    tree.write_shards("ssb-hard", [[0, 1, 2], [3, 4, 5]])
    tree.write(*(f"textures/{name}/{name}_0001.jpg" for name in ("banded", "bubbly", "dotted", "grid", "woven")))
    tree.write(*(f"imagenet-o/n0144376{number}/bit_0.99.{number}.JPEG" for number in range(4)))
    tree.write(*(f"openimage-o/{number}.jpg" for number in range(4)))
    tree.write(*(f"places/images/b_badlands_{number}.jpg" for number in range(4)))
    (tree.folder / "textures" / "banded" / ".directory").write_text("[Desktop Entry]\n")  # as DTD's archive has one
    return tree.folder


def cleaned() -> dict[str, ImageSetEntry]:
    entries = read_entries(BUILT_IN, ImageSetEntry)
    return {set_id: entry for set_id, entry in entries.items() if set_id.startswith("ninco-clean-")}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the suite with one untrained network, few detectors, and the counts of the trees."""
    folder = tmp_path_factory.mktemp("suite")
    save_network(folder / "net", classes=1000)
    text = (FOLDER / "imagenet.toml").read_text(encoding="utf-8")
    changes = {
        r"^models = \[.*?\]$": 'models = ["net"]\nshifted = ["imagenet-v2"]',
        r"^detectors = \[.*?\]$": 'detectors = ["msp", "knn", "mahalanobis++"]',
        r"^published = .*?$": 'published = ["published.csv"]',
        r"^far = \[": 'far = ["ninco-uniform-noise", ',
        r"^size = .*?$": "size = [32, 32]",
        r"^images = 400$": "images = 4",
    }
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE | re.DOTALL)
        assert count, pattern
    (folder / "published.csv").write_text(PUBLISHED)
    text += '\n[model.net]\ntitle = "An untrained network"\nsource = "local-dir:net"\n'
    for set_id in [*load_suite("imagenet").entry.image_sets(), "imagenet-v2", "ninco-uniform-noise"]:
        text += suite_entry(set_id)
    file = folder / "imagenet-shaped.toml"
    file.write_text(text, encoding="utf-8")
    return file


def suite_entry(set_id: str) -> str:
    """The text of a built-in entry, as an entry of the suite file that expects the counts of the trees."""
    whole = BUILT_IN.read_text(encoding="utf-8")
    (body,) = re.findall(rf"^\[{set_id}\]$(.*?)(?=^\[(?!{set_id}\.)|\Z)", whole, flags=re.MULTILINE | re.DOTALL)
    body = re.sub(r"^#.*\n", "", body, flags=re.MULTILINE)
    body = body.replace(f"[{set_id}.", f"[image_set.{set_id}.").replace("per_class = 5", "per_class = 1")
    body = body.replace('"classes/', f'"{CLASS_LISTS}/')
    expected = IMAGES.get(set_id, CLEANED)
    return f"\n[image_set.{set_id}]{re.sub(r'^images = [0-9_]+$', f'images = {expected}', body, flags=re.MULTILINE)}"


@pytest.fixture(scope="module")
def entries(suite: Path, data: Path) -> dict[str, ImageSetEntry]:
    return load_suite(str(suite), data).image_sets


class Ran:
    def __init__(self, output: str, records: list[Record]) -> None:
        self.output, self.records = output, records
        self.cases = {f"{case.detector}/{case.set}": case for case in records if isinstance(case, Case)}


@pytest.fixture(scope="module")
def ran(suite: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The suite, run as a user runs it."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--suite", suite, "--data-dir", data, "--store", folder / "store", "--results", folder / "results"]
    tests = ["benchmark/test_ood_detection.py", "unit_tests_ood"]
    command = [sys.executable, "-m", "pytest", *tests, "-q", "-rs", "-p", "no:cacheprovider", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    files = list((folder / "results" / suite.stem).glob("*.jsonl"))
    assert len(files) == 1, done.stdout + done.stderr
    return Ran(done.stdout, list(read_records(files[0])))


def test_the_suite_runs_on_the_sets_that_are_there_and_skips_the_others(ran: Ran, suite: Path) -> None:
    expected = load_suite(str(suite))
    assert ran.cases.keys() == {
        f"{case.detector}/{case.set}" for case in (*expected.ood_cases(), *expected.unit_test_cases(unit_tests))
    }
    skipped = {case.set for case in ran.cases.values() if case.status == "skipped"}
    assert skipped == NOT_FETCHED
    assert all(case.status != "error" for case in ran.cases.values())
    assert all(case.metrics for case in ran.cases.values() if case.status != "skipped")

    inaturalist, species = (ran.cases[f"msp/{set_id}"].reason or "" for set_id in ("inaturalist", "species"))
    assert "python -m benchmark fetch inaturalist" in inaturalist
    assert "Google Drive" in species  # a manual download
    assert "data missing: image set inaturalist" in ran.output

    (model,) = (record for record in ran.records if isinstance(record, ModelRecord))
    assert model.id_images == IMAGES["imagenet-test"]
    assert model.classes == 1000
    assert model.shifted_accuracy.keys() == {"imagenet-v2"}

    for detector in ("msp", "knn", "mahalanobis++"):
        metrics = ran.cases[f"{detector}/ninco"].metrics
        assert metrics is not None
        assert metrics.ood_images == IMAGES["ninco"]
        assert len(metrics.classes) == 64
        rates = {found.name: found.fpr_at_95.value for found in metrics.classes}
        assert metrics.fpr_at_95.value == pytest.approx(np.mean(list(rates.values())))  # all weigh the same

    sets = {record.id: record for record in ran.records if isinstance(record, SetRecord)}
    groups = sets["ninco"].class_groups
    assert [len(groups[name]) for name in ("in21k-overlap", "no-in21k-overlap")] == [55, 9]
    assert {*groups["in21k-overlap"], *groups["no-in21k-overlap"]} == rates.keys()
    assert sets["ninco"].coding == "gif, jpeg, jpg, png"
    assert sets["places"].contamination[0]["share"] == 0.595
    assert {set_id for set_id, found in sets.items() if found.role == "cleaned"} == cleaned().keys()


def test_groups_of_classes_and_means_of_sets_are_compared_with_published_figures(ran: Ran, suite: Path) -> None:
    cases = ran.cases
    measured = {
        found.figure.set: found.measured and found.measured.value
        for found in comparisons(load_suite(str(suite)), cases.values())
    }
    ninco = cases["msp/ninco"].metrics
    assert ninco is not None
    overlap, others = (measured[f"ninco:{group}"] for group in ("in21k-overlap", "no-in21k-overlap"))
    assert overlap is not None
    assert others is not None
    assert measured["ninco"] == ninco.fpr_at_95.value == pytest.approx((55 * overlap + 9 * others) / 64)
    assert overlap != others
    rates = [metrics.fpr_at_95.value for set_id in cleaned() if (metrics := cases[f"msp/{set_id}"].metrics)]
    assert measured["mean-of-cleaned"] == pytest.approx(np.mean(rates))
    assert measured["mean-of-five"] is None  # one of its sets is missing


def test_folders_of_wordnet_ids_have_the_labels_of_their_places_in_the_list(
    entries: dict[str, ImageSetEntry],
) -> None:
    train, val, test = (load_image_set(f"imagenet-{split}", entries) for split in ("train", "val", "test"))
    assert list(train.classes) == wnids()
    for image_set, per_class in ((train, 2), (val, 1), (test, 1)):
        assert image_set.labels is not None
        assert list(image_set.labels) == list(np.repeat(np.arange(1000), per_class))
    assert all(image_id.endswith("_00001_" + image_id.partition("/")[0] + ".JPEG") for image_id in val.image_ids)
    assert {*val.image_ids}.isdisjoint(test.image_ids)


def test_folders_of_integers_are_indices(entries: dict[str, ImageSetEntry]) -> None:
    """They are not read in the order of their names, where 10 comes before 2."""
    image_set = load_image_set("imagenet-v2", entries)
    assert image_set.labels is not None
    labels = dict(zip(image_set.image_ids, image_set.labels.tolist(), strict=True))
    assert labels == {f"{index}/{image}.jpeg": index for index in (0, 2, 10, 999) for image in "ab"}
    assert [image_set.classes[label] for label in {*labels.values()}] == [
        wnids()[label] for label in {*labels.values()}
    ]


def test_some_of_imagenets_folders_have_the_labels_of_all(entries: dict[str, ImageSetEntry], tmp_path: Path) -> None:
    """As in ImageNet-R and -C, whose entries expect another count."""
    for set_id, prefix in (("imagenet-r", "imagenet-r"), ("imagenet-c", "imagenet-c/gaussian_noise/3")):
        chosen = [wnids()[index] for index in (900, 1)]
        Tree(tmp_path).write(*(f"{prefix}/{wnid}/one.jpg" for wnid in chosen))
        entry = entries[set_id].model_copy(update={"data_dir": tmp_path, "images": 2})
        image_set = load_image_set(set_id, {set_id: entry})
        assert image_set.labels is not None
        assert sorted(image_set.labels.tolist()) == [1, 900]


def test_the_indices_in_the_hubs_shards_mean_the_same_classes_as_wordnet_ids(
    entries: dict[str, ImageSetEntry], tmp_path: Path
) -> None:
    labels = [[5, 999, 0], [17]]
    Tree(tmp_path).write_shards("imagenet/val", labels)
    entry = entries["imagenet-all-test"].model_copy(update={"data_dir": tmp_path, "images": 4})
    image_set = load_image_set("imagenet-all-test", {"imagenet-all-test": entry})
    assert image_set.labels is not None
    assert image_set.labels.tolist() == [label for shard in labels for label in shard]
    assert list(image_set.classes) == wnids()
    (tmp_path / "imagenet/val/validation-00001-of-00002.parquet").unlink()
    with pytest.raises(ImageSetError, match="1 of the 2 shards"):
        load_image_set("imagenet-all-test", {"imagenet-all-test": entry})


def test_another_count_than_the_entry_expects_is_refused(entries: dict[str, ImageSetEntry], data: Path) -> None:
    """This happens where a loader does not find gif files, or a download is cut."""
    whole = read_entries(BUILT_IN, ImageSetEntry, data_dir=data)
    with pytest.raises(ImageSetError, match=r"ninco: 128 images in .*NINCO_OOD_classes, 5879 expected"):
        load_image_set("ninco", whole)


def test_textures_43_leaves_out_the_four_overlapping_textures(entries: dict[str, ImageSetEntry]) -> None:
    entry = entries["textures-43"]
    missing = set(entry.leave_out) - {"bubbly"}
    entry = entry.model_copy(update={"images": 4, "leave_out": tuple(set(entry.leave_out) - missing)})
    image_set = load_image_set("textures-43", {"textures-43": entry})
    assert {image_id.partition("/")[0] for image_id in image_set.image_ids} == {"banded", "dotted", "grid", "woven"}


def test_openoods_lists_choose_images_and_name_their_classes(tmp_path: Path) -> None:
    """Its validation images lie in one folder, so that the list alone knows their classes; -1 stands for OOD."""
    built_in = read_entries(BUILT_IN, ImageSetEntry, data_dir=tmp_path)
    tree = Tree(tmp_path / "openood")
    images = [f"imagenet_1k/val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(4)]
    tree.write(*(f"images_largescale/{image}" for image in images))
    tree.write("images_largescale/ninco/amphiuma_means/one.jpg", "images_largescale/ninco/not_listed/two.jpg")
    lists = tmp_path / "openood" / "benchmark_imglist" / "imagenet"
    lists.mkdir(parents=True)
    (lists / "test_imagenet.txt").write_text("".join(f"{image} {900 - row}\n" for row, image in enumerate(images)))
    (lists / "test_ninco.txt").write_text("ninco/amphiuma_means/one.jpg -1\n")

    def loaded(set_id: str, images: int) -> tuple[tuple[str, ...], list[int] | None]:
        image_set = load_image_set(set_id, {set_id: built_in[set_id].model_copy(update={"images": images})})
        return image_set.image_ids, None if image_set.labels is None else image_set.labels.tolist()

    assert loaded("openood-imagenet-test", 4) == (tuple(images), [900, 899, 898, 897])
    assert loaded("openood-imagenet-ninco", 1) == (("ninco/amphiuma_means/one.jpg",), None)
