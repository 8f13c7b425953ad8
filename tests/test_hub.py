"""Results on the Hub: pushed in one commit, pulled back byte for byte, with the real clients against a local server."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Hub, running_hub
from tests.test_leaderboard import write_suite

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture(scope="module")
def run_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "results"
    write_suite(folder, models=["digits-vit"], detectors=["msp", "knn"])
    write_suite(folder, suite="other", run="run-2", models=["digits-vit"], detectors=["msp"])
    return folder


class User:
    """Somebody at a command line, with a token and a home of their own."""

    def __init__(self, hub: Hub, folder: Path, right: str = "write") -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }
        if right != "none":
            self.environment["HF_TOKEN"] = hub.token(right)

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What a command says. Both streams, one after the other."""
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said, said
        token = self.environment.get("HF_TOKEN")
        assert not token or token not in said
        return said

    def command(self, *arguments: str, code: int = 0, **environment: str) -> str:
        return self.run("-m", "benchmark", *arguments, code=code, **environment)


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    return User(hub, tmp_path / "user")


def pushed(user: User, results: Path, *more: str, **how: Any) -> str:
    return user.command("push", "me/results", "--results", str(results), *more, **how)


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- There and back. ---


@pytest.mark.parametrize("lfs", [True, False])
def test_runs_come_back_byte_for_byte(hub: Hub, user: User, run_results: Path, tmp_path: Path, lfs: bool) -> None:
    hub.lfs = lfs
    said = pushed(user, run_results, "--scores")
    assert "pushed: digits/run-1" in said
    assert len(hub.commits) == 1
    files = set(hub.repositories["dataset", "me/results"].files())
    assert {"README.md", "records/digits/run-1.jsonl", "cases/other/run-2.parquet"} < files
    assert "scores/digits/run-1/digits-vit.parquet" in files
    said = user.command("pull", "me/results", "--results", str(tmp_path / "back"))
    assert "2 runs added" in said
    assert content_of(tmp_path / "back") == content_of(run_results)
    assert "0 runs added, 2 there already, 0 files of scores" in user.command(
        "pull", "me/results", "--results", str(tmp_path / "back")
    )


def test_the_same_push_twice_changes_nothing(hub: Hub, user: User, run_results: Path) -> None:
    pushed(user, run_results)
    before = hub.repositories["dataset", "me/results"].history.copy()
    said = pushed(user, run_results)
    assert "there already: digits/run-1" in said
    assert "nothing to add" in said
    assert hub.repositories["dataset", "me/results"].history == before
    pushed(user, run_results, "--scores")  # what was left out can follow
    assert len(hub.repositories["dataset", "me/results"].history) == len(before) + 1


def test_a_run_is_chosen_by_its_id_or_as_the_newest(hub: Hub, user: User, run_results: Path) -> None:
    pushed(user, run_results, "--run", "run-2")
    files = hub.repositories["dataset", "me/results"].files()
    assert [path for path in files if path.startswith("records/")] == ["records/other/run-2.jsonl"]
    assert "there is no run 'run-9'; the last ones are: run-1, run-2" in pushed(
        user, run_results, "--run", "run-9", code=1
    )
    assert "no results are there" in pushed(user, user.folder / "gone", code=1)


def test_readers_of_every_kind_see_one_table(hub: Hub, user: User, run_results: Path) -> None:
    pushed(user, run_results, "--scores")
    code = """
import pandas, datasets, json
table = pandas.read_parquet("hf://datasets/me/results/cases/digits/run-1.parquet")
whole = datasets.load_dataset("me/results", "cases", split="train")
scores = datasets.load_dataset("me/results", "scores", split="train", streaming=True)
print(json.dumps([len(table), len(whole), str(table.fpr_at_95.dtype), whole.features["classes"].feature["name"].dtype
                  if hasattr(whole.features["classes"], "feature") else "string", next(iter(scores))["detector"],
                  datasets.load_dataset("me/results", split="train").column_names == whole.column_names]))
"""
    told = json.loads(next(line for line in user.run("-c", code).splitlines() if line.startswith("[")))
    assert told == [40, 60, "float64", "string", "knn", True]


