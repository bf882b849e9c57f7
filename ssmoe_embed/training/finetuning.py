"""Supervised fine-tuning of a mixture of experts under a routing; what comes out is an ordinary checkpoint.

Source: SSMoE, table 8, https://arxiv.org/abs/2605.30992: OLMoE-7B on Alpaca's data with GaLore, 2,000 steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.files import atomic_folder, write_files
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.language_model.loading import (
    ROUTERS_FILE,
    Routing,
    base_of,
    load,
    load_tokenizer,
    skeleton,
    spectral_routers,
)
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.training.data import as_trl, check_lengths, data_digest, read_examples
from ssmoe_embed.training.galore import GaLoreAdamW, galore_groups
from ssmoe_embed.training.reparametrization import Decoupling, HyperRouters, decouple
from ssmoe_embed.training.settings import FinetuneSettings, OptimizerName
from ssmoe_embed.training.trainer import as_lines, claimed, last_checkpoint, read_lines, step_of

RECORD = "ssmoe_finetune.json"
LOG = "training_log.jsonl"
_EVALUATIONS = "evaluations.jsonl"
_ROUTERS = "routers-{step}.safetensors"


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning made.

    Attributes:
        output: Folder of the trained model.
        steps: Optimizer steps that were made, those before an interruption included.
        log: What the trainer logged: `step` with `loss`, `learning_rate`, …
        evaluations: For each evaluation its `step` and a score for each task.
    """

    output: Path
    steps: int
    log: tuple[dict[str, Any], ...]
    evaluations: tuple[dict[str, Any], ...] = ()


def finetune(
    base: str | Path,
    data: str | Path,
    output: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
    **kwargs: Any,
) -> Finetuned:
    """Fine-tune a language model under a routing.

    Checkpoints lie in `OUTPUT.checkpoints` until the output is written; the same call again goes on from the last one, also
    after `kill -9` or a full disk.

    Args:
        base: Folder, hub id or recipe name of the language model.
        data: Examples as JSON lines, see `read_examples`.
        output: Folder to make: a normal transformers checkpoint, the spectral routers beside it, and the log.
        settings: Everything else.
        overwrite: Replace the output folder.
        progress: Show progress bars.
        **kwargs: See `ssmoe_embed.language_model.load`.

    Raises:
        BlockingIOError: Another process is training into the same output.
        FileExistsError: The output exists and `overwrite` is false.
        FileNotFoundError: There is no such model or data file.
        ImportError: trl or peft is not installed.
        UnsupportedModelError: The model is dense, or its experts cannot be decoupled.
        ValueError: The data, or a setting, does not fit; or there are checkpoints of another run. All of these come before
            the first step.
    """
    require_package("trl", "ssmoe-embed[train]")
    settings = settings or FinetuneSettings()
    output, hub = Path(output).expanduser(), HubOptions.among(kwargs)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already; choose another output or pass overwrite=True (--overwrite).")
    examples = read_examples(data, settings.template)
    outline, tokenizer = skeleton(base, hub), load_tokenizer(base, hub)
    tokenizer.padding_side = "right"
    check_lengths(examples, tokenizer, outline.config.get_text_config(), settings.max_length, data)
    evaluation = _Evaluation(settings, tokenizer, progress=progress) if settings.eval_every else None
    work = output.with_name(f"{output.name}.checkpoints")
    with _bars(progress), claimed(work, {"base": str(base), "data": data_digest(data), "settings": settings.as_dict()}):
        model = load(base, dtype=settings.dtype, progress=progress, **kwargs).requires_grad_(True)
        run = _Run(model, tokenizer, settings, work, evaluation, progress=progress)
        log, evaluations = run.train(examples), read_lines(work / _EVALUATIONS)
        record: dict[str, Any] = {
            "base_model": base_of(base) if not Path(base_of(base)).is_dir() else str(base),
            "data": Path(data).name,
            "data_digest": data_digest(data),
            "settings": settings.as_dict(),
            "steps": run.steps,
            "ssmoe_embed": __version__,
        }
        with atomic_folder(output, overwrite=overwrite) as folder:
            run.save(folder)
            write_files(folder, {RECORD: json.dumps(record, indent=2) + "\n", LOG: as_lines(log)})
            if evaluations:
                write_files(folder, {_EVALUATIONS: as_lines(evaluations)})
    return Finetuned(output, run.steps, tuple(log), tuple(evaluations))


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """Leave the bars of transformers and datasets as they are, or hide them."""
    import datasets

    hidden = not wanted and not datasets.are_progress_bars_disabled()
    if hidden:
        datasets.disable_progress_bars()
    try:
        with loading_bar(wanted):
            yield
    finally:
        if hidden:
            datasets.enable_progress_bars()


