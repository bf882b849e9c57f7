"""Definition retrieval from one dictionary to another: WordNet's definitions to GCIDE's, of held-out headwords.

GCIDE is licensed under the GPL, so the file that this makes is for measuring at home and does not ship.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from make_data.dictionaries import entries
from make_data.files import Record, write_lines
from make_data.heldout import is_held_out
from make_data.wordnet import WordNet

SHARED_WORDS = 4
"""Definitions with this many words in a row in common are copies of each other."""
FEWEST_WORDS = 4


def definition_pairs(root: Path) -> Iterator[tuple[str, str, str]]:
    """Headword, WordNet definition and GCIDE definition, one of each a headword."""
    first_sense: dict[str, str] = {}
    for synset in WordNet(root / "usr/share/wordnet").held_out:
        for lemma in synset.lemmas:
            if is_held_out(lemma) and lemma.islower() and len(synset.definition.split()) >= FEWEST_WORDS:
                first_sense.setdefault(lemma, synset.definition)
    taken: set[str] = set()
    for headword, text in entries(root, "gcide"):
        word = headword.lower()
        own_entry = text.lower().startswith(word + " ")  # the index also leads from a phrase to its first word
        if word not in first_sense or word in taken or "WordNet" in text or not own_entry:
            continue
        definition = clean(text)
        names_word = word in definition.lower() or word in first_sense[word].lower()
        if len(definition.split()) >= FEWEST_WORDS and not names_word and not copied(definition, first_sense[word]):
            taken.add(word)
            yield word, first_sense[word], definition


def clean(text: str) -> str:
    """The first definition of an entry without etymology, labels and sources."""
    while re.search(r"\[[^\[\]]*\]", text):
        text = re.sub(r"\[[^\[\]]*\]", " ", text)
    text = " ".join(text.split())
    text = re.sub(
        r"^.*?\\[^\\]*\\(?:\(\?\))?[^.]{0,40}?,?\s*(?:n|a|v|adv|prep|interj|conj|p|imp)\.(?:\s*\w{1,4}\.)*", "", text
    )
    text = re.split(r"\s[2-9]\.\s|\s--\s?[A-Z]|\sNote:|\sSyn:", text, maxsplit=1)[0]
    text = re.sub(r"^\W*1\.\s|\([A-Z][\w.,& ]{0,20}\)|[{}]", "", text)
    return " ".join(text.split()).strip(" ;:-—")


def copied(first: str, second: str) -> bool:
    """Whether two definitions share a long run of words."""
    return bool(runs(first) & runs(second))


def runs(text: str) -> set[tuple[str, ...]]:
    """All runs of `SHARED_WORDS` words."""
    words = re.findall(r"[a-z]+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def records(root: Path) -> Iterator[Record]:
    """The task in the format that `retrieval_task` of `ssmoe_embed.evaluation.tasks.offline` reads."""
    for word, query, document in definition_pairs(root):
        yield {"id": word, "document": document}
        yield {"query": query, "relevant": [word]}


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="folder with the unpacked distribution packages")
    parser.add_argument("--output", type=Path, default=Path("dictionaries.jsonl"), help="file to write")
    options = parser.parse_args()
    write_lines(options.output, records(options.sources))


if __name__ == "__main__":
    main()
