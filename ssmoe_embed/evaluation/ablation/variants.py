"""Letting only half of a re-routing take effect: the experts it chooses, or the weights it gives them.

Where a router's mix is nearly flat, it keeps most of the learned router's choices and changes above all their weights. The
two controls take the effect apart: `weights` keeps the learned router's choice, `choice` keeps its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.families import MoEFamily, MoELayer, family_of
from ssmoe_embed.routing import SpectralRouting
from ssmoe_embed.routing.experts import alike, weighting_of, weights_and_choices
from ssmoe_embed.routing.interception import intercepted
from ssmoe_embed.routing.mixing import mixed_scores, scores
from ssmoe_embed.routing.named import NAMED, canonical, check_causal, is_named
from ssmoe_embed.spectral.decomposition import ImplicitVectors
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings


class Control(Choice):
    """What of a re-routing takes effect."""

    WEIGHTS = "weights"
    """The weights only: the learned router's own choice, weighted by the mixed scores."""
    CHOICE = "choice"
    """The choice only: the mix's choice, weighted by the learned router's scores."""


@contextmanager
def controlled(model: nn.Module, policy: SpectralRouting, control: Control | None) -> Iterator[None]:
    """Within the block, let only part of a re-routing take effect; the model is re-routed by the caller or not at all.

    Args:
        model: The model.
        policy: The re-routing.
        control: Which part; None for all of it.

    Raises:
        ValueError: The family's routers do not tell choices and weights, or weights are not scores there.
    """
    if control is None:
        yield
        return
    family = family_of(model)
    with ExitStack() as hooks:
        for layer in family.layers(model):
            normalises = weighting_of(layer, family).normalises  # asked once, of random tokens
            hook = partial(_controlled_output, layer, family, policy, control, normalises=normalises)
            hooks.enter_context(layer.router.register_forward_hook(hook, with_kwargs=True))
        yield


