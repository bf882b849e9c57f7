"""Weights that are made of others while a model is trained: decoupled experts (SD-MoE) and routers (HyperRouter).

After `merge` the model is an ordinary one, and inference costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import UnsupportedModelError, family_of


class CommonGradient(Choice):
    """What the common part learns from the experts' gradients."""

    AVERAGE = "average"
    """Their mean, as if each expert had a copy that is kept alike."""
    SUM = "sum"
    """Their sum: the gradient of the loss."""


@dataclass(frozen=True)
class DecouplingSettings:
    """How experts are decoupled.

    Attributes:
        q: Columns of the common bases, and rank of the common part at first.
        refresh_every: Steps after which the bases are taken anew from the common part; the paper's 16.
        common: See `CommonGradient`.
        strict: Project the own parts off the common bases at first, `(I - P_U) W (I - P_V)`, which changes the model's
            function.

    Raises:
        ValueError: A value is not allowed.
    """

    q: int = 8
    refresh_every: int = 16
    common: CommonGradient = CommonGradient.AVERAGE
    strict: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "common", CommonGradient.parse(self.common, "common"))
        for name in ("q", "refresh_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a count of at least 1.")


class Decoupling:
    """A model whose experts are decoupled; see `decouple`."""

    def __init__(self, weights: list[tuple[Any, str]], refresh_every: int) -> None:
        self._weights, self.refresh_every = weights, refresh_every

    def refresh(self) -> None:
        """Take the bases anew from the common parts."""
        for experts, name in self._weights:
            parts = experts.parametrizations[name]
            parts[0].take_bases(parts.original0)

    def merge(self) -> None:
        """Add the parts up again, for good: the model is an ordinary one."""
        while self._weights:
            parametrize.remove_parametrizations(*self._weights.pop(), leave_parametrized=True)


