"""What a fine-tuning is made of: a value, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.language_model.loading import Routing, RoutingSettings, parse_routing
from ssmoe_embed.routing.named import spends_by_text
from ssmoe_embed.training.data import InstructionTemplate
from ssmoe_embed.training.galore import GaLoreSettings
from ssmoe_embed.training.reparametrization import DecouplingSettings

_DTYPES = ("float32", "bfloat16")


class OptimizerName(Choice):
    """What makes the steps, and what is trained."""

    ADAMW = "adamw"
    """AdamW on all weights: two moments of every weight in memory."""
    ADAMW_8BIT = "adamw-8bit"
    """AdamW on all weights with paged 8-bit moments, by bitsandbytes; needs a GPU."""
    GALORE = "galore"
    """`GaLoreAdamW`: all weights, moments in low-rank subspaces, of each expert too."""
    LORA = "lora"
    """Adapters by peft on attention and fused experts; they are merged at the end."""


class RouterTraining(Choice):
    """What is trained instead of everything, where it is only the routers."""

    HYPER = "hyper"
    """An embedding per layer behind a fixed random network (HyperRouter), see `HyperRouters`."""


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of `finetune`.

    Attributes:
        routing: The routing under which the model is trained, see `parse_routing`; `original` is its own. What it is made
            of besides spectral routers (codes, a table, noise) stays as it is at the start.
        routing_settings: What the routing leaves open: α, top_c, ….
        refresh_routers: Steps after which the spectral routers are made anew of the experts as they are; 0 keeps the first
            ones.
        template: How instructions become prompts.
        optimizer: See `OptimizerName`.
        galore: For `galore`.
        layerwise: For `galore`: update each weight as soon as its gradient is complete, so that only one gradient is in
            memory; without accumulation, and without clipping gradients by their norm, which is 1 elsewhere.
        lora_rank: For `lora`.
        decouple: Train the experts' common and own parts apart, see `decouple`.
        train_router: Train the routers alone, see `RouterTraining`; None trains what the optimizer says.
        learning_rate: Its peak; it warms up over `warmup` of the steps and falls as a cosine.
        warmup: Fraction of the steps, below 1.
        weight_decay: Decoupled.
        balance: Weight of the load-balancing loss, computed of the learned routers' logits whatever the routing.
        similarity: Weight of SimSMoE's loss, which grows with experts that answer the tokens they share alike, see
            `similarity_loss`.
        steps: Optimizer steps; None for `epochs`.
        epochs: Passes over the data.
        batch_size: Examples per forward pass.
        accumulation: Forward passes per step.
        max_length: Tokens of an example.
        packing: Put several short examples into one row.
        checkpointing: Compute activations again in the backward pass, which saves memory.
        dtype: Dtype of the weights that are trained.
        save_every: Steps between checkpoints.
        eval_every: Steps between evaluations on `eval_tasks`; 0 for none.
        eval_tasks: Tasks of lm-evaluation-harness, or `paper` and `offline`.
        eval_limit: Examples of each task.
        seed: Of the order of the data and of everything that is drawn.

    Raises:
        ValueError: A value is not allowed, or two of them do not go together.
    """

    routing: str = Routing.ORIGINAL
    routing_settings: RoutingSettings = field(default_factory=RoutingSettings)
    refresh_routers: int = 0
    template: InstructionTemplate = InstructionTemplate.ALPACA
    optimizer: OptimizerName = OptimizerName.ADAMW
    galore: GaLoreSettings = field(default_factory=GaLoreSettings)
    layerwise: bool = False
    lora_rank: int = 16
    decouple: DecouplingSettings | None = None
    train_router: RouterTraining | None = None
    learning_rate: float = 2e-5
    warmup: float = 0.03
    weight_decay: float = 0.0
    balance: float = 0.0
    similarity: float = 0.0
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 512
    packing: bool = False
    checkpointing: bool = False
    dtype: str = "float32"
    save_every: int = 100
    eval_every: int = 0
    eval_tasks: tuple[str, ...] = ("offline",)
    eval_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "routing", parse_routing(self.routing))
        object.__setattr__(self, "template", InstructionTemplate.parse(self.template, "template"))
        object.__setattr__(self, "optimizer", OptimizerName.parse(self.optimizer, "optimizer"))
        object.__setattr__(self, "eval_tasks", tuple(self.eval_tasks))
        self._check_trained()
        if self.dtype not in _DTYPES:
            raise ValueError(unknown("dtype", self.dtype, _DTYPES))
        for name in ("batch_size", "accumulation", "max_length", "save_every", "lora_rank"):
            _at_least(name, getattr(self, name), 1)
        for name in ("refresh_routers", "eval_every", "balance", "similarity", "weight_decay", "warmup"):
            _at_least(name, getattr(self, name), 0)
        if self.steps is not None:
            _at_least("steps", self.steps, 1)
        if self.warmup >= 1:
            raise ValueError(f"warmup={self.warmup!r} is no fraction of the steps; choose one below 1, such as 0.03.")
        if self.learning_rate <= 0 or self.epochs <= 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} and epochs={self.epochs!r} must both be above 0.")
        self._check_routing()
        if self.optimizer is OptimizerName.LORA and (self.decouple or self.refresh_routers):
            raise ValueError(
                "optimizer='lora' leaves the experts' own weights alone; it goes with neither decouple nor refresh_routers; "
                "leave those out, or choose another optimizer."
            )
        if self.layerwise and (self.optimizer is not OptimizerName.GALORE or self.accumulation > 1):
            raise ValueError(
                f"layerwise goes with optimizer='galore' and accumulation=1, not with {str(self.optimizer)!r} and "
                f"{self.accumulation}: nothing is left of a gradient that could be added to or clipped."
            )

    def _check_routing(self) -> None:
        """Refuse what does not go with the routing."""
        if self.packing and spends_by_text(self.routing):
            raise ValueError(
                f"routing={self.routing!r} gives each text a budget of its own, and packing puts several into one row; "
                "leave one of them out."
            )
        if self.refresh_routers and self.routing not in (Routing.SSMOE, Routing.EV, Routing.AVERAGE_EV):
            raise ValueError(
                f"refresh_routers has nothing to refresh: routing={str(self.routing)!r} has no spectral routers; leave "
                "it at 0, or choose 'ssmoe', 'ev' or 'average-ev'."
            )

    def _check_trained(self) -> None:
        """Refuse what would train weights that other settings leave alone."""
        if self.train_router is not None:
            object.__setattr__(self, "train_router", RouterTraining.parse(self.train_router, "train_router"))
            if self.optimizer is not OptimizerName.ADAMW or self.decouple or self.refresh_routers:
                raise ValueError(
                    "train_router leaves everything but the routers alone, so it goes with optimizer='adamw' only, and with "
                    "neither decouple nor refresh_routers."
                )
        if self.similarity and (self.train_router or self.optimizer is OptimizerName.LORA):
            raise ValueError(
                "similarity is a loss of the experts' own weights, which optimizer='lora' and train_router leave alone."
            )

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value!r} is below {least}; choose at least {least}.")


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Choice) else value
