"""Texts out of a file or a stream, one after the other, for what needs no documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ssmoe_embed.search.reading.corpus import OnError, record_reader
from ssmoe_embed.search.reading.decoding import decoded, fault_of, numbered, open_text
from ssmoe_embed.search.reading.records import FileKind, ReadOptions, Record

_RECORDS = (FileKind.JSON_LINES, FileKind.TABLE, FileKind.PARQUET)


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
        fault = record.fault
        if fault is None and not isinstance(record.text, str):
            fault = f"has no text under {options.field!r}; name another field with --field"
        if fault is None:
            yield record.text
        elif on_error is OnError.STOP:
            raise ValueError(
                f"{name}:{record.place} {fault}. Correct it, or leave such lines out with --on-error skip."
            )
        else:
            report(f"{name}:{record.place} {fault}.")


def _records(source: Path | IO[bytes], options: ReadOptions) -> Iterator[Record]:
    kind = FileKind.of(source) if isinstance(source, Path) else None
    if isinstance(source, Path) and kind in _RECORDS:
        for record in record_reader(kind)(source, options, lambda _: None):
            empty = kind is FileKind.TABLE and record.fault is None and record.text is None
            yield Record(record.place, "") if empty else record
        return
    with open_text(source, options.encoding) if isinstance(source, Path) else decoded(source, options.encoding) as text:
        for number, line in numbered(text):
            yield Record(str(number), line, fault=fault_of(line))
