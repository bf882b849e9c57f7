"""What all rescoring shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rescore = Callable[[Array], Array]
Scorer = tuple[int, Rescore]
"""Number of examples, and their score under weights."""


def unknown_metric(task: Any, metric: str, known: str) -> ValueError:
    """The error for a metric that cannot be resampled."""
    return ValueError(
        f"{metric!r} of {task.metadata.name!r} cannot be resampled; of this type of task these can: {known}."
    )


def mean(values: Any) -> Scorer:
    """The mean of one value an example."""
    values = np.asarray(values, dtype=float)
    return len(values), lambda weights: weights @ values / weights.sum(axis=-1)
