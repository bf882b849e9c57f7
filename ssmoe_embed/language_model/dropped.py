"""Dropping experts, in memory and as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.files import atomic_folder
from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.common.version import __version__
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.base_model import loading_bar
from ssmoe_embed.families import Score, family_of
from ssmoe_embed.language_model.dropping import DropBy, Limits, choose, parse_drop_by, random_scores, slice_experts
from ssmoe_embed.language_model.loading import (
    ROUTERS_FILE,
    Routing,
    RoutingSettings,
    base_of,
    load,
    load_tokenizer,
    policy_of,
    skeleton,
    spectral_routers,
)
from ssmoe_embed.language_model.measures import calibration_ids, read_text, text_digest, windows
from ssmoe_embed.routing import RoutingPolicy, reroute
from ssmoe_embed.routing.mixing import scores
from ssmoe_embed.routing.policies import check_at_routers
from ssmoe_embed.routing.tokens import needs_tokens
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class _Sums:
    """A routing policy that adds up the scores of the policy below it, and changes nothing."""

    policy: RoutingPolicy | None
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def needs_tokens(self) -> bool:
        """See `TokenPolicy`."""
        return needs_tokens(self.policy)

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        check_at_routers(self.policy)
        if self.policy is not None:
            self.policy.check(model)

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        if self.policy is not None:
            logits = self.policy.logits(layer, hidden, logits, score)
        total = scores(logits, score).double().sum(dim=0).cpu()  # [N,E] → [E]
        self.sums[layer] = self.sums.get(layer, 0) + total
        self.counts[layer] = self.counts.get(layer, 0) + len(logits)
        return logits


@torch.no_grad()
def expert_scores(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    policy: RoutingPolicy | None = None,
    *,
    progress: bool = True,
) -> dict[int, torch.Tensor]:
    """Each expert's mean score, before top-k, while the model reads a text under a routing.

    Args:
        model: The language model, not re-routed.
        batches: Token ids without padding, `[B,T]` each.
        policy: The routing whose scores are meant, and under which the model runs; None for its own.
        progress: Show a progress bar.

    Returns:
        float64 `[E]` by decoder layer index.

    Raises:
        ValueError: The policy does not fit the model, or there is no text.
    """
    recorder = _Sums(policy)
    decoder = getattr(model, model.base_model_prefix, model)  # without the head, whose logits nobody needs
    reader = model if recorder.needs_tokens else decoder
    with reroute(model, recorder):
        for batch in tqdm(batches, desc="Calibration", unit="batch", disable=not progress):
            reader(input_ids=batch.to(model.device), use_cache=False)
    if not recorder.sums:
        raise ValueError("There is no text to score the experts on.")
    return {layer: recorder.sums[layer] / recorder.counts[layer] for layer in sorted(recorder.sums)}


RECORD = "ssmoe_drop.json"
CALIBRATION_TOKENS = 32_768
"""Of the bundled model's 72 kept experts, all 98,000 tokens of the sample choose one differently."""
_WINDOW = 512
_BATCH = 4


@dataclass(frozen=True)
class Dropped:
    """What dropping did.

    Attributes:
        kept: The experts that stayed, by layer, as they were numbered before.
        experts: How many there were in each layer.
        bytes_before: Memory of all weights before.
        bytes_after: And after.
        routers: The spectral routers of the smaller model: rows of the larger one's.
    """

    kept: dict[int, list[int]]
    experts: int
    bytes_before: int
    bytes_after: int
    routers: SpectralRouters | None = None

    @property
    def count(self) -> int:
        """Experts that each layer keeps."""
        return len(next(iter(self.kept.values())))

    def __str__(self) -> str:
        share = 1 - self.bytes_after / self.bytes_before
        return (
            f"{self.count} of {self.experts} experts kept in each of {len(self.kept)} layers: "
            f"{self.bytes_before / 1e6:,.2f} MB before, {self.bytes_after / 1e6:,.2f} MB after ({share:.1%} less)"
        )


