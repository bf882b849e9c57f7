"""TRL's supervised trainer under a routing, and the folder of its checkpoints: one process at a time, one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # its lazy module

from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.evaluation.inspection.similarity import shared_inputs, similarity_loss
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model.loading import policy_of
from ssmoe_embed.routing import Rerouting, reroute
from ssmoe_embed.routing.sites import install_sites, recording
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.training.settings import FinetuneSettings, OptimizerName

_RUN, _LOCK = "run.json", "lock"


@contextmanager
def claimed(work: Path, run: dict[str, Any]) -> Iterator[None]:
    """Keep a run's folder to this process; the lock is the system's, which lets go of it when the process dies.

    The folder is removed at the end, and where nothing can be resumed from.

    Raises:
        BlockingIOError: Another process is training there.
        ValueError: The checkpoints are of another run.
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
        is_over = is_over or last_checkpoint(work) is None
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
        if last_checkpoint(work) is not None:
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


def last_checkpoint(work: Path) -> Path | None:
    """The last checkpoint that was written whole: the trainer writes its state last. Others are removed."""
    found = list(work.glob("checkpoint-*"))
    whole = [folder for folder in found if (folder / "trainer_state.json").is_file()]
    for folder in {*found} - {*whole}:
        shutil.rmtree(folder)
    return max(whole, key=step_of) if whole else None


def step_of(path: Path) -> int:
    """The step in a name such as `checkpoint-200`."""
    return int(path.name.split(".")[0].rpartition("-")[2])


def as_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


class TrainedRouting:
    """The routing of a model that is trained: it changes with the model where it is to."""

    def __init__(self, model: PreTrainedModel, settings: FinetuneSettings, routers: SpectralRouters | None) -> None:
        self.model, self.settings, self.routers = model, settings, routers
        self._handle: Rerouting | None = None
        install_sites(model, family_of(model))
        self._install()

    def refresh(self) -> SpectralRouters | None:
        """Make the spectral routers anew of the experts as they are now, and use them."""
        if self.routers is None:
            return None
        with torch.no_grad():
            made = SpectralRouters.from_model(self.model, **self.routers.settings.as_dict(), progress=False)
        self.use(made)
        return made

    def use(self, routers: SpectralRouters) -> None:
        """Route by other spectral routers from now on."""
        self.remove()
        self.routers = routers
        self._install()

    def remove(self) -> None:
        """Give the model its own routing back."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def trained_routers(self) -> SpectralRouters | None:
        """The spectral routers, known as those of the learned routers as they are now."""
        if self.routers is None:
            return None
        return self.routers.adopted_by(self.model)

    def _install(self) -> None:
        chosen = self.settings.routing
        policy = policy_of(
            chosen, self.model, self.settings.routing_settings, routers=self.trained_routers(), progress=False
        )
        if policy is not None:
            self._handle = reroute(self.model, policy)


class RoutedTrainer(SFTTrainer):
    """TRL's trainer with a load-balancing loss of the learned routers' logits.

    Its own would be computed of what the model gives out as logits, which under a routing are the replaced ones.
    """

    balance: float = 0.0
    """Weight of the loss."""
    top_k: int = 1
    """Experts per token."""
    similarity: float = 0.0
    """Weight of the loss of experts that answer alike."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write a checkpoint in the layout that the model has in memory.

        In the published one experts stand one by one, and the trainer, which loads a checkpoint's tensors by their names,
        would go on with those that the training began with (transformers 5.24 says so in a warning only).
        """
        if not isinstance(self.model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or self.args.output_dir
        self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        self.processing_class.save_pretrained(folder)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch, balance and similarity included while training."""
        given, taken = None, None
        with ExitStack() as watching:
            if self.model.training and self.similarity > 0:
                given = watching.enter_context(shared_inputs(family_of(self.model).layers(self.model)))
            if self.model.training and self.balance > 0:
                taken = watching.enter_context(recording(_real_tokens(inputs)))
            result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]
        loss, *rest = result if isinstance(result, tuple) else (result,)
        if taken is not None:
            even = balance_loss(list(taken.logits.values()), self.top_k)
            loss = self._with(loss, "balance", self.balance, even)
        if given is not None:
            rows = _real_tokens(inputs)
            alike = similarity_loss([one.of(rows.to(one.hidden.device)) for one in given.values()])
            loss = self._with(loss, "similarity", self.similarity, alike)
        return (loss, *rest) if rest else loss

    def _with(self, loss: Any, name: str, weight: float, other: torch.Tensor) -> Any:
        """The loss and another one, which is logged."""
        self._metrics["train"][name].append(float(other.detach()))
        return loss + weight * other.to(loss.device) / self.current_gradient_accumulation_steps


