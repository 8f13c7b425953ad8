"""Records as flat tables of one fixed schema, which the Hub's viewer, `datasets`, pandas and DuckDB read.

A table is of one kind of record, and a row is a record. The columns follow from the fields of the record's class:

* a number, a text or a truth value is a column of its name;
* an Estimate is three columns: NAME, NAME_low and NAME_high;
* the fields of a part stand beside the others: those of `metrics` and `timing` under their own names, those of `limit`,
  `scores` and other parts after the name of the part;
* a list of parts, and a mapping from names to estimates, is a list of structures;
* what has no fixed form, such as the options of a detector, is a text in JSON.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel

from benchmark.records import Case, DetectorRecord, Estimate, ModelRecord, Record, Run, SetRecord

# The parts of a case whose fields keep their names.
_PLAIN = ("metrics", "timing")
_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_ESTIMATE = {"": "value", "_low": "low", "_high": "high"}


class Column(NamedTuple):
    """A column of a table.

    name: its name.
    type: the type of its values.
    of: gives the value of a record, or of a part of one. It gives None for None.
    """

    name: str
    type: pa.DataType
    of: Callable[[Any], Any]


# What stands beside the fields of a case, from the records of its run and of its model.
_OF_RUN = ("started", "package_version", "git_commit")
_OF_MODEL = ("weights_sha256", "id_accuracy")


def cases_table(cases: Iterable[Case], run: Run, models: Sequence[ModelRecord]) -> pa.Table:
    """The table of the cases of a run: a row a case.

    cases: the records of the cases.
    run: the record of their run. When it began, and which version ran, stands in each row.
    models: the records of their models. The hash of its weights, and the ID accuracy, stand in each row.
    """
    cases, by_id = list(cases), {model.id: model for model in models}
    of_models = [by_id.get(case.model) for case in cases]
    of_run = [column for column in columns(Run) if column.name in _OF_RUN]
    of_model = [
        column for column in columns(ModelRecord) if column.name.removesuffix("_low").removesuffix("_high") in _OF_MODEL
    ]
    return _table(
        [(column, cases) for column in columns(Case)]
        + [(column, [run] * len(cases)) for column in of_run]
        + [(column, of_models) for column in of_model]
    )


def records_table(kind: type[ModelRecord | DetectorRecord | SetRecord | Run], records: Iterable[Record]) -> pa.Table:
    """The table of the records of a kind: a row a record."""
    records = list(records)
    return _table([(column, records) for column in columns(kind)])


def _table(columns: Sequence[tuple[Column, Sequence[Any]]]) -> pa.Table:
    return pa.table({column.name: pa.array([column.of(row) for row in rows], column.type) for column, rows in columns})


def columns(part: type[BaseModel]) -> list[Column]:
    """The columns that a class of records, or of parts of records, is written in."""
    return [
        column
        for name, field in part.model_fields.items()
        if name not in ("kind",)
        for column in _columns(name, field.annotation, _get(name))
    ]


def _get(name: str) -> Callable[[Any], Any]:
    return lambda part: getattr(part, name, None)


def _columns(name: str, annotation: Any, get: Callable[[Any], Any]) -> list[Column]:
    """The columns of a field."""
    kind = _bare(annotation)
    if kind in _SCALARS:
        return [Column(name, _SCALARS[kind], get)]
    if kind is Estimate:
        return [Column(f"{name}{end}", pa.float64(), _after(get, _get(field))) for end, field in _ESTIMATE.items()]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        prefix = "" if name in _PLAIN else f"{name}_"
        return [Column(f"{prefix}{of.name}", of.type, _after(get, of.of)) for of in columns(kind)]
    values = [_bare(value) for value in get_args(kind)]
    if get_origin(kind) is list and values[0] is str:
        return [Column(name, pa.list_(pa.string()), get)]
    if get_origin(kind) is list and isinstance(values[0], type) and issubclass(values[0], BaseModel):
        parts = columns(values[0])
        return [
            Column(name, pa.list_(_struct(parts)), _after(get, lambda found: [_row(parts, one) for one in found or ()]))
        ]
    if get_origin(kind) is dict and values[1] is Estimate:
        parts = _columns("value", Estimate, lambda estimate: estimate)
        struct = pa.struct([("name", pa.string()), *_struct(parts)])
        named = lambda found: [{"name": key} | _row(parts, one) for key, one in (found or {}).items()]  # noqa: E731
        return [Column(name, pa.list_(struct), _after(get, named))]
    return [Column(name, pa.string(), _after(get, _json))]


def _struct(parts: Sequence[Column]) -> pa.DataType:
    return pa.struct([(part.name, part.type) for part in parts])


def _row(parts: Sequence[Column], value: Any) -> dict[str, Any]:
    return {part.name: part.of(value) for part in parts}


def _after(get: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What `then` gives of what `get` gives."""
    return lambda record: then(get(record))


def _json(value: Any) -> str | None:
    """A value without a fixed form, as JSON. The parts of records in it are written as the records write them."""
    return (
        None
        if value is None
        else json.dumps(value, ensure_ascii=False, default=lambda part: part.model_dump(mode="json"))
    )


def _bare(annotation: Any) -> Any:
    """A type without None and without what pydantic is told of it; of a Literal the type of its values."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (kind,) = {_bare(one) for one in get_args(annotation) if one is not NoneType}
        return kind
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    return annotation
