"""What an offline task is, and the checks that all of them share."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
"""Turns texts into one vector a text, shape [texts, dimensions]; a SciPy sparse matrix will do as well."""


class OfflineTask(Protocol):
    """A measurement of an encoder.

    Attributes:
        name: Short name, unique among the tasks.
        main_metric: The score that stands for the task in a table.
    """

    @property
    def name(self) -> str:
        """Short name, unique among the tasks."""

    @property
    def main_metric(self) -> str:
        """The score that stands for the task in a table."""

    def texts(self) -> list[str]:
        """Every text of the task, for encoders that have to be fitted."""

    def evaluate(self, encode: Encode) -> dict[str, float]:
        """Measure an encoder.

        Args:
            encode: The encoder.

        Returns:
            Score by name; the main one also with the ends of its 95 % bootstrap interval, ``<main>_low`` and
            ``<main>_high``.

        Raises:
            ValueError: If the encoder returns the wrong number of vectors, or one that is not finite.
        """


def embed(encode: Encode, texts: list[str]) -> np.ndarray:
    """Encode texts and refuse what is not one finite vector for each."""
    vectors = encode(texts)
    if vectors.ndim != 2 or vectors.shape[0] != len(texts):
        msg = (
            f"The encoder returned an array of shape {vectors.shape} for {len(texts)} texts; one row a text is needed."
        )
        raise ValueError(msg)
    # The sum is finite only if every entry is; sparse matrices have it too.
    bad = np.flatnonzero(~np.isfinite(np.asarray(vectors.sum(axis=1)).ravel()))
    if bad.size:
        msg = f"The encoder returned a vector that is not finite for the text {texts[bad[0]]!r} (position {bad[0]})."
        raise ValueError(msg)
    return vectors
