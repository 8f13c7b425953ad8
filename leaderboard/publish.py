"""Publishing a site: as a static Space on the Hub, or as the folder that GitHub Pages serves."""

import shutil
from pathlib import Path

from benchmark.errors import UserError
from benchmark.hub.address import Address
from benchmark.hub.repository import Changes, Commit, Repository

_CARD = """---
title: {title}
emoji: 📊
colorFrom: blue
colorTo: green
sdk: static
app_file: index.html
pinned: false
---

The leaderboard of an out-of-distribution benchmark of image classifiers, built by `ood-benchmark`. Each page works on
its own: there is no server behind it.
"""
# What a repository of the Hub has beside the site.
_KEPT = (".gitattributes",)
_NO_JEKYLL = ".nojekyll"  # without it GitHub Pages leaves out what begins with _


def publish_to_space(site: Path, address: Address) -> Commit:
    """Makes a static Space show a site, in one commit: files that the site does not have any more are removed.

    site: the folder of a built site.
    address: the Space, which is made where it is not there.
    Raises HubError where the Hub refuses, UserError for a folder without a site.
    """
    files = _files(site)
    card = _CARD.format(title=address.repository.partition("/")[2]).encode()

    def changes(repository: Repository) -> Changes:
        there = repository.files()
        contents: dict[str, bytes | Path] = {**files, "README.md": card}
        changed = {
            path: content for path, content in contents.items() if path not in there or not there[path].is_of(content)
        }
        return changed | {path: None for path in there if path not in contents and path not in _KEPT}

    repository = Repository(address)
    if not repository.exists():
        repository.create(space_sdk="static")
    return Repository(address).change(changes, "Publish the leaderboard")


def publish_to_folder(site: Path, folder: Path) -> int:
    """Makes a folder, such as the work tree of a branch, hold a site. Returns how many files it has.

    Files that the site does not have any more are removed; a folder .git stays. Raises UserError for a folder that
    holds something else than a site.
    """
    files = _files(site)
    if folder.exists() and any(folder.iterdir()) and not (folder / _NO_JEKYLL).exists():
        others = [path.name for path in folder.iterdir() if path.name != ".git"]
        if others:
            raise UserError(
                f"{folder}: it holds {sorted(others)[0]} and no published site; name an empty folder, or put a file "
                f"{_NO_JEKYLL} there where all of it may be replaced"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, file in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    (folder / _NO_JEKYLL).touch()
    return len(files)


def _files(site: Path) -> dict[str, Path]:
    if not (site / "index.html").is_file():
        raise UserError(f"{site}: there is no built site; `python -m leaderboard build` writes one")
    return {path.relative_to(site).as_posix(): path for path in sorted(site.rglob("*")) if path.is_file()}
