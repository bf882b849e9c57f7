"""The paper's tables of images as data, and what was measured beside them, with a paired bootstrap of our own.

Source: SSMoE, tables 3, 4 and 7, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from ssmoe_embed.common.tables import MISSING, Report, Table, csv_text, points, signed
from ssmoe_embed.data import paper_table
from ssmoe_embed.evaluation.paper.embeddings import Condition
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore, read_json
from ssmoe_embed.evaluation.significance.bootstrap import RESAMPLES, PairedBootstrap, paired_bootstrap
from ssmoe_embed.evaluation.tasks.corruption import CLEAN

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

MODEL = "CLIP-MoE"
"""The paper's one model of these tables, as `--as` takes it."""
BASE, ROUTED = "smoe", ("paper", "ssmoe")
"""Methods that are compared with the paper's CLIP-MoE, and with its SSMoE: the release's constants, or one's own."""
_RETRIEVAL = {"COCO": "MSCOCO", "Flickr30k": "Flickr30k"}
_CLASSIFICATION: dict[str, tuple[str, ...]] = {
    "CIFAR-10": ("CIFAR10ZeroShotPaper",),
    "CIFAR-100": ("CIFAR100ZeroShotPaper",),
    "STL-10": ("STL10ZeroShotPaper",),
    "Caltech101": ("Caltech101ZeroShotPaper",),
    "ImageNet-1K": ("Imagenet1kZeroShotPaper",),
    "ImageNet-O": (),
}
"""Tasks by the paper's names; ImageNet-O has none, since the paper does not say how it was measured."""
NOTES = (
    "Retrieval on …RetrievalPaper is the paper's (COCO's val2017, all images of Flickr30k); mteb's tasks of the same name "
    "take other images, so they stand here only where the paper's were not measured.",
    "The paper takes all images of Caltech101, squashed to a square; here are mteb's test images, cut to their middle.",
    "The paper does not say what noise it adds to images: corrupt scores are comparable only by how far they fall. Tables 3 "
    "and 4 disagree on Flickr30k (CLIP-MoE 60.5 and 61.8 at 1). How ImageNet-O was measured it does not say.",
)


@dataclass(frozen=True)
class PublishedPair:
    """Two numbers of the paper: CLIP-MoE under its own routers, and under spectral ones; points of 100.

    Attributes:
        table: The table's number.
        dataset: What the paper calls it, with the direction of retrieval.
        tasks: Our names of the task, the paper's protocol first.
        metric: mteb's name of the score.
        condition: Clean or corrupt images.
        base: Under the learned routers.
        routed: Under the spectral ones.
        interval: The paper's interval of their difference, where it has one.
        p: Its p-value, likewise.
    """

    table: int
    dataset: str
    tasks: tuple[str, ...]
    metric: str
    condition: Condition
    base: float
    routed: float
    interval: tuple[float, float] | None = None
    p: float | None = None


@cache
def published() -> tuple[PublishedPair, ...]:
    """Every number of these tables but their means and those of plain CLIP."""
    found = []
    rows = paper_table("table3_vision_retrieval.csv")
    recalls = {(r["dataset"], r["direction"], r["k"], r["condition"], r["method"]): float(r["recall"]) for r in rows}
    for (dataset, direction, k, condition, method), base in recalls.items():
        if method == MODEL:
            scores = base, recalls[dataset, direction, k, condition, "SSMoE"]
            found.append(PublishedPair(3, *_retrieval(dataset, direction, k), Condition(condition), *scores))
    for r in paper_table("table4_vision_bootstrap.csv"):
        retrieval = _retrieval(r["dataset"], r["direction"], r["k"])
        scores, interval = (float(r["clip_moe"]), float(r["ssmoe"])), (float(r["low"]), float(r["high"]))
        p = float(r["p"]) if r["p"] else None
        found.append(PublishedPair(4, *retrieval, Condition.CLEAN, *scores, interval, p))
    for r in paper_table("table7_vision_classification.csv"):
        if r["dataset"] in _CLASSIFICATION:
            tasks, scores = _CLASSIFICATION[r["dataset"]], (float(r["clip_moe"]), float(r["ssmoe"]))
            found.append(PublishedPair(7, r["dataset"], tasks, "accuracy", Condition(r["condition"]), *scores))
    return tuple(found)


