"""What can be wrong with an index."""

from __future__ import annotations

RECOVERY = "copy the index again, or index the corpus again into another folder"
"""What to do where documents or vectors are lost."""

UNHARMED = "nothing that was published is lost; make room if the disk is full, and repeat the command"
"""What to do where a change could not be written."""


class DamagedIndexError(ValueError):
    """A file of the index is missing, cut short or not what the others say it is."""


class WrongModelError(ValueError):
    """The index was made with another model."""


class BusyIndexError(ValueError):
    """Somebody else is writing to the index."""
