"""Supervised fine-tuning of a mixture of experts under a routing; what comes out is an ordinary checkpoint.

Source: SSMoE, table 8, https://arxiv.org/abs/2605.30992: OLMoE-7B on Alpaca's data with GaLore, 2,000 steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.files import atomic_folder, write_files
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model.loading import (
    ROUTERS_FILE,
    base_of,
    load,
    load_tokenizer,
    policy_of,
    skeleton,
    spectral_routers,
)
from ssmoe_embed.routing import Rerouting, reroute
from ssmoe_embed.routing.sites import install_sites
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.training.reparametrization import HyperRouters, decouple
from ssmoe_embed.training.settings import FinetuneSettings, OptimizerName, as_trl, check_lengths, read_examples

RECORD = "ssmoe_finetune.json"
LOG = "training_log.jsonl"
_EVALUATIONS = "evaluations.jsonl"
_ROUTERS = "routers-{step}.safetensors"
_RUN, _LOCK = "run.json", "lock"


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
    work = output.with_name(f"{output.name}.checkpoints")
    evaluate = _evaluation(settings, tokenizer, work / _EVALUATIONS, progress=progress) if settings.eval_every else None
    digest = sha256(Path(data).expanduser().read_bytes()).hexdigest()[:16]
    with _bars(progress), _claimed(work, {"base": str(base), "data": digest, "settings": settings.as_dict()}):
        model = load(base, dtype=settings.dtype, progress=progress, **kwargs).requires_grad_(True)
        run = _Run(model, tokenizer, settings, work, progress)
        log, evaluations = run.train(examples, evaluate), _read_lines(work / _EVALUATIONS)
        record: dict[str, Any] = {
            "base_model": base_of(base) if not Path(base_of(base)).is_dir() else str(base),
            "data": Path(data).name,
            "data_digest": digest,
            "settings": settings.as_dict(),
            "steps": run.steps,
            "ssmoe_embed": __version__,
        }
        with atomic_folder(output, overwrite=overwrite) as folder:
            run.save(folder)
            write_files(folder, {RECORD: json.dumps(record, indent=2) + "\n", LOG: _as_lines(log)})
            if evaluations:
                write_files(folder, {_EVALUATIONS: _as_lines(evaluations)})
    return Finetuned(output, run.steps, tuple(log), tuple(evaluations))


@dataclass
class _Run:
    """One model that is trained, under a routing that changes with the model where it is to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: FinetuneSettings
    work: Path
    progress: bool
    steps: int = 0
    rerouting: Rerouting | None = None

    def __post_init__(self) -> None:
        model, settings = self.model, self.settings
        wanted = settings.routing_settings.spectral(settings.routing)
        has_routers = settings.uses_spectral_routers
        routers = spectral_routers(model, wanted, progress=self.progress) if has_routers else None
        self.decoupling = None if settings.decouple is None else decouple(model, settings.decouple)
        self.hyper = None if settings.train_router is None else HyperRouters(model, seed=settings.seed)
        install_sites(model, family_of(model))
        self._route_by(routers)

    def train(
        self, examples: Sequence[dict[str, Any]], evaluate: Callable[[PreTrainedModel, int], None] | None
    ) -> list[dict[str, Any]]:
        """Train to the end, from the last checkpoint if there is one; returns the trainer's log."""
        from datasets import Dataset
        from transformers import PrinterCallback

        from ssmoe_embed.training.trainer import EverySteps, RoutedTrainer, lora_adapters, made_optimizer, sft_arguments

        settings = self.settings
        trainer = RoutedTrainer(
            self.model,
            args=sft_arguments(settings, self.work, progress=self.progress),
            train_dataset=Dataset.from_list([as_trl(example) for example in examples]),
            processing_class=self.tokenizer,
            optimizers=(made_optimizer(self.model, settings), None),
            peft_config=lora_adapters(self.model, settings) if settings.optimizer is OptimizerName.LORA else None,
        )
        if not self.progress:
            trainer.remove_callback(PrinterCallback)
        trainer.settings = settings
        calls: list[tuple[int, Callable[[int], None]]] = []
        if settings.refresh_routers:
            calls.append((settings.refresh_routers, self._refresh))
        decoupling = self.decoupling
        if decoupling is not None:
            calls.append((decoupling.refresh_every, lambda step: decoupling.refresh() if step else None))
        if evaluate is not None:
            calls.append((settings.eval_every, partial(evaluate, self.model)))
        trainer.add_callback(EverySteps(*calls))
        checkpoint = _last_checkpoint(self.work)
        if checkpoint is not None:  # the spectral routers go on that were in use then
            made = {_step_of(file): file for file in self.work.glob(_ROUTERS.format(step="*"))}
            earlier = [step for step in made if step <= _step_of(checkpoint)]
            if earlier:
                self._route_by(SpectralRouters.load(made[max(earlier)]))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.steps, self.model = trainer.state.global_step, trainer.model
        return [row for row in trainer.state.log_history if "step" in row]

    def save(self, folder: Path) -> None:
        """Write the trained model, as one that was never anything but ordinary."""
        for made_of_others in (self.decoupling, self.hyper):
            if made_of_others is not None:
                made_of_others.merge()
        if self.settings.optimizer is OptimizerName.LORA:
            self.model = self.model.merge_and_unload()
        if self.routers is not None:
            self.routers.adopted_by(self.model).save(folder / ROUTERS_FILE)
        if self.rerouting is not None:
            self.rerouting.remove()
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _route_by(self, routers: SpectralRouters | None) -> None:
        """Run under the routing, which uses these spectral routers where it uses any; learned ones may have changed."""
        if self.rerouting is not None:
            self.rerouting.remove()
        self.routers = None if routers is None else routers.adopted_by(self.model)
        routing, left_open = self.settings.routing, self.settings.routing_settings
        policy = policy_of(routing, self.model, left_open, routers=self.routers, progress=False)
        self.rerouting = None if policy is None else reroute(self.model, policy)

    @torch.no_grad()
    def _refresh(self, step: int) -> None:
        """Make the spectral routers anew of the experts as they are, and keep them for a run that goes on from here."""
        if step and self.routers is not None:
            made = SpectralRouters.from_model(self.model, **self.routers.settings.as_dict(), progress=False)
            self._route_by(made)
            made.save(self.work / _ROUTERS.format(step=step))


