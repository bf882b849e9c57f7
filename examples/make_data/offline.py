"""The offline tasks' data, made from held-out WordNet entries only."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from make_data.files import Record
from make_data.overlap import WordCosine, overlap, stems
from make_data.wordnet import Synset, WordNet

RELATED = ("+", "$", "&", "\\", "=", "*", ">")
"""Pointers that join synsets of nearly one meaning: derivation, verb group, similarity, pertainym, attribute, entailment, cause."""  # noqa: E501
MOST_PER_FILE = 40
"""Entries of one lexicographer file in the reverse dictionary, so that plants and animals do not fill it."""
CLASSES = [
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.person",
    "noun.plant",
    "noun.possession",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.change",
    "verb.communication",
    "verb.contact",
    "verb.motion",
    "verb.social",
]
MOST_PER_CLASS = 70
GOLD_EDGES = (0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 1.01)
OVERLAP_EDGES = (0.0, 1e-9, 0.015, 0.03, 0.05, 0.075, 0.1, 0.14, 0.2, 0.3, 1.01)
PAIRS_PER_CELL = (25, *[14] * 9)
"""Pairs taken for each degree of word overlap, the same number for each degree of similarity."""

Pair = tuple[Synset, Synset]


def shuffled(items: Iterable[Synset], salt: str) -> list[Synset]:
    """Synsets in an order that depends on nothing but their keys and the salt."""
    return sorted(items, key=lambda s: hashlib.sha256(f"{salt}{s.key}".encode()).digest())


MOST_CHARACTERS = 140
"""Length of the longest definition used."""
NEAR_PARENT = 0.8
"""Wu-Palmer similarity from which the definition of the next broader word counts as a paraphrase."""


def plain(synset: Synset) -> bool:
    """Whether an entry is a common word rather than a name, and its definition long enough to mean something."""
    named = any(symbol == "@i" for symbol, _ in synset.pointers) or any(w != w.lower() for w in synset.lemmas)
    return not named and len(stems(synset.definition)) >= 2 and len(synset.definition) <= MOST_CHARACTERS


def unique(synsets: Iterable[Synset], text: Callable[[Synset], str]) -> list[Synset]:
    """The first synset for each different text."""
    return list({text(s).lower(): s for s in reversed(list(synsets))}.values())[::-1]


class Misleading:
    """Finds texts that share words with a query but belong to something else."""

    def __init__(self, wordnet: WordNet, pool: list[Synset], text: Callable[[Synset], str]) -> None:
        self.wordnet, self.pool, self.text = wordnet, pool, text
        self.index: dict[str, list[int]] = defaultdict(list)
        for i, synset in enumerate(pool):
            for stem in sorted(stems(text(synset))):
                self.index[stem].append(i)

    def best(self, query: str, synset: Synset, count: int) -> list[Synset]:
        """The `count` most overlapping entries that no pointer joins to the synset."""
        candidates = sorted({i for stem in stems(query) for i in self.index[stem]})
        ranked = sorted(candidates, key=lambda i: (-overlap(query, self.text(self.pool[i])), self.pool[i].key))
        far = (self.pool[i] for i in ranked if self.far(synset, self.pool[i]))
        return [s for s, _ in zip(far, range(count), strict=False)]

    def far(self, first: Synset, second: Synset) -> bool:
        """Whether two entries mean clearly different things as far as WordNet can tell."""
        if self.wordnet.close(first, second) or set(first.lemmas) & set(second.lemmas):
            return False
        same_hierarchy = first.key[0] == second.key[0] and first.key[0] in "nv"
        return not same_hierarchy or self.wordnet.wu_palmer(first, second) < 0.6


def retrieval(queries: list[tuple[str, Synset, str]], misleading: Misleading) -> Iterator[Record]:
    """Records of a retrieval task: each query, its answer, and two overlapping documents that are wrong."""
    documents: dict[str, None] = {}
    lines: list[Record] = []
    for query, synset, answer in queries:
        documents.setdefault(answer)
        for wrong in misleading.best(query, synset, 2):
            documents.setdefault(misleading.text(wrong))
        lines.append({"query": query, "answer": answer})
    identifiers = {
        text: i for i, text in enumerate(sorted(documents, key=lambda t: hashlib.sha256(t.encode()).digest()))
    }
    yield from ({"id": i, "document": text} for text, i in identifiers.items())
    yield from ({"query": line["query"], "relevant": [identifiers[line["answer"]]]} for line in lines)


def definition_to_example(wordnet: WordNet, count: int = 450) -> Iterator[Record]:
    """A definition and a sentence that uses the word, with no content word in common."""

    def example(synset: Synset) -> str:
        return max(synset.examples, key=len)

    pool = [s for s in wordnet.held_out if s.examples and len(example(s).split()) >= 4 and plain(s)]
    pool = unique(shuffled(pool, "example"), example)
    chosen = [s for s in pool if overlap(s.definition, example(s)) == 0][:count]
    queries = [(s.definition, s, example(s)) for s in unique(chosen, lambda s: s.definition)]
    return retrieval(queries, Misleading(wordnet, pool, example))


def reverse_dictionary(wordnet: WordNet, count: int = 450) -> Iterator[Record]:
    """A question about a word, built around its definition, and the list of the words that it defines."""

    def words(synset: Synset) -> str:
        return ", ".join(synset.lemmas)

    pool = [s for s in wordnet.held_out if plain(s)]
    pool = unique(unique(shuffled(pool, "reverse"), words), lambda s: s.definition)
    taken: dict[str, int] = defaultdict(int)
    chosen = []
    for synset in pool:
        taken[synset.file] += 1
        if taken[synset.file] <= MOST_PER_FILE and overlap(synset.definition, words(synset)) == 0:
            chosen.append(synset)
    queries = [(f"what do you call this: {s.definition}", s, words(s)) for s in chosen[:count]]
    return retrieval(queries, Misleading(wordnet, pool, words))


def related_pairs(wordnet: WordNet) -> list[Pair]:
    """Pairs of held-out synsets of nearly one meaning whose definitions share no content word."""
    pairs = {}
    for first in wordnet.held_out:
        parents = [s for s in wordnet.related(first, ("@",)) if wordnet.wu_palmer(first, s) >= NEAR_PARENT]
        for second in wordnet.related(first, RELATED) + parents:
            usable = second.held_out and plain(first) and plain(second)
            if usable and overlap(first.definition, second.definition) == 0:
                pairs[tuple(sorted((first.key, second.key)))] = (first, second)
    used: set[str] = set()
    result = []
    for keys in sorted(pairs, key=lambda k: hashlib.sha256("".join(k).encode()).digest()):
        if not used & set(keys):  # one pair for each synset
            used |= set(keys)
            result.append(pairs[keys])
    return result


def related_definition(wordnet: WordNet) -> Iterator[Record]:
    """A definition, and the definition of a derived or similar word in other words."""
    pairs = related_pairs(wordnet)[::2]
    pool = unique([s for s in wordnet.held_out if plain(s)], lambda s: s.definition)
    queries = [(a.definition, a, b.definition) for a, b in pairs]
    return retrieval(queries, Misleading(wordnet, pool, lambda s: s.definition))


def paraphrase_pairs(wordnet: WordNet) -> Iterator[Record]:
    """True pairs without shared words, false pairs with many, and false pairs with none."""
    pool = unique([s for s in wordnet.held_out if plain(s)], lambda s: s.definition)
    misleading = Misleading(wordnet, pool, lambda s: s.definition)
    pairs = related_pairs(wordnet)[1::2]
    rng = random.Random(0)
    for first, second in pairs:
        yield {"first": first.definition, "second": second.definition, "label": 1}
        for wrong in misleading.best(first.definition, first, 1):
            yield {"first": first.definition, "second": wrong.definition, "label": 0}
        other = rng.choice(pool)
        while not misleading.far(second, other) or overlap(second.definition, other.definition) > 0:
            other = rng.choice(pool)
        yield {"first": second.definition, "second": other.definition, "label": 0}


def similarity(wordnet: WordNet) -> Iterator[Record]:
    """Pairs of noun definitions with their Wu-Palmer similarity; as many of each degree of word overlap."""
    nouns = [s for s in wordnet.held_out if s.key[0] == "n" and plain(s)]
    nouns = unique(nouns, lambda s: s.definition)
    cosine = WordCosine([s.definition for s in nouns])
    cells: dict[tuple[int, int], list[tuple[Pair, float]]] = defaultdict(list)
    for pair in _candidate_pairs(wordnet, nouns):
        gold, shared = wordnet.wu_palmer(*pair), cosine(pair[0].definition, pair[1].definition)
        cells[_bin(shared, OVERLAP_EDGES), _bin(gold, GOLD_EDGES)].append((pair, gold))
    rng = random.Random(0)
    for o, most in enumerate(PAIRS_PER_CELL):
        row = [cells[o, g] for g in range(len(GOLD_EDGES) - 1)]
        count = min(most, *map(len, row))
        for cell in row:
            for (first, second), gold in rng.sample(cell, count):
                yield {"first": first.definition, "second": second.definition, "score": round(gold, 4)}


def _bin(value: float, edges: tuple[float, ...]) -> int:
    return next(i for i in range(len(edges) - 1) if edges[i] <= value < edges[i + 1])


def _candidate_pairs(wordnet: WordNet, nouns: list[Synset]) -> Iterator[Pair]:
    """Random pairs, pairs with a near common ancestor, and pairs that share words."""
    rng = random.Random(0)
    misleading = Misleading(wordnet, nouns, lambda s: s.definition)
    below: dict[str, list[Synset]] = defaultdict(list)
    for noun in nouns:
        for ancestor, distance in wordnet.ancestors(noun).items():
            if distance <= 3:
                below[ancestor].append(noun)
    seen = set()
    for noun in nouns:
        near = [s for a, d in wordnet.ancestors(noun).items() if d <= 3 for s in below[a]]
        sharing = [nouns[i] for stem in sorted(stems(noun.definition)) for i in misleading.index[stem]]
        others = rng.sample(nouns, 8) + rng.sample(near, min(8, len(near))) + rng.sample(sharing, min(8, len(sharing)))
        for other in others:
            key = tuple(sorted((noun.key, other.key)))
            if noun is not other and key not in seen:
                seen.add(key)
                yield noun, other


def lexicographer(wordnet: WordNet) -> Iterator[Record]:
    """Definitions labelled with the lexicographer file they come from, three fifths for training."""
    for name in CLASSES:
        entries = [s for s in wordnet.held_out if s.file == name and plain(s)]
        entries = unique(shuffled(entries, "class"), lambda s: s.definition)[:MOST_PER_CLASS]
        for i, synset in enumerate(entries):
            yield {"text": synset.definition, "label": name, "split": "train" if i % 5 < 3 else "test"}


TASKS: dict[str, Callable[[WordNet], Iterator[Record]]] = {
    "definition_to_example": definition_to_example,
    "related_definition": related_definition,
    "reverse_dictionary": reverse_dictionary,
    "paraphrase_pairs": paraphrase_pairs,
    "similarity": similarity,
    "lexicographer": lexicographer,
}
"""Name of the data file → what it holds."""
