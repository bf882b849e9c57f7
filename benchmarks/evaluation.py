"""What a table of all five methods costs, next to one method.

    python benchmarks/evaluation.py --shape small --output benchmarks/results/evaluation.md

One model evaluates one mteb task by `ssmoe_embed.evaluation.mteb.runner.evaluate`, in one process: `smoe` alone, all five
methods at once (four share a forward pass, `ssmoe` has its own), and the five one by one. They take turns within each
round, and the ratios are medians over rounds. The calibration is fitted beforehand, as `ssmoe build` does once for a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from encode import SHAPES, base_folder
from measuring import Result, machine

import ssmoe_embed
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.tasks.finding import find_tasks

METHODS = ["router", "smoe", "moee", "ev", "ssmoe"]
GOAL = 2.2
SMALL_SAMPLE = 64
"""Calibration texts: their number does not change what encoding costs."""


def loaded_model(shape: str, work: Path) -> EvaluatedModel:
    """A model with the calibration of all methods."""
    base = base_folder(shape, work)
    settings: dict[str, Any] = {"top_c": 0.05, "calibration": "none", "progress": False}
    module = ssmoe_embed.SSMoE.from_base(base, model_kwargs={"dtype": torch.float32}, **settings)
    module.settings = module.settings.changed(calibration="standardize")
    variants = [module.settings.changed(method=method) for method in METHODS]
    module.fit_calibration(calibration_texts()[:SMALL_SAMPLE], variants=variants, progress=False)
    return EvaluatedModel.of(EmbeddingModel(modules=[module], device="cpu"), f"ssmoe/{shape}")


def shortened(name: str, rows: int) -> Any:
    """A task with only the first rows of its data sets."""
    [task] = find_tasks([name])
    task.load_data()
    for split in task.dataset:
        task.dataset[split] = task.dataset[split].select(range(min(rows, len(task.dataset[split]))))
    return task


def cost(model: EvaluatedModel, task: Any, methods: list[str], batch_size: int) -> dict[str, float]:
    """Seconds on the wall and of the processor, and texts that went through the model."""
    options = EvaluationOptions(batch_size=batch_size, predictions=False, progress=False)
    with tempfile.TemporaryDirectory() as output:
        wall, cpu = time.perf_counter(), time.process_time()
        report = evaluate([model], [task], grid(methods), output, options=options)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "texts": report.texts_read}
    if report.failures or report.done != len(methods):
        raise RuntimeError(f"The evaluation failed: {report.failures}")
    return spent


def separate(model: EvaluatedModel, task: Any, batch_size: int) -> dict[str, float]:
    """The five methods one by one."""
    costs = [cost(model, task, [method], batch_size) for method in METHODS]
    return {key: sum(one[key] for one in costs) for key in costs[0]}


def measured(options: argparse.Namespace, work: Path) -> Result:
    """All rounds, as a table."""
    torch.set_num_threads(options.threads)
    model = loaded_model(options.shape, work)
    task = shortened(options.task, options.rows)
    systems: dict[str, Callable[[], dict[str, float]]] = {
        "one method (smoe)": lambda: cost(model, task, ["smoe"], options.batch_size),
        "five methods": lambda: cost(model, task, METHODS, options.batch_size),
        "five methods, one by one": lambda: separate(model, task, options.batch_size),
    }
    cost(model, task, ["smoe"], options.batch_size)  # warm up
    rounds = [{name: run() for name, run in systems.items()} for _ in range(options.rounds)]
    one = next(iter(systems))
    rows, data = [], {}
    for name in systems:
        ratios = {key: median(turn[name][key] / turn[one][key] for turn in rounds) for key in ("wall", "cpu")}
        seconds = median(turn[name]["wall"] for turn in rounds)
        texts = rounds[0][name]["texts"]
        data[name] = {"seconds": seconds, "texts": texts, **ratios}
        rows.append([name, f"{seconds:.1f}", f"{ratios['wall']:.2f}", f"{ratios['cpu']:.2f}", f"{texts:.0f}"])
    note = (
        f"{machine('torch', 'mteb')}; {options.threads} threads, float32, batches of {options.batch_size}; "
        f"{options.task}, {options.rows} rows; medians of {options.rounds} rounds. Goal: five at most {GOAL} times one."
    )
    header = ["what", "seconds", "time, one = 1", "CPU time, one = 1", "texts through the model"]
    return Result(f"Five methods, {options.shape} model", note, header, rows, data)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--task", default="WordNetSimilaritySTS")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        measured(options, Path(work)).show(options.output)


if __name__ == "__main__":
    main()
