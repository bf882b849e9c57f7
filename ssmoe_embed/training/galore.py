"""GaLore for mixtures of experts: AdamW whose moments live in a low-rank subspace of each matrix's gradient.

Source: GaLore, https://arxiv.org/abs/2403.03507. Experts that a model keeps in one tensor `[E,m,n]`, most of its weights,
get a subspace each; elsewhere such tensors fall back to full moments, and with them the memory that GaLore is to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ssmoe_embed.common.choices import Choice

_BLOCK = 256
"""Numbers that share a scale where moments have eight bits."""


class Basis(Choice):
    """Where a subspace comes from."""

    SVD = "svd"
    """The leading singular vectors of the gradient, as in GaLore."""
    RANDOM = "random"
    """A random orthonormal basis, which costs no SVD; compare APOLLO, https://arxiv.org/abs/2412.05270."""


class Side(Choice):
    """Which side of the gradient `[m,n]` is projected."""

    STD = "std"
    """The shorter one, so that the moments are smallest."""
    REVERSE_STD = "reverse_std"
    """The longer one."""
    LEFT = "left"
    """Its rows."""
    RIGHT = "right"
    """Its columns."""


@dataclass(frozen=True)
class GaLoreSettings:
    """The low-rank part of the optimizer; the defaults are GaLore's.

    Attributes:
        rank: `r`, dimensions of each subspace.
        update_gap: Steps after which the subspaces are made anew.
        scale: What an update is multiplied by when it returns from its subspace.
        side: See `Side`.
        basis: See `Basis`.
        carry_moments: Rotate the moments into a new subspace; GaLore leaves them as they are, in coordinates that no longer
            mean the same.
        bits: 32 for moments in the gradient's own dtype, 8 for blockwise 8-bit ones (bitsandbytes' quantization).
        seed: Of random bases.

    Raises:
        ValueError: A value is not allowed.
    """

    rank: int = 128
    update_gap: int = 200
    scale: float = 0.25
    side: Side = Side.STD
    basis: Basis = Basis.SVD
    carry_moments: bool = False
    bits: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "side", Side.parse(self.side, "side"))
        object.__setattr__(self, "basis", Basis.parse(self.basis, "basis"))
        for name in ("rank", "update_gap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a count of at least 1.")
        if self.bits not in (8, 32):
            raise ValueError(
                f"bits={self.bits!r} is not known; moments are kept in 32 (the gradient's dtype) or 8 bits."
            )

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values, which a checkpoint of the optimizer holds."""
        return {name: str(value) if isinstance(value, Choice) else value for name, value in asdict(self).items()}


def galore_groups(model: nn.Module, settings: GaLoreSettings | None = None, **options: Any) -> list[dict[str, Any]]:
    """A model's trained parameters as groups for `GaLoreAdamW`.

    Matrices and experts of the decoder layers whose shorter side is longer than the rank are projected. Embeddings, the
    head, norms, biases and matrices as small as routers keep full moments.

    Args:
        model: The model.
        settings: The low-rank part.
        **options: What all groups share, such as `weight_decay`.

    Raises:
        ValueError: The rank is not below the shorter side of any matrix.
    """
    settings = settings or GaLoreSettings()
    vocabulary = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    layers = [layer() for layer in vocabulary if layer is not None]
    outside = {id(layer.weight) for layer in layers if layer is not None}
    projected: list[torch.Tensor] = []
    full: list[torch.Tensor] = []
    longest = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        shorter = min(parameter.shape[-2:]) if parameter.ndim in (2, 3) and id(parameter) not in outside else 0
        longest = max(longest, shorter)
        (projected if shorter > settings.rank else full).append(parameter)
    if not projected:
        raise ValueError(
            f"rank={settings.rank} is not below the shorter side of any matrix that is trained, the longest of which has "
            f"{longest}; choose a smaller rank, or an optimizer with full moments."
        )
    groups = [{"params": projected, **settings.as_dict(), **options}, {"params": full, **options}]
    return [group for group in groups if group["params"]]


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW with low-rank moments in the groups that have a `rank`, full ones in the others.

    For matrices it makes the steps of galore-torch's `AdamW`; a tensor `[E,m,n]` is treated as `E` matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        """Bind parameters, or groups of them: those of `galore_groups`, with the fields of `GaLoreSettings`.

        `lr`, `betas`, `eps` (added to the root of the second moment) and the decoupled `weight_decay` mean what they do in
        torch's AdamW; the defaults are other ones.

        Raises:
            ValueError: A parameter of a group with a rank is no matrix, or the rank is above its shorter side.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            if "rank" in group:
                given = {name: group[name] for name in GaLoreSettings().as_dict() if name in group}
                group |= GaLoreSettings(**given).as_dict()
                for parameter in group["params"]:
                    if parameter.ndim not in (2, 3) or group["rank"] > min(parameter.shape[-2:]):
                        raise ValueError(
                            f"rank={group['rank']} does not fit a parameter of shape {tuple(parameter.shape)}: GaLore takes "
                            "matrices [m,n] and experts [E,m,n] whose shorter side is at least the rank. Put it into a "
                            "group without a rank, see galore_groups."
                        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; `closure` evaluates the loss again."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def update_as_gradients_arrive(self) -> None:
        """Update each parameter as soon as its gradient is complete and forget the gradient, so that only one is in memory.

        `step` then has nothing left to do. It does not go with gradient accumulation or clipping by a global norm.
        """

        def update(group: dict[str, Any], parameter: torch.Tensor) -> None:
            self._update(parameter, group)
            parameter.grad = None

        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(update, group))

    def state_bytes(self) -> int:
        """Memory of moments and bases."""
        held = (value for state in self.state.values() for value in state.values() if isinstance(value, torch.Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; moments and bases keep the dtypes that they were saved in."""
        super().load_state_dict(state_dict)
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, saved in state_dict["state"].items():
            held = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
            self.state[order[number]] |= {name: value.to(order[number].device).clone() for name, value in held.items()}

    @torch.no_grad()
    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        """One parameter's step."""
        assert parameter.grad is not None
        state, gradient = self.state[parameter], parameter.grad
        step = state.get("step", 0)
        if "rank" in group:
            rows, columns = gradient.shape[-2:]
            by_shape = {Side.STD: rows >= columns, Side.REVERSE_STD: rows < columns}
            right = by_shape.get(group["side"], group["side"] == Side.RIGHT)
            if step % group["update_gap"] == 0:
                self._renew(state, gradient, group, right, step)
            gradient = gradient @ state["basis"].mT if right else state["basis"].mT @ gradient
        first, second = (_restored(state, name, gradient) for name in ("exp_avg", "exp_avg_sq"))
        state["step"] = step = step + 1
        decay, square_decay = group["betas"]
        first.mul_(decay).add_(gradient, alpha=1 - decay)
        second.mul_(square_decay).addcmul_(gradient, gradient, value=1 - square_decay)
        size = group["lr"] * math.sqrt(1 - square_decay**step) / (1 - decay**step)
        update = first / second.sqrt().add_(group["eps"])
        if "rank" in group:
            update = (update @ state["basis"] if right else state["basis"] @ update) * group["scale"]
        parameter.add_(update, alpha=-size)
        if group["weight_decay"] > 0:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])
        _keep(state, first, second, group.get("bits", 32))

    def _renew(
        self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any], right: bool, step: int
    ) -> None:
        """Make the subspace of a parameter anew: `[…,r,n]` on the right, `[…,m,r]` on the left."""
        old = state.get("basis")
        state["basis"] = new = _basis(gradient, group["rank"], right, group["basis"], group["seed"] + step)
        if old is None or not group["carry_moments"]:
            return
        turn = (old @ new.mT if right else new.mT @ old).float()  # [r,r] from old coordinates to new ones
        first, second = (_restored(state, name, None).float() for name in ("exp_avg", "exp_avg_sq"))
        first, second = (first @ turn, second @ turn.square()) if right else (turn @ first, turn.square() @ second)
        _keep(state, first.to(gradient.dtype), second.to(gradient.dtype), group["bits"])


