"""Makes all shipped data files: ``python -m make_data --sources ROOT`` in the folder ``examples``."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from make_data.calibration import calibration
from make_data.corpus import HERE, corpus
from make_data.files import Record, read_lines, write_lines
from make_data.offline import TASKS
from make_data.ratings import review_sentiment, word_relatedness
from make_data.verses import verse_reranking
from make_data.wordnet import WordNet

PACKAGE_DATA = HERE.parent.parent / "ssmoe_embed" / "data"


def howto_questions(documents: list[Record]) -> Iterable[Record]:
    """The hand-written questions, with a check that every answer exists."""
    known = {document["id"] for document in documents}
    for record in read_lines(HERE / "questions.jsonl"):
        missing = set(record["documents"]) - known
        if missing:
            msg = f"The question {record['question']!r} names {sorted(missing)}, which the search corpus lacks."
            raise ValueError(msg)
        yield {"query": record["question"], "relevant": record["documents"]}


def main() -> None:
    """Parse the command line and write every file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="folder with the unpacked distribution packages")
    parser.add_argument("--output", type=Path, default=PACKAGE_DATA, help="folder for the files (default: the package)")
    options = parser.parse_args()
    wordnet = WordNet(options.sources / "usr/share/wordnet")
    documents = list(corpus(options.sources))
    jobs: dict[str, Callable[[], Iterable[Record]]] = {
        "search/corpus.jsonl": lambda: documents,
        "offline/howto_search.jsonl": lambda: howto_questions(documents),
        "offline/review_sentiment.jsonl": lambda: review_sentiment(options.sources),
        "offline/word_relatedness.jsonl": lambda: word_relatedness(options.sources),
        "offline/verse_reranking.jsonl": lambda: verse_reranking(options.sources),
        "calibration.jsonl": lambda: calibration(options.sources, wordnet),
    }
    for name, make in TASKS.items():
        jobs[f"offline/{name}.jsonl"] = lambda make=make: make(wordnet)  # type: ignore[misc]
    for name, records in tqdm(jobs.items(), desc="files"):
        write_lines(options.output / name, records())


if __name__ == "__main__":
    main()
