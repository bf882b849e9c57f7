"""How an evaluation runs, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssmoe_embed.evaluation.mteb.feature_store import GIB
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore


@dataclass(frozen=True)
class Failure:
    """Something that could not be evaluated.

    Attributes:
        what: The task, and the model and run where it is one run's failure.
        reason: Why, and what to do where that is known.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass
class Report:
    """What came of an evaluation.

    Attributes:
        folder: Where the results are.
        done: Jobs measured now.
        kept: Jobs that were measured before.
        failures: What could not be evaluated.
        texts_read: Texts that went through a model, shared ones counted once.
    """

    folder: ResultFolder
    done: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)
    texts_read: int = 0

    def scores(self) -> list[TaskScore]:
        """Every score in the folder, those of earlier evaluations too."""
        return self.folder.scores()


@dataclass(frozen=True)
class Options:
    """How evaluations run.

    Attributes:
        batch_size: Texts a forward pass.
        overwrite: Measure again what is there.
        predictions: Keep mteb's predictions; None for those of the offline tasks only.
        memory: Bytes of features kept in memory for the methods that share a forward pass.
        scratch: Bytes kept on disk beyond that, under the result folder.
        progress: Show progress bars.
    """

    batch_size: int = 32
    overwrite: bool = False
    predictions: bool | None = None
    memory: int = 2 * GIB
    scratch: int = 16 * GIB
    progress: bool = True
