"""Makes a Qwen2-MoE checkpoint of a dense Qwen2 model: ``python -m split_dense --help`` in the folder ``examples``."""
