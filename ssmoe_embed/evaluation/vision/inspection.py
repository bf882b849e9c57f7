"""The diagnostics of `ssmoe inspect` of a CLIP-MoE, tower by tower: each tower is inspected as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ssmoe_embed.data import emoji_concepts, emoji_pictures
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.evaluation.inspection.activations import Activations, activations_of, joined
from ssmoe_embed.evaluation.inspection.inspection import Inspection, InspectionOptions, inspection_of
from ssmoe_embed.evaluation.texts import MINIMUM, TextSample, spread
from ssmoe_embed.routing import RoutingPolicy, reroute
from ssmoe_embed.routing.sites import install_sites, recording
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.vision.module import SSMoEVision
from ssmoe_embed.vision.routing import ClipMoeTower, Tower, VisionRouting, spectral_policies, spectral_routers


@dataclass(frozen=True)
class PictureSample:
    """Pictures, and where they are from; the fields are those of `TextSample`."""

    pictures: tuple[Any, ...]
    labels: tuple[str, ...] | None
    origin: str


def shipped_names(count: int) -> TextSample:
    """Names of every n-th emoji, with its group as label."""
    chosen = spread(drawn(), count)
    texts = tuple(f"a picture of {one['label']}" for one, _ in chosen)
    return TextSample(texts, tuple(one["group"] for one, _ in chosen), "names of the package's emoji")


def shipped_pictures(count: int) -> PictureSample:
    """Twemoji's drawings of the same emoji."""
    chosen = spread(drawn(), count)
    labels = tuple(one["group"] for one, _ in chosen)
    return PictureSample(tuple(picture for _, picture in chosen), labels, "Twemoji's drawings")


def folder_pictures(folder: Path, count: int) -> PictureSample:
    """Every n-th image of a folder.

    Raises:
        ValueError: There are too few.
    """
    from ssmoe_embed.vision.inputs import is_image

    found = [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and is_image(str(path))]
    if len(found) < MINIMUM:
        raise ValueError(f"{folder} holds {len(found)} images, which say too little about a router; pass {MINIMUM}.")
    return PictureSample(tuple(spread(found, count)), None, str(folder))


def drawn() -> list[tuple[dict[str, Any], bytes]]:
    """The emoji that Twemoji has drawn, each with the drawing."""
    pictures = dict(emoji_pictures("twemoji"))
    return [(one, pictures[one["key"]]) for one in emoji_concepts() if one["key"] in pictures]


def inspect_towers(
    name: str,
    model: EmbeddingModel,
    texts: TextSample,
    pictures: PictureSample,
    options: InspectionOptions | None = None,
) -> list[Inspection]:
    """Measure both towers of a model that was loaded by `name`: the image tower on pictures, the text tower on texts."""
    options = options or InspectionOptions()
    module = model[0]
    assert isinstance(module, SSMoEVision)
    settings = VisionRouting(alpha=options.alpha)
    routers = module.routers if module.routing is not None and settings.makes_routers_as(module.routing) else {}
    routers = routers if set(routers) == set(Tower) else spectral_routers(module.model, settings, progress=False)
    samples: tuple[tuple[Tower, Sequence[Any], TextSample | PictureSample], ...] = (
        (Tower.VISION, pictures.pictures, pictures),
        (Tower.TEXT, texts.texts, texts),
    )
    found = []
    for tower, inputs, sample in samples:
        policies: dict[str, RoutingPolicy | None] = {"original": None}
        for routing, alpha in (("ssmoe", options.alpha), ("ev", 1.0)):
            policies[routing] = spectral_policies(routers, VisionRouting(towers=(tower,), alpha=alpha))[tower]
        read, vectors = {}, {}
        for routing, policy in policies.items():
            keywords: dict[str, Any] = {"policy": policy, "batch_size": options.batch_size}
            read[routing], vectors[routing] = collect_tower(module, tower, inputs, routers[tower], **keywords)
        found.append(
            inspection_of(
                f"{name}, {tower} tower",
                tower.of(module.model),
                ClipMoeTower(),
                routers[tower],
                read=read,
                vectors=vectors,
                options=options,
                told=_decoder(module, tower),
                matrices=("c_fc", "c_proj"),
                origin=sample.origin,
                labels=sample.labels,
            )
        )
    return found


