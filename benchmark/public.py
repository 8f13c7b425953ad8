"""Texts that everybody may read: records and pages without the places, the names and the secrets of a user.

Records are published. A path in one of them starts from the folder of the run or from that of this package. The home
folder is `~`. Of any other place the last two parts are left, after `.../`.
"""

import getpass
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

_PACKAGES = str(Path(__file__).resolve().parents[1])  # the folder that holds `benchmark`
_REST = r"[^\s/\\'\"`,;:|<>()\[\]{}*]+"  # of a path: a part without a space
_BEFORE = r"(?<![\w.~/\\…-])"  # what follows it is the start of a path, and not its middle
_QUOTED = re.compile(r"(?P<quote>['\"])(?P<path>(?:/|[A-Za-z]:\\)[^'\"\n]*)(?P=quote)")
_ABSOLUTE = re.compile(rf"{_BEFORE}/{_REST}(?:/+{_REST})+/?")
_WINDOWS = re.compile(rf"{_BEFORE}[A-Za-z]:[\\/]+{_REST}(?:[\\/]+{_REST})*")
_UPWARD = re.compile(rf"{_BEFORE}(?:\.\./)+{_REST}(?:/+{_REST})*")
_HOMES = frozenset({"home", "Users"})  # folders of home folders
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>`]+", re.IGNORECASE)
_SECRET = re.compile(
    r"token|secret|passw|credential|signature|api_?key|access_?key|authorization|\b(?:key|sig|auth|pwd)\b",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r"(?P<name>[?&#;][^=&#;?]*)=[^&#;]+")
_SHORTEST_SECRET = 6  # a shorter value of a variable stands in too many texts


def public(text: str) -> str:
    """A text without absolute paths, and without the credentials of URLs. A public text stays as it is.

    text: any text, such as a title, a command or a message.
    """
    if "/" not in text and "\\" not in text:
        return text
    text = _URL.sub(lambda found: public_url(found[0]), text).replace("file:///", "file:/")
    known = _known_places(os.getcwd(), os.environ.get("PWD", ""), os.path.expanduser("~"))
    for pattern, shown in known:
        text = pattern.sub(shown, text)
    text = _QUOTED.sub(lambda found: f"{found['quote']}{_end_of(found['path'])}{found['quote']}", text)
    text = _UPWARD.sub(lambda found: _from_here(found[0]), text)
    return _WINDOWS.sub(lambda found: _end_of(found[0]), _ABSOLUTE.sub(lambda found: _end_of(found[0]), text))


def public_message(text: str) -> str:
    """A message, such as one of somebody else's code, without paths, and without what the environment keeps secret.

    The value of a variable that is called like a secret becomes `$NAME`, and the user and the machine of
    `user@machine` become `USER@HOST`.
    """
    secrets = {value: name for name, value in os.environ.items() if _SECRET.search(name)}
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET and not value.startswith("/"):
            text = text.replace(value, f"${secrets[value]}")
    host = socket.gethostname()
    names = "|".join(map(re.escape, sorted(_names(), key=len, reverse=True)))
    text = re.sub(rf"(?<![\w.-])(?:{names})@[\w.-]+", "USER@HOST", text)
    text = re.sub(rf"\b(USER|LOGNAME|USERNAME)(['\"]?[:=]\s*['\"]?)(?:{names})\b", r"\1\2USER", text)
    if re.search(r"[\d.-]", host):  # another name may be a word of the text
        text = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "HOST", text)
    return public(text)


def public_values(value: Any) -> Any:
    """A value of JSON in which every text is public."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, dict):
        return {public_values(name): public_values(one) for name, one in value.items()}
    return type(value)(map(public_values, value)) if isinstance(value, list | tuple) else value


def public_ids(ids: Sequence[str]) -> list[str]:
    """Ids of images as scores keep them: of ids that are absolute paths, what is below the folder of them all."""
    if not ids or not all(name.startswith("/") for name in ids):
        return list(ids)
    folder = os.path.commonpath([os.path.dirname(name) for name in ids])
    return [os.path.relpath(name, folder) for name in ids]


def public_url(url: str) -> str:
    """A URL without a user, a password, and the values of parameters that are called like secrets."""
    scheme, separator, rest = url.partition("://")
    place, slash, path = re.fullmatch(r"([^/?#]*)(.?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    path = _PARAMETER.sub(
        lambda found: f"{found['name']}=..." if _SECRET.search(found["name"]) else found[0], slash + path
    )
    return f"{scheme}{separator}{place.rpartition('@')[2]}{path}"


def public_parts(path: Path) -> tuple[str, ...]:
    """The parts of a path from which a name may be made: none of them says who the user is."""
    path = Path(os.path.abspath(path))
    for home in {Path.home(), Path(os.path.realpath(Path.home()))}:
        if path.is_relative_to(home):
            path = Path("/", path.relative_to(home))
    return tuple(part for part in path.parts[1:] if part not in _names())


@lru_cache(maxsize=16)
def _known_places(*places: str) -> list[tuple[re.Pattern[str], str]]:
    """What stands for the paths of the folder of the run, that of the packages, and the home folder: longest first.

    places: the folder of the run, twice: as the system and as the shell calls it; and the home folder.
    """
    here, logical, home = places
    shown: dict[str, str] = {}
    for place, short in ((home, "~"), (os.path.realpath(home), "~"), (_PACKAGES, ""), (here, ""), (logical, "")):
        if len(Path(place).parts) > 1 and Path(place).is_absolute():
            shown[place.rstrip("/")] = short
    patterns = []
    for place in sorted(shown, key=len, reverse=True):
        start = rf"(?<![\w.~/\\…-]){re.escape(place)}"
        patterns.append((re.compile(rf"{start}/+(?=[^\s/'\"])"), f"{shown[place]}/".removeprefix("/")))
        patterns.append((re.compile(rf"{start}/*(?!\.?[\w-])"), shown[place] or "."))
    return patterns


def _end_of(path: str) -> str:
    """The last two parts of an absolute path, or what is below somebody's home folder."""
    parts = [part for part in re.split(r"[/\\]+", path) if part]
    if parts and re.fullmatch("[A-Za-z]:", parts[0]):
        parts = parts[1:]
    elif len(parts) < 2:
        return path  # such as /data: it names nobody, and `/` may have another meaning there
    if len(parts) > 1 and parts[0] in _HOMES:
        return "/".join(["~", *parts[2:]])
    return "/".join(["...", *(part for part in parts[-2:] if part not in _names())])


def _from_here(path: str) -> str:
    """A path that leads up from the folder of the run; without the home folder where it leads into one."""
    parts = path.split("/")
    named = [part for part in parts if part != ".."]
    if named[0] in _HOMES or _names().intersection(named):
        return _end_of("/" + "/".join(named))
    return path


def _names() -> frozenset[str]:
    """What the user's account is called: by its home folder, and by its login."""
    names = {os.path.basename(os.path.expanduser("~"))}
    with suppress(OSError, KeyError):  # an account without a name, as in some containers
        names.add(getpass.getuser())
    return frozenset(names - {""})
