"""Measures the method on a real pretrained language model and on real tasks; interrupted, the same command goes on.

    python benchmarks/real.py measure --moe FOLDER --dense FOLDER --tasks FOLDER --work FOLDER
    python benchmarks/real.py report --work FOLDER --tasks FOLDER --output benchmarks/results/real.md

The model is what examples/split_dense makes of a dense one; `--dense` the same with all experts and equal weights, which is
the dense model. The tasks' data are what `real_data.py tasks` writes. Settings are chosen on every fifth of STSBenchmark's
development pairs and used everywhere else unchanged. Stages run in the order of their weight; `--stages` names some of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mteb
import torch
from mteb.abstasks import AbsTask
from real_report import ABLATIONS, EMBEDDING, EVERY, INSPECTION, REASONED, THINNED, VARIED, development_task, report

from ssmoe_embed.common.files import atomic_file, write_files
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore, read_json
from ssmoe_embed.evaluation.sweep.running import Axis, sweep
from ssmoe_embed.evaluation.tasks.corruption import CLEAN, Corruption
from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local
from ssmoe_embed.hub.models import build, load

FIRST = ("BIOSSES", "STSBenchmark")
OTHERS = ("EmotionClassification", "STS12", "STS15", "SICK-R", "STS14")
BASELINES = ("tfidf-words", "minilm")
REASONING = ("openbookqa", "winogrande", "piqa", "arc_easy", "arc_challenge", "boolq", "hellaswag")
"""Shortest texts first, so that an interrupted measurement has most of them."""
TOP_C = 0.05
LAYERS = (-2, -4, -8)
"""Hidden layers that are tried beside the last."""
RATES = {"replace": (0.2, 0.4, 0.6, 0.8, 1.0), "insert": (0.2, 0.4, 0.6, 0.8, 1.0)}
"""Rates of `AAA` that are tried on development data."""
KEPT = 0.08
"""What the paper's corruption leaves of OLMoE-7B's hidden state on similarity tasks (table 2: 1.9 of 24.1)."""
VARIANTS = ("random", "permuted", "bottom", "average", "mean-rows", "flat-router", "weights-only", "choice-only")
"""What the spectral router is compared with, beside the model's own."""
_CALIBRATION = (300, 120)
"""Texts that features are standardised on, and the characters of the longest."""


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Attributes:
        moe: Checkpoint of the mixture of experts.
        dense: The same with all experts, equally weighed.
        tasks: Folder of the tasks' data.
        work: What is measured, and what is made for it.
        dtype: Of the models' weights.
    """

    moe: Path
    dense: Path
    tasks: Path
    work: Path
    dtype: str = "bfloat16"

    @property
    def model(self) -> Path:
        """The embedding model made of the mixture of experts."""
        return self.work / "models" / "moe"

    @property
    def whole(self) -> Path:
        """The embedding model made of the dense one."""
        return self.work / "models" / "dense"

    @property
    def results(self) -> Path:
        """Results on test data."""
        return self.work / EMBEDDING

    def chosen(self) -> dict[str, dict[str, Any]]:
        """Settings by method that were best on development data."""
        return read_json(self.work / "settings.json")

    def tasks_of(self, names: Iterable[str]) -> list[AbsTask]:
        """Tasks of mteb on the local data."""
        return [use_local(mteb.get_task(name), LocalData(self.tasks)) for name in names]


def models(place: Place) -> None:
    """Make the embedding models, calibrated on some of the package's short texts."""
    count, longest = _CALIBRATION
    sample = [text for text in calibration_texts() if len(text) <= longest][:count]
    if not place.model.is_dir():
        build(
            place.moe,
            place.model,
            prompts=["none"],
            calibration_texts=sample,
            top_c=TOP_C,
            prompt="prompteol",
            method="smoe",
        )
    if not place.whole.is_dir():
        module = SSMoE.from_base(place.dense, calibration_texts=sample, method="smoe", prompt="prompteol")
        EmbeddingModel(modules=[module]).save_pretrained(str(place.whole))


