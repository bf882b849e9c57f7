"""What `routers.py` measured, as tables; and its rows, with the folders in which their results are."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from measuring import machine
from mteb.abstasks import AbsTask

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.common.tables import Report, Table
from ssmoe_embed.evaluation.harness.results import GridFolder
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore, read_json
from ssmoe_embed.evaluation.significance.bootstrap import paired_bootstrap
from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local
from ssmoe_embed.routing.named import check_causal, is_named

BASE = "smoe"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("smoe", {}),
    "ssmoe-hidden": ("ssmoe-hidden", {}),
    "ev routing": ("ssmoe-hidden", {"alpha": 1.0}),
    "moee": ("moee", {}),
    "ssmoe": ("ssmoe", {}),
    "router": ("router", {}),
    "ev": ("ev", {}),
}
"""Rows that are methods: their name, method and settings."""
CALIBRATIONS = ("none", "standardize")
TESTS = ("STSBenchmark", "EmotionClassification")
_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One line of the table: a method, the hidden state under a named routing, or a baseline."""

    name: str
    kind: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, calibration: str) -> Run:
        """What is evaluated."""
        return Run(
            None if self.kind == "baseline" else self.method, None, None, self.settings | {"calibration": calibration}
        )

    @property
    def group(self) -> tuple[Any, ...]:
        """Equal for rows that share forward passes."""
        if self.kind == "baseline":
            return (self.method,)
        rerouted = self.method.startswith("ssmoe")
        return (rerouted, *self.settings.items())

    def has(self, score: TaskScore, calibration: str, own: str) -> bool:
        """Whether a score is this row's."""
        found = dict(score.settings)
        as_own = "none" if self.kind == "baseline" else own
        return (
            score.method == self.method
            and found.pop("calibration", as_own) == calibration
            and found.pop("routing", None) == self.settings.get("routing")
            and found.pop("alpha", None) == self.settings.get("alpha")
        )


def rows(routings: Sequence[str], baselines: Sequence[str]) -> list[Row]:
    """All lines: methods, routings, baselines; a routing's table is not part of its line's name."""
    found = [Row(name, "method", *values) for name, values in METHODS.items()]
    found += [Row(name.partition(":table=")[0], "routing", "smoe", {"routing": name}) for name in routings]
    return [*found, *(Row(name, "baseline", name) for name in baselines)]


@dataclass(frozen=True)
class Place:
    """What is measured and where; see `--help`."""

    model: str
    base: str
    work: Path
    tasks: Path | None
    every: int
    rows: tuple[Row, ...]
    calibrations: tuple[str, ...]
    harness: tuple[str, ...]
    limit: int | None
    text: Path | None
    dtype: str | None
    top_c: int | float
    sample: tuple[str, ...]
    name: str
    tests: tuple[str, ...]
    cells: tuple[str, ...]

    def task(self, name: str, split: str | None = None) -> AbsTask:
        """One task, on every so many-th of its test or development examples."""
        made = mteb.get_task(name, eval_splits=[split] if split else None)
        if self.tasks is None:
            return made
        return use_local(made, LocalData(self.tasks if self.every == 1 else self._thinned(name)))

    def _thinned(self, name: str) -> Path:
        """A folder with every so many-th example of all splits but the one that classifiers learn from."""
        assert self.tasks is not None
        folder = self.work / f"every-{self.every}"
        for file in sorted((self.tasks / name).glob("*.jsonl.gz")):
            step = 1 if file.name.startswith("train") else self.every
            if not (folder / name / file.name).is_file():
                with gzip.open(file, "rt", encoding="utf-8") as lines:
                    kept = "".join(line for number, line in enumerate(lines) if number % step == 0)
                with atomic_file(folder / name / file.name) as target:
                    target.write(gzip.compress(kept.encode(), mtime=0))
        return folder

    def cell(self, name: str) -> str:
        """The language model that a line's name stands for."""
        routed = {row.name: row.settings["routing"] for row in self.rows if row.kind == "routing"}
        return causal(routed.get(name, name))

    def loaded(self) -> EvaluatedModel:
        """The embedding model."""
        loading: dict[str, Any] = {} if self.dtype is None else {"model_kwargs": {"dtype": self.dtype}}
        return EvaluatedModel.load(self.model, progress=False, **loading)

    def score(self, row: Row, task: str, folder: str, calibration: str) -> TaskScore | None:
        """What a row scored."""
        own = read_json(self.work / "own.json")["calibration"]
        found = [one for one in ResultFolder(self.work / folder).scores() if one.task == task]
        return next((one for one in found if row.has(one, calibration, own)), None)

    def chosen(self, row: Row) -> str | None:
        """The calibration that was better on development pairs; None if the row was not measured."""
        found = {one: self.score(row, "STSBenchmark", "dev", one) for one in self.calibrations}
        known = {one: score.score for one, score in found.items() if score is not None}
        return max(known, key=lambda one: known[one]) if known else None


