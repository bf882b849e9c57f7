"""The model computes what CLIP-MoE's description says, and a dense CLIP becomes one without computing otherwise."""

import json
import subprocess
import sys

import pytest
import torch
from clip_moe import TINY, Release, published
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from ssmoe_embed.vision import ClipMoeConfig, ClipMoeModel
from ssmoe_embed.vision.checkpoint import from_published
from ssmoe_embed.vision.modeling import ClipMoeBlock, stretched_positions

EOT = TINY["vocabulary"] - 1


@pytest.fixture(scope="module")
def tensors():
    return published()


@pytest.fixture(scope="module")
def model(tensors):
    return from_published(tensors)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ids():
    ids = torch.randint(1, EOT, (3, TINY["positions"]), generator=torch.Generator().manual_seed(2))
    for row, length in enumerate((30, 7, 22)):  # the release pads with 0
        ids[row, length - 1], ids[row, length:] = EOT, 0
    return ids


@pytest.fixture(scope="module")
def dense():
    sizes = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "hidden_size": 32}
    vision = sizes | {"image_size": 12, "patch_size": 4}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


@torch.no_grad()
def test_images_and_texts_are_encoded_by_the_published_formulas(model, tensors, pixels, ids):
    release = Release(tensors)
    found = model(input_ids=ids, pixel_values=pixels)
    image, text = release.image(pixels), release.text(ids)
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output.double(), image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.get_text_features(ids).pooler_output.double(), text, rtol=1e-4, atol=1e-5)
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    logits = tensors["logit_scale"].double().exp() * image @ text.T
    torch.testing.assert_close(found.logits_per_image.double(), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_texts_padding_changes_nothing(model, ids):
    alone = model.get_text_features(ids[1:2, :7]).pooler_output
    torch.testing.assert_close(model.get_text_features(ids).pooler_output[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_of_the_published_size(pixels):
    config = ClipMoeConfig(
        vision_config={"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    ).vision_config
    block = ClipMoeBlock(config)
    generator = torch.Generator().manual_seed(3)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 32)
    names = {f"x.{name}".replace("fc1", "c_fc").replace("fc2", "c_proj"): p for name, p in block.named_parameters()}
    assert names["x.experts.3.c_fc.weight"].shape == (4096, 1024)
    assert names["x.gate.weight"].shape == (4, 1024)
    h = torch.randn(2, 257, 1024, generator=generator)
    torch.testing.assert_close(block(h).double(), Release(names).moe("x", h.double()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_dense_clip_with_experts_computes_what_it_did(dense, pixels, top_k):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    moe = ClipMoeModel.from_clip(dense, experts=3, top_k=top_k)
    ids = torch.tensor([[98, 5, 6, 99], [98, 7, 99, 99]])
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        ours, own = (getattr(x(input_ids=ids, pixel_values=pixels), name) for x in (moe, dense))
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    assert moe.config.text_config.num_experts == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    gates = [layer.mlp.gate.weight for layer in moe.vision_model.encoder.layers]
    assert not torch.equal(gates[0], gates[1])
    again = ClipMoeModel.from_clip(dense, experts=3, top_k=top_k)
    assert all(torch.equal(a, b) for a, b in zip(moe.parameters(), again.parameters(), strict=True))


@torch.no_grad()
def test_a_dense_clip_can_be_given_long_texts(dense):
    moe = ClipMoeModel.from_clip(dense, long_texts=True)
    assert moe.config.text_config.max_position_embeddings == 248
    short = torch.tensor([[98, *range(1, 19), 99]])  # 20 tokens
    torch.testing.assert_close(moe.get_text_features(short).pooler_output, dense.get_text_features(short).pooler_output)
    long = torch.cat([torch.arange(247) % 90, torch.tensor([99])])[None]
    assert moe.get_text_features(long).pooler_output.isfinite().all()


def test_positions_are_stretched_as_long_clip_does():
    old = torch.randn(77, 8)
    new = stretched_positions(old)
    assert new.shape == (248, 8)
    assert torch.equal(new[:20], old[:20])
    for i in range(20, 76):
        for step in range(4):
            expected = (4 - step) / 4 * old[i] + step / 4 * old[i + 1]
            torch.testing.assert_close(new[20 + 4 * (i - 20) + step], expected)
    for step in range(4):
        torch.testing.assert_close(new[244 + step], old[76] + step / 4 * (old[76] - old[75]))
    with pytest.raises(ValueError, match="21 positions cannot be stretched"):
        stretched_positions(old[:21])


def test_only_a_dense_clip_is_given_experts(model):
    for wrong in (model, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"cannot be given experts; pass a dense transformers\.CLIPModel"):
            ClipMoeModel.from_clip(wrong)


@pytest.mark.parametrize("chosen", [0, 5])
def test_numbers_of_experts_that_cannot_be_are_refused(chosen):
    for tower in ("text_config", "vision_config"):
        with pytest.raises(ValueError, match=f"num_experts_per_tok={chosen} of num_experts=4"):
            ClipMoeConfig(**{tower: {"num_experts_per_tok": chosen}})


@torch.no_grad()
def test_saved_and_loaded_by_the_auto_classes_it_is_the_same(model, tmp_path, pixels, ids):
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*model*")] == ["model.safetensors"]
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is ClipMoeModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is ClipMoeConfig
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    ours, again = (x(input_ids=ids, pixel_values=pixels).logits_per_image for x in (model, loaded))
    assert torch.equal(ours, again)


def test_its_processor_is_found(model, tmp_path):
    words = {"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    tokenizer = CLIPTokenizer(vocab=words, merges=[])
    size = {"shortest_edge": 12}
    images = CLIPImageProcessorPil(size=size, crop_size={"height": 12, "width": 12})
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is CLIPImageProcessorPil
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is CLIPProcessor
    assert processor(text=["a"], return_tensors="pt")["input_ids"].tolist() == [[98, 3, 99]]


def test_importing_the_package_does_not_import_vision(environment):
    code = "import sys, ssmoe_embed; print([name for name in sys.modules if 'vision' in name or name == 'torch'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == "[]"
