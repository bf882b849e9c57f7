"""Causal language models under another routing: loading, and the routings that the paper compares, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.common.loading import HubOptions, check_device_map, warn_of_half_precision
from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.embedding.persistence import OWN_BASE
from ssmoe_embed.families import family_of, load_config
from ssmoe_embed.hub.names import RECIPES, local, unknown_model
from ssmoe_embed.quantization.loading import forget_unpacking, unpacked_mxfp4
from ssmoe_embed.routing import HashRouting, Mix, RandomRouting, RoutingPolicy, SpectralRouting, reroute
from ssmoe_embed.routing.mixing import checked_alpha
from ssmoe_embed.routing.named import NAMED, canonical, check_causal, is_named, policy_named
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings

_DEFAULT = HubOptions()
ROUTERS_FILE = "ssmoe_routers.safetensors"
"""Spectral routers beside a checkpoint; those in a folder that `ssmoe drop` made are the whole model's, sliced."""


class Routing(Choice):
    """How tokens find their experts; beside these there are those of `routing/named.py`."""

    ORIGINAL = "original"
    """As the model's own routers say."""
    SSMOE = "ssmoe"
    """Learned and spectral scores mixed."""
    EV = "ev"
    """The spectral routers alone."""
    AVERAGE_EV = "average-ev"
    """Spectral routers made without the learned ones, alone (the paper's router-free variant, table 5)."""
    RANDOM = "random"
    """Experts drawn anew for each token."""
    HASH = "hash"
    """Experts by token id."""


@dataclass(frozen=True)
class RoutingSettings:
    """What the named routings leave open.

    Attributes:
        alpha: The spectral router's share in `ssmoe`.
        mix: Mix the scores or the logits in `ssmoe`.
        top_c: Eigenvectors kept of each expert matrix, a count or a fraction.
        scale: Length of the spectral routers' rows, see `Scale`.
        seed: Of `random` and `hash`.

    Raises:
        ValueError: A value is not allowed.
    """

    alpha: float = 0.5
    mix: Mix = Mix.PROBS
    top_c: int | float = 50
    scale: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checked_alpha(self.alpha))
        object.__setattr__(self, "mix", Mix.parse(self.mix, "mix"))
        object.__setattr__(self, "top_c", self.spectral().top_c)

    def spectral(self, routing: str = Routing.SSMOE) -> SpectralSettings:
        """The settings of the spectral routers that a routing uses."""
        if routing == Routing.AVERAGE_EV:
            return SpectralSettings(self.top_c, "average", "canonical", self.scale)  # type: ignore[arg-type]
        return SpectralSettings(self.top_c, scale=self.scale)  # type: ignore[arg-type]  # parsed there

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self) | {"mix": str(self.mix)}


ROUTINGS = [*map(str, Routing), *(name for name in NAMED if name not in list(Routing))]
"""The names of all routings."""


def parse_routing(routing: str) -> str:
    """A routing's name, with the settings that are written after it, see `routing/named.py`.

    Raises:
        FileNotFoundError: A file that it names does not exist.
        ValueError: The name or a setting is not known, a value is not allowed, or later tokens would decide about earlier
            ones.
    """
    if routing in list(Routing):
        return Routing(routing)
    if not is_named(routing):
        raise ValueError(unknown("routing", routing, ROUTINGS))
    check_causal(routing)
    return canonical(routing)


def policy_of(
    routing: str,
    model: PreTrainedModel,
    settings: RoutingSettings | None = None,
    *,
    routers: SpectralRouters | None = None,
    progress: bool = True,
) -> RoutingPolicy | None:
    """The policy that a routing's name means; None for the model's own.

    Args:
        routing: The name, see `parse_routing`.
        model: The model, from whose experts the spectral routers are made where they are needed and not given.
        settings: What the name leaves open.
        routers: Spectral routers to use.
        progress: Show a progress bar.

    Raises:
        ValueError: The name is not known, or the routing does not fit the model.
    """
    routing = parse_routing(routing)
    settings = settings or RoutingSettings()
    if not isinstance(routing, Routing):
        return policy_named(routing, model)
    if routing is Routing.ORIGINAL:
        return None
    if routing is Routing.RANDOM:
        return RandomRouting(settings.seed)
    if routing is Routing.HASH:
        return HashRouting(settings.seed)
    routers = routers or spectral_routers(model, settings.spectral(routing), progress=progress)
    if routing is Routing.SSMOE:
        return SpectralRouting(routers, settings.alpha, settings.mix)
    return SpectralRouting(routers, alpha=1.0)


def spectral_routers(model: PreTrainedModel, settings: SpectralSettings, *, progress: bool = True) -> SpectralRouters:
    """The model's spectral routers: those that lie beside its checkpoint if they were made so, else new ones."""
    beside = Path(str(model.config.name_or_path)) / ROUTERS_FILE
    if beside.is_file():
        stored = SpectralRouters.load(beside)
        if stored.settings == settings:
            return stored
    return SpectralRouters.of(model, settings, progress=progress)