def test_results_on_the_hub_stand_in_for_a_folder(hub: Hub, user: User, run_results: Path) -> None:
    pushed(user, run_results, "--scores")
    code = "from benchmark import load_results; print(len(load_results('hf://datasets/me/results').cases))"
    assert user.run("-c", code).split()[-1] == "60"
    assert "60 cases" in user.run("-m", "leaderboard", "build", "--results", "hf://datasets/me/results")
    before = len(hub.requests)
    assert user.run("-c", code).split()[-1] == "60"
    assert len(hub.requests) - before <= 2  # the commit is asked for, and its runs are in the cache
    assert user.run("-c", code, HF_HUB_OFFLINE="1").split()[-1] == "60"
    said = user.command("compare", "hf://datasets/me/results", str(run_results))
    assert said.startswith("No worse")


def test_a_submission_takes_read_access_alone(hub: Hub, tmp_path: Path, run_results: Path) -> None:
    hub.add("org/results")
    reader = User(hub, tmp_path / "reader", "read")
    said = reader.command("push", "org/results", "--results", str(run_results), code=1)
    assert "the token may not write there: use one with write access, or open a pull request" in said
    said = reader.command("push", "org/results", "--results", str(run_results), "--pull-request")
    assert "read it as hf://datasets/org/results@refs/pr/1" in said
    assert "org/results/discussions/1" in said
    assert not any(path.startswith("records") for path in hub.repositories["dataset", "org/results"].files())
    back = tmp_path / "back"
    assert "2 runs added" in reader.command("pull", "org/results@refs/pr/1", "--results", str(back))


def test_the_card_is_kept_true_by_each_push(hub: Hub, user: User, run_results: Path) -> None:
    pushed(user, run_results, "--run", "run-2")
    card = hub.repositories["dataset", "me/results"].files()["README.md"].decode()
    assert "| other |" in card
    assert "| digits |" not in card
    pushed(user, run_results)
    card = hub.repositories["dataset", "me/results"].files()["README.md"].decode()
    assert "| other |" in card
    assert "| digits |" in card


# --- Others at the same time, and passing troubles. ---


