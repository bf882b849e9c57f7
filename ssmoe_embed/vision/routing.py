"""The adapter of CLIP-MoE's towers: each of the two is a model of its own, whose blocks all have experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.families import MoEFamily
from ssmoe_embed.routing import Mix, RoutingPolicy, SpectralMix, SpectralRouting, reroute
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import Scale, Selection, Sign, SpectralSettings
from ssmoe_embed.vision.modeling import ClipMoeModel


class ProjectionLayout(Choice):
    """How an expert's `c_proj [H,I]` is brought into hidden space."""

    TRANSPOSE = "transpose"
    """Transposed, so that its rows are directions in hidden space."""
    RESHAPE = "reshape"
    """Reshaped to `[I,H]`, which scrambles its rows: the mistake of the paper's release, kept to reproduce it."""


class ClipMoeTower(MoEFamily):
    """The image or the text tower of a CLIP-MoE; it is no language model, so it is not in the table of families."""

    def __init__(self, layout: ProjectionLayout = ProjectionLayout.TRANSPOSE) -> None:
        self.layout = layout

    @property
    def model_types(self) -> tuple[str, ...]:
        """See `MoEFamily.model_types`."""
        return "clip_moe_text_model", "clip_moe_vision_model"

    def text_config(self, config: Any) -> Any:
        """See `MoEFamily.text_config`; a tower's configuration is its own."""
        return config

    def decoder(self, model: nn.Module) -> Any:
        """See `MoEFamily.decoder`; the stack of blocks.

        Raises:
            ValueError: The model has two towers.
        """
        if not hasattr(model, "encoder"):
            raise ValueError(
                f"{type(model).__name__} is routed tower by tower; pass its .vision_model or .text_model, or use "
                "ssmoe_embed.vision.reroute_towers(model, …)."
            )
        return model.encoder

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`; `c_fc` and `c_proj`, which has no gate beside it."""
        into, back = block.experts[expert].fc1.weight, block.experts[expert].fc2.weight  # [I,H], [H,I]
        return into, back.T if self.layout is ProjectionLayout.TRANSPOSE else back.reshape(into.shape)


class Tower(Choice):
    """One of the two halves of a CLIP-MoE."""

    VISION = "vision"
    """What reads images."""
    TEXT = "text"
    """What reads texts."""

    def of(self, model: ClipMoeModel) -> Any:
        """This tower of a model."""
        return model.vision_model if self is Tower.VISION else model.text_model


@dataclass(frozen=True)
class VisionRouting:
    """How a CLIP-MoE is routed by spectral routers; `PAPER` is what the paper's release does.

    `alpha` and `mix` are as in `SpectralRouting`; `top_c`, `select`, `sign` and `scale` as in `SpectralSettings`.

    Attributes:
        towers: Which towers; the other keeps its learned routers.
        layout: How `c_proj` is brought into hidden space.

    Raises:
        ValueError: A setting has a value that is not allowed.
    """

    towers: tuple[Tower, ...] = (Tower.VISION, Tower.TEXT)
    alpha: float = 0.5
    mix: Mix = Mix.PROBS
    top_c: int | float = 5
    select: Selection = Selection.ROUTER
    sign: Sign = Sign.ALIGNED
    scale: Scale = Scale.NONE
    layout: ProjectionLayout = ProjectionLayout.TRANSPOSE

    def __post_init__(self) -> None:
        given: Any = self.towers
        named = (given,) if isinstance(given, str) else given
        towers = tuple(dict.fromkeys(Tower.parse(tower, "towers") for tower in named))
        if not towers:
            raise ValueError('towers=() routes nothing; choose "vision", "text" or both.')
        layout = ProjectionLayout.parse(self.layout, "layout")
        parsed = {"towers": towers, "layout": layout} | vars(SpectralMix(self.alpha, self.mix)) | vars(self.spectral)
        for name in parsed.keys() & self.__dataclass_fields__.keys():
            object.__setattr__(self, name, parsed[name])

    @property
    def spectral(self) -> SpectralSettings:
        """How the spectral routers are made, but for the layout."""
        return SpectralSettings(self.top_c, self.select, self.sign, self.scale)

    def as_dict(self) -> dict[str, Any]:
        """The routing as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(vars(self)))
        return values

    def makes_routers_as(self, other: VisionRouting) -> bool:
        """Whether the spectral routers of another routing serve this one."""
        return (self.spectral, self.layout) == (other.spectral, other.layout)


PAPER = VisionRouting(alpha=1.0, top_c=5, sign=Sign.RAW, layout=ProjectionLayout.RESHAPE)
"""The constants of the paper's release: the learned routers select eigenvectors and do nothing else."""
_METHODS = ("smoe", "ssmoe", "paper")
"""By the learned routers, by the default spectral routing, by the paper's release's."""


def chosen_routing(saved: VisionRouting | None, changes: dict[str, Any]) -> VisionRouting | None:
    """The saved routing with what a user changes of it.

    Args:
        saved: As the folder says.
        changes: `method`, and fields of `VisionRouting`.

    Raises:
        ValueError: One of them is not known or does not fit the others.
    """
    method = changes.pop("method", None)
    for name in changes:
        if name not in VisionRouting.__dataclass_fields__:
            raise ValueError(unknown("setting", name, ["method", *VisionRouting.__dataclass_fields__]))
    if method is not None and method not in _METHODS:
        raise ValueError(unknown("method", method, _METHODS))
    if method == "smoe":
        if changes:
            raise ValueError(f"method='smoe' is the learned routers' own; {sorted(changes)} belong to ssmoe or paper.")
        return None
    if saved is None and method is None and not changes:
        return None
    base = PAPER if method == "paper" else saved or VisionRouting()
    return VisionRouting(**(vars(base) | changes))


def method_of(routing: VisionRouting | None) -> str:
    """The name of a routing: smoe by the learned routers, paper as released, ssmoe any other."""
    return "smoe" if routing is None else "paper" if routing == PAPER else "ssmoe"


def spectral_routers(
    model: ClipMoeModel, settings: VisionRouting | None = None, *, workers: int | None = None, progress: bool = True
) -> dict[Tower, SpectralRouters]:
    """Make the spectral routers of a model's towers.

    Args:
        model: A CLIP-MoE.
        settings: Which towers, and how they are made.
        workers: Experts worked on at once; by default one per core.
        progress: Show a progress bar.
    """
    settings = settings or VisionRouting()
    options: dict[str, Any] = settings.spectral.as_dict() | {"workers": workers, "progress": progress}
    family, name = ClipMoeTower(settings.layout), str(model.config.name_or_path) or None
    made = {tower: SpectralRouters.from_model(tower.of(model), family=family, **options) for tower in settings.towers}
    return {tower: replace(routers, base_model=name) for tower, routers in made.items()}


def spectral_policies(
    routers: Mapping[Tower, SpectralRouters], settings: VisionRouting | None = None
) -> dict[Tower, RoutingPolicy]:
    """The policies that route towers by their spectral routers.

    Args:
        routers: From `spectral_routers`.
        settings: Which towers, and the mix.

    Raises:
        ValueError: A tower has no spectral routers.
    """
    settings = settings or VisionRouting()
    lacking = [str(tower) for tower in settings.towers if tower not in routers]
    if lacking:
        raise ValueError(f"The towers {lacking} have no spectral routers; make them with spectral_routers(model, …).")
    return {tower: SpectralRouting(routers[tower], settings.alpha, settings.mix) for tower in settings.towers}


def reroute_towers(model: ClipMoeModel, policies: Mapping[Tower, RoutingPolicy]) -> ExitStack:
    """Route the tokens of one or both towers by other policies, at once.

    Args:
        model: A CLIP-MoE.
        policies: By tower, for example from `spectral_policies`; a tower without one keeps its learned routers.

    Returns:
        A context manager whose end gives the model its own routing back, as does `.close()`; without either the
        policies stay.

    Raises:
        ValueError: A policy does not fit its tower, or the tower is re-routed already; then no tower is.
    """
    with ExitStack() as installed:
        for tower, policy in policies.items():
            installed.enter_context(reroute(Tower.parse(tower, "tower").of(model), policy))
        return installed.pop_all()
