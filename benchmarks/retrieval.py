"""Semantic index: how fast it is filled, opened and searched, what it finds, and what that takes, for each index kind.

    python benchmarks/retrieval.py synthetic                       one million clustered vectors
    python benchmarks/retrieval.py passages --corpus FILE|FOLDER   real passages, encoded by a model
    python benchmarks/retrieval.py words [--copies 50]             BM25 in SQLite (FTS5) and by bm25s

The passages are as many paragraphs of 10 to 60 words as `--rows` says, drawn from all paragraphs of the corpus.

Every kind is built and searched in processes of its own, so that peak memory is its own. `--work` keeps the vectors between
runs, and what an interrupted run has encoded or built is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from first_contact import line as line_of
from first_contact import questions
from measuring import Result, in_subprocess, machine, peak_mib
from sentence_transformers import SentenceTransformer

import ssmoe_embed
from ssmoe_embed.data import search_corpus
from ssmoe_embed.search import Document, IndexKind, SemanticIndex
from ssmoe_embed.search.hybrid import word_shares
from ssmoe_embed.search.kinds import faiss_library
from ssmoe_embed.search.manifest import RECALL, Manifest, StoredFile
from ssmoe_embed.search.nearest import Nearest, exact_top, open_approximate, recall
from ssmoe_embed.search.nearest import build as build_approximate
from ssmoe_embed.search.reading.corpus import read_documents
from ssmoe_embed.search.store import Store
from ssmoe_embed.search.store_writing import WritableStore

KINDS = ("flat", "hnsw", "ivf", "sq8", "binary", "ivfpq")
QUERIES = 500
TOP = 10
BLOCK = 20_000
SHORTEST, LONGEST = 10, 60
"""Words of a passage."""
CLUSTERS = 10_000
SECONDS = 3.0
"""How long a search is repeated, of processor time."""


def synthetic(rows: int, dimension: int, seed: int) -> Iterator[np.ndarray[Any, Any]]:
    """Blocks of clustered unit vectors: a centre plus as much noise, both with a spectrum that falls as 1/√j."""
    spectrum = np.arange(1, dimension + 1, dtype=np.float32) ** -0.5
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, dimension), dtype=np.float32) * spectrum
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        noise = rng.standard_normal((count, dimension), dtype=np.float32) * spectrum
        block = centres[rng.integers(0, CLUSTERS, count)] + noise
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


# --- in processes of their own ------------------------------------------------------------------------------------------


def build(folder: Path, kind: str) -> dict[str, float]:
    """Make the approximate index of a folder's vectors, unless an earlier run did."""
    described = folder / f"{kind}.json"
    if described.exists():
        return json.loads(described.read_text(encoding="utf-8"))["made"]
    vectors, chosen = np.load(folder / "vectors.npy", mmap_mode="c"), IndexKind(kind)
    manifest = Manifest(1, 0, len(vectors), len(vectors), vectors.shape[1], "float32", "", "", kind)
    before, start, used = peak_mib(), time.perf_counter(), time.process_time()
    live = np.arange(len(vectors))
    built = build_approximate(folder, manifest, vectors, live, name=f"{chosen}.faiss", recall=RECALL, progress=False)
    stored = asdict(built.approximate) if built.approximate else None
    made = {
        "build": time.perf_counter() - start,
        "build_cpu": time.process_time() - used,
        "build_peak": peak_mib() - before,
        "bytes": stored["size"] / len(vectors) if stored else 0.0,
        "own_recall": built.search["recall"],
    }
    described.write_text(json.dumps({"file": stored, "search": built.search, "made": made}), encoding="utf-8")
    return made


def opened(folder: Path, kind: str) -> Nearest:
    """What a search needs, memory-mapped."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="c")
    described = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    file = StoredFile(**described["file"]) if described["file"] else None
    manifest = Manifest(
        1, 0, len(vectors), len(vectors), vectors.shape[1], "float32", "", "", kind, file, described["search"]
    )
    return Nearest(vectors, open_approximate(folder, manifest))


def search(folder: Path, kind: str) -> dict[str, float]:
    """Open an index and search it, one query at a time and all at once."""
    saved = np.load(folder / "queries.npz")
    queries, truth = saved["queries"], saved["truth"]
    if kind == "faiss":
        return plain_faiss(np.load(folder / "vectors.npy", mmap_mode="c"), queries)
    if kind != "flat":
        faiss_library()  # its import is not the index's
    before, start = peak_mib(), time.perf_counter()
    nearest = opened(folder, kind)
    found = {"open": time.perf_counter() - start}
    found["recall"] = recall(nearest.top(queries, TOP)[0], truth)
    found["single"] = rate(lambda number: nearest.top(queries[number % len(queries)][None], TOP))
    found["batch"] = rate(lambda _: nearest.top(queries, TOP)) * len(queries)
    return found | {"peak": peak_mib() - before}


def plain_faiss(vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> dict[str, float]:
    """FAISS's own exact search over the same vectors."""
    faiss = faiss_library()
    metric = faiss.METRIC_INNER_PRODUCT
    return {
        "single": rate(lambda number: faiss.knn(queries[number % len(queries)][None], vectors, TOP, metric)),
        "batch": rate(lambda _: faiss.knn(queries, vectors, TOP, metric)) * len(queries),
    }


