"""How a routing behaves: what it chooses, how well a language model predicts under it, and its embeddings' tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.calibration import Calibrations
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration
from ssmoe_embed.evaluation.ablation.variants import SPECTRAL, Variant, controlled
from ssmoe_embed.evaluation.inspection.activations import Activations
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder, read_json
from ssmoe_embed.evaluation.significance.bootstrap import weighted_scorer
from ssmoe_embed.evaluation.tasks.finding import find_tasks
from ssmoe_embed.evaluation.texts import spread
from ssmoe_embed.families import Score
from ssmoe_embed.routing import SpectralRouting
from ssmoe_embed.routing.mixing import Mix, mixed_scores
from ssmoe_embed.spectral.routers import SpectralRouters

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


FORWARD = "ssmoe"
"""Under the re-routed forward pass: the hidden state joined with the mixed weights (the scores, if routed by a name)."""
LOGITS = "ev"
"""The spectral logits alone, under the model's own routing; of the learned router its own logits."""
LONGEST = 256
"""Tokens read of a document."""
RESAMPLES = 5_000
"""Of documents and seeds."""
TASK_RESAMPLES = 1_000
"""Of a task's examples, whose scores take longer."""


@dataclass(frozen=True)
class Agreement:
    """The choices of one routing; every value is a mean over layers.

    Attributes:
        with_router: Share of the experts it has in common with the learned router, over all tokens.
        corrupted: The same between a text's last token and that of the text with `AAA` in it.
        same_token: Between two occurrences of one token: 1 would be a routing by token alone.
        any_tokens: Between two different tokens: 1 would be a routing that looks at nothing.
        load_shift: Total variation distance of the loads on two kinds of text: 0 is the same load, 1 disjoint experts.
        chance: What a random choice has in common with any: `k/E`.
    """

    with_router: float
    corrupted: float
    same_token: float
    any_tokens: float
    load_shift: float
    chance: float


@dataclass(frozen=True)
class Readings:
    """The forward passes that choices are compared on, each with router inputs.

    Attributes:
        clean: One kind of text.
        corrupted: The same texts with `AAA` in them.
        other: Another kind of text.
    """

    clean: Activations
    corrupted: Activations
    other: Activations