def drop_experts(
    model: PreTrainedModel,
    keep: float = 0.75,
    by: str | DropBy = DropBy.SSMOE,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: str | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    settings: RoutingSettings | None = None,
    routers: SpectralRouters | None = None,
    seed: int = 0,
    with_routers: bool = True,
    progress: bool = True,
) -> Dropped:
    """Remove the least wanted experts of a language model, weights and all, in place.

    Args:
        model: A causal language model, not re-routed.
        keep: The fraction of each layer's experts that stays, rounded up.
        by: What decides, see `parse_drop_by`.
        tokenizer: The model's; not needed with `by="random"`.
        calibration: Text that the experts are scored on; by default the sample that comes with the package.
        calibration_tokens: How much of its beginning is read at most.
        settings: α, top_c and so on of the SSMoE router.
        routers: The model's spectral routers, if they are made already.
        seed: For `by="random"`.
        with_routers: Also give the spectral routers of the smaller model.
        progress: Show progress bars.

    Raises:
        UnsupportedModelError: The model cannot lose experts; the message says why.
        ValueError: `keep` leaves too few experts, or the calibration text is too short.
    """
    by, settings = parse_drop_by(by), settings or RoutingSettings()
    limits = Limits.of(model)
    count = limits.kept(keep)
    if routers is None and (with_routers or by == DropBy.SSMOE):
        routers = spectral_routers(model, settings.spectral(), progress=progress)
    if by == DropBy.RANDOM:
        scores = random_scores(model, seed)
    else:
        if tokenizer is None:
            raise ValueError(f"by={str(by)!r} scores the experts on a text and needs the model's tokenizer.")
        text = "\n\n".join(calibration_texts()) if calibration is None else calibration
        batches = list(windows(calibration_ids(tokenizer, text, calibration_tokens), _WINDOW, _BATCH))
        routing = {DropBy.SSMOE: Routing.SSMOE, DropBy.ROUTER: Routing.ORIGINAL}.get(by, by)  # type: ignore[call-overload]
        policy = policy_of(routing, model, settings, routers=routers, progress=progress)
        scores = expert_scores(model, batches, policy, progress=progress)
    kept = choose(scores, count, limits.groups)
    before = model.get_memory_footprint(return_buffers=False)
    slice_experts(model, kept)
    chosen = {layer: experts.tolist() for layer, experts in kept.items()}
    if routers is not None:  # the rows of the experts that stayed
        weights = {layer: routers.weights[layer][experts] for layer, experts in kept.items()}
        fingerprints = {layer: routers.fingerprints[layer][experts] for layer, experts in kept.items()}
        routers = replace(routers, weights=weights, fingerprints=fingerprints, _placed={})
    return Dropped(chosen, limits.experts, before, model.get_memory_footprint(return_buffers=False), routers)


def drop(
    base: str | Path,
    output: str | Path,
    keep: float = 0.75,
    by: str | DropBy = DropBy.SSMOE,
    *,
    calibration: str | Path | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    settings: RoutingSettings | None = None,
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **kwargs: Any,
) -> Dropped:
    """Write a language model with fewer experts as a normal transformers checkpoint, which loads without this package.

    The smaller model's spectral routers lie beside it, for `load(output, "ssmoe")`, and `ssmoe_drop.json` says which experts
    stayed.

    Args:
        base: Folder, hub id or recipe name of the language model.
        output: Folder to make.
        keep: See `drop_experts`, as for `by`, `settings`, `seed` and `progress`.
        by: See `drop_experts`.
        calibration: Text file that the experts are scored on; by default the sample that comes with the package.
        calibration_tokens: See `drop_experts`.
        settings: See `drop_experts`.
        seed: See `drop_experts`.
        dtype: Dtype of the weights; by default the checkpoint's own.
        overwrite: Replace the output folder.
        progress: See `drop_experts`.
        **kwargs: See `load`.

    Raises:
        FileExistsError: The output exists and `overwrite` is false.
        FileNotFoundError: There is no such calibration file.
        OSError: The output cannot be written to, or its disk has too little room.
        UnsupportedModelError: The model cannot lose experts.
        ValueError: See `drop_experts`, or the output is the model itself. What needs no weights is told before any are read.
    """
    by = parse_drop_by(by)
    text = None if calibration is None else read_text(calibration)
    hub = HubOptions.among(kwargs)
    output, source = Path(output).expanduser(), base_of(base)
    if output.resolve() == Path(source).resolve():
        raise ValueError(f"output={str(output)!r} is the model itself, which would be lost; choose another output.")
    outline = skeleton(base, hub)
    limits = Limits.of(outline)
    count = limits.kept(keep)
    tokenizer = load_tokenizer(base, hub)
    if text is not None and by != DropBy.RANDOM:
        calibration_ids(tokenizer, text, calibration_tokens)
    itemsize = getattr(torch, dtype).itemsize if dtype else outline.dtype.itemsize
    layers = family_of(outline).layers(outline)
    experts = sum(weight.numel() for layer in layers for weight in layer.experts.parameters())
    room = int(itemsize * (outline.num_parameters() - (1 - count / limits.experts) * experts))  # about
    with atomic_folder(output, overwrite=overwrite, room=room) as folder:
        model = load(base, dtype=dtype, progress=progress, **kwargs)  # what can fail without weights has been tried
        dropped = drop_experts(
            model,
            keep,
            by,
            tokenizer=tokenizer,
            calibration=text,
            calibration_tokens=calibration_tokens,
            settings=settings,
            seed=seed,
            progress=progress,
        )
        with loading_bar(progress):  # which hides that of saving too
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if dropped.routers is not None:
            dropped.routers.save(folder / ROUTERS_FILE)
        told = {"text": "the calibration sample of ssmoe_embed"}
        if calibration is not None:
            told = {"text": Path(calibration).name, "digest": text_digest(calibration)}
        record = {
            "base_model": source if not Path(source).is_dir() else str(base),
            "by": str(by),
            "keep": keep,
            "kept": dropped.kept,
            "settings": (settings or RoutingSettings()).as_dict(),
            "seed": seed if by == DropBy.RANDOM else None,
            "calibration": None if by == DropBy.RANDOM else told | {"tokens": calibration_tokens},
            "ssmoe_embed": __version__,
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return dropped