def _basis(gradient: torch.Tensor, rank: int, right: bool, kind: str, seed: int) -> torch.Tensor:
    """An orthonormal basis of a subspace of each matrix's columns `[…,r,n]` or rows `[…,m,r]`."""
    if kind == Basis.RANDOM:
        size = gradient.shape[-1] if right else gradient.shape[-2]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(*gradient.shape[:-2], size, rank, generator=generator).to(gradient.device)
        basis = torch.linalg.qr(drawn).Q  # […,size,r]
        return (basis.mT if right else basis).to(gradient.dtype).contiguous()
    left, _, above = torch.linalg.svd(gradient.float(), full_matrices=False)
    return (above[..., :rank, :] if right else left[..., :rank]).to(gradient.dtype).contiguous()


def _restored(state: dict[str, Any], name: str, like: torch.Tensor | None) -> torch.Tensor:
    """A moment as it is computed with; zeros at first."""
    if name in state:
        return state[name]
    if f"{name}_8bit" not in state:
        assert like is not None
        return torch.zeros_like(like)
    from bitsandbytes.functional import QuantState, dequantize_blockwise

    kept = QuantState(state[f"{name}_absmax"], code=state[f"{name}_code"], blocksize=_BLOCK, dtype=torch.float32)
    found = dequantize_blockwise(state[f"{name}_8bit"], kept)
    return found.square_() if name == "exp_avg_sq" else found


def _keep(state: dict[str, Any], first: torch.Tensor, second: torch.Tensor, bits: int) -> None:
    """Keep the moments until the next step, the second as its root where it has eight bits: it spans fewer magnitudes."""
    if bits == 32:
        state["exp_avg"], state["exp_avg_sq"] = first, second
        return
    from bitsandbytes.functional import quantize_blockwise

    for name, moment in (("exp_avg", first), ("exp_avg_sq", second.sqrt())):
        state[f"{name}_8bit"], kept = quantize_blockwise(moment.float(), blocksize=_BLOCK)
        state[f"{name}_absmax"], state[f"{name}_code"] = kept.absmax, kept.code
