"""Measuring embeddings with mteb: the offline tasks, the corruption of texts, baselines and statistics."""

from ssmoe_embed.evaluation.tasks.corruption import Corruption, corrupt, ladder

__all__ = ["Corruption", "corrupt", "ladder"]
