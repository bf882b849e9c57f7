"""What a model is compared with: encoders of their own, and other ways to read the evaluated model itself."""

from ssmoe_embed.evaluation.baselines.encoders import (
    BASELINES,
    MINILM,
    MOST_DIMENSIONS,
    DenseEncoder,
    baseline_name,
    does,
    load_baseline,
    minilm,
    task_texts,
)

__all__ = [
    "BASELINES",
    "MINILM",
    "MOST_DIMENSIONS",
    "DenseEncoder",
    "baseline_name",
    "does",
    "load_baseline",
    "minilm",
    "task_texts",
]
