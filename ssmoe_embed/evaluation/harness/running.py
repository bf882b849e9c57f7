"""Running the grid through lm-evaluation-harness, cell by cell; what was measured before is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.evaluation.harness.grid import (
    GridCell,
    GridOptions,
    LoadedTasks,
    check_grid,
    find_tasks,
    load_tasks,
    metric_of,
)
from ssmoe_embed.evaluation.harness.results import GridFolder, TaskResult, TextResult
from ssmoe_embed.evaluation.tasks.local_data import harness_data
from ssmoe_embed.language_model.dropped import Dropped, drop_experts
from ssmoe_embed.language_model.dropping import DropBy
from ssmoe_embed.language_model.loading import Routing, load, load_tokenizer, policy_of, spectral_routers
from ssmoe_embed.language_model.measures import expert_overlap, perplexity, read_text, text_digest
from ssmoe_embed.routing import reroute
from ssmoe_embed.routing.experts import DecidesAtExperts
from ssmoe_embed.spectral.routers import SpectralRouters


def run_grid(
    base: str | Path,
    cells: Sequence[GridCell],
    tasks: Sequence[str],
    output: str | Path,
    options: GridOptions | None = None,
    *,
    on_cell: Callable[[GridCell], None] | None = None,
) -> GridFolder:
    """Measure every cell on every task; the same call again goes on where it stopped.

    Args:
        base: Folder, hub id or recipe name of the language model.
        cells: Routings, with all experts or fewer.
        tasks: `paper`, `offline`, and names of the harness; none for the perplexity of the options' text alone.
        output: Result folder.
        options: How to measure.
        on_cell: Told of each cell before it is measured.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        FileNotFoundError: A text file is missing.
        UnsupportedModelError: The model is dense, or cannot lose experts.
        ValueError: A setting or task is not known, a task needs a network that is not there, a text is too short, or the
            folder holds results of other settings. Like those above, this is found before any weights are read.
    """
    options = options or GridOptions()
    names = [] if options.text is not None and not tasks else find_tasks(tasks)
    tasks_there = load_tasks(names, options.num_fewshot, options.data)
    check_grid(base, cells, options)
    folder = GridFolder(Path(output))
    folder.claim(options.record(base))
    folder.check_data(tasks_there.revisions)
    runner = _Runner(base, tasks_there, folder, options)
    digest = None if options.text is None else text_digest(options.text)
    for cell in cells:
        missing = [name for name in names if not folder.has(cell.name, name)]
        text = None if digest is None or folder.has_perplexity(cell.name, digest) else options.text
        if missing or text is not None:
            if on_cell is not None:
                on_cell(cell)
            runner.run(cell, missing, text)
    return folder


@dataclass(frozen=True)
class _Runner:
    """Measures cells of one grid."""

    base: str | Path
    tasks: LoadedTasks
    folder: GridFolder
    options: GridOptions

    def run(self, cell: GridCell, names: Sequence[str], text: str | Path | None) -> None:
        """Measure one cell on some tasks, and its perplexity on a text if there is one."""
        options, progress = self.options, self.options.progress
        model = load(self.base, dtype=options.dtype, progress=progress, **options.loading)
        tokenizer = load_tokenizer(self.base, HubOptions.among(options.loading))
        dropped = self._dropped(model, tokenizer, cell)
        routers = self._routers(model, cell.routing) if dropped is None else dropped.routers
        if dropped is not None and cell.routing == Routing.AVERAGE_EV:
            routers = None  # those at hand are not the average ones
        policy = policy_of(cell.routing, model, options.settings, routers=routers, progress=progress)
        for name in names:
            with reroute(model, policy):
                outcome = harness_outcome(model, tokenizer, name, self.tasks, options)
            overlap = None
            if policy is not None and options.overlap_prompts and not isinstance(policy, DecidesAtExperts):
                read = [
                    sample for of_task in outcome["samples"].values() for sample in of_task[: options.overlap_prompts]
                ]
                overlap = asdict(expert_overlap(model, tokenizer, [_prompt(sample) for sample in read], policy))
            self._keep(cell, name, outcome, model.get_memory_footprint(return_buffers=False), overlap)
        if text is not None:
            with reroute(model, policy):
                found = perplexity(model, tokenizer, read_text(text), progress=progress)
            self.folder.write_perplexity(TextResult(cell.name, Path(text).name, text_digest(text), **asdict(found)))

    def _keep(
        self, cell: GridCell, name: str, outcome: dict[str, Any], weight_bytes: int, overlap: dict[str, Any] | None
    ) -> None:
        """Write the score of one task, and its examples."""
        metrics = outcome.get("groups", {}).get(name) or outcome["results"][name]
        key = metric_of(name, list(metrics))
        metric, _, answer_filter = key.partition(",")
        stderr = metrics.get(f"{metric}_stderr,{answer_filter}")
        samples = [
            _example(task, sample, metric)
            for task, of_task in outcome["samples"].items()
            for sample in of_task
            if sample["filter"] == answer_filter
        ]
        result = TaskResult(
            cell=cell.name,
            task=name,
            metric=key,
            score=float(metrics[key]),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            examples=len(samples),
            metrics={one: value for one, value in metrics.items() if isinstance(value, int | float)},
            weight_bytes=weight_bytes,
            overlap=overlap,
            version=version("lm_eval"),
            data=self.tasks.revisions[name],
        )
        self.folder.write(result, samples)

    def _dropped(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cell: GridCell) -> Dropped | None:
        """Let the model lose the experts that the cell does without."""
        options = self.options
        if cell.drop is None:
            return None
        spectral = cell.routing in (Routing.SSMOE, Routing.EV) or cell.drop is DropBy.SSMOE
        return drop_experts(
            model,
            options.keep,
            cell.drop,
            tokenizer=tokenizer,
            calibration=None if options.calibration is None else read_text(options.calibration),
            settings=options.settings,
            routers=self._routers(model, Routing.SSMOE) if spectral else None,
            seed=options.seed,
            with_routers=spectral,
            progress=options.progress,
        )

    def _routers(self, model: PreTrainedModel, routing: str) -> SpectralRouters | None:
        """The whole model's spectral routers, made once for all cells."""
        if routing not in (Routing.SSMOE, Routing.EV, Routing.AVERAGE_EV):
            return None
        kind = "average" if routing == Routing.AVERAGE_EV else "router"
        file = self.folder.path / f"routers_{kind}.safetensors"
        if not file.is_file():
            settings = self.options.settings.spectral(Routing(routing))
            spectral_routers(model, settings, progress=self.options.progress).save(file)
        return SpectralRouters.load(file)


