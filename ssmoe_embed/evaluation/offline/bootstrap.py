"""Intervals of scores by resampling a task's examples."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
SEED = 0


def with_interval(
    name: str, statistic: Callable[..., float], *samples: np.ndarray, resamples: int = RESAMPLES
) -> dict[str, float]:
    """A score with its 95 % bootstrap interval (Efron 1979, https://doi.org/10.1214/aos/1176344552).

    The same examples are drawn from each sample (paired), with a fixed seed. The percentiles are moved by the
    draws' mean deviation from the score, which matters only where repeated examples raise a score of themselves
    (V-measure). Draws on which the statistic is not defined are left out.

    Args:
        name: Name of the score.
        statistic: Function of the samples.
        *samples: Arrays with one entry an example.
        resamples: Number of draws.

    Returns:
        The score under its name, and the ends of the interval under ``<name>_low`` and ``<name>_high``.
    """
    rng = np.random.default_rng(SEED)
    count = len(samples[0])
    draws = (rng.integers(count, size=count) for _ in range(resamples))
    values = np.array([statistic(*(sample[draw] for sample in samples)) for draw in draws])
    score = float(statistic(*samples))
    low, high = np.nanpercentile(values, [2.5, 97.5]) - np.nanmean(values) + score
    return {name: score, f"{name}_low": float(low), f"{name}_high": float(high)}
