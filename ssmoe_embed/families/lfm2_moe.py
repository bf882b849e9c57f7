"""LFM2-MoE (https://huggingface.co/LiquidAI/LFM2-8B-A1B)."""

from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score


class Lfm2Moe(MoEFamily):
    """Short convolutions and attention. A bias helps to choose the experts, but does not weigh them."""

    models = {"lfm2_moe": "LFM2-8B-A1B"}
    notes = FamilyNotes(
        weights="sigmoid; chosen by score + `expert_bias`; weight = score, ÷ sum if `norm_topk_prob`, × scaling factor",
        beside="the first `num_dense_layers` layers are dense",
        layout="`w1`, `w3`, `w2` of each expert",
    )
    score = Score.SIGMOID
    block_attribute = "feed_forward"
    router_name = "layers.{layer}.feed_forward.gate.weight"
    final_norm_attribute = "embedding_norm"
    matrix_names = (
        "layers.{layer}.feed_forward.experts.{expert}.w1.weight",
        "layers.{layer}.feed_forward.experts.{expert}.w3.weight",
        "layers.{layer}.feed_forward.experts.{expert}.w2.weight",
    )
