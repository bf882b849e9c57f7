"""Reader of the WordNet 3.0 database files: synsets, their relations and the similarity of two of them."""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from make_data.heldout import is_held_out

LEXICOGRAPHER_FILES = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
]
"""Names of the lexicographer files in the order of their numbers (lexnames(5WN))."""

FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
HYPERNYMS = ("@", "@i")


@dataclass(frozen=True)
class Synset:
    """One synset: its words, definition, example sentences and pointers to others."""

    key: str
    file: str
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]

    @cached_property
    def held_out(self) -> bool:
        """Whether no part of any training may see this synset's definition and examples."""
        return any(is_held_out(lemma) for lemma in self.lemmas)


class WordNet:
    """All synsets by key (part of speech and offset), with the noun hierarchy."""

    def __init__(self, folder: Path) -> None:
        self.synsets = {s.key: s for pos, name in FILES.items() for s in _read(folder / name, pos)}
        self._depth = lru_cache(maxsize=None)(self._compute_depth)
        self._distances = lru_cache(maxsize=None)(self._compute_distances)

    @cached_property
    def held_out(self) -> list[Synset]:
        """The synsets from which evaluation tasks may be made, in the order of the files."""
        return [s for s in self.synsets.values() if s.held_out]

    def related(self, synset: Synset, symbols: tuple[str, ...]) -> list[Synset]:
        """Synsets to which a pointer of one of these kinds leads."""
        return [self.synsets[key] for symbol, key in synset.pointers if symbol in symbols]

    def wu_palmer(self, first: Synset, second: Synset) -> float:
        """Similarity by depth in the hierarchy, 0 to 1 (Wu and Palmer, https://aclanthology.org/P94-1019)."""
        from_first, from_second = self._distances(first.key), self._distances(second.key)
        common = from_first.keys() & from_second.keys()
        if not common:
            return 0.0
        lowest = max(common, key=lambda key: (self._depth(key), -from_first[key] - from_second[key], key))
        depth = self._depth(lowest)
        return 2 * depth / (from_first[lowest] + from_second[lowest] + 2 * depth)

    def ancestors(self, synset: Synset) -> dict[str, int]:
        """Keys of everything above a synset, itself included, with the distance."""
        return self._distances(synset.key)

    def close(self, first: Synset, second: Synset) -> bool:
        """Whether any pointer joins two synsets, directly or through one other."""
        near_first = {first.key} | {key for _, key in first.pointers}
        near_second = {second.key} | {key for _, key in second.pointers}
        return bool(near_first & near_second)

    def _compute_depth(self, key: str) -> int:
        parents = self.related(self.synsets[key], HYPERNYMS)
        return 1 + min((self._depth(parent.key) for parent in parents), default=0)

    def _compute_distances(self, key: str) -> dict[str, int]:
        distances, frontier = {key: 0}, [key]
        while frontier:
            below = frontier.pop(0)
            for parent in self.related(self.synsets[below], HYPERNYMS):
                if parent.key not in distances:
                    distances[parent.key] = distances[below] + 1
                    frontier.append(parent.key)
        return distances


def _read(path: Path, pos: str) -> list[Synset]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse(line, pos) for line in lines if not line.startswith("  ")]


def _parse(line: str, pos: str) -> Synset:
    # The format is described in wndb(5WN): offset, file number, type, words, pointers, then the gloss after a bar.
    data, gloss = line.split(" | ", 1)
    fields = data.split()
    n_words = int(fields[3], 16)
    words = [re.sub(r"\((?:a|p|ip)\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * n_words : 2]]
    start = 4 + 2 * n_words + 1
    n_pointers = int(fields[start - 1])
    pointers = [(fields[i], _pos(fields[i + 2]) + fields[i + 1]) for i in range(start, start + 4 * n_pointers, 4)]
    definition, examples = _split_gloss(gloss)
    file = LEXICOGRAPHER_FILES[int(fields[1])]
    return Synset(pos + fields[0], file, tuple(words), definition, examples, tuple(pointers))


def _pos(letter: str) -> str:
    return "a" if letter == "s" else letter


def _split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    examples = tuple(e.strip() for e in re.findall(r'"([^"]+)"', gloss))
    definition = re.split(r'[;:,]?\s*"', gloss, maxsplit=1)[0]
    return " ".join(definition.split()).strip(" ;"), examples
