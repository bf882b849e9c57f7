"""MoE families that are known and not supported: why, and the way out."""

from __future__ import annotations

REFUSED: dict[str, str] = {}
"""The reason for each `config.model_type`, as the rest of a sentence."""