def rate(call: Callable[[int], Any]) -> float:
    """Calls a second of processor time, which other programs on the machine change less than the clock."""
    call(0)
    start, count = time.process_time(), 0
    while time.process_time() - start < SECONDS or not count:
        call(count)
        count += 1
    return count / (time.process_time() - start)


# --- search by words ----------------------------------------------------------------------------------------------------


def run_words(options: argparse.Namespace) -> None:
    """The bundled corpus, as it is or with copies whose words are shuffled, indexed and searched by words twice."""
    rng = random.Random(0)
    documents = search_corpus()
    for copy in range(1, options.copies):
        for one in search_corpus():
            words = one.text.split()
            rng.shuffle(words)
            documents.append(Document(f"{one.id}/{copy}", " ".join(words), title=rng.choice(words)))
    asked = [one for part in ("development", "held-out") for one in questions()[part]]
    folder = options.work / f"words-{options.copies}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = [by_fts5(folder, documents, asked), by_bm25s(folder, documents, asked)]
    header = [
        "search by words",
        "indexing s",
        "MB",
        "opening and first query ms",
        "ms a query",
        "right at 1",
        "in 3",
        "in 10",
        "MRR",
    ]
    note = (
        f"{machine('bm25s')}, SQLite {sqlite3.sqlite_version}; {len(documents):,} documents, {len(asked)} questions of "
        "`questions.jsonl`; seconds of processor time, other programs ran. FTS5 lies in the index's database and is changed "
        "with it; bm25s makes its index again for every change."
    )
    Result(f"BM25, {len(documents):,} documents", note, header, rows, {"rows": rows}).show(options.output)


def by_fts5(folder: Path, documents: list[Document], asked: list[dict[str, Any]]) -> list[str]:
    """The table `words` of an index, in a database that holds nothing else but the documents."""
    store = WritableStore(folder / "store.sqlite", 1)
    numbered = [(document, row) for row, document in enumerate(documents)]
    with store.transaction():  # once without the words, to know what they take
        store.db.execute("DROP TABLE words")
        store.db.execute("CREATE TEMP TABLE words (rowid, title, text)")
        store.insert(numbered)
    store.db.execute("DROP TABLE words")
    store.close()
    bare = (folder / "store.sqlite").stat().st_size
    store, start = WritableStore(folder / "store.sqlite", 1), time.process_time()
    with store.transaction():
        store.db.execute("INSERT INTO words (words) VALUES ('rebuild')")
    store.close()
    spent = time.process_time() - start
    size = (folder / "store.sqlite").stat().st_size - bare
    start = time.process_time()
    reader = Store(folder / "store.sqlite", 1)
    manifest = Manifest(1, len(documents), 0, 0, 0, "float32", "", "", "flat")
    word_shares(reader, manifest, asked[0]["query"], TOP)
    first = time.process_time() - start
    start = time.process_time()
    found = [[documents[seq - 1].id for seq, _ in word_shares(reader, manifest, one["query"], TOP)] for one in asked]
    each = (time.process_time() - start) / len(asked)
    return ["FTS5", *timings(spent, size, first, each), *line_of(found, asked)]


def by_bm25s(folder: Path, documents: list[Document], asked: list[dict[str, Any]]) -> list[str]:
    """The library bm25s, memory-mapped."""
    import bm25s

    def words(texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords=None, return_ids=False, show_progress=False)

    start = time.process_time()
    index = bm25s.BM25()
    index.index(words([document.full_text for document in documents]), show_progress=False)
    index.save(str(folder / "bm25s"))
    spent = time.process_time() - start
    size = sum(path.stat().st_size for path in (folder / "bm25s").iterdir())
    start = time.process_time()
    index = bm25s.BM25.load(str(folder / "bm25s"), mmap=True)

    def search(query: str) -> list[str]:
        known = [word for word in words([query])[0] if word in index.vocab_dict]
        if not known:
            return []
        [places], [scores] = index.retrieve([known], k=TOP, show_progress=False, n_threads=0)
        return [documents[place].id for place, score in zip(places, scores, strict=True) if score > 0]

    search(asked[0]["query"])
    first = time.process_time() - start
    start = time.process_time()
    found = [search(one["query"]) for one in asked]
    each = (time.process_time() - start) / len(asked)
    return ["bm25s", *timings(spent, size, first, each), *line_of(found, asked)]


