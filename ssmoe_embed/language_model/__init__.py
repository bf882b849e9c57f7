"""Causal language models under SSMoE's routing: generation, expert dropping, evaluation."""

from ssmoe_embed.language_model.dropped import Dropped, drop, drop_experts
from ssmoe_embed.language_model.dropping import DropBy
from ssmoe_embed.language_model.loading import Routing, RoutingSettings, load, load_tokenizer
from ssmoe_embed.language_model.measures import Overlap, Perplexity, expert_overlap, perplexity

__all__ = [
    "DropBy",
    "Dropped",
    "Overlap",
    "Perplexity",
    "Routing",
    "RoutingSettings",
    "drop",
    "drop_experts",
    "expert_overlap",
    "load",
    "load_tokenizer",
    "perplexity",
]
