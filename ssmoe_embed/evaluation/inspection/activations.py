"""What the routers of a model say about every token of some texts, and which experts each token goes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ssmoe_embed.embedding.base_model import spectral_routers
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.families import MoEFamily, family_of
from ssmoe_embed.routing.sites import recording, routed
from ssmoe_embed.routing.tokens import needs_tokens, noted


@dataclass(frozen=True)
class LayerActivations:
    """One MoE layer on `N` tokens.

    Attributes:
        layer: Index of the decoder layer.
        learned: Logits of the learned router, float32 `[N,E]`.
        spectral: Logits of the spectral router, float32 `[N,E]`.
        chosen: The experts that each token went to, `[N,k]`; under a routing that decides at the experts, the expert of
            each pair that was computed, `[P,1]`.
        inputs: What entered the router, `[N,H]`, where that was asked for.
    """

    layer: int
    learned: torch.Tensor
    spectral: torch.Tensor
    chosen: torch.Tensor
    inputs: torch.Tensor | None = None


@dataclass(frozen=True)
class Activations:
    """All MoE layers on the tokens of `B` texts, in the texts' order; padding is left out.

    Attributes:
        tokens: Token ids, `[N]`.
        last: Row of each text's last token, `[B]`.
        layers: The layers.
    """

    tokens: torch.Tensor
    last: torch.Tensor
    layers: tuple[LayerActivations, ...]


@torch.inference_mode()
def collect(
    module: SSMoE,
    texts: Sequence[str],
    settings: EmbeddingSettings | None = None,
    *,
    inputs: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Activations:
    """Run texts through a model, each once, in its template.

    Args:
        module: The model, with spectral routers.
        texts: At least one text.
        settings: How tokens are routed; by default by the model's own routers.
        inputs: Keep what enters the routers too.
        batch_size: Texts per forward pass.
        progress: Show a progress bar.

    Raises:
        ValueError: There is no text, or the model has no spectral routers.
    """
    if not texts or module.routers is None:
        what = "There is no text to read" if not texts else "The model has no spectral routers"
        raise ValueError(f"{what}; pass texts, and a model loaded with method='ssmoe'.")
    family = family_of(module.model)
    starts = range(0, len(texts), batch_size)
    view = module.using(settings or module.settings.changed(method="smoe", routing_signal=None))
    batches = tqdm(starts, desc="Reading", unit="batch", leave=False, disable=not progress)
    read = joined(_read(view, family, texts[start : start + batch_size], inputs) for start in batches)
    return activations_of(read, [layer.index for layer in family.layers(module.model)])


def checked_module(model: EmbeddingModel) -> SSMoE:
    """The model's module, with spectral routers, which are made if it has none.

    Raises:
        ValueError: The model is not one of this package's, or has no MoE layer in what is loaded.
    """
    module = model[0]
    if not isinstance(module, SSMoE):
        raise ValueError(f"{type(module).__name__} has no routers to look at; name a Mixture-of-Experts model.")
    if not family_of(module.model).layers(module.model):
        raise ValueError("None of the layers that are loaded has experts; load the model with a later hidden_layer.")
    if module.routers is None:
        return module.using(routers=spectral_routers(module.model, module.source, progress=False))
    return module


def joined(batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What was read of all batches, by name."""
    parts: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    for batch in batches:
        for name, value in batch.items():
            parts[name].append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def activations_of(read: Mapping[str, torch.Tensor], layers: Iterable[int]) -> Activations:
    """Activations of what was read, where `tokens` and `lengths` `[B]` are and, as `learned/3`, what each layer has."""
    found = [
        LayerActivations(
            layer,
            learned=read[f"learned/{layer}"],
            spectral=read[f"spectral/{layer}"],
            chosen=read[f"chosen/{layer}"],
            inputs=read.get(f"inputs/{layer}"),
        )
        for layer in layers
    ]
    return Activations(read["tokens"], read["lengths"].cumsum(0) - 1, tuple(found))


def _read(module: SSMoE, family: MoEFamily, texts: Sequence[str], inputs: bool) -> dict[str, torch.Tensor]:
    """One forward pass: everything by name, on the CPU."""
    features = {name: value.to(module.model.device) for name, value in module.preprocess(texts).items()}
    mask = features["attention_mask"]
    order = mask.argsort(dim=1, descending=True, stable=True)  # [B,T], padding to the right
    ids, mask = features["input_ids"].gather(1, order), mask.gather(1, order)
    rows = mask.flatten().nonzero()[:, 0]  # [n] of the N = B·T tokens
    layers = family.layers(module.model)
    policy = module.encoder.policy(module.settings.forward)
    tokens = noted(ids, mask) if needs_tokens(policy) else nullcontext()
    with recording(rows) as taken, routed(policy), tokens, _choices(module.model, family) as chosen:
        module.model(input_ids=ids, attention_mask=mask, use_cache=False)
    found = {"tokens": ids.flatten()[rows].cpu(), "lengths": mask.sum(dim=1).cpu()}
    for layer in layers:
        x = taken.inputs[layer.index]  # [n,H]
        if inputs:
            found[f"inputs/{layer.index}"] = x.cpu()
        found[f"learned/{layer.index}"] = taken.logits[layer.index].float().cpu()
        found[f"spectral/{layer.index}"] = module.routers.logits(layer.index, x).cpu()  # type: ignore[union-attr]
        if layer.index in taken.pairs:
            tokens_of, experts = taken.pairs[layer.index]  # [P]
            found[f"chosen/{layer.index}"] = experts[mask.flatten().bool()[tokens_of]][:, None].cpu()
        else:
            found[f"chosen/{layer.index}"] = chosen[layer.index][rows.to(chosen[layer.index].device)].cpu()
    return found


@contextmanager
def _choices(model: nn.Module, family: MoEFamily) -> Iterator[dict[int, torch.Tensor]]:
    """The experts that the tokens of one forward pass go to, `[N,k]` by layer index."""
    found: dict[int, torch.Tensor] = {}

    def from_experts(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex():
                found[index] = value.reshape(-1, value.shape[-1])
                return

    def from_router(index: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if index not in found:  # experts that take no index get scores that are zero where they are not asked
            scores = output[0].reshape(-1, output[0].shape[-1])  # [N,E]
            count = int((scores > 0).sum(dim=1).max())
            found[index] = scores.topk(count, dim=1).indices

    with ExitStack() as hooks:
        for layer in family.layers(model):
            hooks.enter_context(layer.router.register_forward_hook(partial(from_router, layer.index)))
            noted_index = partial(from_experts, layer.index)
            hooks.enter_context(layer.experts.register_forward_pre_hook(noted_index, with_kwargs=True))
        yield found
