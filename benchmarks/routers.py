"""Compares the named routings and the training-free baselines on one model; interrupted, the same command goes on.

    python benchmarks/routers.py measure --work FOLDER --tasks FOLDER --text FILE
    python benchmarks/routers.py report --work FOLDER --tasks FOLDER --output benchmarks/results/routers.md

Whether vectors are standardised is chosen for each row on STSBenchmark's development pairs; STSBenchmark's test pairs and
EmotionClassification report. As a language model: two tasks of lm-evaluation-harness and the perplexity of a held-out
text. Cost: CPU time of the forward passes for some texts, in turns, against the model as it is. Differences are from the
model under its own routing on the same examples (paired bootstrap, 95 %). Rows are measured in the order of --rows or, by
default, of methods, --routings and --baselines. The model is read behind its own template.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import mteb
import numpy as np
import torch
from measuring import machine
from mteb.abstasks import AbsTask

from ssmoe_embed.common.files import atomic_file, write_files
from ssmoe_embed.common.tables import Report, Table
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.evaluation.baselines.of_model import MODEL_BASELINES, ModelBaselineEncoder
from ssmoe_embed.evaluation.baselines.pooled import ModelBaseline, sample_texts
from ssmoe_embed.evaluation.harness.grid import GridCell, GridOptions
from ssmoe_embed.evaluation.harness.results import GridFolder
from ssmoe_embed.evaluation.harness.running import run_grid
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore, read_json
from ssmoe_embed.evaluation.significance.bootstrap import paired_bootstrap
from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local
from ssmoe_embed.language_model import RoutingSettings
from ssmoe_embed.routing.named import NAMED, check_causal

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
PAPER_ROUTINGS = ("original", "ssmoe", "ev", "average-ev")
CALIBRATIONS = ("none", "standardize")
TESTS = ("STSBenchmark", "EmotionClassification")
_RESAMPLES, _ROUNDS, _COST_TEXTS = 2000, 3, 24
_SHORT = 120
"""Characters of a short text."""


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
    """All lines: methods, routings, baselines."""
    found = [Row(name, "method", *values) for name, values in METHODS.items()]
    found += [Row(name, "routing", "smoe", {"routing": name}) for name in routings]
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


def embeddings(place: Place) -> None:
    """Row by row: every calibration on development pairs, and the better one on test data; what is refused is said."""
    model, start = place.loaded(), time.monotonic()
    write_files(place.work, {"own.json": json.dumps({"calibration": str(model.own.calibration)}) + "\n"})
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in place.rows:
        groups.setdefault(row.group, []).append(row)
    for number, together in enumerate(groups.values()):
        try:
            said = "; ".join(map(str, _measured(place, model, together))) or "done"
        except ValueError as error:
            said = str(error)
        names = ", ".join(row.name for row in together)
        left = (time.monotonic() - start) / (number + 1) * (len(groups) - number - 1)
        print(f"[{number + 1}/{len(groups)}] {names}: {said}; {left / 60:.0f} min left", flush=True)


def _measured(place: Place, model: EvaluatedModel, together: Sequence[Row]) -> Sequence[Any]:
    """Evaluate rows that share forward passes, which are made once; returns what failed."""
    run = _evaluation(place, model, together[0])
    failures: list[Any] = []
    for folder in ("dev", "test"):
        names = place.tests if folder == "test" else TESTS[:1]
        tasks = [place.task(name, None if folder == "test" else "validation") for name in names]
        wanted = [
            row.run(one)
            for row in together
            for one in (place.calibrations if folder == "dev" else (place.chosen(row),))
            if one is not None and any(place.score(row, name, folder, one) is None for name in names)
        ]
        failures += run(wanted, tasks, place.work / folder) if wanted else []
    return failures


def _evaluation(
    place: Place, model: EvaluatedModel, row: Row
) -> Callable[[Sequence[Run], list[AbsTask], Path], Sequence[Any]]:
    """What evaluates runs of the model, or of the baseline that a row is; it returns what failed."""
    options = EvaluationOptions(batch_size=32, predictions=True, progress=False)
    if row.kind != "baseline":

        def of_model(runs: Sequence[Run], tasks: list[AbsTask], output: Path) -> Sequence[Any]:
            variants = [model.settings(run) for run in runs]
            model.model[0].fit_calibration(list(place.sample), variants=variants, progress=False)
            return evaluate([model], tasks, runs, output, options=options).failures

        return of_model
    memory: Any = _Memory(ModelBaselineEncoder(model, row.method, row.run("none")).baseline)

    def of_baseline(runs: Sequence[Run], tasks: list[AbsTask], output: Path) -> Sequence[Any]:
        encoders = [ModelBaselineEncoder(model, row.method, run, sample=place.sample) for run in runs]
        for encoder in encoders:
            encoder.baseline = memory
        return evaluate([], tasks, [Run()], output, baselines=encoders, options=options).failures

    return of_baseline


class _Memory:
    """A baseline that reads each text once."""

    def __init__(self, baseline: ModelBaseline) -> None:
        self.encoder, self._baseline = baseline.encoder, baseline
        self._rows: dict[str, torch.Tensor] = {}

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """See `ModelBaseline.features`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            self._rows |= zip(new, self._baseline.features(new).cpu(), strict=True)
        return torch.stack([self._rows[text] for text in texts])


