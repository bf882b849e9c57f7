"""Evaluating a model at every combination of some settings."""
