"""Encoding on many machines, as a Ray Data job whose result is a folder of Parquet shards; needs the extra `ray`."""