def balance_loss(logits: list[torch.Tensor], top_k: int) -> torch.Tensor:
    """`E Σ_e f_e p_e`, the mean over layers: 1 when every expert gets as much.

    Source: Switch Transformers, https://arxiv.org/abs/2101.03961, for each layer by itself.

    Args:
        logits: The learned routers' logits `[N,E]` of each layer.
        top_k: Experts per token; `f` is the share of choices, `p` the mean probability.
    """
    losses = []
    for one in logits:
        scores = one.float().softmax(dim=-1)  # [N,E]
        chosen = torch.zeros_like(scores).scatter_(1, scores.topk(top_k, dim=-1).indices, 1.0)
        losses.append(scores.shape[1] * (chosen.mean(dim=0) / top_k * scores.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def _real_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """Places of the batch's tokens that are no padding, `[R]`."""
    mask = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return real.flatten().nonzero().squeeze(1)


class EverySteps(TrainerCallback):
    """Call each of some functions with the step, at the start and every so many steps."""

    def __init__(self, *calls: tuple[int, Callable[[int], None]]) -> None:
        self.calls = calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if state.global_step == 0:
            self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        for steps, call in self.calls:
            if state.global_step % steps == 0:
                call(state.global_step)


def sft_arguments(settings: FinetuneSettings, work: Path, *, progress: bool) -> Any:
    """The settings as TRL takes them."""
    names = {one.name for one in fields(SFTConfig)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    gradient: dict[str, Any] = {checkpointing: settings.checkpointing}
    optimizer = "paged_adamw_8bit" if settings.optimizer is OptimizerName.ADAMW_8BIT else "adamw_torch"
    return SFTConfig(
        output_dir=str(work),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=0.0 if settings.layerwise else 1.0,
        optim=optimizer,
        max_length=settings.max_length,
        packing=settings.packing,
        router_aux_loss_coef=0.0,
        bf16=False,
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=1 if (settings.steps or 0) <= 100 else 10,
        save_steps=settings.save_every,
        save_total_limit=2,
        report_to=[],
        seed=settings.seed,
        data_seed=settings.seed,
        disable_tqdm=not progress,
        **gradient,
    )


def lora_adapters(model: PreTrainedModel, settings: FinetuneSettings) -> Any:
    """LoRA on the linear layers of attention and on fused experts."""
    require_package("peft", "ssmoe-embed[train]")
    from peft import LoraConfig

    family = family_of(model)
    linear = {
        name.rpartition(".")[2]
        for layer in family.decoder(model).layers
        for part, child in layer.named_children()
        if family.is_attention(layer, part)
        for name, module in child.named_modules(prefix=part)
        if type(module) is torch.nn.Linear
    }
    experts = family.layers(model)[0].experts
    fused = [name for name in family.fused_names if isinstance(getattr(experts, name, None), torch.nn.Parameter)]
    place = f"{family.block_attribute}.experts".removeprefix(".")
    rank = settings.lora_rank
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(linear),
        target_parameters=[f"{place}.{one}" for one in fused],
    )