def thinned(place: Place, split: str) -> None:
    """Write every fifth pair of a split of STSBenchmark."""
    thin = place.work / THINNED[split] / f"STSBenchmark.{split}.jsonl.gz"
    if not thin.is_file():
        with gzip.open(place.tasks / "STSBenchmark" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            kept = [line for number, line in enumerate(lines) if number % EVERY == 0]
        with atomic_file(thin) as file:
            file.write(gzip.compress("".join(kept).encode(), mtime=0))


def development(place: Place) -> None:
    """Choose calibration, combination and weight on development pairs."""
    thinned(place, "validation")
    task = development_task(place.work)
    measured(place, place.model, [task], candidates(), place.work / "dev")
    best: dict[str, TaskScore] = {}
    for score in (one for one in ResultFolder(place.work / "dev").scores() if one.corruption == CLEAN):
        if score.method not in best or score.score > best[score.method].score:
            best[score.method] = score
    chosen = {
        method: {key: score.settings[key] for key in VARIED if key in score.settings} for method, score in best.items()
    }
    write_files(place.work, {"settings.json": json.dumps(chosen, indent=1, sort_keys=True) + "\n"})


_INSPECTED = 120
"""Texts that are read for it."""


def candidates() -> list[Run]:
    """What is tried on development data."""
    found = []
    for method in ("smoe", "router", "ev", "ssmoe-hidden"):
        found += [Run(method, "prompteol", None, {"calibration": one}) for one in ("standardize", "none")]
    for method in ("moee", "ssmoe"):
        found += [Run(method, "prompteol", None, {"calibration": one}) for one in ("standardize", "none")]
        found += [
            Run(method, "prompteol", None, {"combination": "sum", "routing_weight": weight})
            for weight in (0.25, 0.5, 1.0)
        ]
    plain = {"calibration": "none"}  # or each would be calibrated anew
    for alpha in (0.25, 0.75, 1.0):
        found += [Run(method, "prompteol", None, {"alpha": alpha} | plain) for method in ("ssmoe-hidden", "ssmoe")]
    return found + [Run("smoe", "prompteol", None, {"hidden_layer": layer} | plain) for layer in LAYERS]


def runs(place: Place, prompt: str, corruption: str | None = None) -> list[Run]:
    """All methods under the settings that were chosen; `moee` also under the other combination."""
    chosen = place.chosen()
    corrupted = None if corruption is None else Corruption.parse(corruption)
    found = [Run(method, prompt, corrupted, settings) for method, settings in chosen.items()]
    other = (
        {"combination": "sum"} if chosen["moee"].get("combination", "concat") == "concat" else {"combination": "concat"}
    )
    return [*found, Run("moee", prompt, corrupted, other)]


def eigenvectors(place: Place) -> None:
    """How the share of the eigenvectors counts, on development pairs."""
    thinned(place, "validation")
    fixed = {"method": "ssmoe", "prompt": "prompteol", "calibration": "none"}
    shares = Axis.of_texts("top_c", ("0.01", "0.2", "1.0"))
    found = sweep(
        place.model,
        [shares],
        [development_task(place.work)],
        place.work / "dev",
        settings=fixed,
        options=OPTIONS,
        model_kwargs={"dtype": place.dtype},
    )
    _raise(found.failures)


def first_tasks(place: Place) -> None:
    """Two tasks under PromptEOL, and what they are compared with."""
    measured(place, place.model, place.tasks_of(FIRST), runs(place, "prompteol"), place.results)


def comparisons(place: Place) -> None:
    """What these are compared with: the dense model's hidden state, and encoders that are no language models."""
    beside(place, FIRST, "prompteol")


def beside(place: Place, names: Sequence[str], prompt: str, corruption: str | None = None) -> None:
    """Measure the dense model's hidden state and the baselines on some tasks."""
    corrupted = None if corruption is None else Corruption.parse(corruption)
    tasks = place.tasks_of(names)
    measured(place, place.whole, tasks, [Run("smoe", prompt, corrupted, place.chosen()["smoe"])], place.results)
    _raise(
        evaluate([], tasks, [Run(corruption=corrupted)], place.results, baselines=BASELINES, options=OPTIONS).failures
    )


def other_tasks(place: Place) -> None:
    """The other tasks under PromptEOL."""
    for name in OTHERS:
        measured(place, place.model, place.tasks_of([name]), runs(place, "prompteol"), place.results)
        beside(place, [name], "prompteol")


def rates(place: Place) -> None:
    """How much AAA costs the hidden state on development pairs."""
    names = [f"{operation}@{rate}" for operation, some in RATES.items() for rate in some]
    wanted = [Run("smoe", "prompteol", Corruption.parse(name), {"calibration": "standardize"}) for name in names]
    measured(place, place.model, [development_task(place.work)], wanted, place.work / "dev")


def chosen_rates(place: Place) -> list[str]:
    """For each operation the rate whose drop on development pairs is most like the paper's."""
    dev = [one for one in ResultFolder(place.work / "dev").scores() if one.method == "smoe"]
    clean = max(one.score for one in dev if one.corruption == CLEAN and "calibration" not in one.settings)
    found = {one.corruption: one.score / clean for one in dev if one.corruption != CLEAN}
    return [
        min((name for name in found if name.startswith(operation)), key=lambda name: abs(found[name] - KEPT))
        for operation in RATES
    ]


def corrupted_texts(place: Place) -> None:
    """The first tasks with AAA put in, by both operations."""
    for name in chosen_rates(place):
        measured(place, place.model, place.tasks_of(FIRST), runs(place, "prompteol", name), place.results)
        beside(place, FIRST, "prompteol", name)


def without_prompt(place: Place) -> None:
    """The first tasks without PromptEOL, and what the paper's release computes."""
    measured(place, place.model, place.tasks_of(FIRST), [*runs(place, "none"), Run("paper")], place.results)


def reasoning(place: Place) -> None:
    """The grid of routings on 500 examples of each of seven reasoning tasks, without examples in the prompt."""
    from ssmoe_embed.evaluation.harness.grid import GRID, GridCell, GridOptions
    from ssmoe_embed.evaluation.harness.running import run_grid
    from ssmoe_embed.language_model import RoutingSettings

    text = place.work / "heldout.txt"
    options = GridOptions(
        num_fewshot=0,
        limit=500,
        settings=RoutingSettings(alpha=0.5, top_c=TOP_C),
        text=text if text.is_file() else None,
        data=LocalData(place.tasks),
    )
    for task in REASONING:
        run_grid(place.moe, [*GRID, GridCell.parse("ev")], [task], place.work / REASONED, options)


def inspection(place: Place) -> None:
    """What `ssmoe inspect` says of routers and experts."""
    from ssmoe_embed.evaluation.inspection.inspection import InspectionOptions, inspect_model
    from ssmoe_embed.evaluation.texts import shipped_sample

    if not (place.work / INSPECTION).is_file():
        model = load(place.model, calibration="none")
        found = inspect_model("moe", model, shipped_sample(_INSPECTED), InspectionOptions(clusters=4, progress=True))
        write_files(place.work, {INSPECTION: json.dumps(found.as_dict(), indent=1) + "\n"})


def ablation(place: Place) -> None:
    """The method taken apart: perplexity, choice of experts, and every fifth of STSBenchmark's test pairs.

    Of the dense model the perplexity of the same texts, which is what leaving experts out costs there.
    """
    from ssmoe_embed.evaluation.ablation.report import write_report
    from ssmoe_embed.evaluation.ablation.running import AblationOptions, ablate
    from ssmoe_embed.evaluation.ablation.variants import find_variants
    from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
    from ssmoe_embed.evaluation.texts import corpora

    thinned(place, "test")
    task, texts = development_task(place.work, "test"), corpora(None, None, 60)
    options = AblationOptions(
        alphas=(0.5, 1.0), seeds=2, task_seeds=1, tasks=(task,), calibration_texts=128, progress=True
    )
    for name, folder, variants, asked in (
        ("moe", place.model, VARIANTS, options),
        ("dense", place.whole, ("ev",), replace(options, alphas=(1.0,), tasks=())),
    ):
        model = EvaluatedModel.load(str(folder), model_kwargs={"dtype": place.dtype})
        output = place.work / ABLATIONS[name]
        found = ablate(name, model, find_variants(list(variants)), texts, output, options=asked)
        write_report(found, output)
        _raise(found.notes)


STAGES: dict[str, Callable[[Place], None]] = {
    "models": models,
    "dev": development,
    "eigenvectors": eigenvectors,
    "first": first_tasks,
    "beside": comparisons,
    "others": other_tasks,
    "none": without_prompt,
    "rates": rates,
    "corrupted": corrupted_texts,
    "inspect": inspection,
    "ablation": ablation,
    "reasoning": reasoning,
}
OPTIONS = EvaluationOptions(batch_size=32, predictions=True)


def measured(place: Place, model: Path, tasks: Sequence[AbsTask], wanted: Sequence[Run], folder: Path) -> None:
    """Measure runs of a model; what is in the folder is kept."""
    _raise(evaluate([model], tasks, wanted, folder, options=OPTIONS, model_kwargs={"dtype": place.dtype}).failures)


def _raise(failures: Sequence[Any]) -> None:
    if failures:
        raise SystemExit("\n".join(map(str, failures)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "report"])
    parser.add_argument("--moe", type=Path, default=Path("build/real/moe"), help="the mixture of experts")
    parser.add_argument("--dense", type=Path, default=Path("build/real/moe-all"), help="the same with all experts")
    parser.add_argument("--tasks", type=Path, default=Path("build/real/tasks"), help="the tasks' data")
    parser.add_argument("--work", type=Path, default=Path("build/real/measured"), help="results")
    parser.add_argument(
        "--split",
        type=Path,
        nargs="*",
        default=[],
        help="what examples/split_dense measured (.json), for the report; then of other divisions",
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--dtype", default="bfloat16", help="of the models' weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    place = Place(options.moe, options.dense, options.tasks, options.work, options.dtype)
    torch.set_num_threads(options.threads)
    if options.command == "measure":
        for name in options.stages:
            print(f"{name} …", flush=True)
            STAGES[name](place)
        return
    text = report(place.work, place.tasks_of, options.split).markdown()
    print(text, end="")
    if options.output:
        files = {options.output.name: text}
        for name, folder in ABLATIONS.items():
            if (apart := place.work / folder / "ablation.md").is_file():
                files[f"ablation_real_{name}.md"] = apart.read_text(encoding="utf-8")
        write_files(options.output.parent, files)


if __name__ == "__main__":
    main()