def load(
    base: str | Path,
    routing: RoutingPolicy | str | None = None,
    *,
    settings: RoutingSettings | None = None,
    dtype: str | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a causal language model that runs under another routing.

    It is transformers' own model: `generate`, streaming, batches and the key-value cache work as ever.

    Args:
        base: Folder or hub id of the language model, or a recipe's name, whose base model is meant.
        routing: A policy such as `SpectralRouting(routers, alpha=0.5)`; a name, see `policy_of`; None for the model's own.
        settings: What a routing's name leaves open.
        dtype: Dtype of the weights; by default the checkpoint's own.
        progress: Show progress bars while weights are loaded and spectral routers are made.
        **kwargs: Fields of `HubOptions` (`revision`, `token`, …), and keywords of `AutoModelForCausalLM.from_pretrained`:
            `device_map`, `attn_implementation`, …

    Raises:
        FileNotFoundError: There is no model of that name.
        UnsupportedModelError: The model is dense, or its family has no adapter.
        ValueError: It has no language-model head, or its checkpoint is incomplete, or the routing does not fit, or
            `device_map` names a device that is not there.
    """
    if isinstance(routing, str):
        routing = parse_routing(routing)  # before anything is loaded
    check_device_map(kwargs.get("device_map"))
    hub = HubOptions.taken_from(kwargs)
    with loading_bar(progress):
        model = _loaded(base_of(base), dtype, hub, kwargs)
    if dtype is None:
        warn_of_half_precision(model)
    policy = policy_of(routing, model, settings, progress=progress) if isinstance(routing, str) else routing
    if policy is not None:
        reroute(model, policy)
    return model


def skeleton(base: str | Path, hub: HubOptions = _DEFAULT) -> PreTrainedModel:
    """The language model without weights, for what its configuration alone decides; tensors are on the device `meta`.

    Raises:
        FileNotFoundError: There is no model of that name.
        UnsupportedModelError: The model is dense, or its family has no adapter.
        ValueError: It is no language model.
    """
    config, kind = _described(base_of(base), hub)
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=hub.trust_remote_code)


def load_tokenizer(base: str | Path, hub: HubOptions = _DEFAULT) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, with a padding token and padding on the left, as generation needs."""
    tokenizer = AutoTokenizer.from_pretrained(base_of(base), padding_side="left", **hub.loading)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def base_of(name: str | Path) -> str:
    """The folder or hub id of the language model that a name is for.

    Raises:
        FileNotFoundError: It is a folder that does not exist.
    """
    name = local(name)
    if Path(name).is_dir():
        return name
    if name == BUNDLED:
        return str(tiny_folder() / OWN_BASE)
    return RECIPES[name].base if name in RECIPES else name


def _loaded(base: str, dtype: str | None, hub: HubOptions, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The model with its head, or an error where the library would fill a gap with random weights and a warning."""
    config, kind = _described(base, hub)
    keywords: dict[str, Any] = {"config": config} | ({"dtype": dtype} if dtype else {}) | hub.loading | kwargs
    keywords |= unpacked_mxfp4(config, kwargs.get("quantization_config"))
    is_packed = getattr(config, "quantization_config", None) is not None  # which unpacking takes away
    advice = f"The checkpoint {base} is incomplete or corrupted, or does not fit its config.json; download it again"
    try:
        model, report = kind.from_pretrained(base, output_loading_info=True, **keywords)
    except torch.OutOfMemoryError:
        raise  # no fault of the checkpoint's
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{advice}. ({str(error).strip().splitlines()[0]})") from error
    missing = sorted(report["missing_keys"]) + [name for name, *_ in report["mismatched_keys"]]
    heads = [name for name in missing if "head" in name]
    if heads:
        raise ValueError(
            f"{base} has no language-model head ({heads[0]} is missing), so it can neither generate nor be evaluated as "
            "a language model. Choose the checkpoint of the causal language model."
        )
    if missing:
        raise ValueError(
            f"{len(missing)} of the model's weights are missing or cut short, such as {missing[0]}. {advice}."
        )
    if is_packed:
        forget_unpacking(model)
    return model.requires_grad_(False).eval()


def _described(base: str, hub: HubOptions) -> tuple[Any, Any]:
    """The configuration of a supported model, and what loads that with its head.

    Of some that also see, transformers has no class for text alone.
    """
    try:
        config = load_config(base, **hub.loading)
    except OSError as error:
        raise FileNotFoundError(unknown_model(base, str(error).strip().splitlines()[0])) from error
    family_of(config)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config, AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return config, AutoModelForImageTextToText
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):  # a class that comes with the model
        return config, AutoModelForCausalLM
    raise ValueError(f"{base} ({config.model_type}) is no language model: it has no head to predict tokens.")
