"""The embeddings' tasks of an ablation: ordinary results of `evaluate`, one folder for all variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmoe_embed.data import calibration_texts
from ssmoe_embed.embedding.calibration import Calibrations
from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration
from ssmoe_embed.evaluation.ablation.measures import Difference, seeded_difference
from ssmoe_embed.evaluation.ablation.variants import SPECTRAL, Variant, controlled
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder, read_json
from ssmoe_embed.evaluation.significance.bootstrap import weighted_scorer
from ssmoe_embed.evaluation.tasks.finding import find_tasks
from ssmoe_embed.evaluation.texts import spread
from ssmoe_embed.routing import SpectralRouting
from ssmoe_embed.spectral.routers import SpectralRouters

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

FORWARD = "ssmoe"
"""Under the re-routed forward pass: the hidden state joined with the mixed weights (the scores, if routed by a name)."""
LOGITS = "ev"
"""The spectral logits alone, under the model's own routing; of the learned router its own logits."""
RESAMPLES = 1_000


class TaskRuns:
    """The runs of all variants on some tasks."""

    def __init__(
        self, model: EvaluatedModel, folder: Path, tasks: Sequence[str | AbsTask], alpha: float, calibration: int
    ) -> None:
        """Bind a model to a folder.

        Args:
            model: The model.
            folder: The result folder.
            tasks: See `find_tasks`.
            alpha: The spectral router's share.
            calibration: Texts that each variant's calibration is fitted on.
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
        own = self.model.own
        common: dict[str, Any] = {"calibration": Calibration.STANDARDIZE, "routing_signal": None, "mix": own.mix}
        common |= {"routing": variant.routing}
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

    # --- what was found -----------------------------------------------------------------------------------------------

    def scores(self, column: str, task: str, variant: Variant, seeds: int) -> list[float]:
        """A variant's scores, 0 to 1, one a seed; empty where it was not measured."""
        paths = [self._places.get((column, task, variant.name, seed)) for seed in range(seeds)]
        there = [path[0] for path in paths if path is not None and path[0].is_file()]
        return [
            float(np.mean([one["main_score"] for all_ in read_json(path)["scores"].values() for one in all_]))
            for path in there
        ]

    def difference(self, column: str, task: str, variant: Variant, seeds: int) -> Difference | None:
        """How much better a variant is than the spectral router, by a paired bootstrap over examples and seeds.

        Returns:
            None where one of the two was not measured, or the task's predictions do not suffice.
        """
        try:
            first, *rest = [
                weighted_scorer(next(one for one in self.tasks if one.metadata.name == task), self._places[place][1])
                for place in [
                    (column, task, SPECTRAL, 0),
                    *((column, task, variant.name, seed) for seed in range(seeds)),
                ]
            ]
        except (KeyError, FileNotFoundError, ValueError):
            return None

        def above(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.stack([score(drawn) for _, score in rest], axis=1) - first[1](drawn)[:, None]  # [n,S]

        return seeded_difference(first[0], above, RESAMPLES)
