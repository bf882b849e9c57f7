"""Running the grid through lm-evaluation-harness, cell by cell; what was measured before is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.language_model.dropped import Dropped, drop_experts, weight_bytes
from ssmoe_embed.language_model.dropping import DropBy, Limits
from ssmoe_embed.language_model.harness.cells import Cell
from ssmoe_embed.language_model.harness.names import find_tasks, load_tasks, metric_of
from ssmoe_embed.language_model.harness.results import GridFolder, TaskResult, TextResult
from ssmoe_embed.language_model.loading import load, load_tokenizer
from ssmoe_embed.language_model.overlap import expert_overlap
from ssmoe_embed.language_model.perplexity import perplexity
from ssmoe_embed.language_model.routings import Routing, RoutingSettings, policy_of, spectral_routers
from ssmoe_embed.language_model.texts import read_text
from ssmoe_embed.routing import RoutingPolicy, reroute
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class Options:
    """How a grid is measured.

    Attributes:
        keep: Fraction of the experts that stays in the cells that drop some.
        num_fewshot: Examples in each prompt; None for the task's own number.
        limit: Only the first examples of each task; None for all.
        settings: What the routings leave open.
        calibration: Text file on which experts are scored; by default the sample in the package.
        seed: Of random dropping.
        batch_size: Requests a forward pass.
        overlap_prompts: Prompts of each task on which the overlap of routings is measured; 0 for none.
        text: Text file whose perplexity is measured too, by windows of 1,024 tokens that move by 512.
        dtype: Dtype of the weights; by default the checkpoint's own.
        loading: For `load`: `device_map`, `revision`, …
        progress: Show progress bars.
    """

    keep: float = 0.75
    num_fewshot: int | None = None
    limit: int | None = None
    settings: RoutingSettings = field(default_factory=RoutingSettings)
    calibration: str | Path | None = None
    seed: int = 0
    batch_size: int = 8
    overlap_prompts: int = 16
    text: str | Path | None = None
    dtype: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    progress: bool = True

    def record(self, base: str | Path) -> dict[str, Any]:
        """What decides the scores, as JSON values; batches and devices do not."""
        return {
            "base": str(base),
            "revision": self.loading.get("revision"),
            "dtype": self.dtype,
            "keep": self.keep,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "settings": self.settings.as_dict(),
            "calibration": None if self.calibration is None else _digest(self.calibration),
            "seed": self.seed,
        }


def run_grid(
    base: str | Path,
    cells: Sequence[Cell],
    tasks: Sequence[str],
    output: str | Path,
    options: Options | None = None,
    *,
    on_cell: Callable[[Cell], None] | None = None,
) -> GridFolder:
    """Measure every cell on every task; the same call again goes on where it stopped.

    Args:
        base: Folder, hub id or recipe name of the language model.
        cells: Routings, with all experts or fewer.
        tasks: `paper`, `offline`, and names of the harness.
        output: Result folder.
        options: How to measure.
        on_cell: Told of each cell before it is measured.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        UnsupportedModelError: The model is dense, or cannot lose experts.
        ValueError: A setting or task is not known, a task needs a network that is not there, or the folder holds results of
            other settings. All of these come before a model is loaded.
    """
    options = options or Options()
    names = find_tasks(tasks)
    manager = load_tasks(names)
    folder = GridFolder(Path(output))
    folder.claim(options.record(base))
    runner = _Runner(base, manager, folder, options)
    for cell in cells:
        missing = [name for name in names if not folder.has(cell.name, name)]
        if missing or not runner.has_perplexity(cell):
            if on_cell is not None:
                on_cell(cell)
            runner.run(cell, missing)
    return folder


@dataclass(frozen=True)
class _Subject:
    """What is measured: the model of one cell."""

    cell: Cell
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    policy: RoutingPolicy | None


@dataclass(frozen=True)
class _Runner:
    """Measures cells of one grid."""

    base: str | Path
    manager: Any
    folder: GridFolder
    options: Options

    def run(self, cell: Cell, names: Sequence[str]) -> None:
        """Measure one cell on some tasks."""
        model = load(self.base, dtype=self.options.dtype, **self.options.loading)
        tokenizer = load_tokenizer(self.base, **self.options.loading)
        dropped = self._dropped(model, tokenizer, cell)
        routers = self._routers(model, cell.routing) if dropped is None else dropped.routers
        if dropped is not None and cell.routing is Routing.AVERAGE_EV:
            routers = None  # those at hand are not the average ones
        settings, progress = self.options.settings, self.options.progress
        policy = policy_of(cell.routing, model, settings, routers=routers, progress=progress)
        subject = _Subject(cell, model, tokenizer, policy)
        for name in names:
            outcome = self._evaluate(subject, name)
            self.folder.write(*_result(subject, name, outcome, self.options.overlap_prompts))
        if not self.has_perplexity(cell):
            self._perplexity(subject)

    def has_perplexity(self, cell: Cell) -> bool:
        """Whether nothing is left to do for the text."""
        text = self.options.text
        return text is None or self.folder.has_perplexity(cell.name, _digest(text))

    def _perplexity(self, subject: _Subject) -> None:
        """Measure the perplexity of the text."""
        file = self.options.text
        if file is None:
            return
        with reroute(subject.model, subject.policy) if subject.policy is not None else nullcontext():
            found = perplexity(subject.model, subject.tokenizer, read_text(file), progress=self.options.progress)
        result = TextResult(subject.cell.name, Path(file).name, _digest(file), **asdict(found))
        self.folder.write_perplexity(result)

    def _dropped(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cell: Cell) -> Dropped | None:
        """Let the model lose the experts that the cell does without."""
        options = self.options
        if cell.drop is None:
            return None
        Limits.of(model).kept(options.keep)  # before spectral routers are made
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

    def _routers(self, model: PreTrainedModel, routing: Routing) -> SpectralRouters | None:
        """The whole model's spectral routers, made once for all cells."""
        if routing not in (Routing.SSMOE, Routing.EV, Routing.AVERAGE_EV):
            return None
        kind = "average" if routing is Routing.AVERAGE_EV else "router"
        file = self.folder.path / f"routers_{kind}.safetensors"
        if not file.is_file():
            settings = self.options.settings.spectral(routing)
            spectral_routers(model, settings, progress=self.options.progress).save(file)
        return SpectralRouters.load(file)

    def _evaluate(self, subject: _Subject, name: str) -> dict[str, Any]:
        """What the harness says of the model under the policy on one task."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with reroute(subject.model, subject.policy) if subject.policy is not None else nullcontext():
            wrapped = HFLM(
                pretrained=subject.model,
                tokenizer=subject.tokenizer,
                batch_size=self.options.batch_size,
                softmax_dtype="float32",  # in bfloat16 many answers would be equally likely
            )
            outcome: dict[str, Any] = simple_evaluate(
                model=wrapped,
                tasks=[name],
                num_fewshot=self.options.num_fewshot,
                limit=self.options.limit,
                task_manager=self.manager,
                log_samples=True,
            )
        return outcome


def _result(
    subject: _Subject, name: str, outcome: dict[str, Any], overlap_prompts: int
) -> tuple[TaskResult, list[dict[str, Any]]]:
    """The score of one task, and its examples."""
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
    overlap = None
    if subject.policy is not None and overlap_prompts:
        prompts = [_prompt(s) for of_task in outcome["samples"].values() for s in of_task[:overlap_prompts]]
        overlap = asdict(expert_overlap(subject.model, subject.tokenizer, prompts, subject.policy))
    result = TaskResult(
        cell=subject.cell.name,
        task=name,
        metric=key,
        score=float(metrics[key]),
        stderr=float(stderr) if isinstance(stderr, int | float) else None,
        examples=len(samples),
        metrics={one: value for one, value in metrics.items() if isinstance(value, int | float)},
        weight_bytes=weight_bytes(subject.model),
        overlap=overlap,
        version=version("lm_eval"),
    )
    return result, samples


def _example(task: str, sample: dict[str, Any], metric: str) -> dict[str, Any]:
    """What is kept of one example: which it was, what was answered, and whether that was right."""
    kept = {name: sample[name] for name in ("doc_id", "doc_hash", "prompt_hash", "target", "filtered_resps")}
    return {"task": task, "score": float(sample[metric])} | {name: _plain(value) for name, value in kept.items()}


def _prompt(sample: dict[str, Any]) -> str:
    """What the model reads first of an example: the prompt, and an answer if it is given one."""
    return "".join(part for part in sample["arguments"][0] if isinstance(part, str))


def _digest(file: str | Path) -> str:
    """A short name of a text file's content."""
    return sha256(read_text(file).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