def timings(spent: float, size: int, first: float, each: float) -> list[str]:
    """Cells of one way of searching."""
    return [f"{spent:.1f}", f"{size / 1e6:.1f}", f"{first * 1000:.1f}", f"{each * 1000:.1f}"]


# --- the two corpora ----------------------------------------------------------------------------------------------------


def prepare(folder: Path, blocks: Iterator[np.ndarray[Any, Any]], queries: np.ndarray[Any, Any]) -> None:
    """Write vectors, queries and the exact answers; nothing if they are there already."""
    if (folder / "queries.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.concatenate(list(blocks))
    np.save(folder / "vectors.npy", vectors)
    rows, _ = exact_top(vectors, queries, TOP)
    np.savez(folder / "queries.npz", queries=queries, truth=rows)


def kinds_table(title: str, what: str, folder: Path, kinds: list[str], output: Path | None) -> None:
    """Measure every kind on one index."""
    script, rows, data = str(Path(__file__).resolve()), [], {}
    exact: dict[str, float] = {}
    dimension = np.load(folder / "vectors.npy", mmap_mode="r").shape[1]
    note = (
        f"{machine('faiss-cpu', 'torch')}; {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} thread(s); the machine was "
        f"shared with other programs. {what} {QUERIES} queries that are not among them, ten results, with exact scores; "
        "queries and building in seconds of processor time. "
        f"Bytes are of the approximate index, beside {4 * dimension} for the float32 vector; memory is the peak above "
        "that before, pages of mapped files included."
    )
    header = ["kind", "recall@10", "queries/s", "× flat", "in one batch", "× flat", "open s", "build s", "build MiB"]
    header += ["search MiB", "bytes a vector"]
    for kind in kinds:
        made = in_subprocess(script, "build", str(folder), kind)
        found = in_subprocess(script, "search", str(folder), kind)
        data[kind] = made | found
        exact = exact or found
        rows.append(line(kind, made, found, exact))
        if kind == "flat":
            plain = in_subprocess(script, "search", str(folder), "faiss")
            data["faiss"] = plain
            rows.append(["faiss.knn", "1.000", *rates(plain, exact), "", "", "", "", ""])
        Result(title, note, header, rows, data).show(output)  # after each, so that an interruption loses little


def line(kind: str, made: dict[str, float], found: dict[str, float], exact: dict[str, float]) -> list[str]:
    """One kind's row."""
    sizes = [f"{made['build_peak']:.0f}", f"{found['peak']:.0f}", f"{made['bytes']:.0f}"]
    return [
        kind,
        f"{found['recall']:.3f}",
        *rates(found, exact),
        f"{found['open']:.3f}",
        f"{made['build_cpu']:.0f}",
        *sizes,
    ]


def rates(found: dict[str, float], exact: dict[str, float]) -> list[str]:
    """Queries a second, alone and in a batch, and against the flat index."""
    cells = []
    for way in ("single", "batch"):
        cells += [f"{found[way]:,.0f}" if found[way] >= 10 else f"{found[way]:.1f}", f"{found[way] / exact[way]:.1f}"]
    return cells


def run_synthetic(options: argparse.Namespace) -> None:
    """The million."""
    rows = options.rows or 1_000_000
    folder = options.work / f"synthetic-{rows}-{options.dimension}"
    queries = next(synthetic(QUERIES, options.dimension, seed=2))
    prepare(folder, synthetic(rows, options.dimension, seed=1), queries)
    what = (
        f"{rows:,} synthetic unit vectors of {options.dimension} numbers: one of {CLUSTERS:,} centres plus as much "
        "noise, both Gaussian with a spectrum that falls as 1/√j."
    )
    kinds_table(f"Index kinds, {rows:,} synthetic vectors", what, folder, options.kinds, options.output)


def paragraphs(corpus: Path, rows: int) -> list[Document]:
    """Some of the different paragraphs of a corpus that are neither short nor long."""
    lines = (
        line.strip() for document in read_documents(corpus, on_error="skip") for line in document.text.splitlines()
    )
    kept = dict.fromkeys(line for line in lines if SHORTEST <= len(line.split()) <= LONGEST)
    chosen = random.Random(0).sample(list(kept), min(rows, len(kept)))
    return [Document(str(number), text) for number, text in enumerate(chosen)]


def run_passages(options: argparse.Namespace) -> None:
    """Real passages: the way from text to index, then the kinds."""
    model = ssmoe_embed.load(options.model, progress=False)
    corpus = options.work / "passages"
    index = SemanticIndex.open(corpus, model) if corpus.exists() else SemanticIndex.create(corpus, model, kind="flat")
    index.add(paragraphs(options.corpus, options.rows or 105_000), batch_size=64)
    vectors = np.unique(index.vectors(), axis=0)
    np.random.default_rng(0).shuffle(vectors)
    queries, stored = vectors[:QUERIES], vectors[QUERIES:]
    folder = options.work / f"passages-{len(stored)}"
    prepare(folder, iter([stored]), queries)
    end_to_end(options, model, index)
    words = [len(document.text.split()) for document in index.documents(0, 5000)]
    what = (
        f"{len(stored):,} real passages of {np.mean(words):.0f} words on average, encoded by {options.model}: "
        f"{options.source}."
    )
    kinds_table(f"Index kinds, {len(stored):,} real passages", what, folder, options.kinds, options.output)


def end_to_end(options: argparse.Namespace, model: SentenceTransformer, index: SemanticIndex) -> None:
    """Documents a second through `SemanticIndex.add`, and how much of it is the model."""
    documents, spent = index.documents(0, options.sample), {"wall": 0.0, "cpu": 0.0}
    encode = model.encode_document

    def timed(*arguments: Any, **keywords: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        made = encode(*arguments, **keywords)
        spent["wall"] += time.perf_counter() - start
        spent["cpu"] += time.process_time() - used
        return made

    fresh = options.work / "end-to-end"
    shutil.rmtree(fresh, ignore_errors=True)
    made = SemanticIndex.create(fresh, model)
    model.encode_document = timed
    start, used = time.perf_counter(), time.process_time()
    made.add(documents, batch_size=64, progress=False)
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    model.encode_document = encode
    rows = [
        ["documents/s, clock", f"{len(documents) / wall:.1f}"],
        ["documents/s, processor time", f"{len(documents) / cpu:.1f}"],
        ["encoding's share of the clock", f"{spent['wall'] / wall:.1%}"],
        ["encoding's share of the processor time", f"{spent['cpu'] / cpu:.1%}"],
        [f"opening an index of {len(index):,} documents, s", f"{opening(index.folder):.3f}"],
    ]
    note = (
        f"{machine('torch', 'sentence-transformers')}; {len(documents):,} of the passages below with {options.model}."
    )
    Result("From text to index", note, ["measure", "value"], rows, {"rows": rows}).show(options.output)


def opening(folder: Path) -> float:
    """Seconds to open an index, without its model."""
    start = time.perf_counter()
    SemanticIndex.open(folder)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write."""
    if len(sys.argv) > 1 and sys.argv[1] in ("build", "search"):
        command, folder, kind = build if sys.argv[1] == "build" else search, Path(sys.argv[2]), sys.argv[3]
        print(json.dumps(command(folder, kind)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["synthetic", "passages", "words"])
    parser.add_argument("--work", type=Path, default=Path("build/retrieval"), help="folder for vectors and indexes")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds to measure; flat comes first"
    )
    parser.add_argument("--rows", type=int, help="vectors: 1,000,000 synthetic ones, or 105,000 passages")
    parser.add_argument("--dimension", type=int, default=128, help="numbers of a synthetic vector")
    parser.add_argument("--corpus", type=Path, help="passages: a file or folder that `ssmoe index` takes")
    parser.add_argument("--copies", type=int, default=1, help="words: how many times the bundled corpus")
    parser.add_argument("--source", default="--corpus", help="where the corpus comes from, for the note")
    parser.add_argument("--model", default="ssmoe/tiny", help="what encodes them")
    parser.add_argument("--sample", type=int, default=2000, help="passages for the way from text to index")
    parser.add_argument("--output", type=Path, help="Markdown or JSON file to write")
    options = parser.parse_args()
    if options.part == "passages" and options.corpus is None:
        parser.error("passages needs --corpus")
    options.work.mkdir(parents=True, exist_ok=True)
    {"synthetic": run_synthetic, "passages": run_passages, "words": run_words}[options.part](options)


if __name__ == "__main__":
    main()
