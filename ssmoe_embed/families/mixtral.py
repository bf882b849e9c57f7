"""Mixtral (arXiv 2401.04088)."""

from ssmoe_embed.families.base import MoEFamily


class Mixtral(MoEFamily):
    """The common layout in memory; older names on disk."""

    model_types = ("mixtral",)
    router_name = "layers.{layer}.block_sparse_moe.gate.weight"
    matrix_names = (
        "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    )