def harness_outcome(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, tasks: LoadedTasks, options: GridOptions
) -> dict[str, Any]:
    """What the harness says of a model in memory on one task.

    Args:
        model: The model, under whatever routing it has.
        tokenizer: Its tokenizer.
        name: The task.
        tasks: Where it was loaded.
        options: Batch size, few-shot examples and limit.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=options.batch_size,
        softmax_dtype="float32",  # in bfloat16 many answers would be equally likely
    )
    if not options.progress:  # the harness shows bars unless each request says otherwise
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(found, kind, partial(getattr(found, kind), disable_tqdm=True))
    with _without_git(), harness_data(options.data, name):
        outcome: dict[str, Any] = simple_evaluate(
            model=found,
            tasks=[name],
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=tasks.manager,
            log_samples=True,
        )
    return outcome


def _example(task: str, sample: dict[str, Any], metric: str) -> dict[str, Any]:
    """What is kept of one example: which it was, what was answered, and whether that was right."""
    kept = {name: sample[name] for name in ("doc_id", "doc_hash", "prompt_hash", "target", "filtered_resps")}
    return {"task": task, "score": float(sample[metric])} | {name: _plain(value) for name, value in kept.items()}


def _prompt(sample: dict[str, Any]) -> str:
    """What the model reads first of an example: the prompt, and an answer if it is given one."""
    return "".join(part for part in sample["arguments"][0] if isinstance(part, str))


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@contextmanager
def _without_git() -> Iterator[None]:
    """Keep the harness from asking git where it runs: nothing reads the answer, and git complains outside a repository."""
    from lm_eval import evaluator

    before = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = before
