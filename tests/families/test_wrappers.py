"""A language model inside one that also sees, whose text part may be of any type, embeds as the language model alone."""

import pytest
import torch
from layouts import LAYOUTS
from layouts.base import SHARED, randomised
from routed import TEXTS, embed
from safetensors.torch import load_file, save_file
from tiny import TOP_C, make_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

from ssmoe_embed import SpectralRouters, SSMoE
from ssmoe_embed.families import family_of

INTERNVL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
KIMI = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
}
MISTRAL = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
WRAPPERS = [
    ("internvl", "qwen3_moe", {"vision_config": INTERNVL}),
    ("mistral3", "mistral4", {"vision_config": MISTRAL}),
    ("kimi_k25", "deepseek_v3", {"vision_config": KIMI, "projection_hidden_size": 16}),
]


def published_names(file):
    """transformers 5.24 turns the layers of Kimi's language model into blocks, as those of its vision model are called."""
    tensors = load_file(file)
    renamed = {name.replace("language_model.model.blocks.", "language_model.model.layers."): name for name in tensors}
    save_file({name: tensors[old] for name, old in renamed.items()}, file, {"format": "pt"})


@pytest.mark.parametrize(("model_type", "text", "others"), WRAPPERS, ids=str)
def test_it_embeds_as_its_text_part_alone(model_type, text, others, tmp_path):
    layout, special = LAYOUTS[text], {name: SHARED[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    decoder = SHARED | layout.config | {"model_type": text}
    config = AutoConfig.for_model(model_type, text_config=decoder, tie_word_embeddings=False, **others, **special)
    whole = randomised(AutoModelForImageTextToText.from_config(config))
    whole.save_pretrained(tmp_path / "whole")
    published_names(tmp_path / "whole" / "model.safetensors")
    alone = layout.make()
    layout.decoder(alone).load_state_dict(family_of(whole).decoder(whole).state_dict())
    layout.save(alone, tmp_path / "alone")
    vectors, routers = [], []
    for name in ("whole", "alone"):
        make_tokenizer().save_pretrained(tmp_path / name)
        module = SSMoE.from_base(tmp_path / name, top_c=TOP_C, calibration="none", progress=False)
        assert type(module.model).__name__ == type(layout.decoder(alone)).__name__
        vectors.append(embed(module, TEXTS))
        routers += [module.routers, SpectralRouters.from_checkpoint(tmp_path / name, top_c=TOP_C, progress=False)]
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-5)
    for found in routers:
        assert list(found.weights) == list(layout.sparse)
        for index, weight in found.weights.items():
            torch.testing.assert_close(weight, routers[0].weights[index], rtol=0, atol=1e-5)
