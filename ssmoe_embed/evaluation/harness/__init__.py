"""Evaluating re-routed language models through lm-evaluation-harness."""