def _retrieval(dataset: str, direction: str, k: str) -> tuple[str, tuple[str, str], str]:
    """Name, tasks and metric of one R@k; mteb's own task stands in where the paper's was not measured."""
    task = f"{_RETRIEVAL[dataset]}{direction}Retrieval"
    return f"{dataset} {direction}", (f"{task}Paper", task), f"hit_rate_at_{k}"


IMAGE_TASKS = frozenset(task for pair in published() for task in pair.tasks)
"""Tasks of which the paper has numbers."""


@dataclass(frozen=True)
class PairComparison:
    """Two numbers of the paper and ours.

    Attributes:
        paper: The paper's.
        corruption: Of ours: `clean`, or the corruption's name.
        method: What ours is routed by, where the paper's SSMoE is.
        task: The task that was measured; None if none was.
        base: Ours under the learned routers, in points of 100.
        routed: Ours under the spectral ones.
        bootstrap: Their paired bootstrap, 0 to 1.
        reason: Why there is none.
    """

    paper: PublishedPair
    corruption: str
    method: str
    task: str | None = None
    base: float | None = None
    routed: float | None = None
    bootstrap: PairedBootstrap | None = None
    reason: str = ""


def compare_images(
    folder: ResultFolder,
    tasks: Mapping[str, AbsTask],
    *,
    model: str | None = None,
    corrupt: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[PairComparison]:
    """Compare measured scores of one model with the paper's, a line for each pair of numbers of the paper.

    Args:
        folder: What was measured.
        tasks: mteb's tasks by name, whose data the bootstrap over the kept predictions needs.
        model: Which of the measured models; needed if there are several.
        corrupt: The one corruption to show.
        resamples: How often examples are drawn.
        seed: Of the drawing.

    Raises:
        ValueError: There are several models, or nothing of that corruption.
    """
    scores = [one for one in folder.scores() if one.task in IMAGE_TASKS and model in (None, one.model)]
    models = sorted({(one.model, one.revision) for one in scores})
    if len(models) != 1:
        there = ", ".join(f"{name} ({revision})" for name, revision in models) or "none"
        raise ValueError(
            f"One model is compared with the paper's {MODEL}; measured here: {there}. Name it with --model."
        )
    noises = sorted({one.corruption for one in scores} - {CLEAN})
    if corrupt is not None and corrupt not in (CLEAN, *noises):
        raise ValueError(f"corrupt={corrupt!r} was not measured; choose from {', '.join((CLEAN, *noises))}.")
    chosen = [one for one in noises if corrupt in (None, one)]
    methods = [one for one in ROUTED if any(score.method == one for score in scores)] or [ROUTED[0]]
    bootstrap = partial(_bootstrap, folder, tasks, resamples=resamples, seed=seed)
    return [
        _compared(pair, corruption, method, scores, bootstrap)
        for method in methods
        for pair in published()
        for corruption in ([CLEAN] if pair.condition is Condition.CLEAN else chosen)
        if corrupt in (None, corruption)
    ]


def _compared(
    pair: PublishedPair,
    corruption: str,
    method: str,
    scores: Sequence[TaskScore],
    bootstrap: Callable[[TaskScore, TaskScore, str], PairedBootstrap],
) -> PairComparison:
    """One line: of the first of the tasks that was measured."""
    for task in pair.tasks:
        there = [one for one in scores if (one.task, one.corruption) == (task, corruption)]
        base, routed = (_only([one for one in there if one.method == wanted]) for wanted in (BASE, method))
        if base is None and routed is None:
            continue
        first, second = (None if one is None else 100 * metric_of(one, pair.metric) for one in (base, routed))
        line = PairComparison(pair, corruption, method, task, first, second)
        if base is None or routed is None:
            return replace(line, reason=f"{BASE if base is None else method} was not measured")
        try:
            return replace(line, bootstrap=bootstrap(base, routed, pair.metric))
        except (ValueError, OSError) as error:
            return replace(line, reason=str(error))
    reason = "not measured" if pair.tasks else "the paper names no protocol"
    return PairComparison(pair, corruption, method, reason=reason)


def _only(scores: Sequence[TaskScore]) -> TaskScore | None:
    """The one score of a method, if it was measured.

    Raises:
        ValueError: It was measured under several settings.
    """
    if len(scores) > 1:
        settings = "; ".join(one.settings_text or "as saved" for one in scores)
        raise ValueError(
            f"{scores[0].task} was measured with {scores[0].method} under several settings ({settings}); compare a result "
            "folder that holds one of them."
        )
    return scores[0] if scores else None


def metric_of(score: TaskScore, metric: str) -> float:
    """A score by one of its other metrics, the mean over splits and subsets, 0 to 1."""
    parts = [one for all_ in read_json(score.path)["scores"].values() for one in all_]
    if any(metric not in one for one in parts):
        raise ValueError(f"{score.path} has no {metric}; measure {score.task} again.")
    return sum(float(one[metric]) for one in parts) / len(parts)


def _bootstrap(
    folder: ResultFolder,
    tasks: Mapping[str, AbsTask],
    base: TaskScore,
    routed: TaskScore,
    metric: str,
    *,
    resamples: int,
    seed: int,
) -> PairedBootstrap:
    """The paired bootstrap over the predictions that were kept; a `ValueError` or `OSError` where there can be none."""
    files = [folder.prediction_file(one) for one in (base, routed)]
    if not all(file.is_file() for file in files):
        raise FileNotFoundError("no predictions were kept; evaluate with --predictions")
    expected = metric_of(base, metric), metric_of(routed, metric)
    task = tasks[base.task]
    return paired_bootstrap(task, *files, metric=metric, expected=expected, resamples=resamples, seed=seed)


def report(lines: Sequence[PairComparison], model: str) -> Report:
    """The comparison, a table for each method and kind of images."""
    scores = ("learned", "spectral", "difference")
    heads = ("table", "", "metric", f"paper: {scores[0]}", *scores[1:], f"here: {scores[0]}", *scores[1:])
    tables = []
    for method, corruption in dict.fromkeys((line.method, line.corruption) for line in lines):
        rows = [_cells(line) for line in lines if (line.method, line.corruption) == (method, corruption)]
        images = "clean images" if corruption == CLEAN else f"corrupt images: {corruption}"
        tables.append(Table(heads, tuple(rows), title=f"{method}, {images}", texts=3))
    reasons = dict.fromkeys(f"{line.task}: {line.reason}" for line in lines if line.task is not None and line.reason)
    legend = (
        "Points of 100; in brackets 95 % intervals of the difference, by a paired bootstrap over images or captions, and p; "
        f"{MISSING} was not measured."
    )
    return Report(
        f"{model} compared with the paper's {MODEL}",
        (legend, *tables, *NOTES, *(f"No interval of {one}." for one in reasons)),
    )


def _cells(line: PairComparison) -> tuple[str, ...]:
    one, found = line.paper, line.bootstrap
    theirs = signed(one.routed - one.base) + (_interval(*one.interval, one.p) if one.interval else "")
    ours = MISSING if line.base is None or line.routed is None else signed(line.routed - line.base)
    if found is not None:
        ours += _interval(100 * found.low, 100 * found.high, found.p_value)
    name = one.dataset if line.task in (None, *one.tasks[:1]) else f"{one.dataset} (mteb's images)"
    metric = one.metric.replace("hit_rate_at_", "R@")
    paper, here = (one.base, one.routed), (line.base, line.routed)
    return (str(one.table), name, metric, *map(points, paper), theirs, *map(points, here), ours)


def _interval(low: float, high: float, p: float | None) -> str:
    return f" [{low:.2f}, {high:.2f}]" + ("" if p is None else f" p {p:.3f}")


def pairs_csv(lines: Sequence[PairComparison], model: str) -> str:
    """The lines as CSV, points of 100; what is not there is empty."""
    rows = []
    for line in lines:
        one, found = line.paper, line.bootstrap
        run = (model, one.table, one.dataset, line.task, one.metric, line.corruption, line.method)
        theirs = (one.base, one.routed, *(one.interval or (None, None)), one.p)
        own = (None,) * 3 if found is None else (100 * found.low, 100 * found.high, found.p_value)
        rows.append((*run, *theirs, line.base, line.routed, *own, line.reason))
    heads = (
        "model", "table", "dataset", "task", "metric", "corruption", "method", "paper_learned", "paper_spectral",
        "paper_low", "paper_high", "paper_p", "learned", "spectral", "low", "high", "p", "reason",
    )  # fmt: skip
    return csv_text(heads, rows)
