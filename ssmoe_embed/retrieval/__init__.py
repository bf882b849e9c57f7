"""Searching a corpus of short documents by meaning."""
