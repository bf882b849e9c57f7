"""Train ssmoe/tiny.

    python examples/train_tiny/train.py --work build/tiny --steps 6000

With `workers=2` two threads compute half a batch each on one core, and their gradients are added: faster on a CPU than two
threads inside every operation. Run the same command again to continue from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import checkpoint
import metrics
import numpy as np
import torch
from architecture import make_model
from data import Data
from fast_model import Block, FastOlmoe
from initialise import fit_bag, initialise
from losses import balance, distillation, language_modelling, pair_contrast
from packing import IGNORED, Batch, Sampler
from safetensors.torch import load_model
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Settings:
    """What the training is made of."""

    steps: int = 6000
    warmup: int = 100
    decay: float = 0.7
    """The last part of the steps, in which the learning rate falls linearly to zero."""
    rate: float = 6e-4
    embedding_rate: float = 2.0
    """Learning rate of the token embeddings relative to the rest."""
    weight_decay: float = 0.05
    clip: float = 1.0
    workers: int = 1
    layout: tuple[Block, ...] = (Block(5, 256), Block(28, 64))
    """Rows of one worker's half of the batch; the first `prose_rows` are prose for the language model."""
    prose_rows: int = 2
    bank: int = 1024
    pair_weight: float = 0.25
    language_weight: float = 0.5
    language_share: float = 0.25
    """Share of positions whose next token is asked, to save the head's cost."""
    balance_weight: float = 1.0
    z_weight: float = 1e-3
    bag_steps: int = 2000
    seed: int = 20261128
    evaluate_every: int = 500
    save_every: int = 100


def learning_rate(settings: Settings, step: int) -> float:
    """Warm up, hold, then fall linearly to zero; relative to `settings.rate`."""
    remaining = (settings.steps - step) / max(1.0, settings.steps * settings.decay)
    return min(1.0, (step + 1) / settings.warmup, max(0.0, remaining))


