"""CSV files that people write, read line by line."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.errors import UserError


def read_csv(
    file: Path, columns: Sequence[str], remedy: str, added: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """The lines of a CSV file after its header, each with its place, `FILE:LINE`, for a message.

    file: the file, in UTF-8, with or without the mark that some programs put first.
    columns: the names that its header must have, in their order.
    remedy: what to do about a file with another header, as the end of a message.
    added: columns that follow in newer files. In the lines of an older one they are empty.
    Raises UserError, which names the file and the line, where it is no such table.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: it is no text in UTF-8: {error}; save it as such") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(rows, [])
        if header not in (list(columns), [*columns, *added]):
            raise UserError(f"{file}:1: the columns are {_shortened(header)}, not {list(columns)}; {remedy}")
        for row in rows:
            if not row:
                continue
            place = f"{file}:{rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{place}: {len(header)} fields are needed: {', '.join(header)}")
            yield place, dict.fromkeys(added, "") | dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not readable as CSV: {error}; correct the line") from None


def _shortened(header: list[str]) -> str:
    text = str(header)
    return text if len(text) <= 200 else f"{text[:200]}..."
