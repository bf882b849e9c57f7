"""Routers derived from the learned one without training: by a codebook of its inputs, smoothed by noise, or steered.

A codebook routes every input as the nearest of a layer's typical inputs. Source of the idea: VQMoE,
https://arxiv.org/abs/2411.19402, which learns codes and the experts behind them. What is left without training is our
reading: codes are k-means centroids of what enters a layer's router, and a code's experts are those of the learned router at
the centroid. The code of a token is a feature of its own.

A smoothed router takes the mean of its scores over noisy copies of its input. Source of the idea: S2MoE,
https://arxiv.org/abs/2503.23007, which trains experts on a noisy second input; its equations and noise are not published in
what we could read. What is left without training is our reading: a router is linear, so noise `ε` on its input moves its
logits by `R ε`. The same draws are used for every token, in proportion to the root mean square of its input: they depend on
nothing but seed and layer, and cost no product more.

A steered router favours the pairs of layer and expert that a domain's texts use, by a number added to their logits. Source:
DSMoE, "Do Domain-specific Experts exist in MoE-based LLMs?", https://arxiv.org/abs/2604.05267. The scores of the pairs are
made by `language_model/steering.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from tqdm.auto import tqdm

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.data import calibration_texts
from ssmoe_embed.families import Score, family_of
from ssmoe_embed.routing.mixing import logits_of, scores
from ssmoe_embed.routing.sites import install_sites, recording, routed
from ssmoe_embed.spectral.routers import fingerprints_of, same_router

_WINDOW = 256


@dataclass(frozen=True)
class _MadeForOne:
    """What the policies here have in common: they fit the model only that they were made for.

    Attributes:
        fingerprints: Of its routers, `[E]` by layer.
    """

    what: ClassVar[str]
    fingerprints: dict[int, torch.Tensor]

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        for index, found in fingerprints_of(model).items():
            known = self.fingerprints.get(index)
            if known is None or known.shape != found.shape or not same_router(found, known):
                raise ValueError(
                    f"{self.what} was made for another model: the routers of layer {index} differ. Make it anew."
                )


@dataclass(frozen=True)
class CodebookSettings:
    """The settings of `codebook`.

    Attributes:
        codes: Codes of each layer; fewer where there are fewer tokens.
        texts: File of the texts whose inputs are coded, one per line; by default the calibration sample in the package.
        tokens: Tokens read of them at most.
        seed: Of k-means.

    Raises:
        ValueError: A value is not allowed.
    """

    codes: int = 256
    texts: str = field(default="", metadata={"file": True})
    tokens: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("codes", "tokens"):
            value = getattr(self, name)
            if isinstance(value, float) or value < 1:
                raise ValueError(f"{name}={value!r} is no whole number of at least 1.")

    @torch.no_grad()
    def made(self, model: Any, tokenizer: Any = None) -> CodebookRouting:
        """The policy for a model, whose tokenizer lies beside its weights unless it is given."""
        if tokenizer is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
        try:
            lines = Path(self.texts).read_text(encoding="utf-8").splitlines() if self.texts else calibration_texts()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.texts} is not UTF-8 text ({error}); convert it first.") from None
        ids: list[int] = []
        for line in lines:
            ids += tokenizer(line, verbose=False)["input_ids"] if len(ids) < self.tokens else []
        if not ids:
            raise ValueError(f"{self.texts} has no token to make codes of.")
        inputs, logits = _router_inputs(model, torch.tensor(ids[: self.tokens]))
        books, tables = {}, {}
        for layer in tqdm(inputs, desc="Making codes", unit="layer", leave=False, disable=None):
            books[layer], tables[layer] = self._codes(inputs[layer], logits[layer])
        return CodebookRouting(fingerprints_of(model), books, tables)

    def _codes(self, inputs: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes `[C,H]` of inputs `[N,H]`, and the router's logits there, `[C,E]`: it is affine, so the mean of theirs."""
        if self.codes >= len(inputs):
            return inputs, logits
        from sklearn.cluster import MiniBatchKMeans

        means = MiniBatchKMeans(self.codes, batch_size=4096, init_size=4 * self.codes, n_init=1, random_state=self.seed)
        labels = torch.from_numpy(means.fit_predict(inputs.numpy())).long()
        used, labels = torch.unique(labels, return_inverse=True)  # some codes may be nobody's
        counts = labels.bincount()[:, None]

        def mean(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(len(used), values.shape[1]).index_add_(0, labels, values) / counts

        return mean(inputs), mean(logits)


def _router_inputs(model: Any, ids: torch.Tensor) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """What enters the routers at some tokens `[N]`, and their logits, float32 by layer."""
    install_sites(model, family_of(model))
    inputs: dict[int, list[torch.Tensor]] = {}
    logits: dict[int, list[torch.Tensor]] = {}
    for window in torch.split(ids, _WINDOW):
        with recording(torch.arange(len(window))) as taken, routed(None):
            model(input_ids=window[None].to(model.device), use_cache=False)
        for layer in taken.inputs:
            inputs.setdefault(layer, []).append(taken.inputs[layer].float().cpu())
            logits.setdefault(layer, []).append(taken.logits[layer].float().cpu())
    return {i: torch.cat(each) for i, each in inputs.items()}, {i: torch.cat(each) for i, each in logits.items()}


@dataclass(frozen=True)
class CodebookRouting(_MadeForOne):
    """See `CodebookSettings`.

    Attributes:
        books: The codes, `[C,H]` by layer.
        tables: The learned router's logits at them, `[C,E]` by layer.
    """

    what = "This codebook"
    books: dict[int, torch.Tensor]
    tables: dict[int, torch.Tensor]

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        return self.tables[layer].to(logits)[self.codes(layer, hidden)]

    def codes(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The nearest code of each input `[N,H]`, `[N]`."""
        book = self.books[layer].to(hidden.device)  # [C,H]
        return (book.square().sum(dim=1) / 2 - hidden.float() @ book.T).argmin(dim=1)

    def histogram(self, inputs: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """A text's share of tokens per code, of all layers, `[ΣC]`: a representation by itself.

        It is told from what entered the routers at its tokens, `[N,H]` by layer, as `recording` takes it.
        """
        counts = [self.codes(layer, inputs[layer]).bincount(minlength=len(self.books[layer])) for layer in self.books]
        return torch.cat([count / count.sum() for count in counts])


@dataclass(frozen=True)
class SmoothedSettings:
    """The settings of `smoothed`.

    Attributes:
        noise: Standard deviation of the noise, as a multiple of the root mean square of a token's input; at 0 routing is
            the model's own, bit for bit.
        copies: Noisy copies.
        seed: Of the noise.

    Raises:
        ValueError: A value is not allowed.
    """

    noise: float = 0.1
    copies: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < torch.inf or isinstance(self.copies, float) or self.copies < 1:
            raise ValueError(
                f"noise={self.noise!r}, copies={self.copies!r}: noise must be at least 0, copies at least 1."
            )

    def made(self, model: nn.Module, tokenizer: Any = None) -> SmoothedRouting:
        """The policy for a model."""
        family, shifts = family_of(model), {}
        for layer in family.layers(model):
            matrix = family.router_weight(layer.router).detach().float().cpu()  # [E,H]
            generator = torch.Generator().manual_seed(1000 * self.seed + layer.index)
            noise = torch.randn(self.copies, matrix.shape[1], generator=generator)
            shifts[layer.index] = self.noise * noise @ matrix.T  # [M,E]
        return SmoothedRouting(fingerprints_of(model), shifts)


@dataclass(frozen=True)
class SmoothedRouting(_MadeForOne):
    """See `SmoothedSettings`.

    Attributes:
        shifts: What each copy's noise adds to the logits of an input of root mean square 1, `[M,E]` by layer.
    """

    what = "This smoothed routing"
    shifts: dict[int, torch.Tensor]

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        shifts = self.shifts[layer].to(logits.device)
        if not shifts.any():
            return logits
        size = hidden.float().square().mean(dim=-1).sqrt()[:, None, None]  # [N,1,1]
        copies = logits.float()[:, None] + size * shifts  # [N,M,E]
        return logits_of(scores(copies, score).mean(dim=1), logits, score).to(logits.dtype)


class Steer(Choice):
    """How a pair is favoured."""

    MULTIPLICATIVE = "multiplicative"
    """Its softmax score is multiplied by `1 + strength` before scores are brought to 1; of a sigmoid, the odds are."""
    ADDITIVE = "additive"
    """`strength` is added to its logit."""


@dataclass(frozen=True)
class SteeringTable:
    """How much each expert is a domain's.

    Attributes:
        scores: `[E]` by layer.
        fingerprints: Of the routers that they belong to, `[E]` by layer.
        notes: How they were made, as JSON values.
    """

    scores: dict[int, torch.Tensor]
    fingerprints: dict[int, torch.Tensor]
    notes: dict[str, Any] = field(default_factory=dict)

    def biases(self, pairs: int | float, added: float) -> dict[int, torch.Tensor]:
        """What is to be `added` to the logits, `[E]` by layer, of the best pairs of the whole model.

        These are a count, or a fraction below 1.
        """
        layers = sorted(self.scores)
        flat = torch.cat([self.scores[layer] for layer in layers])
        count = min(len(flat), math.ceil(pairs * len(flat)) if isinstance(pairs, float) else pairs)
        best = torch.zeros_like(flat).index_fill_(0, flat.argsort(descending=True, stable=True)[:count], added)
        return dict(zip(layers, torch.split(best, [len(self.scores[layer]) for layer in layers]), strict=True))

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, atomically."""
        parts = {f"score.{layer}": values for layer, values in self.scores.items()}
        parts |= {f"fingerprint.{layer}": values for layer, values in self.fingerprints.items()}
        save_tensors(path, parts, {"steering": self.notes})

    @classmethod
    def load(cls, path: str | Path) -> SteeringTable:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is something else.
        """
        tensors, metadata = load_tensors(path)
        if "steering" not in metadata:
            raise ValueError(f"{path} holds no steering table; make one with `ssmoe steer BASE --texts FILE`.")
        parts: dict[str, dict[int, torch.Tensor]] = {"score": {}, "fingerprint": {}}
        for name, values in tensors.items():
            part, _, layer = name.partition(".")
            parts[part][int(layer)] = values
        return cls(parts["score"], parts["fingerprint"], metadata["steering"])


@dataclass(frozen=True)
class SteeringSettings:
    """The settings of `steer`.

    Attributes:
        table: File that `ssmoe steer` wrote.
        pairs: Pairs of layer and expert that are favoured: a count, or a fraction below 1.
        strength: How much; 0 changes nothing.
        mode: See `Steer`.

    Raises:
        ValueError: A value is not allowed.
    """

    table: str = field(default="", metadata={"file": True})
    pairs: int | float = 20
    strength: float = 5.0
    mode: Steer = Steer.MULTIPLICATIVE

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Steer.parse(self.mode, "mode"))
        if not self.table:
            raise ValueError(
                "steer needs a table: make one with `ssmoe steer BASE --texts FILE`, and name it: steer:table=FILE."
            )
        if self.pairs < 0 or (isinstance(self.pairs, float) and self.pairs >= 1):
            raise ValueError(
                f"pairs={self.pairs!r} is neither a count nor a fraction below 1; the authors' best is 20."
            )
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength={self.strength!r} is below 0 or no number; the authors' best is 5.")

    def made(self, model: nn.Module | None = None, tokenizer: Any = None) -> SteeringRouting:
        """The policy."""
        table = SteeringTable.load(self.table)
        added = math.log1p(self.strength) if self.mode is Steer.MULTIPLICATIVE else self.strength
        return SteeringRouting(table.fingerprints, table.biases(self.pairs, added))


@dataclass(frozen=True)
class SteeringRouting(_MadeForOne):
    """The learned routers with numbers added to their logits.

    Attributes:
        biases: The numbers, `[E]` by layer.
    """

    what = "This steering table"
    biases: dict[int, torch.Tensor]

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        bias = self.biases[layer]
        return logits + bias.to(logits) if bias.any() else logits