def agreement(
    readings: Readings, routers: SpectralRouters, alpha: float, score: Score, *, mix: Mix = Mix.PROBS, seed: int = 0
) -> Agreement:
    """Compare the choices of a mix, by plain top-k with the `k` that the model itself uses.

    Args:
        readings: The forward passes.
        routers: The spectral routers.
        alpha: Their share; 0 is the learned router.
        score: The family's score function.
        mix: What is mixed.
        seed: Of the pairs of tokens that are drawn.
    """
    found = []
    for place, layer in enumerate(readings.clean.layers):
        k = layer.chosen.shape[1]

        def chosen(reading: Activations, share: float, place: int = place, k: int = k) -> torch.Tensor:
            one = reading.layers[place]
            if one.inputs is None:
                raise ValueError("The readings lack router inputs; collect them with inputs=True.")
            mixed = mixed_scores(one.learned, routers.logits(one.layer, one.inputs), share, mix, score)
            return torch.zeros_like(mixed).scatter(1, mixed.topk(k, dim=1).indices, 1.0)  # [N,E], ones where it chooses

        clean, corrupted, other = (chosen(one, alpha) for one in (readings.clean, readings.corrupted, readings.other))
        same, different = _pairs(readings.clean.tokens, seed)
        found.append(
            (
                _common(clean, chosen(readings.clean, 0.0), k),
                _common(clean[readings.clean.last], corrupted[readings.corrupted.last], k),
                _common(clean[same[:, 0]], clean[same[:, 1]], k),
                _common(clean[different[:, 0]], clean[different[:, 1]], k),
                float((clean.sum(dim=0) / clean.sum() - other.sum(dim=0) / other.sum()).abs().sum() / 2),
                k / clean.shape[1],
            )
        )
    return Agreement(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def _common(first: torch.Tensor, second: torch.Tensor, k: int) -> float:
    """Mean share of the choices that two masks `[n,E]` have in common, row by row."""
    return float((first * second).sum(dim=1).mean() / k)


def _pairs(tokens: torch.Tensor, seed: int, most: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of pairs of occurrences of one token, and of two different ones: `[n,2]` each."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    ordered = order[tokens[order].argsort(stable=True)]  # occurrences of a token side by side, in random order
    neighbours = torch.stack([ordered[:-1], ordered[1:]], dim=1)
    same = neighbours[tokens[neighbours[:, 0]] == tokens[neighbours[:, 1]]]
    drawn = torch.stack([order[:-1], order[1:]], dim=1)
    different = drawn[tokens[drawn[:, 0]] != tokens[drawn[:, 1]]]
    return same[torch.randperm(len(same), generator=torch.Generator().manual_seed(seed))][:most], different[:most]


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of each document.

    Attributes:
        losses: Sum over a document's tokens, in nats, a document each.
        tokens: Tokens predicted in each.
    """

    losses: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def nll(self) -> float:
        """Mean over all tokens, in nats."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(self.nll)


@dataclass(frozen=True)
class Difference:
    """A difference and its interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@torch.inference_mode()
def likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, batch_size: int = 32
) -> Likelihood:
    """Read documents, each on its own, after the token that begins a document where the model has one.

    Args:
        model: A causal language model, re-routed or not.
        tokenizer: Its tokenizer.
        documents: Documents of at least two tokens.
        batch_size: Documents a forward pass.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = []
    for document in documents:
        ids = tokenizer(document, truncation=True, max_length=LONGEST - 1)["input_ids"]
        rows.append(torch.tensor(ids if start is None or ids[:1] == [start] else [start, *ids]))
    short = [i for i, row in enumerate(rows) if len(row) < 2]
    if short:
        raise ValueError(f"Document {short[0]} ({documents[short[0]]!r}) has too few tokens; leave it out.")
    losses, tokens = [0.0] * len(rows), [len(row) - 1 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in batch], batch_first=True).to(model.device)  # [B,T]
        lengths = torch.tensor([len(rows[i]) for i in batch], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()  # [B,T]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()  # [B,T-1,V]
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]  # [B,T-1]
        for i, loss in zip(batch, each.double().sum(dim=1).tolist(), strict=True):
            losses[i] = loss
    return Likelihood(tuple(losses), tuple(tokens))


def difference(
    first: Likelihood, second: Sequence[Likelihood], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """How much more (in nats a token) the second loses than the first, with a paired bootstrap over documents.

    Args:
        first: What to compare with.
        second: The other, one for each of its seeds, all on the same documents: a seed is drawn anew with every resample.
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        The difference of the means and its 95 % interval.
    """
    tokens = np.array(first.tokens, dtype=np.float64)
    if any(one.tokens != first.tokens for one in second):
        raise ValueError("The two were measured on different documents; measure both again.")
    extra: NDArray[np.float64] = np.array([one.losses for one in second]) - np.array(first.losses)  # [S,B]
    return seeded_difference(len(tokens), lambda drawn: drawn @ extra.T / (drawn @ tokens)[:, None], resamples, seed)


def seeded_difference(
    count: int, differences: Callable[[NDArray[np.float64]], NDArray[np.float64]], resamples: int, seed: int = 0
) -> Difference:
    """A mean over seeds with its 95 % interval, by a bootstrap over `count` examples and over the seeds.

    Args:
        count: Examples.
        differences: Maps how often each example counts `[n,B]` to the difference of each seed `[n,S]`.
        resamples: Number of resamples.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    each = differences(rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64))
    chosen = rng.integers(each.shape[1], size=each.shape)
    low, high = np.quantile(np.take_along_axis(each, chosen, axis=1).mean(axis=1), [0.025, 0.975])
    return Difference(float(differences(np.ones((1, count))).mean()), float(low), float(high))


class TaskRuns:
    """The runs of all variants on some tasks."""

    def __init__(
        self, model: EvaluatedModel, folder: Path, tasks: Sequence[str | AbsTask], alpha: float, calibration: int
    ) -> None:
        """Bind a model to the result folder of some tasks, at one share `alpha` of the spectral router.

        Each variant's calibration is fitted on so many texts as `calibration` says.
        """
        self.model, self.alpha = model, alpha
        self.results = ResultFolder(folder)
        self.tasks = find_tasks(tasks)
        self.failures: list[str] = []
        self._sample = spread(calibration_texts(), calibration)
        self._places: dict[tuple[str, str, str, int], tuple[Path, Path]] = {}

    def measure(self, variant: Variant, seed: int, routers: SpectralRouters, *, batch_size: int = 32) -> None:
        """Measure one variant, except for what is on disk."""
        named: dict[str, Any] = {"calibrated_on": len(self._sample)}
        if variant.routing is None:
            named = {"routers": f"{variant.name}-{seed}", **named}
        view = self.model.model.using(routers=routers)
        view[0].calibrations = Calibrations()  # none but what is fitted on this sample
        model = replace(self.model, model=view, loading=self.model.loading | named)
        for column, run in self._runs(variant):
            waiting = []
            meta, cache = model.meta(run, batch_size=batch_size), self.results.cache()
            for task in self.tasks:
                name = task.metadata.name
                result = cache.get_task_result_path(name, meta)
                kept = self.results.predictions(run.corruption_name, meta) / f"{name}_predictions.json"
                self._places[column, name, variant.name, seed] = (result, kept)
                if not result.is_file():
                    waiting.append(task)
            if waiting:
                self._evaluate(model, variant, run, waiting, batch_size)

    def _runs(self, variant: Variant) -> Iterator[tuple[str, Run]]:
        """The runs of a variant, each with the column it belongs to."""
        common: dict[str, Any] = {"calibration": Calibration.STANDARDIZE, "routing_signal": None}
        common |= {"mix": self.model.own.mix, "routing": variant.routing}
        if variant.routing is not None:
            yield FORWARD, Run("moee", None, None, common | {"routing_signal": RoutingSignal.SCORES})
            return
        yield FORWARD, Run("ssmoe", None, None, common | {"alpha": self.alpha if variant.routes else 0.0})
        if variant.control is None:
            yield LOGITS, Run("ev" if variant.routes else "router", None, None, common)

    def _evaluate(
        self, model: EvaluatedModel, variant: Variant, run: Run, tasks: Sequence[Any], batch_size: int
    ) -> None:
        """Measure one run on the tasks that lack it."""
        module: SSMoE = model.model[0]
        settings = model.settings(run)
        control = variant.control if run.method == FORWARD else None
        assert module.routers is not None  # the variant's
        policy = SpectralRouting(module.routers, settings.alpha, settings.mix)
        with controlled(module.model, policy, control):
            module.fit_calibration(self._sample, variants=[settings], batch_size=batch_size, progress=False)
            options = EvaluationOptions(batch_size=batch_size, predictions=True, progress=False)
            report = evaluate([model], tasks, [run], self.results.path, options=options)
        self.failures += [f"{variant.name}: {failure}" for failure in report.failures]

    def scores(self, column: str, task: str, variant: Variant, seeds: int) -> list[float]:
        """A variant's scores, 0 to 1, one a seed; empty where it was not measured."""
        places = [self._places[one][0] for one in self._of(column, task, variant, seeds) if one in self._places]
        return [
            float(np.mean([one["main_score"] for split in read_json(path)["scores"].values() for one in split]))
            for path in places
            if path.is_file()
        ]

    def _of(self, column: str, task: str, variant: Variant, seeds: int) -> list[tuple[str, str, str, int]]:
        """Whatever belongs to a variant, one key a seed."""
        return [(column, task, variant.name, seed) for seed in range(seeds)]

    def difference(self, column: str, task: str, variant: Variant, seeds: int) -> Difference | None:
        """How much better a variant is than the spectral router, by a paired bootstrap over examples and seeds.

        Returns:
            None where one of the two was not measured, or the task's predictions do not suffice.
        """
        try:
            first, *rest = [
                weighted_scorer(next(one for one in self.tasks if one.metadata.name == task), self._places[place][1])
                for place in [(column, task, SPECTRAL, 0), *self._of(column, task, variant, seeds)]
            ]
        except (KeyError, FileNotFoundError, ValueError):
            return None

        def above(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.stack([score(drawn) for _, score in rest], axis=1) - first[1](drawn)[:, None]  # [n,S]

        return seeded_difference(first[0], above, TASK_RESAMPLES)
