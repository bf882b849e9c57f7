"""What can be wrong with an index."""

from __future__ import annotations


class DamagedIndexError(ValueError):
    """A file of the index is missing, cut short or not what the others say it is."""


class WrongModelError(ValueError):
    """The index was made with another model."""


class BusyIndexError(ValueError):
    """Somebody else is writing to the index."""
