"""Spectral routers: one matrix W_EV a MoE layer, made from the eigenvectors of its experts' weights.

Source: SSMoE, steps 1 to 4 of section 3.2, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from typing_extensions import Unpack

from ssmoe_embed.checkpoints import Checkpoint
from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.common.loading import HubKeywords, HubOptions
from ssmoe_embed.families import MoEFamily, family_of, load_config
from ssmoe_embed.spectral.decomposition import own_parts
from ssmoe_embed.spectral.eigenvectors import spectral_embeddings
from ssmoe_embed.spectral.settings import Scale, SpectralSettings

_TOLERANCE = 0.01
"""Relative distance of two fingerprints of one router: rounding to bfloat16 moves them by about 0.001."""


def fingerprint(router: torch.Tensor) -> torch.Tensor:
    """A short summary of a learned router: each row summed with fixed pseudo-random signs.

    Args:
        router: `R [E,H]` of any floating dtype.

    Returns:
        float32 `[E]`.
    """
    scrambled = torch.arange(router.shape[-1]) * 2654435761  # Knuth's multiplicative hash: the same on every version
    signs = ((scrambled >> 15) & 1) * 2.0 - 1.0  # [H]
    return (router.detach().cpu().double() @ signs.double()).float()  # not every device knows float64


def same_router(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two fingerprints `[E]` are of one router, up to rounding."""
    distance = (first - second).norm()
    return bool(distance <= _TOLERANCE * torch.maximum(first.norm(), second.norm()))


def fingerprints_of(model: nn.Module) -> dict[int, torch.Tensor]:
    """What identifies each of a model's learned routers, `[E]` by layer; they are left out whose weights are elsewhere."""
    family = family_of(model)
    weights = {layer.index: family.router_weight(layer.router) for layer in family.layers(model)}
    return {index: fingerprint(weight) for index, weight in weights.items() if not weight.is_meta}


_PREFIX = "spectral."


