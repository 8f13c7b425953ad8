"""Entries of TOML files: tables of a fixed shape. What a user wrote and where it stands are two things."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from benchmark.errors import UserError
from detectors import did_you_mean

# Where downloaded images and weights lie, unless somebody says otherwise.
DATA_DIR = Path("data")


class Origin(NamedTuple):
    """Where an entry comes from, which its table does not say.

    file: the TOML file that it stands in, or the option that named it. Relative paths in the table start from its
        folder.
    data_dir: the folder of all that is too large to lie beside the file. `local` and `weights` start from there.
    """

    file: Path
    data_dir: Path = DATA_DIR


class Entry(BaseModel):
    """A table of a TOML file. Its fields are the keys that a user may write.

    An entry is made by `parse`, of a table as it stands in the file, or by `in_file`, of values that are ready.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    RENAMED: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions, and what they are called now
    _origin: Origin = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Takes the origin from the context of the validation, so that validators know it and no key can set it."""
        if not isinstance(context, Origin):
            raise TypeError(f"make a {type(self).__name__} with `parse` or `in_file`, which say where it comes from")
        self._origin = context

    @property
    def file(self) -> Path:
        """The file that the entry stands in."""
        return self._origin.file

    @property
    def data_dir(self) -> Path:
        """The folder that `local` and `weights` start from."""
        return self._origin.data_dir

    @classmethod
    def in_file(cls, file: Path, data_dir: Path = DATA_DIR, /, **values: Any) -> Self:
        """An entry of some values. Paths among them are taken as they are. Raises ValidationError.

        file: what the entry counts as standing in.
        data_dir: the folder of what is too large to lie beside it.
        values: the values of its fields.
        """
        return cls.model_validate(values, context=Origin(file, data_dir))

    @classmethod
    def parse(cls, table: Any, file: Path, where: str, data_dir: Path = DATA_DIR) -> Self:
        """The entry of a table. Raises ValueError that names the file, the place in it and what is wrong there.

        table: the table as it stands in the file. Relative paths in it start from the file's folder.
        file: the file.
        where: the table's name in the file, "" for the whole file.
        data_dir: the folder of what is too large to lie beside the file.
        """
        if not isinstance(table, dict):
            raise UserError(f"{file}: {where}: a table is expected, not {table!r}")
        paths = {name for name, field in cls.model_fields.items() if "Path" in str(field.annotation)} & table.keys()
        resolved = {name: _from_folder(file.parent, table[name]) for name in paths}
        try:
            return cls.model_validate(table | resolved, context=Origin(file, data_dir))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join([where, *(str(key) for key in first["loc"])]).strip(".")
            raise UserError(f"{file}: {place}: {cls._problem(first)}") from None

    @classmethod
    def _problem(cls, error: Mapping[str, Any]) -> str:
        """What is wrong with a table, in words. error: what pydantic says of it."""
        if error["type"] != "extra_forbidden":
            return str(error["msg"])
        key, *inside = error["loc"]
        if key in cls.RENAMED and not inside:
            return f"it is called `{cls.RENAMED[key]}` now"
        return "unknown key" if inside else f"unknown key{did_you_mean(key, cls.model_fields)}"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some values replaced, which are not checked.

        update: the values, by field. `file` and `data_dir` may be among them.
        deep: whether the values are copied too.
        """
        values = dict(update or {})
        origin = {name: values.pop(name) for name in Origin._fields if name in values}
        copied = super().model_copy(update=values, deep=deep)
        copied._origin = self._origin._replace(**origin)
        return copied


def _from_folder(folder: Path, named: Any) -> Path | list[Path]:
    """What a path, or each of a list of them, is from a folder."""
    return [folder / str(path) for path in named] if isinstance(named, list) else folder / str(named)


_Entry = TypeVar("_Entry", bound=Entry)


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ValueError that names the file where it is no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{file}: not valid TOML: its tables or lists stand too deep inside of each other") from None
    except ValueError as error:  # of the parser, of the codec, and of a number with more digits than Python reads
        raise UserError(f"{file}: not valid TOML: {error}") from None


def read_entries(
    file: Path, kind: type[_Entry], tables: dict[str, Any] | None = None, data_dir: Path = DATA_DIR
) -> dict[str, _Entry]:
    """The entries of a file by id. Raises ValueError that names the file, the place in it and what is wrong there.

    file: the file.
    kind: what its entries are.
    tables: the tables of the entries by id. None where the whole file is of them.
    data_dir: the folder of what is too large to lie beside the file.
    """
    tables = read_toml(file) if tables is None else tables
    return {name: kind.parse(table, file, name, data_dir) for name, table in tables.items()}