class _Run:
    """One model that is trained."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: FinetuneSettings,
        work: Path,
        evaluation: _Evaluation | None,
        *,
        progress: bool,
    ) -> None:
        from ssmoe_embed.training.trainer import TrainedRouting

        self.model, self.tokenizer, self.settings, self.work = model, tokenizer, settings, work
        self.evaluation, self.progress, self.steps = evaluation, progress, 0
        spectral = settings.routing in (Routing.SSMOE, Routing.EV, Routing.AVERAGE_EV)
        wanted = settings.routing_settings.spectral(settings.routing)
        routers = spectral_routers(model, wanted, progress=progress) if spectral else None
        self.decoupling: Decoupling | None = None
        if settings.decouple is not None:
            self.decoupling = decouple(model, settings.decouple)
        self.hyper = None if settings.train_router is None else HyperRouters(model, seed=settings.seed)
        self.optimizer = self._optimizer()
        self.routing = TrainedRouting(model, settings, routers)

    def train(self, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Train to the end, from the last checkpoint if there is one; returns the trainer's log."""
        from datasets import Dataset
        from transformers import PrinterCallback

        from ssmoe_embed.training.trainer import EverySteps, RoutedTrainer, lora_adapters, sft_arguments

        trainer = RoutedTrainer(
            self.model,
            args=sft_arguments(self.settings, self.work, progress=self.progress),
            train_dataset=Dataset.from_list([as_trl(example) for example in examples]),
            processing_class=self.tokenizer,
            optimizers=(self.optimizer, None),
            peft_config=lora_adapters(self.model, self.settings)
            if self.settings.optimizer is OptimizerName.LORA
            else None,
        )
        if not self.progress:
            trainer.remove_callback(PrinterCallback)
        trainer.balance, trainer.similarity = self.settings.balance, self.settings.similarity
        trainer.top_k = int(getattr(self.model.config.get_text_config(), "num_experts_per_tok", 1) or 1)
        trainer.add_callback(EverySteps(*self._calls()))
        checkpoint = last_checkpoint(self.work)
        if checkpoint is not None:
            self._go_on_with_routers(step_of(checkpoint))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.steps, self.model = trainer.state.global_step, trainer.model
        return [row for row in trainer.state.log_history if "step" in row]

    def _calls(self) -> Iterator[tuple[int, Callable[[int], None]]]:
        """What is done on the way, each with the steps between."""
        if self.settings.refresh_routers:
            yield self.settings.refresh_routers, self._refresh
        decoupling = self.decoupling
        if decoupling is not None and self.settings.decouple is not None:
            yield self.settings.decouple.refresh_every, lambda step: decoupling.refresh() if step else None
        if self.evaluation is not None:
            yield self.settings.eval_every, self.evaluation.of(self.model, self.work / _EVALUATIONS)

    def save(self, folder: Path) -> None:
        """Write the trained model, as one that was never anything but ordinary."""
        routers = None
        if self.decoupling is not None:
            self.decoupling.merge()
        if self.hyper is not None:
            self.hyper.merge()
        if self.settings.optimizer is OptimizerName.LORA:
            self.model = self.model.merge_and_unload()
        self.routing.model = self.model
        routers = self.routing.trained_routers()
        self.routing.remove()
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if routers is not None:
            routers.save(folder / ROUTERS_FILE)

    def _refresh(self, step: int) -> None:
        """Make the spectral routers anew, and keep them for a run that goes on from here."""
        routers = self.routing.refresh() if step else None
        if routers is not None:
            routers.save(self.work / _ROUTERS.format(step=step))

    def _go_on_with_routers(self, step: int) -> None:
        """Take the spectral routers that were in use at a step."""
        made = {step_of(file): file for file in self.work.glob(_ROUTERS.format(step="*"))}
        if any(one <= step for one in made):
            self.routing.use(SpectralRouters.load(made[max(one for one in made if one <= step)]))

    def _optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer that the trainer does not make itself."""
        settings = self.settings
        if settings.optimizer is OptimizerName.GALORE:
            groups = galore_groups(self.model, settings.galore, weight_decay=settings.weight_decay)
            optimizer = GaLoreAdamW(groups, lr=settings.learning_rate)
            if settings.layerwise:
                optimizer.update_as_gradients_arrive()
            return optimizer
        if settings.optimizer is OptimizerName.ADAMW_8BIT and not torch.cuda.is_available():
            raise ValueError(
                "optimizer='adamw-8bit' keeps its moments in pages of a GPU, and this machine has none; choose 'galore', "
                "which needs little memory anywhere, or 'adamw'."
            )
        return None


class _Evaluation:
    """Measures a model on tasks of the harness while it is trained."""

    def __init__(self, settings: FinetuneSettings, tokenizer: PreTrainedTokenizerBase, *, progress: bool) -> None:
        from ssmoe_embed.evaluation.harness.grid import GridOptions, find_tasks, load_tasks

        self.names = find_tasks(settings.eval_tasks)
        self.tasks = load_tasks(self.names)
        self.options = GridOptions(limit=settings.eval_limit, batch_size=settings.batch_size, progress=progress)
        self.tokenizer = tokenizer

    def of(self, model: PreTrainedModel, file: Path) -> Any:
        """What measures the model at a step and adds a line to a file."""
        from ssmoe_embed.evaluation.harness.grid import metric_of
        from ssmoe_embed.evaluation.harness.running import harness_outcome

        def measure(step: int) -> None:
            rows = read_lines(file)
            if any(row["step"] == step for row in rows):
                return
            training, scores = model.training, {}
            model.eval()
            for name in self.names:
                outcome = harness_outcome(model, self.tokenizer, name, self.tasks, self.options)
                metrics = outcome.get("groups", {}).get(name) or outcome["results"][name]
                scores[name] = float(metrics[metric_of(name, list(metrics))])
            model.train(training)
            write_files(file.parent, {file.name: as_lines([*rows, {"step": step, **scores}])})

        return measure
