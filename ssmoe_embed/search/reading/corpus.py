"""Documents out of files and folders, read as they are needed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ssmoe_embed.data import Document
from ssmoe_embed.search.reading.prose import BREADCRUMB, read_html, read_markdown, read_pdf, read_plain_text, read_word
from ssmoe_embed.search.reading.records import (
    KINDS,
    WORDS,
    FileKind,
    Images,
    Moved,
    OnError,
    ReadOptions,
    Record,
    fault_of,
    is_binary,
    known_encoding,
    numbered,
    open_text,
    read_picture,
)
from ssmoe_embed.search.reading.tables import read_json_lines, read_lines, read_parquet, read_table

_REPORTED = 20
"""So many of the skipped lines are kept to be told of."""
_READERS: dict[FileKind, Callable[[Path, ReadOptions, Moved], Iterator[Record]]] = {
    FileKind.LINES: read_lines,
    FileKind.JSON_LINES: read_json_lines,
    FileKind.TABLE: read_table,
    FileKind.PARQUET: read_parquet,
    FileKind.TEXT: read_plain_text,
    FileKind.MARKDOWN: read_markdown,
    FileKind.HTML: read_html,
    FileKind.WORD: read_word,
    FileKind.PDF: read_pdf,
    FileKind.IMAGE: read_picture,
}


class SourceFile(NamedTuple):
    """A file of a corpus.

    Attributes:
        path: Where it is, as it was named or found.
        kind: What it is read as.
        in_folder: Whether it was found in a folder; then it is skipped if it cannot be read.
    """

    path: Path
    kind: FileKind
    in_folder: bool


@dataclass
class Corpus:
    """Documents to iterate over, once or more often.

    Attributes:
        paths: Files and folders.
        on_error: What to do about broken lines.
        options: How files are read.
        files: The files that are read.
        size: How many bytes there are to read.
        position: How many have been read.
        skipped: How many broken lines were left out.
        reports: The first of them, in words.
        skipped_files: The files of folders that cannot be read, each with the reason.
    """

    paths: tuple[Path, ...]
    on_error: OnError
    options: ReadOptions
    files: list[SourceFile] = field(default_factory=list)
    size: int = 0
    position: int = 0
    skipped: int = 0
    reports: list[str] = field(default_factory=list)
    skipped_files: list[tuple[Path, str]] = field(default_factory=list)
    unit: str = "B"

    def __iter__(self) -> Iterator[Document]:
        self.position, self.skipped, self.reports, self.skipped_files = 0, 0, [], []
        self.files, others = _files(self.paths, self.options)
        self.skipped_files += others
        self.size = sum(file.path.stat().st_size for file in self.files)
        empty, done = True, 0
        for file in self.files:
            for document in self._documents(file, done):
                empty = False
                yield document
            done += file.path.stat().st_size
            self.position = done
        if empty:
            named = " and ".join(map(str, self.paths))
            why = f" ({self.skipped_summary()})" if self.skipped_files else ""
            folder = any(path.is_dir() for path in self.paths)
            hint = "put .txt or .md files into it" if folder else "put one on each line"
            raise ValueError(f"{named} holds no document{why}; {hint}.")

    @property
    def identity(self) -> str:
        """A text that is the same for the same files and folders, read in the same way."""
        places = [str(path.resolve()) for path in self.paths]
        return hashlib.sha256(json.dumps([places, vars(self.options)]).encode()).hexdigest()

    def skipped_summary(self) -> str:
        """How many files of folders were skipped, and why, in words; empty if none was."""
        reasons = Counter(reason.partition(":")[0] for _, reason in self.skipped_files)
        count = len(self.skipped_files)
        parts = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        return f"{count} file{'s' * (count > 1)} skipped: {parts}" if count else ""

    def _documents(self, file: SourceFile, done: int) -> Iterator[Document]:
        """The documents of one file; `done` bytes of the corpus lie before it."""
        reason = _unreadable(file, self.options) if file.in_folder else None
        if reason:
            self.skipped_files.append((file.path, reason))
            return

        def moved(position: int) -> None:
            self.position = done + position

        maker = _Maker(file, self.options, len(self.files) > 1)
        found = False
        try:
            file.kind.check()
            for record in _READERS[file.kind](file.path, self.options, moved):
                found = True
                made = maker.document(record)
                if isinstance(made, Document):
                    yield made
                    continue
                if self.on_error is OnError.STOP:
                    raise ValueError(f"{made} Correct it, or leave such lines out with --on-error skip.")
                self.skipped += 1
                if len(self.reports) < _REPORTED:
                    self.reports.append(made)
        except (ValueError, OSError) as error:
            if not file.in_folder or found:
                raise
            self.skipped_files.append((file.path, f"unreadable: {error}"))
            return
        if file.in_folder and not found:
            self.skipped_files.append((file.path, "empty"))


class _Maker:
    """Makes documents of the records of one file."""

    def __init__(self, file: SourceFile, options: ReadOptions, many: bool) -> None:
        self._file = file
        self._field = options.field
        self._name = file.path.resolve().as_posix()  # not as it was given: the same name may be another file elsewhere
        self._above = file.path.stem if many and file.kind in {FileKind.MARKDOWN, FileKind.TEXT} else None
        self._passages = file.kind in {FileKind.TEXT, FileKind.MARKDOWN, FileKind.HTML, FileKind.WORD, FileKind.PDF}
        self._numbers = self._digits = False

    def document(self, record: Record) -> Document | str:
        """The document of a record, or what is wrong with the record."""
        place = f"{self._file.path}:{record.place}"
        if record.fault:
            return f"{place} {record.fault}."
        if not isinstance(record.text, str) or not record.text.strip():
            return f"{place} has no text under {self._field!r}."
        given, metadata = dict(record.given), dict(record.metadata)
        wrong = self._wrong_id(given.get("id"))
        if wrong:
            return f"{place} has id={given['id']!r}, {wrong}."
        if self._passages:
            metadata["path"] = self._file.path.as_posix()
        title = given.get("title")
        if self._above and title != self._above:
            title = f"{self._above}{BREADCRUMB}{title}" if title else self._above
        try:
            return Document(
                str(given.get("id", f"{self._name}:{record.place}")),
                record.text,
                metadata,
                None if title is None else str(title),
                str(given.get("source", f"{self._file.path.as_posix()}:{record.place}")),
            )
        except ValueError as error:
            return f"{place}: {error}"

    def _wrong_id(self, given: object) -> str | None:
        """What is wrong with an id, if anything is; the number 1 and the text "1" would be one document."""
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            return "which is neither text nor a number"
        if not isinstance(given, str):
            self._numbers = True
        elif given.lstrip("-").isdigit():
            self._digits = True
        if self._numbers and self._digits:
            return "while other ids of the file are written as numbers, or as texts of digits; write all of them alike"
        return None


def read_documents(
    *paths: str | Path,
    on_error: str = "stop",
    field: str = "text",
    words: int = WORDS,
    encoding: str = "utf-8",
    images: str = "no",
) -> Corpus:
    """Documents of files and folders, in memory one at a time.

    - `.txt`: a line is a document; blank lines are passed over.
    - `.jsonl`: a line is an object with the text, perhaps `id` (or `_id`), `title` and `source`; the rest is metadata.
    - `.csv` and `.tsv` (with a line of names) and `.parquet`: a row is such an object.
    - `.md`: passages by headings and paragraphs, with path and lines; YAML front matter is metadata.
    - `.html`, `.docx`, `.pdf`: such passages too; needs the extra `documents`.
    - `.png`, `.jpg`, `.webp` and such, where `images` says so: a picture, with its path.
    - A folder: all such files below it, `.txt` as passages. What cannot be read is skipped and told of.

    A document without id is named by its file's full path and its line.

    Args:
        *paths: Files and folders.
        on_error: What to do about a broken line: stop or skip.
        field: Where a record holds its text.
        words: How many words a passage has at most.
        encoding: Of text files without a mark (BOM); one that is not in it is broken.
        images: Whether pictures are documents, for a model that reads them: no, too, or only.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file is of no known kind, the encoding is not known, or (while it is read) a line is broken or there is
            no document.
    """
    if not paths:
        raise ValueError("There is nothing to read; name a file or folder.")
    if words < 1:
        raise ValueError(f"words={words} leaves nothing of a passage; choose at least 1.")
    chosen = tuple(Path(path).expanduser() for path in paths)
    options = ReadOptions(field, known_encoding(encoding), words, Images.parse(images, "images").value)
    corpus = Corpus(chosen, OnError.parse(on_error, "on_error"), options)
    corpus.files, _ = _files(chosen, options)
    corpus.size = sum(file.path.stat().st_size for file in corpus.files)
    return corpus


def only_images(*paths: str | Path) -> bool:
    """Whether files and folders hold pictures, and nothing else that can be read."""
    chosen = [Path(path).expanduser() for path in paths]
    files = [file for path in chosen for file in (_below(path) if path.is_dir() else [path])]
    kinds = {kind for file in files if (kind := FileKind.of(file)) is not None}
    return kinds == {FileKind.IMAGE}


def _files(paths: tuple[Path, ...], options: ReadOptions) -> tuple[list[SourceFile], list[tuple[Path, str]]]:
    """The files to read, each once, and those of folders that are of no kind that can be read.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file that was named is of no known kind.
    """
    found: dict[Path, SourceFile] = {}
    others: list[tuple[Path, str]] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no corpus {path}.")
        for file in _below(path) if path.is_dir() else [path]:
            kind = FileKind.of(file, in_folder=path.is_dir())
            unwanted = options.images == (Images.NO if kind is FileKind.IMAGE else Images.ONLY)
            if kind is not None and unwanted and path.is_dir():
                others.append((file, "image" if kind is FileKind.IMAGE else "of another kind"))
            elif kind is not None and not unwanted:
                found.setdefault(file.resolve(), SourceFile(file, kind, path.is_dir()))
            elif path.is_dir():
                others.append((file, "binary" if _is_binary(file) else "of another kind"))
            elif kind is FileKind.IMAGE:
                raise ValueError(f"{path} is an image; say so with --images, and take a model that reads images.")
            else:
                raise ValueError(
                    f"{path} is of no known kind; a corpus is a folder or a file ending in {', '.join(KINDS)}."
                )
    return list(found.values()), others


def _below(folder: Path) -> list[Path]:
    """The files below a folder, without hidden ones, in a fixed order."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _is_binary(path: Path) -> bool:
    try:
        return is_binary(path)
    except OSError:
        return False


def _unreadable(file: SourceFile, options: ReadOptions) -> str | None:
    """Why a file that was found in a folder cannot be read, if that is so."""
    try:
        if not file.path.stat().st_size:
            return "empty"
        if file.kind.missing:
            return file.kind.missing
        if not file.kind.is_text:
            return None
        if is_binary(file.path):
            return "binary"
        with open_text(file.path, options.encoding) as text:
            broken = any(fault_of(line) for _, line in numbered(text))
    except OSError as error:
        return f"unreadable: {error}"
    return f"not in {options.encoding}" if broken else None