def _evaluation(
    settings: FinetuneSettings, tokenizer: PreTrainedTokenizerBase, file: Path, *, progress: bool
) -> Callable[[PreTrainedModel, int], None]:
    """What measures a model at a step on tasks of the harness, and adds a line to a file."""
    from ssmoe_embed.evaluation.harness.grid import GridOptions, find_tasks, load_tasks, metric_of
    from ssmoe_embed.evaluation.harness.running import harness_outcome

    names = find_tasks(settings.eval_tasks)
    tasks = load_tasks(names)
    options = GridOptions(limit=settings.eval_limit, batch_size=settings.batch_size, progress=progress)

    def evaluate(model: PreTrainedModel, step: int) -> None:
        rows = _read_lines(file)
        if any(row["step"] == step for row in rows):
            return
        training, scores = model.training, {}
        model.eval()
        for name in names:
            outcome = harness_outcome(model, tokenizer, name, tasks, options)
            metrics = outcome.get("groups", {}).get(name) or outcome["results"][name]
            scores[name] = float(metrics[metric_of(name, list(metrics))])
        model.train(training)
        write_files(file.parent, {file.name: _as_lines([*rows, {"step": step, **scores}])})

    return evaluate


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """Leave the bars of transformers and datasets as they are, or hide them."""
    import datasets

    with loading_bar(wanted), ExitStack() as hidden:
        if not wanted and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            hidden.callback(datasets.enable_progress_bars)
        yield


# --- the folder of a run's checkpoints --------------------------------------------------------------------------------


@contextmanager
def _claimed(work: Path, run: dict[str, Any]) -> Iterator[None]:
    """Keep a run's folder to this process; it is removed at the end, and where nothing can be resumed from.

    The lock is the system's, which lets go of it when the process dies.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"Another process is training in {work}; wait until it is done, or choose another output."
        ) from None
    is_over = False
    try:
        _check(work, run)
        yield
        is_over = True
    finally:
        is_over = is_over or _last_checkpoint(work) is None
        lock.release()
        if is_over:
            shutil.rmtree(work, ignore_errors=True)


def _check(work: Path, run: dict[str, Any]) -> None:
    """Make sure that checkpoints are of this run, and say so in the folder."""
    file = work / _RUN
    if file.is_file():
        other = sorted(_differences(json.loads(file.read_text(encoding="utf-8")), run))
        if not other:
            return
        if _last_checkpoint(work) is not None:
            raise ValueError(
                f"{work} holds checkpoints of another run, with other {', '.join(other)}; choose another output, or remove "
                "that folder."
            )
        for left in {*work.iterdir()} - {work / _LOCK}:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    write_files(work, {_RUN: json.dumps(run, indent=2) + "\n"})


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names whose values differ."""
    found: list[str] = []
    for name in {*before, *now}:
        one, two = before.get(name), now.get(name)
        if one != two:
            found += _differences(one, two) if isinstance(one, dict) and isinstance(two, dict) else [name]
    return found


def _last_checkpoint(work: Path) -> Path | None:
    """The last checkpoint that was written whole: the trainer writes its state last. Others are removed."""
    found = list(work.glob("checkpoint-*"))
    whole = [folder for folder in found if (folder / "trainer_state.json").is_file()]
    for folder in {*found} - {*whole}:
        shutil.rmtree(folder)
    return max(whole, key=_step_of) if whole else None


def _step_of(path: Path) -> int:
    """The step in a name such as `checkpoint-200`."""
    return int(path.stem.rpartition("-")[2])


def _as_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
