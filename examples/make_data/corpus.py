"""The search example's corpus: hand-written answers and sections of permissively licensed manuals."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from make_data.files import Record, read_lines
from make_data.sections import Section, read_sections, shorten

HERE = Path(__file__).parent
GENERIC = re.compile(
    r"^(examples?|notes?|description|compatibility|summary|introduction|overview|conclusion|parameters|author|options"
    r"|see also|outputs?|footnotes|references|contents|acknowledge?ments|further reading|usage|diagnostics|history"
    r"|exit status|functions|prerequisites|activity:?|general notes|what now\?)$",
    re.IGNORECASE,
)
LEFT_OUT = {"index", "clinic", "cporting", "isolating-extensions", "gui", "windows", "rust-by-example/print"}
"""Pages that list others, or that concern few readers."""
FEWEST_WORDS, TARGET_WORDS, MOST_WORDS = 25, 60, 120


@dataclass(frozen=True)
class Manual:
    """A manual in a distribution package, and which of its pages are used."""

    name: str
    license: str
    folder: str
    pages: tuple[str, ...]


MANUALS = (
    Manual("python", "PSF-2.0", "usr/share/doc/python3.11/html", ("faq/*.html", "tutorial/*.html", "howto/*.html")),
    Manual(
        "postgresql",
        "PostgreSQL",
        "usr/share/doc/postgresql-doc-15/html",
        (
            "tutorial-*.html",
            "queries-*.html",
            "ddl-*.html",
            "dml-*.html",
            "indexes-*.html",
            "backup*.html",
            "performance-tips.html",
            "using-explain.html",
            "populate.html",
            "mvcc*.html",
            "transaction-iso.html",
            "explicit-locking.html",
            "auth-*.html",
            "client-authentication*.html",
            "datatype-*.html",
            "arrays.html",
            "functions-matching.html",
            "functions-datetime.html",
            "functions-json.html",
            "functions-aggregate.html",
            "functions-window.html",
            "textsearch-*.html",
            "user-manag.html",
            "role-*.html",
            "manage-ag-*.html",
            "routine-*.html",
            "sql-*.html",
        ),
    ),
    Manual("rust", "MIT OR Apache-2.0", "usr/share/doc/rust-doc/html", ("book/ch*.html", "rust-by-example/**/*.html")),
)


def corpus(root: Path) -> Iterator[Record]:
    """All documents: the hand-written ones first, then each manual's sections in the order of its pages."""
    for entry in read_lines(HERE / "howto.jsonl"):
        yield {**entry, "source": "ssmoe_embed", "license": "Apache-2.0"}
    titles: set[str] = set()
    texts: set[str] = set()
    for manual in MANUALS:
        for page in pages(root, manual):
            for number, document in enumerate(documents(page)):
                title, text = document["title"], document["text"]
                if title.lower() in titles or text in texts:
                    continue
                titles.add(title.lower())
                texts.add(text)
                name = f"{manual.name}-{page.parent.name}-{page.stem}-{number}"
                yield {"id": name, **document, "source": manual.name, "license": manual.license}


def pages(root: Path, manual: Manual) -> list[Path]:
    """The pages of a manual that are used, sorted."""
    folder = root / manual.folder
    found = {path for pattern in manual.pages for path in folder.glob(pattern)}
    if not found:
        msg = f"No page of the {manual.name} manual below {folder}. Unpack its package there (see README.md)."
        raise FileNotFoundError(msg)
    return sorted(path for path in found if not {path.stem, f"{path.parent.name}/{path.stem}"} & LEFT_OUT)


def documents(page: Path) -> Iterator[Record]:
    """Title and text of each section of a page that can stand alone."""
    sections = read_sections(page)
    if page.name.startswith("sql-"):
        yield from reference_document(sections)
        return
    for section in sections:
        text = shorten(section.blocks, TARGET_WORDS, MOST_WORDS)
        if not GENERIC.match(section.title) and len(text.split()) >= FEWEST_WORDS:
            yield {"title": section.title, "text": text}


def reference_document(sections: list[Section]) -> Iterator[Record]:
    """One document for a page of the SQL reference: its purpose as the title, then the description."""
    purpose = next((s.blocks[0] for s in sections if s.blocks and " — " in s.blocks[0]), None)
    description = next((s for s in sections if s.title == "Description"), None)
    if purpose and description:
        yield {"title": purpose, "text": shorten(description.blocks, TARGET_WORDS, MOST_WORDS)}
