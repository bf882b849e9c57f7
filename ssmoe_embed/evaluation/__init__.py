"""Measuring embeddings: the project's own offline tasks."""
