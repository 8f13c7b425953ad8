"""What records, scores and pages say of the user's machine: no place, no name and no secret."""

import csv
import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.images.downloads import DownloadError, fetch, fetched
from benchmark.images.sources import UrlSource
from benchmark.public import public, public_ids, public_message, public_url, public_values
from benchmark.records import Case, ModelRecord, SetRecord, parse_record, read_records
from benchmark.user.ids import id_of_place
from detectors import available, describe
from leaderboard.__main__ import main as leaderboard
from leaderboard.site import _harmless
from tests.local_servers import Served, running

ROOT = Path(__file__).parents[1]
USER = "quentin-q"
SECRET = "hf_Xq7Planted0Secret"

THROWING = '''
import os
import socket
import traceback
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry


@registry.register
@dataclass(kw_only=True, eq=False)
class Throwing(Detector):
    """It fails with all that it knows of the machine.

    Formula: S = o_1
    Paper: none
    Options:
    - lexicon: a file of words
    Verified:
    - nothing yet
    """

    id = "throwing"
    needs = frozenset({"logits"})
    lexicon: str = str(Path.home() / "words.txt")

    def _score(self, batch: Batch) -> Tensor:
        try:
            (Path.home() / "missing.txt").read_text()
        except OSError:
            raise RuntimeError(
                f"{os.environ['HF_TOKEN']} of {os.environ['LOGNAME']}@{socket.gethostname()}, {dict(os.environ)}, "
                f"{os.getcwd()}, {os.path.relpath(Path.home() / 'x' / 'y')}, {traceback.format_exc()}"
            ) from None
'''


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder of a user, in which this process works."""
    home = tmp_path / "home" / USER
    (home / "work").mkdir(parents=True)
    for name, value in {"HOME": str(home), "LOGNAME": USER, "USER": USER, "HF_TOKEN": SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home / "work")
    monkeypatch.setenv("PWD", str(home / "work"))
    return home


# --- Texts. ---


def test_places_are_told_from_the_checkout_from_home_or_by_their_last_two_parts(at_home: Path) -> None:
    texts = {
        f"cannot read {at_home}/work/mine/val/1.png: no": "cannot read mine/val/1.png: no",
        f"in {at_home}/work.": "in ..",
        f"--train={at_home}/data/train --id '{at_home}/a b/val'": "--train=~/data/train --id '~/a b/val'",
        f"{at_home} and {at_home}.": "~ and ~.",
        f'File "{ROOT}/benchmark/files.py", line 3': 'File "benchmark/files.py", line 3',
        "cars=/srv/pool/9/imgs": "cars=.../9/imgs",
        "local-dir:/srv/pool/nets/a": "local-dir:.../nets/a",
        "/home/bob/val, /Users/bob/val and C:\\Users\\bob\\val": "~/val, ~/val and ~/val",
        f"/srv/{USER}/val": ".../val",
        "'/srv/My Disk/the images' is none": "'.../My Disk/the images' is none",
        f"../../srv/{USER}/x": ".../x",
        f"file://{at_home}/x": "file:~/x",
    }
    assert {text: public(text) for text in texts} == texts


@pytest.mark.parametrize(
    "text",
    [
        "digits-resnet/knn/letters",
        "ViT-B/16 and/or 1/2",
        "https://arxiv.org/abs/1911.11132 (arXiv:1911.11132)",
        "S = -||x||^2 / (2 s) /a",
        "../data/images/val",
        "--suite mine/my-digits.toml --ood strange",
        "N:1/2, \\alpha/\\beta and </b>",
        "",
    ],
)
def test_what_is_no_place_of_a_user_stays_as_it_is(text: str, at_home: Path) -> None:
    assert public(text) == public_message(text) == text


def test_what_the_product_says_of_its_own_parts_stays_as_it_is() -> None:
    told: list[Any] = [describe(detector_id) for detector_id in available()]
    told += [tomllib.loads(file.read_text()) for file in (ROOT / "benchmark").rglob("*.toml")]
    assert [text for text in told if public_values(text) != text] == []


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet="/\\.~a:=' \"-@?&é\n", max_size=30))
def test_a_public_text_stays_as_it_is(text: str) -> None:
    assert public(public(text)) == public(text)


def test_secrets_of_the_environment_and_the_user_at_the_machine_are_not_told(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "box-17")
    told = public_message(f"{SECRET}: {USER}@box-17.lan refused by box-17, not by box-170")
    assert told == "$HF_TOKEN: USER@HOST refused by HOST, not by box-170"
    assert public_message(f"'LOGNAME': '{USER}', USER={USER}") == "'LOGNAME': 'USER', USER=USER"
    monkeypatch.setattr(socket, "gethostname", lambda: "model")
    assert public_message("the model is") == "the model is"


def test_credentials_of_urls_are_not_told() -> None:
    urls = {
        "https://me:pass@host.org:81/a/b.zip": "https://host.org:81/a/b.zip",
        "https://host.org/b.zip?id=3&access_token=xyz&key=k#sig=1": "https://host.org/b.zip?id=3&access_token=...&key=...#sig=...",
        "https://host.org/b.zip?X-Amz-Signature=abc&Expires=3": "https://host.org/b.zip?X-Amz-Signature=...&Expires=3",
        "https://host.org/me@b.zip?monkey=1&author=x": "https://host.org/me@b.zip?monkey=1&author=x",
    }
    assert {url: public_url(url) for url in urls} == urls
    assert public("see https://me:pass@host.org/a/b, please") == "see https://host.org/a/b, please"


def test_ids_of_images_that_are_absolute_paths_start_from_the_folder_of_them_all() -> None:
    assert public_ids(["/srv/q/imgs/a/1.png", "/srv/q/imgs/b/1.png"]) == ["a/1.png", "b/1.png"]
    assert public_ids(["/srv/q/1.png"]) == ["1.png"]
    assert public_ids(["a/1.png", "/srv/b/1.png"])[0] == "a/1.png"
    assert public_ids([]) == []


def test_no_id_is_made_of_the_name_of_a_user(at_home: Path) -> None:
    assert id_of_place(at_home / "val", parts=2) == "val"
    assert id_of_place(at_home / "data" / "val", parts=2) == "data-val"
    assert id_of_place(Path("/srv") / USER / "val", parts=2) == "srv-val"
    assert id_of_place(at_home) == "own"
    assert id_of_place(Path("/srv/mine/val.parquet")) == "val"


# --- Records and pages. ---


def _planted(at_home: Path) -> dict[str, str]:
    """What stands nowhere, and why."""
    return {
        USER: "the user",
        str(at_home): "the home folder",
        str(at_home.parent): "an absolute path",
        str(ROOT): "the checkout",
        SECRET: "a secret of the environment",
        "/srv/": "an absolute path",
    }


def _found(folder: Path, planted: dict[str, str]) -> list[str]:
    """Where the files below a folder say what they must not, in their texts, their names or their tables."""
    found = []
    for file in sorted(folder.rglob("*")):
        text = str(file.relative_to(folder))
        if file.suffix == ".parquet":
            text += str(pq.read_table(file, partitioning=None).to_pylist())
        elif file.is_file():
            text += file.read_text(encoding="utf-8")
        found += [f"{file.name}: {why}" for word, why in planted.items() if word in text]
    return found


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", f"--rootdir={ROOT}", "-c", ROOT / "tox.ini", "-p", "no:cacheprovider"]
    command += [ROOT / "benchmark", "-q", "--results", "results", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert "INTERNALERROR" not in done.stdout, done.stdout
    return done


def test_neither_records_nor_pages_name_a_place_or_a_user(at_home: Path, user_world: Path) -> None:
    world = user_world.rename(at_home / "data")
    detectors = at_home / "mine" / "throwing.py"
    detectors.parent.mkdir()
    detectors.write_text(THROWING)
    network = at_home / "work" / "my_net.py"
    network.write_text(
        "import timm\n"
        f"SOURCE = 'local-dir:{world / 'net'}'\n"
        "class Read:\n"
        "    def __init__(self): self.place = SOURCE\n"
        "    def __call__(self, image):\n"
        "        import torchvision.transforms.functional as f\n"
        "        return f.to_tensor(image.resize((32, 32)))\n"
        "    def __repr__(self): return f'Read({self.place!r})'\n"
        "def make(): return timm.create_model(SOURCE, pretrained=True), Read()\n"
    )
    images = world / "images"
    given = ["--id", images / "colours-test", "--ood", images / "greys", "--store", at_home / "store"]
    done = _run(*given, "--model", "my_net:make", "--model", f"local-dir:{world / 'net'}", "--detectors", detectors,
                "-k", "throwing or msp/")  # fmt: skip
    assert "throwing" in done.stdout, done.stdout + done.stderr

    # Precomputed outputs whose images have paths as ids, and a suite file whose images are not there.
    (world / "made" / "ood").mkdir(parents=True)
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(3, 4)), np.zeros(3)
    np.savez(world / "made" / "head.npz", weight=weight, bias=bias)
    for name in ("test", "ood/far"):
        features = random.normal(size=(30, 4))
        ids = [f"{at_home}/pool/{name}/{index}.png" for index in range(30)]
        np.savez(world / "made" / f"{name}.npz", features=features, logits=features @ weight.T, ids=np.array(ids))
    _run("--outputs", world / "made", "-k", "msp/")
    suite = (world / "colours.toml").read_text()
    suite = suite.replace("images/greys", "/srv/pool/gone/greys").replace(
        'licence = "none', f'licence = "{at_home} none'
    )
    (world / "lost.toml").write_text(suite)
    _run("--suite", world / "lost.toml", "-k", "msp")

    planted = _planted(at_home)
    records = [record for file in Path("results").rglob("*.jsonl") for record in read_records(file)]
    reasons = {record.reason for record in records if isinstance(record, Case) and record.status == "error"}
    assert len({record.suite for record in records}) == 3
    assert any("$HF_TOKEN" in (reason or "") for reason in reasons)
    assert any(record.source == "local-dir:~/data/net" for record in records if isinstance(record, ModelRecord))
    assert any(record.source == "~/data/images/greys" for record in records if isinstance(record, SetRecord))
    assert any("Read('local-dir:~/data/net')" in json.dumps(r.model_dump(mode="json")) for r in records)
    assert _found(Path("results"), planted) == []
    assert leaderboard(["build"]) == 0
    assert _found(Path("site"), planted) == []


def test_pages_of_records_that_name_places_do_not_repeat_them(at_home: Path, tmp_path: Path) -> None:
    """The records of earlier versions, and of other machines, have absolute paths."""
    from tests.test_leaderboard import write_suite

    folder = tmp_path / "old"
    file = write_suite(folder)
    lines = []
    for line in file.read_text().splitlines():
        record = json.loads(line)
        for name in ("command", "source", "title", "reason", "suite_option"):
            if isinstance(record.get(name), str):
                record[name] = f"pytest /home/quentin-q/work/a/b.py /srv/pool/x/y {record[name]}"
        lines.append(json.dumps(record))
    file.write_text("\n".join(lines) + "\n")
    assert leaderboard(["build", "--results", str(folder), "--output", str(tmp_path / "site")]) == 0
    assert _found(tmp_path / "site", {"quentin-q": "a user", "/home/": "a home folder", "/srv/": "a path"}) == []


def test_a_command_with_the_home_folder_can_be_run_again(at_home: Path, user_world: Path) -> None:
    user_world.rename(at_home / "data")
    done = _run("--model", "local-dir:~/data/net", "--id", "~/data/images/colours-test", "--ood", "~/data/images/greys",
                "--store", "~/store", "-k", "msp/greys")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (at_home / "store").is_dir()
    assert not Path("~").exists()


# --- CSV files. ---


def test_cells_that_are_formulas_to_a_spreadsheet_are_texts() -> None:
    formulas = ["=1+2", "+1", "-1", "@sum(a1)", "\t=1", "\r=1", "\n=1", "＝1"]
    assert [_harmless(text) for text in formulas] == [f"'{text}" for text in formulas]
    others = ["a=b", "", None, -1, -0.5, 3, True, "'=1"]
    assert [_harmless(value) for value in others] == others


def test_records_csv_has_no_formula_and_keeps_its_numbers(tmp_path: Path) -> None:
    from tests.test_leaderboard import write_suite

    def change(record: Any) -> Any:
        return record.model_copy(update={"reason": '=HYPERLINK("http://x")'}) if isinstance(record, Case) else record

    write_suite(tmp_path / "results", change=change)
    assert leaderboard(["build", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "site")]) == 0
    rows = list(csv.DictReader((tmp_path / "site" / "records.csv").open(encoding="utf-8", newline="")))
    assert {row["reason"] for row in rows} == {'\'=HYPERLINK("http://x")'}
    assert any(float(row["threshold"]) < 0 for row in rows if row["threshold"])


# --- Downloads. ---


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "a.bin"


def test_credentials_of_a_source_are_sent_and_never_told_or_kept(target: Path) -> None:
    lines: list[str] = []
    with running() as server:
        server.files["/a.bin"] = Served(b"content")
        address = server.url.removeprefix("http://")
        secret = UrlSource(url=f"http://{USER}:pa%24s@{address}/a.bin?token=tkn")
        missing = UrlSource(url=f"http://{USER}:pa%24s@{address}/b.bin?token=tkn")
        origin = fetch([missing, secret], target, target.parent, lines.append)
        assert origin is not None
        [sent] = {authorization for path, authorization in server.authorizations if path == "/a.bin"}
        with pytest.raises(DownloadError) as refused:
            fetch([missing], target.with_name("b.bin"), target.parent)
    assert sent == "Basic cXVlbnRpbi1xOnBhJHM="  # of quentin-q:pa$s
    assert origin.source == f"http://{address}/a.bin?token=..."
    assert fetched(target, target.parent) == origin
    with pytest.raises(DownloadError) as unreachable:
        fetch(
            [UrlSource(url=f"http://{USER}:pa%24s@127.0.0.1:9/c.bin?token=tkn")], target.with_name("c"), target.parent
        )
    kept = [path.read_text(errors="replace") + path.name for path in target.parent.rglob("*") if path.is_file()]
    for text in (*lines, str(refused.value), str(unreachable.value), repr(origin), str(secret), *kept):
        assert not re.search(rf"{USER}|pa%24s|pa\$s|tkn", text), text
    assert "127.0.0.1:9" in str(unreachable.value)


def test_credentials_stay_with_the_server_that_they_are_of(target: Path) -> None:
    with running() as server, running() as other:
        other.files["/a.bin"] = Served(b"content")
        server.files["/a.bin"] = Served(b"", status=302, headers={"Location": f"{other.url}/a.bin"})
        fetch([UrlSource(url=server.url.replace("://", "://me:pass@") + "/a.bin")], target, target.parent)
        assert other.authorizations == [("/a.bin", None)]
    assert target.read_bytes() == b"content"


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/a.bin", "file:///etc/hostname", "data:,x", "gopher://x/y"])
def test_a_redirect_to_what_is_no_web_address_is_refused(place: str, target: Path) -> None:
    with running() as server:
        server.files["/a.bin"] = Served(b"", status=302, headers={"Location": place})
        with pytest.raises(
            DownloadError, match=r"sends us from http on to ftp|leads in a circle, or to no web address"
        ):
            fetch([UrlSource(url=f"{server.url}/a.bin")], target, target.parent)
    assert not target.exists()


def test_a_redirect_from_https_to_http_is_refused() -> None:
    from urllib.request import Request

    from benchmark.images.url_downloads import _Redirects

    request = Request("https://host.org/a")
    with pytest.raises(DownloadError, match="from https on to http, where others may read and change the file"):
        _Redirects().redirect_request(request, None, 302, "", {}, "http://host.org/a")
    assert _Redirects().redirect_request(request, None, 302, "", {}, "https://host.org/b") is not None


def test_a_record_of_a_text_is_public_wherever_it_is_made(at_home: Path) -> None:
    """A broken twin: without the validators, these texts would come back as they are."""
    content = {
        "kind": "set", "run": "r", "suite": "s", "id": "a", "role": "far", "title": f"{at_home}/x", "images": 1,
        "classes": [], "content_sha256": "0" * 64, "coding": "png", "licence": "", "source": f"{at_home}/y",
        "contamination": [{"source": [f"{at_home}/z"]}],
    }  # fmt: skip
    record = parse_record(content)
    assert isinstance(record, SetRecord)
    assert (record.title, record.source, record.contamination) == ("~/x", "~/y", [{"source": ["~/z"]}])
