"""Origins: where a file or folder below the data folder came from. `.fetched` holds one JSON file for each."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from benchmark.files import write_atomically
from benchmark.public import public


class Fetched(BaseModel):
    """Where a file or folder came from.

    source: the URL, or the repository on the Hub.
    revision: the commit of the repository; None for a URL.
    checksums: the checksum of each file that was downloaded, as ALGORITHM:DIGITS, by the file's name at the source.
    date: when it was fetched, in UTC.
    verified: whether it has been loaded since then, and agrees with its entry.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, AfterValidator(public)]
    revision: str | None = None
    checksums: dict[str, str]
    date: str
    verified: bool = False


def is_there(target: Path) -> bool:
    """Whether the target is a file, or a folder that is not empty."""
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


def fetched(target: Path, data_dir: Path) -> Fetched | None:
    """Where a target came from; None where it was not fetched, for example because somebody put it there."""
    try:
        return Fetched.model_validate_json(_origin_file(target, data_dir).read_bytes())
    except (OSError, ValueError):  # ValueError, too, for a target outside of the data folder
        return None


def write_fetched(origin: Fetched, target: Path, data_dir: Path) -> None:
    """Writes down where a target came from. Raises OSError where the data folder cannot be written."""
    file = _origin_file(target, data_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, origin.model_dump_json(indent=1).encode() + b"\n")


def mark_verified(target: Path, data_dir: Path) -> None:
    """Writes down that what was fetched has been loaded, and agrees with its entry."""
    origin = fetched(target, data_dir)
    if origin and not origin.verified:
        write_fetched(origin.model_copy(update={"verified": True}), target, data_dir)


def _origin_file(target: Path, data_dir: Path) -> Path:
    return data_dir / ".fetched" / f"{target.relative_to(data_dir).as_posix()}.json"
