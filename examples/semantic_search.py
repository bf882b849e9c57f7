"""Semantic search end to end, offline: index a folder of notes, search it, look into a score, change it.

Run it with `pip install 'ssmoe-embed[faiss]'` and `python examples/semantic_search.py [FOLDER]`; without a folder it makes a
small one. The same on the command line: `ssmoe index FOLDER -o my-index`, `ssmoe search QUERY --index my-index`, and
`ssmoe serve my-index` for the web page.
"""

import sys
import tempfile
from pathlib import Path

import ssmoe_embed
from ssmoe_embed.search import Document, SemanticIndex, read_documents

NOTES = {
    "garden.md": "# Garden\n\nTomatoes want full sun. Water them in the morning, at the root, never on the leaves.",
    "git.md": "# Git\n\nTo undo the last commit and keep the changes, run git reset --soft HEAD~1.",
    "kitchen.txt": "A stew is best on the second day. Bread rises faster where it is warm.",
}


def main(folder: Path, place: Path) -> None:
    """Index, search, explain, change."""
    model = ssmoe_embed.load(method="moee")  # or any other SentenceTransformer
    index = SemanticIndex.create(place, model)
    counts = index.add(read_documents(folder), progress=False)
    print(f"{counts.added} passages, kind {index.info()['kind']}")

    for hit in index.search("how do I take back what I committed?", top=2, snippets=True):
        print(f"{hit.score:.2f}  {hit.document.source}  {hit.snippet.sentence if hit.snippet else ''}")

    best = index.search("when should I water vegetables?", top=1)[0].document
    for part in index.explain("when should I water vegetables?", best.id).contributions:
        print(f"{part.score:+.2f} of the score from the {part.block}")

    index.add([Document("extra", "Prune roses in late winter.", {"topic": "garden"})], progress=False)
    print([hit.document.id for hit in index.search("cutting back shrubs", filters={"topic": "garden"})])
    index.delete(["extra"])
    print(f"{len(SemanticIndex.open(place, model))} passages left")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        notes = Path(work) / "notes"
        notes.mkdir()
        for name, text in NOTES.items():
            (notes / name).write_text(text, encoding="utf-8")
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else notes, Path(work) / "index")
