"""TRL's supervised trainer under a routing, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from ssmoe_embed.common.lazy import require_package
from ssmoe_embed.evaluation.inspection.similarity import shared_inputs, similarity_loss
from ssmoe_embed.families import family_of
from ssmoe_embed.routing.sites import recording
from ssmoe_embed.training.galore import GaLoreAdamW, galore_groups
from ssmoe_embed.training.settings import FinetuneSettings, OptimizerName

require_package("trl", "ssmoe-embed[train]")
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # noqa: E402 (its lazy module)


class RoutedTrainer(SFTTrainer):
    """TRL's trainer with the losses `balance` and `similarity` of the settings.

    Its own load-balancing loss would be computed of what the model gives out as logits, which under a routing are the
    replaced ones.
    """

    settings = FinetuneSettings()

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
            if self.model.training and self.settings.similarity > 0:
                given = watching.enter_context(shared_inputs(family_of(self.model).layers(self.model)))
            if self.model.training and self.settings.balance > 0:
                taken = watching.enter_context(recording(_real_tokens(inputs)))
            result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]
        loss, *rest = result if isinstance(result, tuple) else (result,)
        if taken is not None:
            top_k = int(getattr(self.model.config.get_text_config(), "num_experts_per_tok", 1) or 1)
            loss = self._with(loss, "balance", balance_loss(list(taken.logits.values()), top_k))
        if given is not None:
            rows = _real_tokens(inputs)
            alike = similarity_loss([one.of(rows.to(one.hidden.device)) for one in given.values()])
            loss = self._with(loss, "similarity", alike)
        return (loss, *rest) if rest else loss

    def _with(self, loss: Any, name: str, other: torch.Tensor) -> Any:
        """The loss and another one with its weight, which is logged."""
        self._metrics["train"][name].append(float(other.detach()))
        return loss + getattr(self.settings, name) * other.to(loss.device) / self.current_gradient_accumulation_steps


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
    kind = "activation" if "activation_checkpointing" in SFTConfig.__dataclass_fields__ else "gradient"
    checkpointing: dict[str, Any] = {f"{kind}_checkpointing": settings.checkpointing}
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
        optim="paged_adamw_8bit" if settings.optimizer is OptimizerName.ADAMW_8BIT else "adamw_torch",
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
        **checkpointing,
    )


def made_optimizer(model: PreTrainedModel, settings: FinetuneSettings) -> torch.optim.Optimizer | None:
    """The optimizer that the trainer does not make itself."""
    if settings.optimizer is OptimizerName.GALORE:
        groups = galore_groups(model, settings.galore, weight_decay=settings.weight_decay)
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
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=sorted(linear),
        target_parameters=[f"{place}.{one}" for one in fused],
    )