def make_optimizer(model: Any, settings: Settings) -> torch.optim.AdamW:
    """AdamW with slower embeddings and no decay on norms and embeddings."""
    groups: dict[str, list[Tensor]] = {"matrix": [], "norm": [], "embedding": []}
    for name, parameter in model.named_parameters():
        kind = "embedding" if "embed_tokens" in name else "norm" if parameter.dim() == 1 else "matrix"
        groups[kind].append(parameter)
    options: list[dict[str, Any]] = [
        {"params": groups["matrix"], "relative": 1.0, "weight_decay": settings.weight_decay},
        {"params": groups["norm"], "relative": 1.0, "weight_decay": 0.0},
        {"params": groups["embedding"], "relative": settings.embedding_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(options, lr=settings.rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


class Trainer:
    """One training run.

    Args:
        fast: the model.
        sampler: where batches come from.
        targets: `[texts,H]` the teacher's vectors in the student's space.
        settings: everything else.
    """

    def __init__(self, fast: FastOlmoe, sampler: Sampler, targets: np.ndarray, settings: Settings) -> None:
        self.fast, self.sampler, self.targets, self.settings = fast, sampler, targets, settings
        self.parameters = list(fast.model.parameters())
        self.optimizer = make_optimizer(fast.model, settings)
        self.step = 0
        self.tokens = 0
        self.pool = ThreadPoolExecutor(settings.workers, initializer=torch.set_num_threads, initargs=(1,))

    def _half(self, batch: Batch, seed: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        """Return the gradients and losses of one worker's batch."""
        settings, rng = self.settings, np.random.default_rng([settings_seed(self.settings), seed])
        out = self.fast.forward(batch.ids, batch.segments, batch.layout)
        wanted = torch.from_numpy(self.targets[batch.texts].astype(np.float32))
        bank = torch.from_numpy(self.targets[rng.integers(0, len(self.targets), settings.bank)].astype(np.float32))
        read = out.hidden[batch.readout]
        distil = distillation(read, wanted, bank, batch.weights)
        pair = pair_contrast(read, bank, partner_rows(batch.texts, self.sampler.partners))
        asked = torch.nonzero(batch.labels != IGNORED).squeeze(1)
        asked = asked[torch.from_numpy(rng.permutation(len(asked))[: int(len(asked) * settings.language_share)])]
        language = language_modelling(self.fast.next_token_logits(out.hidden[asked]), batch.labels[asked])
        even, size = balance(out.router_logits, out.chosen, batch.segments >= 0)
        loss = distil + settings.pair_weight * pair + settings.language_weight * language
        loss = loss + settings.balance_weight * even + settings.z_weight * size
        grads = torch.autograd.grad(loss / settings.workers, self.parameters)
        parts = {"distil": distil, "pair": pair, "lm": language, "balance": even, "z": size}
        return grads, {name: part.item() for name, part in parts.items()}

    def advance(self) -> dict[str, float]:
        """Make one step and return the mean losses."""
        settings = self.settings
        batches = [self.sampler.draw() for _ in range(settings.workers)]
        seeds = range(self.step * settings.workers, (self.step + 1) * settings.workers)
        halves = list(self.pool.map(self._half, batches, seeds))
        for parameter, *grads in zip(self.parameters, *(grads for grads, _ in halves), strict=True):
            parameter.grad = reduce(Tensor.add_, grads)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        rate = learning_rate(settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * rate * group["relative"]
        self.optimizer.step()
        self.step += 1
        self.tokens += sum(int((batch.segments >= 0).sum()) for batch in batches)
        losses = {key: sum(half[1][key] for half in halves) / len(halves) for key in halves[0][1]}
        return losses | {"norm": float(norm), "rate": rate}

    def save(self, path: Path, **more: Any) -> None:
        """Write a checkpoint."""
        state = {"step": self.step, "tokens": self.tokens, "sampler": self.sampler.state(), **more}
        checkpoint.save(path, self.fast.model, self.optimizer, state)

    def restore(self, path: Path) -> dict[str, Any]:
        """Continue from a checkpoint; returns its counters."""
        state = checkpoint.load(path, self.fast.model, self.optimizer)
        self.step, self.tokens = state["step"], state["tokens"]
        self.sampler.restore(state["sampler"])
        return state


def partner_rows(texts: np.ndarray, partners: np.ndarray) -> Tensor:
    """Return the row of each text's partner in the batch, or -1."""
    rows = {int(text): row for row, text in enumerate(texts)}
    return torch.tensor([rows.get(int(partners[text]), -1) for text in texts])


def settings_seed(settings: Settings) -> int:
    """Return the seed of the random choices made inside a step."""
    return settings.seed + 1


def evaluate(fast: FastOlmoe, data: Data, texts: int = 1000, tokens: int = 25_000) -> dict[str, Any]:
    """Measure on held-out material, quickly."""
    with torch.compiler.set_stance("force_eager"):  # these shapes are not the training's
        rows = np.random.default_rng(0).permutation(len(data.held_texts))[:texts]
        result: dict[str, Any] = {}
        for template, name in enumerate(("eos", "prompteol", "plain")):
            vectors = metrics.encode(fast, data.templates, data.held(rows, template), template)
            result[f"rho_{name}"] = metrics.similarity_correlation(vectors, data.held_vectors[rows])
        for template, name in enumerate(("eos", "prompteol")):
            left, right = (metrics.encode(fast, data.templates, side, template) for side in data.sides(template))
            result[f"retrieval_{name}"] = metrics.retrieval(left, right)
        loss, loads = metrics.language_model_loss(fast, data.held_prose, tokens)
        result["perplexity"] = float(np.exp(loss))
        result["loads"] = [metrics.describe_load(load) for load in loads]
        return result


def make_sampler(data: Data, settings: Settings) -> Sampler:
    """Return the sampler of the training batches."""
    return Sampler(
        data.texts,
        data.prose,
        data.templates,
        partners=data.partners,
        layout=settings.layout,
        prose_rows=settings.prose_rows,
        seed=settings.seed,
    )


def prepare(data: Data, settings: Settings) -> Any:
    """Return the model that the training begins with: `grow.py`'s, or one that computes a bag of words."""
    torch.manual_seed(settings.seed)
    model = make_model()
    if data.start.exists():
        load_model(model, str(data.start))
        return model
    bag = fit_bag(data.texts.usual, data.targets, model.config.vocab_size, settings.bag_steps, settings.seed)
    frequencies = torch.from_numpy(np.bincount(data.texts.usual.ids, minlength=model.config.vocab_size))
    initialise(model, bag, frequencies, settings.seed)
    return model


def run(work: Path, settings: Settings) -> None:
    """Train until `settings.steps`, continuing from `last.safetensors` when there is one."""
    torch.set_num_threads(settings.workers)  # for the optimizer and the measurements
    data = Data(work)
    last, log = work / "last.safetensors", work / "log.jsonl"
    model = make_model() if last.exists() else prepare(data, settings)
    fast = FastOlmoe(model, compiled=True)
    trainer = Trainer(fast, make_sampler(data, settings), data.targets, settings)
    elapsed = trainer.restore(last)["elapsed"] if last.exists() else 0.0
    began = time.time() - elapsed
    if trainer.step == 0:
        _record(log, {"step": 0, **evaluate(fast, data)})
    with tqdm(total=settings.steps, initial=trainer.step, unit="step", mininterval=10) as progress:
        while trainer.step < settings.steps:
            losses = trainer.advance()
            progress.update()
            if trainer.step % 25 == 0:
                _record(log, {"step": trainer.step, "tokens": trainer.tokens, "elapsed": time.time() - began, **losses})
            if trainer.step % settings.evaluate_every == 0 or trainer.step == settings.steps:
                _record(log, {"step": trainer.step, "tokens": trainer.tokens, **evaluate(fast, data)})
            if trainer.step % settings.save_every == 0 or trainer.step == settings.steps:
                trainer.save(last, elapsed=time.time() - began, settings=asdict(settings))


def _record(log: Path, row: dict[str, Any]) -> None:
    """Append one line to the log."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train ssmoe/tiny.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the other steps' outputs")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--decay", type=float, default=Settings.decay)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    options = parser.parse_args()
    run(options.work, Settings(steps=options.steps, decay=options.decay, rate=options.rate))


if __name__ == "__main__":
    main()
