"""Prompts, taps, representations, calibration, and `SSMoE`, the sentence-transformers module."""
