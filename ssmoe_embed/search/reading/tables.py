"""Lines, JSON lines, CSV and Parquet as records, and as plain texts for what needs no documents."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ssmoe_embed.search.reading.records import (
    FileKind,
    Moved,
    OnError,
    ReadOptions,
    Record,
    decoded,
    fault_of,
    numbered,
    open_text,
    position,
)

_BATCH = 1024
_VECTORS = "embedding"
"""Column of `ssmoe encode`'s tables that is no metadata."""
_OWN = ("id", "title", "source")


def parsed(line: str, place: str, options: ReadOptions) -> Record:
    """A line of JSON as a record."""

    def constant(name: str) -> None:
        if name != "NaN":  # what programs write where a value is missing
            raise ValueError(f"{name} is no JSON value")

    try:
        found = json.loads(line, parse_constant=constant)
    except ValueError as error:  # JSON's own message counts lines from this one
        where = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Record(place, fault=f"is not valid JSON ({where})")
    except RecursionError:
        return Record(place, fault="is not valid JSON (it is nested too deeply)")
    if not isinstance(found, dict):
        return Record(place, fault=f"is not an object but {type(found).__name__}")
    return _record(place, found, options)


def _record(place: str, found: Mapping[str, Any], options: ReadOptions) -> Record:
    """A record of named values; `_id` is an id, as in BEIR, and an object `metadata` is taken apart."""
    given = {name: found[name] for name in _OWN if found.get(name) not in (None, "")}
    if "id" not in given and found.get("_id") not in (None, ""):
        given["id"] = found["_id"]
    rest = {name: value for name, value in found.items() if name not in (*_OWN, "_id", options.field)}
    inner = rest.pop("metadata", None)
    rest |= inner if isinstance(inner, dict) else {"metadata": inner}
    return Record(place, found.get(options.field), given, {key: one for key, one in rest.items() if one is not None})


def read_lines(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """A record for each line that is not blank."""
    with open_text(path, options.encoding) as text:
        for number, line in numbered(text, moved):
            if line.strip():
                yield Record(str(number), line.strip(), fault=fault_of(line))


def read_json_lines(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """A record for each line, which is an object of JSON."""
    with open_text(path, options.encoding) as text:
        for number, line in numbered(text, moved):
            if line.strip():
                fault = fault_of(line)
                yield Record(str(number), fault=fault) if fault else parsed(line, str(number), options)


def read_table(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """A record for each row of a CSV file, or of a .tsv file with tabs.

    Raises:
        ValueError: The first line is no line of names, or lacks that of the text.
    """
    csv.field_size_limit(sys.maxsize)
    with open_text(path, options.encoding, newline="") as text:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = csv.DictReader(text, strict=True, delimiter=delimiter)
        _check_field(path, options.field, _names(path, rows))
        while True:
            place = str(rows.line_num + 1)
            try:
                found = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                yield Record(place, fault=f"is not valid CSV: {error}")
                continue
            moved(position(text))
            if None in found or None in found.values():
                names = len(rows.fieldnames or ())
                yield Record(place, fault=f"has another number of fields than the {names} of the first line")
                continue
            fault = next(filter(None, map(fault_of, found.values())), None)
            plain = {name: value for name, value in found.items() if value != ""}
            yield Record(place, fault=fault) if fault else _record(str(rows.line_num), plain, options)


def _names(path: Path, rows: csv.DictReader[str]) -> list[str]:
    """The names in the first line of a table."""
    try:
        names = list(rows.fieldnames or ())
    except csv.Error as error:
        raise ValueError(f"{path}:1 is not valid CSV: {error}.") from None
    fault = next(filter(None, map(fault_of, names)), None)
    if fault:
        raise ValueError(f"{path}:1 {fault}.")
    return names


def read_parquet(path: Path, options: ReadOptions, moved: Moved) -> Iterator[Record]:
    """A record for each row of a Parquet file.

    Raises:
        ValueError: It is no Parquet file, or lacks the column of the text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is truncated or no Parquet file ({error}).") from None
    names = [name for name in file.schema_arrow.names if name != _VECTORS]
    _check_field(path, options.field, names)
    size, row = path.stat().st_size, 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=names):
        for found in batch.to_pylist():
            row += 1
            moved(size * row // file.metadata.num_rows)
            yield _record(str(row), {name: _plain(value) for name, value in found.items()}, options)


def _plain(value: Any) -> Any:
    """A value of a table as JSON knows it; one that is no number is missing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool | list | dict) else str(value)


def _check_field(path: Path, field: str, names: Sequence[str]) -> None:
    if field not in names:
        raise ValueError(
            f"{path} has no column {field!r} with the text, but {', '.join(map(repr, names)) or 'none at all'}; "
            "name one with --field."
        )


def read_texts(
    source: Path | IO[bytes],
    options: ReadOptions,
    on_error: OnError = OnError.STOP,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """The texts of JSON lines, CSV or Parquet, one a record; of any other file, and of a stream, one a line.

    An empty line or field is an empty text, so that texts stay in step with lines.

    Args:
        source: A file, or a stream such as standard input.
        options: Where a record holds its text, and the encoding.
        on_error: What to do about a broken line.
        report: Is told of each line that is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is broken, or a record has no text.
    """
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"There is no input file {source}.")
    name = source if isinstance(source, Path) else "standard input"
    for record in _records(source, options):
        text, fault = record.text, record.fault
        if fault is None and not isinstance(text, str):
            fault = f"has no text under {options.field!r}; name another field with --field"
        if fault is None:
            yield text
        elif on_error is OnError.STOP:
            raise ValueError(
                f"{name}:{record.place} {fault}. Correct it, or leave such lines out with --on-error skip."
            )
        else:
            report(f"{name}:{record.place} {fault}.")


def _records(source: Path | IO[bytes], options: ReadOptions) -> Iterator[Record]:
    """The records of a file that has such; of anything else the lines."""
    kind = FileKind.of(source) if isinstance(source, Path) else None
    readers = {FileKind.JSON_LINES: read_json_lines, FileKind.TABLE: read_table, FileKind.PARQUET: read_parquet}
    if isinstance(source, Path) and kind in readers:
        kind.check()
        for record in readers[kind](source, options, lambda _: None):
            empty = kind is FileKind.TABLE and record.fault is None and record.text is None
            yield Record(record.place, "") if empty else record
        return
    with open_text(source, options.encoding) if isinstance(source, Path) else decoded(source, options.encoding) as text:
        for number, line in numbered(text):
            yield Record(str(number), line, fault=fault_of(line))