def language(place: Place) -> None:
    """The harness and the perplexity under every routing."""
    options = GridOptions(
        limit=place.limit,
        settings=RoutingSettings(top_c=place.top_c),
        text=place.text,
        dtype=place.dtype,
        overlap_prompts=0,
        data=None if place.tasks is None or place.harness == OFFLINE else LocalData(place.tasks),
        progress=False,
    )
    names = place.cells or [*PAPER_ROUTINGS, *(causal(row.name) for row in place.rows if row.kind == "routing")]
    start = time.monotonic()
    for number, name in enumerate(names):
        try:
            run_grid(place.base, [GridCell.parse(name)], place.harness, place.work / "grid", options)
            said = "done"
        except ValueError as error:
            said = str(error)
        left = (time.monotonic() - start) / (number + 1) * (len(names) - number - 1)
        print(f"[{number + 1}/{len(names)}] {name}: {said}; {left / 60:.0f} min left", flush=True)


def causal(routing: str) -> str:
    """A routing as a language model may have it."""
    try:
        check_causal(routing)
    except ValueError:
        return f"{routing}{',' if ':' in routing else ':'}causal=true"
    return routing


def cost(place: Place) -> None:
    """CPU time of every row's forward passes, in turns, as a ratio to the model as it is."""
    model, texts = place.loaded(), place.sample[:_COST_TEXTS]
    calls: dict[str, Callable[[], Any]] = {}
    for row in place.rows:
        run = row.run("none")
        try:
            if row.kind == "baseline":
                calls[row.name] = partial(ModelBaselineEncoder(model, row.method, run).baseline.features, texts)
            else:
                view = model.model.using(model.settings(run))
                calls[row.name] = partial(view.encode, texts, batch_size=len(texts), show_progress_bar=False)
            calls[row.name]()  # what is fitted is fitted now
        except ValueError as error:
            calls.pop(row.name, None)
            print(f"cost, {row.name}: {error}", flush=True)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name].append(time.process_time() - start)
    base = median(spent[BASE])
    write_files(place.work, {"cost.json": json.dumps({name: median(one) / base for name, one in spent.items()}) + "\n"})


STAGES: dict[str, Callable[[Place], None]] = {"embeddings": embeddings, "language": language, "cost": cost}
OFFLINE = ("ssmoe_continuation", "ssmoe_dictionary")


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
        lines.append((cell, None if text is None else f"{text.value:.2f}", *cells))
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


def _wanted(found: Sequence[Row], names: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows of some names, in their order."""
    known = {row.name: row for row in found}
    missing = [name for name in names or () if name not in known]
    if missing:
        raise SystemExit(f"There is no row {missing[0]!r}; there are {', '.join(known)}.")
    return tuple(known[name] for name in names or known)


def _share(text: str) -> int | float:
    """A count or a fraction."""
    return int(text) if text.isdigit() else float(text)


def _short(count: int) -> list[str]:
    """Short texts of the package."""
    return [text for text in calibration_texts() if len(text) <= _SHORT][:count]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "report"])
    parser.add_argument(
        "--model", default="ssmoe/tiny", help="the embedding model: a name or folder; default: %(default)s"
    )
    parser.add_argument("--base", help="the language model; by default what --model names")
    parser.add_argument(
        "--work", type=Path, default=Path("build/routers"), help="what is measured; default: %(default)s"
    )
    parser.add_argument("--tasks", type=Path, help="the tasks' data, as real_data.py writes them; by default the hub's")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth example of the embedding tasks")
    parser.add_argument("--routings", nargs="*", default=list(NAMED), help="named routings; default: %(default)s")
    parser.add_argument("--baselines", nargs="*", default=list(MODEL_BASELINES), help="default: %(default)s")
    parser.add_argument("--calibrations", nargs="+", choices=CALIBRATIONS, default=list(CALIBRATIONS))
    parser.add_argument("--harness", nargs="*", default=list(OFFLINE), help="harness tasks; default: %(default)s")
    parser.add_argument(
        "--cells", nargs="+", default=[], help="language models; default: the paper's and those of the routings shown"
    )
    parser.add_argument("--limit", type=int, help="the first examples of each harness task; default: all")
    parser.add_argument("--text", type=Path, help="held-out text whose perplexity is measured")
    parser.add_argument("--dtype", help="dtype of the weights; default: the model's own")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--top-c", type=_share, default=50, help="of language models' spectral routers; default: %(default)s"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help=f"standardise on N of the package's texts of {_SHORT} characters or fewer; by default on 512 of any length",
    )
    parser.add_argument("--rows", nargs="+", help="rows to measure or show, in this order; default: all")
    parser.add_argument("--tests", nargs="+", choices=TESTS, default=list(TESTS), help="default: %(default)s")
    parser.add_argument("--name", help="what the report calls the model; default: --model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    place = Place(
        model=options.model,
        base=options.base or options.model,
        work=options.work,
        tasks=options.tasks,
        every=options.every,
        rows=_wanted(rows(options.routings, options.baselines), options.rows),
        calibrations=tuple(options.calibrations),
        harness=tuple(options.harness),
        limit=options.limit,
        text=options.text,
        dtype=options.dtype,
        top_c=options.top_c,
        sample=tuple(sample_texts() if options.sample is None else _short(options.sample)),
        name=options.name or options.model,
        tests=tuple(options.tests),
        cells=tuple(options.cells),
    )
    if options.command == "measure":
        for name in options.stages:
            print(f"{name} …", flush=True)
            STAGES[name](place)
        return
    shown = report(place).markdown()
    print(shown, end="")
    if options.output:
        write_files(options.output.parent, {options.output.name: shown})


if __name__ == "__main__":
    main()
