"""The held-out rule, which the training of the bundled model follows too (``examples/train_tiny/holdout.py``)."""

import hashlib

ONE_IN = 20


def is_held_out(word: str) -> bool:
    """Say whether a word's dictionary entries are kept from all training."""
    key = word.strip().lower().replace("_", " ")
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % ONE_IN == 0
