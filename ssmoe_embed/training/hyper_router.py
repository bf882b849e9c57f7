"""HyperRouter: each router behind a fixed random network, of which only an embedding is trained.

Source: https://arxiv.org/abs/2312.07035: `R = g(e)`, `g` two frozen random layers, `e` trained beside the experts from
scratch. Our reading for a trained model, which should begin at its own routers: `R' = R + s·(g(e) - g(e₀))` with all else
frozen, so that `H` numbers per layer learn; `s` makes `g`'s outputs as wide as the router's entries. Afterwards `R'` takes
the router's place, and the model is an ordinary one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssmoe_embed.families import UnsupportedModelError, family_of

WIDTH = 64
"""`h`: units of the fixed network, as in the authors' code."""


class HyperRouters:
    """A model whose routers are made of embeddings anew in every forward pass, until `merge`."""

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
        """Draw the network.

        Args:
            router: `R [E,H]`.
            generator: What it is drawn with.
        """
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
        made: torch.Tensor = self.router + (self.scale * moved).reshape(self.router.shape).to(self.router.dtype)
        return made

    def _network(self, embedding: torch.Tensor) -> torch.Tensor:
        """`g(e) [E·H]`."""
        hidden: torch.Tensor = torch.relu(self.first @ embedding)  # [h]
        return self.second @ hidden