def causal(routing: str) -> str:
    """A routing as a language model may have it; other names are left as they are."""
    try:
        if is_named(routing):
            check_causal(routing)
    except ValueError:
        return f"{routing}{',' if ':' in routing else ':'}causal=true"
    return routing


def report(place: Place) -> Report:
    """Everything that is measured so far."""
    ending = {2: "nd", 3: "rd"}.get(place.every, "th")
    sampled = "" if place.every == 1 else f" Every {place.every}{ending} pair and test text only."
    note = (
        f"`{place.name}`. {machine('torch', 'transformers', 'mteb')}. Points of 100; in brackets the difference from "
        f"`{BASE}` and its 95 % interval.{sampled} Standardised (on {len(place.sample)} texts) or not: what was better on "
        f"development pairs. `cost`: CPU time of the forward passes, against `{BASE}` in one run."
    )
    costs = read_json(place.work / "cost.json") if (place.work / "cost.json").is_file() else {}
    lines = []
    for row in place.rows:
        calibration = place.chosen(row)
        if calibration is None:
            continue
        dev = _with_interval(place, row, calibration, "STSBenchmark", "dev")
        cells = [_with_interval(place, row, calibration, name, "test") for name in place.tests]
        spent = f"{costs[row.name]:.2f}" if row.name in costs else None
        lines.append((row.name, row.kind, calibration, dev, *cells, spent))
    heads = ("row", "kind", "calibration", "STSBenchmark dev", *(f"{name} test" for name in place.tests), "cost")
    parts: list[str | Table] = [note, "## Embeddings", Table(heads, tuple(lines), texts=3)]
    if (place.work / "grid").is_dir():
        parts += _language(GridFolder(place.work / "grid"), place)
    return Report("Routings and training-free baselines on one model", tuple(parts))


def _with_interval(place: Place, row: Row, calibration: str, name: str, kind: str) -> str | None:
    """A score on development or test data, and its difference from the base row's."""
    mine, base = place.score(row, name, kind, calibration), _base(place, name, kind)
    if mine is None:
        return None
    shown = f"{100 * mine.score:.1f}"
    if row.name == BASE or base is None:
        return shown
    folder = ResultFolder(place.work / kind)
    files = [folder.prediction_file(one) for one in (base, mine)]
    task = place.task(name, "validation" if kind == "dev" else None)
    found = paired_bootstrap(task, *files, resamples=_RESAMPLES)
    return f"{shown} ({100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}])"


def _base(place: Place, name: str, kind: str) -> TaskScore | None:
    """The base row's score."""
    row = next(one for one in place.rows if one.name == BASE)
    chosen = place.chosen(row)
    return None if chosen is None else place.score(row, name, kind, chosen)


def _language(folder: GridFolder, place: Place) -> list[str | Table]:
    """The table of language models."""
    results, texts = folder.results(), {one.cell: one for one in folder.perplexities()}
    tasks = sorted({one.task for one in results})
    lines = []
    for cell in dict.fromkeys([*texts, *(one.cell for one in results)]):
        found = {one.task: one for one in results if one.cell == cell}
        text = texts.get(cell)
        cells = [_task_cell(folder, cell, found[task]) if task in found else None for task in tasks]
        name = cell.partition(":table=")[0]
        lines.append((name, None if text is None else f"{text.value:.2f}", *cells))
    lines.sort(key=lambda line: (line[0] != "original", float(line[1] or "inf")))
    limit = "" if place.limit is None else f"; the first {place.limit} examples of each task"
    heads = ("routing", "perplexity", *tasks)
    text = next(iter(texts.values()), None)
    about = "" if text is None else f"Perplexity of {text.tokens:,} tokens of held-out text. "
    note = f"{about}Accuracy × 100{limit}, without examples in the prompt; in brackets the difference from `original`."
    return ["## As a language model", note, Table(heads, tuple(lines), texts=1)]


def _task_cell(folder: GridFolder, cell: str, result: Any) -> str:
    """A score, and its paired difference from the model's own routing."""
    shown = f"{100 * result.score:.1f}"
    if cell == "original" or not folder.has("original", result.task):
        return shown
    base, mine = (folder.correct(one, result.task) for one in ("original", cell))
    difference = np.array([mine[key] - base[key] for key in base])
    drawn = np.random.default_rng(0).integers(len(difference), size=(_RESAMPLES, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return f"{shown} ({100 * difference.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
