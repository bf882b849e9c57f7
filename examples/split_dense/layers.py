"""One dense feed-forward layer, divided into a shared expert and routed ones with a fitted router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import silu

from split_dense.activations import layer_inputs
from split_dense.neurons import balanced_clusters, shared_neurons
from split_dense.routers import Router, fit_router
from ssmoe_embed.common.files import load_tensors, save_tensors

_CHUNK = 1024
_PROFILE = 1024
"""Tokens whose activations the clustering compares."""


@dataclass(frozen=True)
class Division:
    """How a layer is divided, the same for all.

    Attributes:
        shared: Neurons of the shared expert.
        experts: Routed experts.
        k: Experts per token that routers are fitted for.
        sharpness: See `fit_router`.
        seed: Of clustering and batches.
    """

    shared: int
    experts: int
    k: int
    sharpness: float
    seed: int = 0


@dataclass(frozen=True)
class Dense:
    """The weights of a dense gated feed-forward layer: gate and up `[I, H]`, down `[H, I]`."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def activations(self, inputs: Tensor) -> Tensor:
        """`[N, I]` of `[N, H]`: what `down` is multiplied with."""
        return silu(inputs @ self.gate.T) * (inputs @ self.up.T)


@dataclass(frozen=True)
class Layer:
    """A divided layer.

    Attributes:
        shared: `[S]`, the shared expert's neurons.
        experts: `[E, I]`, each routed expert's neurons.
        router: Its router.
    """

    shared: Tensor
    experts: Tensor
    router: Router


@torch.no_grad()
def divide(dense: Dense, inputs: Tensor, division: Division) -> tuple[Tensor, Tensor]:
    """The neurons of the shared expert and of each routed one, by what is active on the inputs."""
    lengths = dense.down.float().norm(dim=0)
    mass = torch.zeros(len(dense.gate))
    for chunk in torch.split(inputs[::4], _CHUNK):
        mass += dense.activations(chunk).float().abs().sum(0)
    shared = shared_neurons(mass * lengths, division.shared)
    routed = torch.ones(len(dense.gate), dtype=torch.bool)
    routed[shared] = False
    places = routed.nonzero()[:, 0]
    some = inputs[:: max(1, len(inputs) // _PROFILE)]
    profile = torch.cat([dense.activations(chunk)[:, places].float().abs() for chunk in torch.split(some, _CHUNK)])
    profile = torch.log1p(profile / profile.mean(0).clamp(min=1e-9))
    profile = profile - profile.mean(1, keepdim=True) - profile.mean(0)
    return shared, places[balanced_clusters(profile.T, division.experts, seed=division.seed)]


@torch.no_grad()
def products(dense: Dense, inputs: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the experts' outputs and energy of the whole output, per token: `[N, E, E]` in bfloat16, and `[N]`."""
    down = dense.down.T[experts.flatten()].view(*experts.shape, -1)
    grams, energies = [], []
    for chunk in torch.split(inputs, _CHUNK):
        active = dense.activations(chunk)
        outputs = torch.einsum("nei,eih->neh", active[:, experts.flatten()].view(len(chunk), *experts.shape), down)
        grams.append(torch.bmm(outputs, outputs.transpose(1, 2)))
        energies.append((active @ dense.down.T).float().pow(2).sum(1))
    energy = torch.cat(energies)
    return torch.cat(grams), energy.clamp(min=float(energy.median()) * 0.01)


def split_layer(dense: Dense, files: Sequence[Path], at: int, division: Division) -> Layer:
    """Divide a layer and fit its router on recorded inputs."""
    inputs = layer_inputs(files, at)
    shared, experts = divide(dense, inputs, division)
    gram, energy = products(dense, inputs, experts)
    return Layer(
        shared,
        experts,
        fit_router(inputs, gram, energy, k=division.k, sharpness=division.sharpness, seed=division.seed),
    )


def save_layer(path: Path, layer: Layer) -> None:
    """Write a divided layer."""
    router = layer.router
    tensors = {"shared": layer.shared, "experts": layer.experts, "load": router.load}
    save_tensors(path, tensors | {"weight": router.weight, "scale": router.scale}, {"error": router.error})


def load_layer(path: Path) -> Layer:
    """Read what `save_layer` wrote."""
    tensors, said = load_tensors(path)
    router = Router(tensors["weight"], tensors["scale"], said["error"], tensors["load"])
    return Layer(tensors["shared"], tensors["experts"], router)
