"""Paired bootstrap between two methods on one task, as in the paper's table 4 (https://arxiv.org/abs/2605.30992)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmoe_embed.evaluation.significance.rescoring import Scorer, scorer

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

RESAMPLES = 10_000
_CELLS = 2_000_000
"""Weights held in memory at a time."""
_BIASED = {"AbsTaskClustering", "AbsTaskClusteringLegacy"}
"""mteb's types of task whose scores are not those of a mean over examples, but rise when examples are repeated."""
_TOLERANCE = 2e-5
"""mteb rounds the scores of retrieval to five digits."""


@dataclass(frozen=True)
class PairedBootstrap:
    """The difference between two methods' scores on the same examples.

    Attributes:
        task: The task's name.
        metric: mteb's name of the score.
        first: The first method's score, 0 to 1 as mteb gives it.
        second: The second method's.
        difference: `second - first`.
        low: Lower end of the difference's percentile interval.
        high: Upper end.
        p_value: Two-sided: twice the smaller share of resamples on either side of zero, those at zero counted on both,
            with one resample added to each count so that it is never 0.
        confidence: Of the interval.
        examples: What was resampled: test texts, pairs, or queries.
        resamples: How often.
    """

    task: str
    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    confidence: float
    examples: int
    resamples: int

    def __str__(self) -> str:
        interval = f"{self.confidence:.0%} interval [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.task} {self.metric}: {self.first:.4f} → {self.second:.4f}, {interval}, p = {self.p_value:.4f}"