@dataclass(frozen=True)
class SpectralRouters:
    """The spectral routers of one model.

    Attributes:
        weights: `W_EV [E,H]`, float32, by decoder layer index; dense layers have none.
        fingerprints: Per layer, what identifies the learned router they were made beside, `[E]`.
        settings: How they were made.
        base_model: The model's hub id or folder, for messages and the model card.
        base_revision: Its commit on the hub, where known.
    """

    weights: dict[int, torch.Tensor]
    fingerprints: dict[int, torch.Tensor]
    settings: SpectralSettings
    base_model: str | None = None
    base_revision: str | None = None
    _placed: dict[tuple[int, torch.device], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    # --- making them --------------------------------------------------------------------------------------------------

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        top_c: int | float = 50,
        select: str = "router",
        sign: str = "aligned",
        scale: str = "none",
        *,
        exclude_common: int = 0,
        family: MoEFamily | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> SpectralRouters:
        """Make the spectral routers of a live model.

        Args:
            model: A transformers MoE model, with or without a head.
            top_c: Eigenvectors kept of each expert matrix, a count or a fraction of their number.
            select: `"router"` keeps those most similar to the expert's router row, `"average"` keeps all.
            sign: `"aligned"`, `"canonical"` or `"raw"`, see `Sign`.
            scale: `"none"` or `"router"`, see `Scale`.
            exclude_common: Rank of the experts' common part that is taken off first, see `SpectralSettings`.
            family: The adapter that reads its experts; by default `family_of(model)`.
            workers: Experts worked on at once; by default one a core.
            progress: Show a progress bar.

        Raises:
            UnsupportedModelError: The model is dense or of a family without an adapter.
            ValueError: A setting has a value that is not allowed.
        """
        settings = SpectralSettings(top_c, select, sign, scale, exclude_common)  # type: ignore[arg-type]  # parsed there
        config: Any = model.config
        family = family_of(model) if family is None else family
        layers = {layer.index: layer for layer in family.layers(model)}
        made = _make(
            {index: family.router_weight(layer.router) for index, layer in layers.items()},
            lambda index: lambda expert: family.expert_matrices(layers[index].block, expert),
            settings,
            workers=workers,
            progress=progress,
        )
        return cls(*made, settings, str(config.name_or_path) or None, getattr(config, "_commit_hash", None))

    @classmethod
    def from_checkpoint(
        cls,
        path_or_id: str | Path,
        top_c: int | float = 50,
        select: str = "router",
        sign: str = "aligned",
        scale: str = "none",
        *,
        exclude_common: int = 0,
        workers: int | None = None,
        progress: bool = True,
        notes: Path | None = None,
        **hub: Unpack[HubKeywords],
    ) -> SpectralRouters:
        """Make the spectral routers from a checkpoint, expert by expert, without loading the model.

        `path_or_id` is a folder with safetensors shards, or a hub id, which is downloaded if need be, by the fields of
        `HubOptions` in `hub`: `revision`, `token`, …. `notes` is a folder in which finished layers are kept, for a run that
        goes on where one with the same arguments was killed. The other arguments are those of `from_model`.

        Raises:
            UnsupportedModelError: The model is dense or of a family without an adapter.
            FileNotFoundError: There is no safetensors checkpoint.
            ValueError: A setting has a value that is not allowed, or the checkpoint does not fit its configuration.
        """
        settings = SpectralSettings(top_c, select, sign, scale, exclude_common)  # type: ignore[arg-type]  # parsed there
        options = HubOptions(**hub)
        path_or_id = Path(path_or_id).expanduser() if str(path_or_id).startswith("~") else path_or_id
        config = load_config(path_or_id, **options.loading)
        family = family_of(config)
        checkpoint = Checkpoint.open(path_or_id, **options.files)
        depth = family.text_config(config).num_hidden_layers  # beyond it lie layers that predict tokens further ahead
        prefixes = {index: prefix for index, prefix in family.stored_layers(checkpoint).items() if index < depth}
        experts = {index for index in family.stored_expert_layers(checkpoint) if index < depth}
        lacking = sorted(experts - prefixes.keys())
        if lacking:
            raise ValueError(
                f"The checkpoint {path_or_id} has experts but no router in layers {lacking}; it is incomplete."
            )

        made = _make(
            {index: family.stored_router(checkpoint, prefix, index) for index, prefix in prefixes.items()},
            lambda index: lambda expert: family.stored_matrices(checkpoint, prefixes[index], index, expert),
            settings,
            workers=workers,
            progress=progress,
            notes=notes,
        )
        return cls(*made, settings, str(path_or_id), getattr(config, "_commit_hash", None))

    @classmethod
    def of(cls, model: nn.Module, settings: SpectralSettings, *, progress: bool = True) -> SpectralRouters:
        """As `from_model`, or `from_checkpoint` where the weights in memory are packed or not there."""
        given: dict[str, Any] = settings.as_dict()
        config: Any = model.config
        if not getattr(model, "is_quantized", False) and not any(weight.is_meta for weight in model.parameters()):
            return cls.from_model(model, **given, progress=progress)
        commit = getattr(config, "_commit_hash", None)  # of a hub model
        at = {} if commit is None else {"revision": commit}
        return cls.from_checkpoint(str(config.name_or_path), **given, progress=progress, **at)

    # --- using them ---------------------------------------------------------------------------------------------------

    def logits(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The spectral router's logits `x W_EVᵀ`, in float32.

        Args:
            layer: Index of the decoder layer.
            hidden: What enters the learned router, `[N,H]`, of any dtype and device.

        Returns:
            `[N,E]`.
        """
        key = (layer, hidden.device)
        if key not in self._placed:
            with torch.inference_mode(False):  # the copy must serve training too
                self._placed[key] = self.weights[layer].to(hidden.device)
        return nn.functional.linear(hidden.float(), self._placed[key])

    def check(self, model: nn.Module) -> None:
        """Make sure that they were made from this model.

        Raises:
            ValueError: They were not; the message says what differs.
        """
        config: Any = model.config
        family = family_of(model)
        layers = {layer.index: family.router_weight(layer.router) for layer in family.layers(model)}
        name = config.name_or_path or type(model).__name__
        origin = f"These spectral routers were made from {self.base_model or 'an unnamed model'}"
        advice = f"Make new ones with SpectralRouters.from_model(model) or `ssmoe build {name}`."
        missing = sorted(set(layers) - set(self.weights))
        if missing:
            raise ValueError(f"{origin} and lack layers {missing} of {name}. {advice}")
        for index, router in layers.items():
            if router.shape != self.weights[index].shape:
                shapes = f"{tuple(self.weights[index].shape)} and {tuple(router.shape)}"
                raise ValueError(f"{origin}, not from {name}: layer {index} has [experts, hidden] {shapes}. {advice}")
            if not router.is_meta and not same_router(fingerprint(router), self.fingerprints[index]):
                raise ValueError(f"{origin}, not from {name}: the learned routers of layer {index} differ. {advice}")

    def adopted_by(self, model: nn.Module) -> SpectralRouters:
        """The same spectral routers, belonging to the model as it is now, whose learned routers training has changed."""
        return replace(self, fingerprints=self.fingerprints | fingerprints_of(model), _placed={})

    # --- on disk ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write them as a safetensors file, atomically; settings and base model go into its metadata."""
        save_tensors(path, self.tensors(), self.metadata())

    @classmethod
    def load(cls, path: str | Path) -> SpectralRouters:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is truncated, corrupted or something else.
        """
        tensors, metadata = load_tensors(path)
        if "spectral" not in metadata:
            raise ValueError(f"{path} holds no spectral routers; make them with SpectralRouters.from_model(model).")
        try:
            return cls.from_tensors(tensors, metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is a tensor, by its name on disk."""
        stored = {f"{_PREFIX}{index}.weight": weight for index, weight in self.weights.items()}
        return stored | {f"{_PREFIX}{index}.fingerprint": value for index, value in self.fingerprints.items()}

    def metadata(self) -> dict[str, Any]:
        """Everything else, as JSON values."""
        base = {"base_model": self.base_model, "base_revision": self.base_revision}
        return {"spectral": self.settings.as_dict()} | base

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> SpectralRouters:
        """The inverse of `tensors` and `metadata`; tensors of other names are ignored.

        Raises:
            ValueError: A tensor is missing or not finite, or a setting is not known.
        """
        parts: dict[str, dict[int, torch.Tensor]] = {"weight": {}, "fingerprint": {}}
        for name, tensor in tensors.items():
            if name.startswith(_PREFIX):
                index, _, part = name.removeprefix(_PREFIX).partition(".")
                if part not in parts or not index.isdecimal():
                    raise ValueError(f"{name!r} is no part of spectral routers; make them again.")
                parts[part][int(index)] = tensor
        weights, fingerprints = (dict(sorted(part.items())) for part in parts.values())
        broken = [index for index, weight in weights.items() if not torch.isfinite(weight).all()]
        if broken or weights.keys() != fingerprints.keys():
            layers = broken or sorted(weights.keys() ^ fingerprints.keys())
            raise ValueError(f"The spectral routers of layers {layers} are incomplete or not finite; make them again.")
        try:
            settings = SpectralSettings(**metadata["spectral"])
        except TypeError as error:
            raise ValueError(
                f"The settings of the spectral routers are not known here ({error}); make them again."
            ) from None
        return cls(weights, fingerprints, settings, metadata.get("base_model"), metadata.get("base_revision"))


def _make(
    routers: Mapping[int, torch.Tensor],
    experts_of: Callable[[int], Callable[[int], Sequence[torch.Tensor]]],
    settings: SpectralSettings,
    *,
    workers: int | None,
    progress: bool,
    notes: Path | None = None,
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Steps 1 to 4 layer by layer: `W_EV [E,H]` and the fingerprint `[E]` of each, see `from_checkpoint`.

    `routers` are the learned ones, `R [E,H]` by layer, and `experts_of(layer)(expert)` reads an expert's matrices `[I,H]`.
    """
    if not routers:
        raise ValueError("The model has no MoE layer, so there is nothing to make spectral routers from.")
    weights, fingerprints = {}, {}
    total = sum(len(router) for router in routers.values())
    with tqdm(total=total, desc="Spectral routers", unit="expert", disable=not progress) as bar:
        for index, router in routers.items():
            router = router.detach().cpu()
            kept = None if notes is None else notes / f"{_PREFIX}{index}.safetensors"
            if kept is not None and kept.is_file():
                weight = load_tensors(kept)[0]["weight"]
                bar.update(len(router))
            else:
                experts = own_parts(experts_of(index), len(router), settings.exclude_common)
                weight = spectral_embeddings(experts, router, settings, workers=workers, on_expert=bar.update)
                if kept is not None:
                    save_tensors(kept, {"weight": weight}, {})
            if settings.scale is Scale.ROUTER:
                length = weight.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)  # [E,1]
                weight = weight * (router.float().norm(dim=-1).mean() / length).to(weight)
            weights[index], fingerprints[index] = weight, fingerprint(router)
    return weights, fingerprints
