"""A checkpoint's tensors, read without a model: safetensors shards, FP8, MXFP4."""