def test_eight_push_at_once_and_all_land_once(hub: Hub, tmp_path: Path) -> None:
    users = [User(hub, tmp_path / f"user-{number}") for number in range(8)]
    for number, one in enumerate(users):
        write_suite(one.folder / "results", run=f"run-{number}", models=["digits-vit"], detectors=["msp"])
    hub.add("me/results")
    threads = [threading.Thread(target=one.command, args=("push", "me/results")) for one in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository = hub.repositories["dataset", "me/results"]
    runs = sorted(path for path in repository.files() if path.startswith("records/"))
    assert runs == [f"records/digits/run-{number}.jsonl" for number in range(8)]
    assert len(repository.history) == 1 + 8


def few(hub: Hub, times: int, answer: Any, where: str = "/commit/") -> None:
    """Lets the first requests of a kind fail."""
    left = [times]

    def fault(method: str, path: str) -> Any:
        if where in path and left[0]:
            left[0] -= 1
            return answer
        return None

    hub.fault = fault


@pytest.mark.parametrize(
    ("answer", "where"),
    [
        ((409, {}), "/commit/"),
        ((412, {}), "/commit/"),
        ((429, {"Retry-After": "1"}), "/commit/"),
        ((429, {"RateLimit": '"api";r=0;t=1'}), "/tree/"),
        ((503, {}), "/commit/"),
        ((500, {}), "/api/datasets/me/results"),
        ("drop", "/commit/"),
        ("drop", "/tree/"),
    ],
)
def test_passing_troubles_are_survived(hub: Hub, user: User, run_results: Path, answer: Any, where: str) -> None:
    hub.add("me/results")
    few(hub, 2, answer, where)
    assert "pushed: digits/run-1" in pushed(user, run_results)
    assert len(hub.repositories["dataset", "me/results"].history) == 2


def test_trouble_that_does_not_pass_fails_and_the_same_command_goes_on(hub: Hub, user: User, run_results: Path) -> None:
    hub.add("me/results")
    before = content_of(run_results)
    few(hub, 10**9, (403, {}), "/commit/")
    said = pushed(user, run_results, code=1)
    assert "the token may not write there" in said
    assert len(said.strip().splitlines()) == 1
    assert content_of(run_results) == before
    hub.fault = lambda method, path: None
    assert "pushed: digits/run-1" in pushed(user, run_results)


# --- Mistakes are one line. ---


def test_mistakes_are_one_line_with_what_to_do(hub: Hub, tmp_path: Path, run_results: Path) -> None:
    hub.add("org/gated", gated=True)
    cases = {
        ("expired", "push", "me/results"): "the token is missing, wrong or expired: log in with `hf auth login`",
        ("none", "push", "me/results"): "log in with `hf auth login`, or set HF_TOKEN",
        ("write", "push", "org/gated"): "it is gated: ask for access on its page",
        ("write", "pull", "org/missing"): "there is no such repository, or your token may not see it",
        ("write", "pull", "org/x/y"): "is no dataset repository on the Hub: write ORG/NAME",
    }
    for (right, command, repository), says in cases.items():
        one = User(hub, tmp_path / f"{right}-{command}", right)
        said = one.command(command, repository, "--results", str(run_results), code=1)
        assert says in said
        assert len(said.strip().splitlines()) == 1, said
    hub.add("me/results")
    user = User(hub, tmp_path / "user")
    assert "there is no revision 'v9'" in user.command("pull", "me/results@v9", code=1)
    assert "it holds no runs" in user.command("pull", "me/results", code=1)
    assert "HF_HUB_OFFLINE is set" in user.command("pull", "me/results", code=1, HF_HUB_OFFLINE="1")
    said = user.command("push", "me/results", "--results", str(run_results), code=1, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the Hub cannot be reached at http://127.0.0.1:9" in said


# --- What is pulled is nobody's friend. ---


def test_a_hub_that_lies_is_refused_by_file(hub: Hub, user: User, run_results: Path, tmp_path: Path) -> None:
    pushed(user, run_results, "--scores")

    def lie(path: str, content: bytes) -> bytes:
        return content.replace(b"0", b"1", 1) if path in ("records/digits/run-1.jsonl",) else content

    hub.lie = lie
    said = user.command("pull", "me/results", "--results", str(tmp_path / "back"), code=1)
    assert "records/digits/run-1.jsonl: its content is not what its hash says" in said
    assert "1 runs added" in said
    assert not (tmp_path / "back" / "digits").exists()
    hub.lie = lambda path, content: content
    assert "1 runs added, 1 there already" in user.command("pull", "me/results", "--results", str(tmp_path / "back"))


def test_hostile_files_are_refused_and_the_rest_is_kept(
    hub: Hub, user: User, run_results: Path, tmp_path: Path
) -> None:
    pushed(user, run_results, "--scores")
    repository = hub.repositories["dataset", "me/results"]
    good = repository.files()
    records = good["records/digits/run-1.jsonl"]
    scores = good["scores/digits/run-1/digits-vit.parquet"]
    repository.commit(
        "main",
        {
            **good,
            "records/../../evil.jsonl": records,
            "records/digits/run-7.jsonl": records,
            "records/digits/run-8.jsonl": b"no json\n",
            "records/digits/run-9.jsonl": b"\x80\x04pickle",
            "scores/other/run-2/digits-vit.parquet": scores,
        },
    )
    back = tmp_path / "back"
    said = user.command("pull", "me/results", "--results", str(back), code=1)
    assert "records/digits/run-7.jsonl: it holds records of another run than the one that it is called" in said
    assert "refused: " in said
    assert sorted(file.name for file in back.rglob("*.jsonl")) == ["run-1.jsonl", "run-2.jsonl"]
    assert not (back / "other" / "run-2").exists()  # its scores are of another run
    assert content_of(back / "digits") == content_of(run_results / "digits")
    assert not list(tmp_path.rglob("evil*"))


def test_a_run_that_is_there_with_other_content_stays(hub: Hub, user: User, run_results: Path, tmp_path: Path) -> None:
    pushed(user, run_results)
    write_suite(tmp_path / "mine", models=["digits-vit"], detectors=["msp"], started="2026-06-01T10:00:00+00:00")
    before = content_of(tmp_path / "mine")
    said = user.command("pull", "me/results", "--results", str(tmp_path / "mine"), code=1)
    assert "it is there with other content" in said
    assert before.items() <= content_of(tmp_path / "mine").items()
    said = pushed(user, tmp_path / "mine", code=1)
    assert "is there with other content, and a run is never changed" in said


# --- pytest, and publishing. ---


def test_a_run_of_pytest_is_pushed_when_it_ends(hub: Hub, user: User) -> None:
    run = ["run", "-q", "-k", "digits-resnet and msp and letters", "--fpr-limit", "1"]
    said = user.command(*run, "--push", "me/results")
    assert "pushed: http" in said
    assert len(hub.commits) == 1
    files = hub.repositories["dataset", "me/results"].files()
    [record] = [path for path in files if path.startswith("records/digits/")]
    assert files[record] == (user.folder / "results" / record.removeprefix("records/")).read_bytes()
    few(hub, 10**9, (403, {}), "/commit/")
    said = user.command(*run, "--push", "me/results", code=1)
    assert "the run was not pushed" in said
    assert "python -m benchmark push me/results --run " in said
    nobody = User(hub, user.folder / "nobody", "none")
    assert "no token is there" in nobody.command(*run, "--push", "me/results", code=4)


def test_a_site_is_published_as_a_space_and_its_stale_files_go(
    hub: Hub, user: User, run_results: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    user.run("-m", "leaderboard", "build", "--results", str(run_results), "--output", str(site))
    publish = ["-m", "leaderboard", "publish", "--site", str(site)]
    assert "/commit/" in user.run(*publish, "--space", "me/board")
    space = hub.repositories["space", "me/board"]
    assert {
        path: content for path, content in space.files().items() if path not in ("README.md", ".gitattributes")
    } == (content_of(site))
    assert b"sdk: static" in space.files()["README.md"]
    assert "nothing to change" in user.run(*publish, "--space", "me/board")
    (site / "records.csv").unlink()
    user.run(*publish, "--space", "me/board")
    assert "records.csv" not in space.files()
    assert len(space.history) == 1 + 2
    few(hub, 10**9, (403, {}), "/commit/")
    (site / "index.html").write_text("new")
    assert "not published: hf://spaces/me/board: the token may not write there" in user.run(
        *publish, "--space", "me/board", code=1
    )


def test_a_site_is_published_into_a_folder(user: User, run_results: Path, tmp_path: Path) -> None:
    site, pages = tmp_path / "site", tmp_path / "pages"
    user.run("-m", "leaderboard", "build", "--results", str(run_results), "--output", str(site))
    publish = ["-m", "leaderboard", "publish", "--site", str(site), "--pages", str(pages)]
    (pages / ".git").mkdir(parents=True)
    (pages / ".git" / "HEAD").write_text("ref")
    user.run(*publish)
    (pages / "stale.html").write_text("old")
    user.run(*publish)
    assert content_of(pages) == {**content_of(site), ".nojekyll": b"", ".git/HEAD": b"ref"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    assert "it holds thesis.tex and no published site" in user.run(*publish[:-1], str(tmp_path / "other"), code=1)
    assert (tmp_path / "other" / "thesis.tex").exists()
