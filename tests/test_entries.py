"""A table of a TOML file holds what its user wrote; where it stands is beside it, out of reach of any key."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmark.entries import DATA_DIR, Entry
from benchmark.images.entries import ImageSetEntry
from benchmark.models.entries import ModelEntry
from benchmark.suites.loading import load_suite

FILE = Path("models.toml")


@pytest.fixture
def entry() -> ModelEntry:
    return ModelEntry.parse({"title": "Net", "base": "b", "edit": "edits/net"}, Path("suites/s.toml"), "net", Path("d"))


def test_an_entry_knows_where_it_stands(entry: ModelEntry) -> None:
    assert (entry.file, entry.data_dir) == (Path("suites/s.toml"), Path("d"))
    assert entry.edit == Path("suites/edits/net")  # a path in the table starts from the file's folder
    made = ModelEntry.in_file(FILE, title="Net", base="b", edit=Path("edits/net"))
    assert (made.file, made.data_dir, made.edit) == (FILE, DATA_DIR, Path("edits/net"))


def test_what_a_user_wrote_is_all_that_is_dumped(entry: ModelEntry) -> None:
    assert entry.model_dump(exclude_defaults=True).keys() == {"title", "base", "edit"}


def test_entries_are_copied_pickled_and_compared_with_their_origin(entry: ModelEntry) -> None:
    again = pickle.loads(pickle.dumps(entry))
    assert again == entry
    assert (again.file, again.data_dir) == (entry.file, entry.data_dir)
    copied = entry.model_copy(update={"title": "Other"})
    assert (copied.title, copied.file, copied.data_dir) == ("Other", entry.file, entry.data_dir)
    moved = entry.model_copy(update={"data_dir": Path("e"), "file": FILE})
    assert (moved.title, moved.file, moved.data_dir) == ("Net", FILE, Path("e"))
    assert moved != entry
    assert entry.data_dir == Path("d")


def test_an_entry_without_an_origin_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="make a ModelEntry with `parse` or `in_file`"):
        ModelEntry(title="Net", source="none")


@pytest.mark.parametrize("key", ["file", "data_dir", "_origin", "origin", "model_config"])
@pytest.mark.parametrize("kind", [ModelEntry, ImageSetEntry])
def test_no_key_reaches_what_the_code_adds(kind: type[Entry], key: str) -> None:
    tables = {
        ModelEntry: {"title": "Net", "source": "timm"},
        ImageSetEntry: {"title": "Set", "licence": "l", "source": "s", "local": "x"},
    }
    kind.parse(tables[kind], FILE, "net")  # the twin
    with pytest.raises(ValueError, match=rf"^models\.toml: net\.{key}: unknown key") as caught:
        kind.parse(tables[kind] | {key: "x"}, FILE, "net")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        kind.in_file(FILE, **tables[kind], **{key: "x"})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('title = "Colours"', 'title = "Colours"\nfile = "x"', "colours.toml: file: unknown key"),
        ('title = "Colours"', 'title = "Colours"\ndata_dir = "x"', "colours.toml: data_dir: unknown key"),
        ("[model.net]", '[model.net]\nfile = "x"', "colours.toml: net.file: unknown key"),
        ('baselines = "colours.csv"', 'thresholds = "colours.csv"', "thresholds: it is called `baselines` now"),
        ('baselines = "colours.csv"', 'base = "colours.csv"', r"base: unknown key \(did you mean 'baselines'\?\)"),
        ('near = ["greys"]', 'near = ["greys"]\nnearr = []', "colours.toml: ood.nearr: unknown key"),
        ('[model.net]\ntitle = "An untrained network"', "[model]\nnet = 3", "colours.toml: net: a table is expected"),
        ('title = "Colours"', 'title = "Colours"\nimage_set = 3', r"image_set: tables are expected, \[image_set.ID\]"),
    ],
)
def test_a_key_that_is_none_is_one_line(user_world: Path, old: str, new: str, says: str) -> None:
    file = user_world / "colours.toml"
    text = file.read_text()
    assert old in text
    text = text.replace(old, new, 1)
    if "image_set = 3" in new:
        text = text.partition("[image_set")[0]
    if "net = 3" in new:
        text = text.replace('source = "local-dir:net"\nrecipe = "see tests/conftest.py"\n', "")
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        load_suite(str(file))
    assert "\n" not in str(caught.value)
