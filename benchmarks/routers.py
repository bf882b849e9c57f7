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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mteb.abstasks import AbsTask
from routers_report import BASE, CALIBRATIONS, TESTS, Place, Row, report, rows

from ssmoe_embed.common.files import write_files
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.evaluation.baselines.hidden_states import ModelBaseline, sample_texts
from ssmoe_embed.evaluation.baselines.of_model import MODEL_BASELINES, ModelBaselineEncoder
from ssmoe_embed.evaluation.harness.grid import GridCell, GridOptions
from ssmoe_embed.evaluation.harness.running import run_grid
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.tasks.local_data import LocalData
from ssmoe_embed.evaluation.texts import spread
from ssmoe_embed.language_model import RoutingSettings, load_tokenizer
from ssmoe_embed.language_model import load as load_language_model
from ssmoe_embed.language_model.steering import steering_table
from ssmoe_embed.routing.named import NAMED, canonical

PAPER_ROUTINGS = ("original", "ssmoe", "ev", "average-ev")
_ROUNDS, _COST_TEXTS, _DOMAIN = 3, 24, 100
_SHORT = 120
"""Characters of a short text."""


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
    names = place.cells or [*PAPER_ROUTINGS, *(row.name for row in place.rows if row.kind == "routing")]
    start = time.monotonic()
    for number, name in enumerate(names):
        try:
            run_grid(place.base, [GridCell.parse(place.cell(name))], place.harness, place.work / "grid", options)
            said = "done"
        except ValueError as error:
            said = str(error)
        left = (time.monotonic() - start) / (number + 1) * (len(names) - number - 1)
        print(f"[{number + 1}/{len(names)}] {name}: {said}; {left / 60:.0f} min left", flush=True)


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


def _routings(options: argparse.Namespace) -> list[str]:
    """The routings; `steer` by a table of the development pairs' sentences, which is made where there is none yet."""
    table = options.work / "steer.safetensors"
    if "steer" not in options.routings or (
        not table.is_file() and (options.tasks is None or options.command == "report")
    ):
        return [name for name in options.routings if name != "steer"]
    if not table.is_file():
        with gzip.open(options.tasks / "STSBenchmark" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
            sentences = [json.loads(line)["sentence1"] for line in lines]
        base = options.base or options.model
        model, tokenizer = load_language_model(base, dtype=options.dtype), load_tokenizer(base)
        steering_table(model, tokenizer, spread(sentences, _DOMAIN)).save(table)
    return [canonical(f"steer:table={table}") if name == "steer" else name for name in options.routings]


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
        rows=_wanted(rows(_routings(options), options.baselines), options.rows),
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