def _controlled_output(
    layer: MoELayer,
    family: MoEFamily,
    policy: SpectralRouting,
    control: Control,
    router: nn.Module,
    *call: Any,
    normalises: bool,
) -> Any:
    """A forward hook that gives the choice of one routing weights in proportion to the scores of the other."""
    args, kwargs, output = call
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def seen(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:  # [N,H], [N,E]
        made.append((x, logits))
        return logits

    forward = MethodType(type(router).forward, router)  # of the learned router, whatever is installed
    own_output, _ = intercepted(forward, lambda: family.router_weight(router), seen, *args, **kwargs)
    [(hidden, learned)] = made
    own = scores(learned, family.score)  # [N,E]
    mixed = mixed_scores(learned, policy.routers.logits(layer.index, hidden), policy.alpha, policy.mix, family.score)
    output, before, after = (own_output, own, mixed) if control is Control.WEIGHTS else (output, mixed, own)
    place, weights, index = weights_and_choices(output)
    flat, chosen = weights.reshape(-1, weights.shape[-1]).float(), index.reshape(-1, index.shape[-1])  # [N,k]
    factor = flat / before.gather(1, chosen)  # [N,k]
    if not alike(factor, factor.mean(dim=1, keepdim=True)):
        raise ValueError(
            "The weights of this family's experts are not in the proportion of their scores, so there is no telling "
            "what another mix would weigh them; leave the variants weights-only and choice-only out."
        )
    changed = factor * after.gather(1, chosen)
    if normalises:
        changed = changed * flat.sum(dim=1, keepdim=True) / changed.sum(dim=1, keepdim=True)
    changed = changed.reshape(weights.shape).to(weights.dtype)
    return tuple(changed if i == place else part for i, part in enumerate(output))


Experts = Callable[[int], Sequence[torch.Tensor]]
"""Reads an expert's matrices `[I,H]`, given its index."""


def random_orthonormal(spectral: torch.Tensor, seed: int) -> torch.Tensor:
    """Random orthonormal directions, as long as the spectral rows; more rows than `H` are orthonormal `H` at a time."""
    E, H = spectral.shape
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for start in range(0, E, H):
        gaussian = torch.randn(H, min(H, E - start), generator=generator, dtype=torch.float64)
        blocks.append(torch.linalg.qr(gaussian).Q.T)  # [≤H,H]
    return as_long_as(torch.cat(blocks).float(), spectral)


def permuted(spectral: torch.Tensor, seed: int) -> torch.Tensor:
    """Every expert gets another one's row: a random cycle through all of them."""
    order = torch.randperm(len(spectral), generator=torch.Generator().manual_seed(seed))
    rows = torch.empty_like(spectral)
    rows[order] = spectral[order.roll(1)]
    return rows


def as_long_as(rows: torch.Tensor, spectral: torch.Tensor) -> torch.Tensor:
    """Rows in their own directions with the lengths of the spectral ones: `[E,H]`."""
    return F.normalize(rows.float(), dim=1) * spectral.norm(dim=1, keepdim=True)


def mean_rows(experts: Experts, spectral: torch.Tensor) -> torch.Tensor:
    """The mean row of each expert's matrices, as long as the spectral rows."""
    means = [
        torch.stack([one.float().mean(dim=0).cpu() for one in experts(i)]).mean(dim=0) for i in range(len(spectral))
    ]
    return as_long_as(torch.stack(means), spectral)


def least_similar(experts: Experts, router: torch.Tensor, settings: SpectralSettings) -> torch.Tensor:
    """The mean of the eigenvectors that are *least* similar to the router row, signs aligned."""

    def ranked(similarities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signs = torch.where(similarities < 0, -1.0, 1.0).to(similarities)
        return signs, similarities.abs().argsort(stable=True)

    return _mean_of_first(experts, router, settings, ranked)


def random_signs(experts: Experts, router: torch.Tensor, settings: SpectralSettings, seed: int) -> torch.Tensor:
    """As the spectral router, but with every eigenvector's sign thrown by a coin before the most similar are kept."""
    generator = torch.Generator().manual_seed(seed)

    def ranked(similarities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coins = torch.randint(2, (len(similarities),), generator=generator).to(similarities) * 2 - 1
        return coins, (coins * similarities).argsort(descending=True, stable=True)

    return _mean_of_first(experts, router, settings, ranked)


def _mean_of_first(
    experts: Experts,
    router: torch.Tensor,
    settings: SpectralSettings,
    ranked: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """For each expert the mean, over its matrices, of their first eigenvectors by signs and order that `ranked` gives."""
    rows = []
    for expert, row in enumerate(router.detach().cpu()):
        means = []
        for matrix in experts(expert):
            vectors = ImplicitVectors(matrix.detach().cpu())
            signs, order = ranked(vectors.similarities(row))
            kept = order[: settings.count(len(vectors.values))]
            means.append(vectors.weighted_sum(torch.zeros_like(signs).index_put((kept,), signs[kept] / len(kept))))
        rows.append(torch.stack(means).mean(dim=0))
    return torch.stack(rows).float()


ORIGINAL = "original"
SPECTRAL = "ev"


@dataclass(frozen=True)
class Layer:
    """What the rows of one layer can be made of.

    Attributes:
        spectral: The model's own `W_EV [E,H]`.
        router: `R [E,H]`.
        experts: Reads an expert's matrices.
        settings: How the model's own spectral routers were made.
        seed: For what is random.
    """

    spectral: torch.Tensor
    router: torch.Tensor
    experts: Experts
    settings: SpectralSettings
    seed: int


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        name: Its name.
        tells: What it is, for the report.
        rows: Makes a layer's rows; None for the model's own spectral router.
        settings: Fields of `SpectralSettings` for routers that the package makes by itself, instead of `rows`.
        control: What of the mix takes effect.
        is_random: Whether it depends on a seed.
        routes: Whether it routes by another mix than the model's own; without, α is 0.
        routing: A routing by its name instead, which no α belongs to; see `routing/named.py`.
    """

    name: str
    tells: str
    rows: Callable[[Layer], torch.Tensor] | None = None
    settings: dict[str, Any] | None = None
    control: Control | None = None
    is_random: bool = False
    routes: bool = True
    routing: str | None = None

    @property
    def mixes(self) -> bool:
        """Whether it is a mix of learned and spectral routers, so that α matters."""
        return self.routes and self.routing is None


VARIANTS = (
    Variant(ORIGINAL, "the model's own router, α = 0", routes=False),
    Variant(SPECTRAL, "the spectral router as the model has it"),
    Variant(
        "random",
        "random orthonormal rows, as long as EV's",
        lambda x: random_orthonormal(x.spectral, x.seed),
        is_random=True,
    ),
    Variant(
        "permuted",
        "EV's rows, each given to another expert",
        lambda x: permuted(x.spectral, x.seed),
        is_random=True,
    ),
    Variant(
        "bottom",
        "the eigenvectors least similar to the router row",
        lambda x: least_similar(x.experts, x.router, x.settings),
    ),
    Variant(
        "mean-rows",
        "mean rows of the expert's matrices, as long as EV's",
        lambda x: mean_rows(x.experts, x.spectral),
    ),
    Variant("flat-router", "the router's own rows, as long as EV's", lambda x: as_long_as(x.router, x.spectral)),
    Variant(
        "average", "all eigenvectors, signs canonical: router-free", settings={"select": "average", "sign": "canonical"}
    ),
    Variant("sign-canonical", "signs canonical", settings={"sign": "canonical"}),
    Variant("sign-raw", "signs as the SVD returned them", settings={"sign": "raw"}),
    Variant(
        "sign-random",
        "signs thrown by coins",
        lambda x: random_signs(x.experts, x.router, x.settings, x.seed),
        is_random=True,
    ),
    Variant("scale-router", "EV's rows as long as the router's", settings={"scale": "router"}),
    Variant("weights-only", "the router's own choice, weighted as the EV mix would", control=Control.WEIGHTS),
    Variant("choice-only", "the EV mix's choice, weighted as the router would", control=Control.CHOICE),
)


def find_variants(names: list[str] | None) -> list[Variant]:
    """The variants of these names; all by default. `original` and `ev`, which the others are compared with, are put first.

    Args:
        names: Of `VARIANTS`, or routings as `routing/named.py` names them.

    Raises:
        FileNotFoundError: A routing names a file that does not exist.
        ValueError: A name is not known, or a routing is none for language models.
    """
    known = {variant.name: variant for variant in VARIANTS}
    routings: dict[str, Variant] = {}
    for name in names or []:
        if name in known:
            continue
        if not is_named(name):
            raise ValueError(unknown("variant", name, [*known, *NAMED]))
        check_causal(name)  # perplexity is one of the measures
        routing = canonical(name)
        what = NAMED[routing.partition(":")[0]].what
        told = f"a routing of its own: {what[0].lower()}{what[1:].rstrip('.')}"
        routings[routing] = Variant(f"routing={routing}", told, routing=routing)  # `random` is a variant and a routing
    wanted = {ORIGINAL, SPECTRAL, *(names or known)}
    return [*(variant for variant in VARIANTS if variant.name in wanted), *routings.values()]


def routers_of(
    variant: Variant, model: nn.Module, own: SpectralRouters, seed: int, family: MoEFamily | None = None
) -> SpectralRouters:
    """The spectral routers of a variant of a model, whose own are `own`; `seed` is for what is random in it.

    The model's configuration tells its family by default.
    """
    family = family or family_of(model)
    if variant.settings is not None:
        settings = replace(own.settings, **variant.settings)
        return SpectralRouters.from_model(model, **settings.as_dict(), family=family, progress=False)
    if variant.rows is None:
        return own
    weights = {}
    for place, layer in enumerate(family.layers(model)):
        weights[layer.index] = variant.rows(
            Layer(
                own.weights[layer.index],
                family.router_weight(layer.router).detach().float().cpu(),
                lambda expert, block=layer.block: family.expert_matrices(block, expert),  # type: ignore[misc]
                own.settings,
                1000 * seed + place,  # no two layers alike
            )
        )
    return replace(own, weights=weights, _placed={})