@torch.inference_mode()
def collect_tower(
    module: SSMoEVision,
    tower: Tower,
    inputs: Sequence[Any],
    routers: SpectralRouters,
    *,
    policy: RoutingPolicy | None = None,
    batch_size: int = 32,
) -> tuple[Activations, torch.Tensor]:
    """Run inputs through one tower.

    Args:
        module: The model.
        tower: Which tower.
        inputs: Texts, or pictures.
        routers: Its spectral routers.
        policy: How it is routed; None for its learned routers.
        batch_size: Inputs per forward pass.

    Returns:
        What its routers say of every token, padding left out, and the inputs' vectors `[B,D]`. The tokens of a picture are
        its places: 0 is the class token.
    """
    family, own = ClipMoeTower(), tower.of(module.model)
    install_sites(own, family)
    starts = range(0, len(inputs), batch_size)
    batches = (module.preprocess(inputs[start : start + batch_size]) for start in starts)
    read = joined(_read(module, tower, features, routers, policy) for features in batches)
    return activations_of(read, [layer.index for layer in family.layers(own)]), read["vectors"]


def _read(
    module: SSMoEVision,
    tower: Tower,
    features: Mapping[str, torch.Tensor],
    routers: SpectralRouters,
    policy: RoutingPolicy | None,
) -> dict[str, torch.Tensor]:
    """One forward pass: everything by name, on the CPU."""
    device, own = module.model.device, tower.of(module.model)
    if tower is Tower.TEXT:
        ids, mask = features["input_ids"].to(device), features["attention_mask"].to(device)
        run: Callable[[], Any] = lambda: module.model.get_text_features(ids, attention_mask=mask)  # noqa: E731
    else:
        pixels = features["pixel_values"].to(device, module.model.dtype)
        config = own.config
        places = (config.image_size // config.patch_size) ** 2 + 1  # T
        ids = torch.arange(places, device=device).expand(len(pixels), places)
        mask, run = torch.ones_like(ids), lambda: module.model.get_image_features(pixels)
    rows = mask.flatten().nonzero()[:, 0]  # [n] of the N = B·T tokens
    with recording(rows) as taken, reroute(own, policy), _chosen(own) as chosen:
        vectors = run().pooler_output
    found = {"tokens": ids.flatten()[rows].cpu(), "lengths": mask.sum(dim=1).cpu(), "vectors": vectors.float().cpu()}
    for index, logits in taken.logits.items():
        found[f"learned/{index}"] = logits.float().cpu()
        found[f"spectral/{index}"] = routers.logits(index, taken.inputs[index]).cpu()
        found[f"chosen/{index}"] = chosen[index][rows].cpu()
    return found


@contextmanager
def _chosen(tower: Any) -> Iterator[dict[int, torch.Tensor]]:
    """The experts that the tokens of one forward pass go to, `[N,k]` by layer index."""
    found: dict[int, torch.Tensor] = {}

    def note(index: int, _module: Any, _inputs: Any, logits: torch.Tensor) -> None:
        found[index] = logits.float().softmax(dim=-1).topk(tower.config.num_experts_per_tok).indices

    with ExitStack() as hooks:
        for layer in ClipMoeTower().layers(tower):
            hooks.enter_context(layer.router.register_forward_hook(partial(note, layer.index)))
        yield found


def _decoder(module: SSMoEVision, tower: Tower) -> Callable[[Sequence[int]], list[str]]:
    """What names the tokens of a tower: its text, or the row and column of its patch."""
    if tower is Tower.TEXT:
        return lambda ids: [str(module.tokenizer.decode([token])) for token in ids]
    config = module.model.config.vision_config
    side = config.image_size // config.patch_size

    def place(token: int) -> str:
        return "class" if token == 0 else f"row {(token - 1) // side + 1}, column {(token - 1) % side + 1}"

    return lambda ids: [place(int(token)) for token in ids]
