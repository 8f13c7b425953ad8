"""Entries of TOML files: tables of a fixed shape, each with the file that it stands in."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.errors import UserError

# Where downloaded images and weights lie, unless somebody says otherwise.
DATA_DIR = Path("data")


class Entry(BaseModel):
    """A table of a TOML file. Relative paths in it start from the file's folder.

    data_dir: what the entry's `local` starts from: the folder of all that is too large to lie beside the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path
    data_dir: Path = DATA_DIR

    @classmethod
    def parse(cls, table: dict[str, Any], file: Path, where: str, data_dir: Path = DATA_DIR) -> Any:
        """The entry, or a ValueError that names the file, the place in it and what is wrong there."""
        paths = {name for name, field in cls.model_fields.items() if "Path" in str(field.annotation)} & table.keys()
        resolved = {name: _from_folder(file.parent, table[name]) for name in paths}
        try:
            return cls(**(table | resolved), file=file, data_dir=data_dir)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join([where, *(str(part) for part in first["loc"])]).strip(".")
            raise UserError(f"{file}: {place}: {first['msg']}") from None


def _from_folder(folder: Path, named: Any) -> Path | list[Path]:
    """What a path, or each of a list of them, is from a folder."""
    return [folder / str(path) for path in named] if isinstance(named, list) else folder / str(named)


_Entry = TypeVar("_Entry", bound=Entry)


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file; a ValueError that names the file where it is none."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None


def read_entries(
    file: Path, kind: type[_Entry], tables: dict[str, Any] | None = None, data_dir: Path = DATA_DIR
) -> dict[str, _Entry]:
    """The entries of a file by id; `tables` where they are only a part of it."""
    tables = read_toml(file) if tables is None else tables
    return {name: kind.parse(table, file, name, data_dir) for name, table in tables.items()}
