"""DeepSeekMoE, which transformers has no classes for, against its architecture written out here."""

import math

import pytest
import torch
from layouts import LAYOUTS
from layouts.base import VOCABULARY
from reference import stored_tensors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2TextConfig

import ssmoe_embed
from ssmoe_embed.families import load_config, register_families

LAYOUT = LAYOUTS["deepseek"]


def rms_norm(x, weight):
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight


def rotated(x, theta=10000.0):
    """Rotary positions `[heads,T,D]`: dimension d turns with d + D/2."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2]).double()[:, None] * theta ** (-torch.arange(half).double() / half)
    first, second = x[..., :half], x[..., half:]
    turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.cat(turned, dim=-1)


def attention(x, w, start):
    """Multi-head attention on `[T,H]`, each token to itself and those before."""
    heads = LAYOUT.config["num_attention_heads"]
    q, k, v = ((x @ w[f"{start}{name}_proj.weight"].T).view(len(x), heads, -1).transpose(0, 1) for name in "qkv")
    scores = rotated(q) @ rotated(k).transpose(1, 2) / math.sqrt(q.shape[-1])
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
    return mixed.transpose(0, 1).flatten(1) @ w[f"{start}o_proj.weight"].T


def mlp(x, w, start):
    gate, up, down = (w[f"{start}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def moe(x, w, start, logits):
    """The `k` experts of the highest probability, weighed by it, beside the shared ones."""
    logits.append(x @ w[f"{start}gate.weight"].T)
    weights, chosen = logits[-1].softmax(dim=-1).topk(LAYOUT.config["num_experts_per_tok"])
    rows = [
        sum(p * mlp(x[t], w, f"{start}experts.{int(e)}.") for p, e in zip(weights[t], chosen[t], strict=True))
        for t in range(len(x))
    ]
    return torch.stack(rows) + mlp(x, w, f"{start}shared_experts.")


def forward(ids, w, sparse):
    """Hidden states of the last layer after the norm `[T,H]`, and the router logits of each sparse layer."""
    x, logits = w["model.embed_tokens.weight"][ids], []
    for layer in range(3):
        start = f"model.layers.{layer}."
        x = x + attention(rms_norm(x, w[f"{start}input_layernorm.weight"]), w, f"{start}self_attn.")
        y = rms_norm(x, w[f"{start}post_attention_layernorm.weight"])
        x = x + (moe(y, w, f"{start}mlp.", logits) if layer in sparse else mlp(y, w, f"{start}mlp."))
    return rms_norm(x, w["model.norm.weight"]), logits


@pytest.fixture(scope="module")
def folder(model_folder):
    return model_folder("deepseek")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, VOCABULARY, (23,), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_hidden_states_router_logits_and_next_tokens_equal_the_architecture_written_out(folder, ids):
    register_families()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    w = {name: tensor.double() for name, tensor in stored_tensors(folder).items()}
    hidden, logits = forward(ids, w, LAYOUT.sparse)
    output = model(ids[None], output_router_logits=True)
    torch.testing.assert_close(output.logits[0].double(), hidden @ w["lm_head.weight"].T, rtol=0, atol=2e-5)
    assert len(output.router_logits) == len(logits)
    for found, expected in zip(output.router_logits, logits, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    decoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(decoder(ids[None]).last_hidden_state[0].double(), hidden, rtol=0, atol=1e-5)


def test_the_published_fields_are_understood(folder):
    config = load_config(folder)
    assert config.model_type == "deepseek"
    assert config.mlp_layer_types == ["dense", "sparse", "sparse"]
    assert (config.num_experts, config.head_dim, config.routed_scaling_factor) == (8, 8, 1.0)
    assert config.rope_parameters["rope_theta"] == 10000
    assert issubclass(type(config), DeepseekOcr2TextConfig)


def test_the_code_that_comes_with_the_checkpoint_is_not_asked_for(folder):
    """Its config.json names such code, which is too old to run; ours is taken, with and without permission to run it."""
    for allowed in (False, True):
        assert type(load_config(folder, trust_remote_code=allowed)).__module__.startswith("ssmoe_embed.")


def test_which_layers_are_sparse_follows_both_fields():
    config = AutoConfig.for_model(**(LAYOUT.config | {"num_hidden_layers": 6, "moe_layer_freq": 2}))
    assert config.mlp_layer_types == ["dense", "dense", "sparse", "dense", "sparse", "dense"]


def test_a_model_is_the_same_saved_and_loaded(folder, tmp_path):
    register_families()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    written, published = stored_tensors(tmp_path), stored_tensors(folder)
    assert written.keys() == published.keys()
    assert all(torch.equal(written[name], published[name]) for name in published)
    assert load_config(tmp_path).mlp_layer_types == ["dense", "sparse", "sparse"]


@torch.no_grad()
def test_the_language_model_generates_and_has_a_loss(folder, ids):
    register_families()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made = model.generate(ids[None], max_new_tokens=4, do_sample=False)
    step = ids[None]
    for _ in range(4):
        step = torch.cat([step, model(step, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(made, step[:, : made.shape[1]])
    output = model(ids[None], labels=ids[None])
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[1:])
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob=True"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid'"),
        ({"n_shared_experts": 0}, "n_shared_experts=0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear'"),
    ],
)
def test_what_the_class_would_ignore_is_refused(changes, message, tmp_path):
    LAYOUT.write(tmp_path / "model", **changes)
    for make in (ssmoe_embed.SSMoE.from_base, ssmoe_embed.SpectralRouters.from_checkpoint):
        with pytest.raises(ssmoe_embed.UnsupportedModelError, match=message):
            make(tmp_path / "model", progress=False)