def decouple(model: nn.Module, settings: DecouplingSettings | None = None) -> Decoupling:
    """Divide the experts of a model in place, so that training treats what they share and what sets them apart differently.

    Source: SD-MoE, https://arxiv.org/abs/2602.12556. `W_i = W_C + W_U,i` with a common part of low rank, whose singular
    bases `U, V` of `q` columns divide gradients: `P_U G + (I - P_U) G P_V` trains the common part,
    `(I - P_U) G (I - P_V)` the own one. The authors train from scratch; for a trained model the own parts are what is left,
    `W_U,i := W_i - W_C`, so that its function is unchanged.

    Args:
        model: A transformers MoE model that keeps a layer's experts in one tensor each, with gate rows before up rows.
        settings: How.

    Returns:
        A handle with `.refresh()`, to be called every `refresh_every` steps, and `.merge()`.

    Raises:
        UnsupportedModelError: The model keeps its experts in another way.
        ValueError: `q` is above the rank that a matrix can have, or the model is decoupled already.
    """
    settings = settings or DecouplingSettings()
    family = family_of(model)
    found = []
    for layer in family.layers(model):  # all of them, before anything is changed
        if parametrize.is_parametrized(layer.experts):
            raise ValueError(
                "The experts of this model are decoupled already; call .merge() on the earlier handle first."
            )
        for name, stacked in _stacked_matrices(layer.experts, family.fused_names).items():
            _, rows, columns = getattr(layer.experts, name).shape
            if settings.q > min(rows // stacked, columns):
                raise ValueError(
                    f"q={settings.q} is above the rank {min(rows // stacked, columns)} of the expert matrices of shape "
                    f"({rows // stacked}, {columns}) in {name}; choose a smaller q."
                )
            found.append((layer.experts, name, stacked))
    for experts, name, stacked in found:
        parts = _Sum(stacked, settings)
        parametrize.register_parametrization(experts, name, parts)
        kept: Any = experts.parametrizations[name]  # type: ignore[index]  # torch's own structure
        kept.original0.register_hook(parts.common_gradient)
        kept.original1.register_hook(parts.own_gradient)
    return Decoupling([(experts, name) for experts, name, _ in found], settings.refresh_every)


def _stacked_matrices(experts: nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    """The fused weights of a layer's experts, each with how many matrices it stacks by rows."""
    weights = [getattr(experts, name, None) for name in names]
    shapes = [tuple(weight.shape) for weight in weights if isinstance(weight, nn.Parameter) and weight.ndim == 3]
    if len(shapes) == len(names) == 2:
        (_, rows, hidden), (_, hidden_again, inner) = shapes
        if hidden == hidden_again and rows in (inner, 2 * inner):
            return {names[0]: rows // inner, names[1]: 1}
    raise UnsupportedModelError(
        f"{type(experts).__name__} keeps its experts as {shapes or 'modules of their own'}; decoupling takes [E,2I,H] "
        "or [E,I,H] with [E,H,I], gate rows before up rows."
    )


class _Sum(nn.Module):
    """`W_C + W_U`, a parametrization of torch's; the bases, as buffers, are kept in checkpoints."""

    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, stacked: int, settings: DecouplingSettings) -> None:
        super().__init__()
        self._stacked, self._settings, self._learners = stacked, settings, 1

    def forward(self, common: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """All experts `[E,m,n]` of the common part `[m,n]` and the own ones `[E,m,n]`."""
        return common + own

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The common part, the mean expert's of rank `q`, and what is left of each."""
        q = self._settings.q
        if self._settings.common is CommonGradient.AVERAGE:
            self._learners = len(weight)
        mean = weight.float().mean(dim=0).reshape(self._stacked, -1, weight.shape[-1])  # [E,m,n] → [stacked,m',n]
        left, values, right = torch.linalg.svd(mean, full_matrices=False)
        common = (left[..., :q] * values[..., None, :q] @ right[..., :q, :]).flatten(0, 1).to(weight.dtype)
        self.take_bases(common)
        if self._settings.strict:
            return common, _without(weight, left[..., :q], right[..., :q, :].mT)
        return common, weight - common

    @torch.no_grad()
    def take_bases(self, common: torch.Tensor) -> None:
        """`U [stacked,m',q]` and `V [stacked,n,q]` of the common part."""
        q = self._settings.q
        stacked = common.float().reshape(self._stacked, -1, common.shape[-1])  # [m,n] → [stacked,m',n]
        left, _, right = torch.linalg.svd(stacked, full_matrices=False)
        self.register_buffer("left", left[..., :q])
        self.register_buffer("right", right[..., :q, :].mT)

    def common_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """What trains the common part `[m,n]` of the sum of the experts' gradients."""
        return (gradient - self.own_gradient(gradient[None])[0]) / self._learners

    def own_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """What trains the own parts of their gradients `[E,m,n]`."""
        return _without(gradient, self.left, self.right)


def _without(matrices: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`(I - P_U) W (I - P_V)` of matrices `[E,m,n]`, in each of the stacked ones."""
    experts, _, columns = matrices.shape
    cut = matrices.float().reshape(experts, left.shape[0], -1, columns)  # [E,m,n] → [E,stacked,m',n]
    cut = cut - left @ (left.mT @ cut)
    cut = cut - (cut @ right) @ right.mT
    return cut.flatten(1, 2).to(matrices.dtype)


WIDTH = 64
"""`h`: units of the fixed network, as in the authors' code."""


class HyperRouters:
    """A model whose routers are made of embeddings anew in every forward pass, until `merge`.

    Source: HyperRouter, https://arxiv.org/abs/2312.07035: `R = g(e)`, `g` two frozen random layers, `e` trained beside the
    experts from scratch. Our reading for a trained model, which should begin at its own routers:
    `R' = R + s·(g(e) - g(e₀))` with all else frozen, so that `H` numbers per layer learn; `s` makes `g`'s outputs as wide as
    the router's entries.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        """Put them in place, and freeze everything else.

        Args:
            model: A transformers MoE model.
            seed: Of the fixed networks and of the embeddings' start.

        Raises:
            UnsupportedModelError: A router's weight is no parameter that could be replaced.
        """
        family = family_of(model)
        model.requires_grad_(False)
        self._parts: list[tuple[nn.Module, str, HyperNetwork]] = []
        for layer in family.layers(model):
            weight = family.router_weight(layer.router)
            path = next((name for name, one in layer.router.named_parameters() if one is weight), None)
            if path is None:
                raise UnsupportedModelError(
                    f"The router of layer {layer.index} ({type(layer.router).__name__}) keeps its weight in another form "
                    "than a parameter, so no network can stand for it; load the model without quantization."
                )
            prefix, _, name = path.rpartition(".")
            owner = layer.router.get_submodule(prefix)
            network = HyperNetwork(weight.detach(), torch.Generator().manual_seed(1000 * seed + layer.index))
            del owner._parameters[name]
            owner.add_module("hyper", network)
            self._parts.append((owner, name, network))
        self._make()
        self._hook = family.decoder(model).register_forward_pre_hook(lambda *_: self._make())

    def _make(self) -> Any:
        """The routers of the embeddings as they are."""
        for owner, name, network in self._parts:
            setattr(owner, name, network())

    def merge(self) -> None:
        """Put the routers in place for good."""
        self._hook.remove()
        while self._parts:
            owner, name, network = self._parts.pop()
            delattr(owner, name)
            del owner._modules["hyper"]
            owner.register_parameter(name, nn.Parameter(network().detach()))


class HyperNetwork(nn.Module):
    """`R + s·(g(e) - g(e₀))` of one layer; only `embedding`, which is `e [H]`, is trained and kept in checkpoints."""

    first: torch.Tensor
    second: torch.Tensor
    start: torch.Tensor
    router: torch.Tensor

    def __init__(self, router: torch.Tensor, generator: torch.Generator) -> None:
        """Draw the network for a router `R [E,H]`."""
        super().__init__()
        E, H = router.shape
        drawn = {
            "first": torch.randn(WIDTH, H, generator=generator) / H**0.5,
            "second": torch.randn(E * H, WIDTH, generator=generator) / WIDTH**0.5,
            "start": torch.randn(H, generator=generator),
            "router": router.clone(),
        }
        for name, value in drawn.items():  # made anew of the seed and the base model, so no checkpoint needs them
            self.register_buffer(name, value.to(router.device), persistent=False)
        self.embedding = nn.Parameter(self.start.clone())
        self.scale = float(router.float().std() / self._network(self.start).std())

    def forward(self) -> torch.Tensor:
        """The router `[E,H]`."""
        moved = self._network(self.embedding) - self._network(self.start)  # [E·H]
        return self.router + (self.scale * moved).reshape(self.router.shape).to(self.router.dtype)

    def _network(self, embedding: torch.Tensor) -> torch.Tensor:
        """`g(e) [E·H]`."""
        return self.second @ torch.relu(self.first @ embedding)  # [E·H,h] @ [h]