def paired_bootstrap(
    task: AbsTask,
    first: Path | Mapping[str, Any],
    second: Path | Mapping[str, Any],
    *,
    metric: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    expected: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedBootstrap:
    """Compare two methods by the predictions that mteb kept of them.

    The same examples are drawn for both methods: test texts of classification, texts of clustering, pairs, queries of
    retrieval and reranking, texts of summarization. What was fitted (classifiers, clusters) stays as it is, so the interval
    covers the choice of examples only. Texts that are drawn again raise V-measures, low ones more than high ones: resampled
    differences of clustering are moved so that their mean is the difference.

    Args:
        task: The task.
        first: The baseline's prediction file, the folder that holds it, or its content.
        second: The other method's.
        metric: mteb's name of the score; the task's main score by default.
        split: Needed if the predictions are of several splits.
        subset: Needed if they are of several subsets.
        expected: The two scores in the result files, which are checked against those computed again. Needed for tasks on
            `AbsTaskClustering`, whose prediction files do not say which texts were clustered.
        resamples: Number of resamples.
        confidence: Of the interval.
        seed: Of the resampling.

    Raises:
        FileNotFoundError: There is no prediction file.
        ValueError: The predictions do not suffice, are of different examples, or do not give the expected scores; or there
            is nothing to resample.
    """
    if not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples={resamples!r} is not a whole number of at least 1; 10,000 are usual.")
    name = task.metadata.name
    metric = metric or task.metadata.main_score
    sides = [_read(side, name) for side in (first, second)]
    split, subset = _one_part(name, sides[0], split, subset)
    kinds = {base.__name__ for base in type(task).__mro__}
    if expected is None and "AbsTaskClustering" in kinds:
        raise ValueError(f"{name!r} needs expected=(first, second), the scores in the result files: see there why.")
    scorers = [weighted_scorer(task, side, metric=metric, split=split, subset=subset) for side in sides]
    count = _examples(name, scorers)
    scores = [float(score(np.ones(count))) for _, score in scorers]
    _check(name, scores, expected)

    rng, batch, parts = np.random.default_rng(seed), max(1, _CELLS // count), []
    for start in range(0, resamples, batch):
        weights = _weights(rng.integers(count, size=(min(batch, resamples - start), count)))
        parts.append(scorers[1][1](weights) - scorers[0][1](weights))
    resampled = np.concatenate(parts)
    if kinds & _BIASED:
        resampled = resampled - resampled.mean() + (scores[1] - scores[0])
    low, high = map(float, np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return PairedBootstrap(
        task=name,
        metric=metric,
        first=scores[0],
        second=scores[1],
        difference=scores[1] - scores[0],
        low=low,
        high=high,
        p_value=p_value(resampled),
        confidence=confidence,
        examples=count,
        resamples=resamples,
    )


def p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of a bootstrap's differences; see `PairedBootstrap.p_value`."""
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(differences) + 1))


def mean_interval(changes: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """Percentile interval of a mean change when tasks are drawn again, which says nothing of the choice of examples.

    Args:
        changes: The change of each task.
        confidence: Of the interval.
        seed: Of the resampling.

    Returns:
        Its ends; None for fewer than three tasks.
    """
    if len(changes) < 3:
        return None
    drawn = np.random.default_rng(seed).integers(len(changes), size=(RESAMPLES, len(changes)))
    low, high = np.quantile(np.asarray(changes)[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def weighted_scorer(
    task: AbsTask,
    predictions: Path | Mapping[str, Any],
    *,
    metric: str | None = None,
    split: str = "test",
    subset: str = "default",
) -> Scorer:
    """A task's score, computed again from predictions, as a function of how much each example counts.

    Args:
        task: The task; its data are loaded if they are not.
        predictions: The prediction file, the folder that holds it, or its content.
        metric: mteb's name of the score; the task's main score by default.
        split: The split.
        subset: The subset.

    Returns:
        The number of examples `n`, and what maps their weights `[…,n]` to scores `[…]`; with weights of 1 it is mteb's.

    Raises:
        FileNotFoundError: There is no prediction file.
        ValueError: The predictions do not suffice, or lack the split or subset.
    """
    name = task.metadata.name
    content = _read(predictions, name)
    if split not in content.get(subset, {}):
        raise ValueError(f"The predictions of {name!r} lack split={split!r} of subset={subset!r}.")
    if not task.data_loaded:
        task.load_data()
    if hasattr(task, "convert_v1_dataset_format_to_v2"):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    return scorer(task, content[subset][split], metric or task.metadata.main_score, split, subset)


def _weights(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each example was drawn, `[B,n]` → `[B,n]`."""
    cells = np.arange(len(drawn))[:, None] * drawn.shape[1] + drawn
    return np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _read(predictions: Path | Mapping[str, Any], task: str) -> Mapping[str, Any]:
    if isinstance(predictions, Mapping):
        return predictions
    path = Path(predictions)
    path = path / f"{task}_predictions.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There are no predictions at {path}; evaluate again with predictions kept.")
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _one_part(task: str, content: Mapping[str, Any], split: str | None, subset: str | None) -> tuple[str, str]:
    """The split and subset that are asked for, or the only ones."""
    there = [(s, key) for key, splits in content.items() if key != "mteb_model_meta" for s in splits]
    fitting = [one for one in there if split in {None, one[0]} and subset in {None, one[1]}]
    if len(fitting) != 1:
        listed = ", ".join(f"split={s!r} subset={key!r}" for s, key in there)
        raise ValueError(f"Say which part of the predictions of {task!r} to compare; there are {listed}.")
    return fitting[0]


def _examples(task: str, scorers: list[Scorer]) -> int:
    first, second = (count for count, _ in scorers)
    if first != second or first < 2:
        raise ValueError(
            f"The predictions of {task!r} are of {first} and {second} examples; evaluate both on the same ones."
        )
    return first


def _check(task: str, scores: list[float], expected: tuple[float, float] | None) -> None:
    if expected is not None and not np.allclose(scores, expected, rtol=0, atol=_TOLERANCE):
        raise ValueError(
            f"The predictions of {task!r} give the scores {scores[0]:.5f} and {scores[1]:.5f}, the results say "
            f"{expected[0]:.5f} and {expected[1]:.5f}: they are not of the same evaluation; evaluate both again."
        )
