"""Re-routed language models: generation, batches, perplexity, and the overlap of two routings."""

import math
from functools import partial

import pytest
import torch
from reference import routed_by_hand, watched
from tiny import EXPERTS, TOP_C
from transformers import TextIteratorStreamer

from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, UnsupportedModelError
from ssmoe_embed.language_model import RoutingSettings, expert_overlap, load, load_tokenizer, perplexity
from ssmoe_embed.language_model.loading import skeleton, spectral_routers
from ssmoe_embed.language_model.measures import chosen_experts
from ssmoe_embed.routing import HashRouting, RandomRouting
from ssmoe_embed.routing.sites import is_rerouted

SETTINGS = RoutingSettings(alpha=0.7, top_c=TOP_C, scale="router")
ROUTINGS = ("original", "ssmoe", "ev", "average-ev", "random", "hash")
PROMPTS = ["The cook made a soup", "Why?", "It rains, and my neighbour never liked it."]


@pytest.fixture(scope="module")
def tokenizer(olmoe):
    return load_tokenizer(olmoe)


@pytest.fixture(scope="module")
def loaded_with(olmoe):
    made = {}

    def model(routing):
        if routing not in made:
            made[routing] = load(olmoe, routing, settings=SETTINGS, progress=False)
        return made[routing]

    return model


@pytest.fixture(params=ROUTINGS)
def routing(request):
    return request.param


def continuation(model, inputs, **options):
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0, **options)
    return out[:, inputs["input_ids"].shape[1] :]


# --- generation -------------------------------------------------------------------------------------------------------


def test_a_key_value_cache_changes_no_token(routing, loaded_with, tokenizer):
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    cached, plain = (continuation(loaded_with(routing), inputs, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, plain)


def test_a_text_in_a_padded_batch_goes_on_as_it_does_alone(routing, loaded_with, tokenizer):
    together = continuation(loaded_with(routing), tokenizer(PROMPTS, return_tensors="pt", padding=True))
    for row, prompt in zip(together, PROMPTS, strict=True):
        assert torch.equal(row, continuation(loaded_with(routing), tokenizer(prompt, return_tensors="pt"))[0])


def test_routings_generate_different_texts(loaded_with, tokenizer):
    inputs = tokenizer(PROMPTS[2], return_tensors="pt")
    with torch.no_grad():
        logits = [loaded_with(routing)(**inputs).logits for routing in ROUTINGS]
    for first in range(len(logits)):
        for second in range(first):
            assert not torch.allclose(logits[first], logits[second], atol=1e-3)


@torch.no_grad()
def test_logits_equal_those_of_a_model_that_is_routed_by_hand(olmoe, loaded_with, tokenizer):
    plain, inputs = load(olmoe), tokenizer(PROMPTS[2], return_tensors="pt")
    routers = SpectralRouters.from_model(plain, top_c=TOP_C, scale="router", progress=False)
    with routed_by_hand(plain, routers.weights, 0.7):
        expected = plain(**inputs).logits
    torch.testing.assert_close(loaded_with("ssmoe")(**inputs).logits, expected, rtol=0, atol=1e-5)


def test_tokens_are_streamed_as_they_are_generated(loaded_with, tokenizer):
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    continued = continuation(loaded_with("ssmoe"), inputs, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(continued[0])


def test_the_models_own_routing_is_no_rerouting(olmoe):
    assert not is_rerouted(load(olmoe))
    assert not is_rerouted(load(olmoe, "original"))


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_policy_may_be_given_instead_of_a_name(olmoe, loaded_with, tokenizer):
    routers = SpectralRouters.from_checkpoint(olmoe, top_c=TOP_C, scale="router", progress=False)
    model = load(olmoe, SpectralRouting(routers, alpha=0.7))
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, loaded_with("ssmoe")(**inputs).logits, rtol=0, atol=1e-5)


def test_spectral_routers_of_quantised_weights_are_of_the_revision_that_was_loaded(olmoe, monkeypatch):
    model = load(olmoe)
    model.config._commit_hash = "f00d"
    monkeypatch.setattr(model, "is_quantized", True, raising=False)
    monkeypatch.setattr(SpectralRouters, "from_checkpoint", lambda name, **options: (name, options["revision"]))
    assert spectral_routers(model, SETTINGS.spectral()) == (str(olmoe), "f00d")


def test_an_unknown_routing_is_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"'hashed'.*Did you mean 'hash'"):
        load(tmp_path / "nothing", "hashed")


@pytest.mark.parametrize("read", [load, skeleton, load_tokenizer])
def test_a_folder_that_is_not_there_is_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder .*nowhere' does not exist"):
        read(tmp_path / "nowhere")


def test_a_model_that_is_nowhere_is_named_with_the_nearest():
    with pytest.raises(FileNotFoundError, match=r"'ssmoe/tinny'.*Did you mean 'ssmoe/tiny'.*Recipes: ssmoe/tiny"):
        load("ssmoe/tinny", local_files_only=True)


def test_a_dense_model_is_refused(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="llama"):
        load(tmp_path)


# --- perplexity -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_perplexity_predicts_every_token_once_with_the_window_before_it(loaded_with, tokenizer, texts):
    model, text, window, stride = loaded_with("ssmoe"), " ".join(texts[:20]), 20, 7
    ids = tokenizer(text)["input_ids"]
    expected = []
    for place in range(1, len(ids)):
        start = max(0, math.ceil((place + 1 - window) / stride) * stride)
        logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
        expected.append(-float(torch.log_softmax(logits, dim=-1)[ids[place]]))
    found = perplexity(model, tokenizer, text, window=window, stride=stride, progress=False)
    assert found.tokens == len(ids) - 1
    assert found.nll == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert found.value == pytest.approx(math.exp(found.nll))


def test_windows_are_no_longer_than_the_models_positions(loaded_with, tokenizer, texts, monkeypatch):
    model, text = loaded_with("original"), " ".join(texts * 2)
    assert perplexity(model, tokenizer, text, progress=False).window == 1024
    monkeypatch.setattr(model.config, "max_position_embeddings", 96)
    found = perplexity(model, tokenizer, text, progress=False)
    assert (found.window, found.stride) == (96, 48)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 8, "stride": 8}, {"window": 1_000_000}])
def test_windows_that_do_not_fit_are_refused(options, loaded_with, tokenizer):
    with pytest.raises(ValueError, match="window"):
        perplexity(loaded_with("original"), tokenizer, "some text", progress=False, **options)


# --- overlap ----------------------------------------------------------------------------------------------------------


def test_overlap_with_the_models_own_choice_is_complete(olmoe, tokenizer, texts):
    model = load(olmoe)
    routers = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    found = expert_overlap(model, tokenizer, texts[:5], SpectralRouting(routers, alpha=0))
    assert (found.share, found.jaccard) == (1, 1)


@torch.no_grad()
def test_overlap_counts_the_experts_in_common(olmoe, tokenizer, texts):
    model = load(olmoe)
    routers = SpectralRouters.from_model(model, top_c=TOP_C, scale="router", progress=False)
    found = expert_overlap(model, tokenizer, texts[8:12], SpectralRouting(routers, alpha=1))
    shares, jaccards = {}, {}
    for text in texts[8:12]:
        with watched(model) as seen:
            model(**tokenizer(text, return_tensors="pt"))
        for layer, calls in seen.items():
            x, (_, _, own) = calls[0]
            other = (x.reshape(-1, x.shape[-1]) @ routers.weights[layer].T).topk(own.shape[-1]).indices
            for a, b in zip(own.tolist(), other.tolist(), strict=True):
                shares.setdefault(layer, []).append(len({*a} & {*b}) / len(a))
                jaccards.setdefault(layer, []).append(len({*a} & {*b}) / len({*a} | {*b}))
    for layer, values in shares.items():
        assert found.by_layer[layer] == pytest.approx(sum(values) / len(values))
    layers = [sum(values) / len(values) for values in jaccards.values()]
    assert found.jaccard == pytest.approx(sum(layers) / len(layers))


@pytest.mark.parametrize("policy", [HashRouting(), RandomRouting()])
def test_random_experts_overlap_as_chance_has_it(policy, olmoe, tokenizer, texts):
    found = expert_overlap(load(olmoe), tokenizer, texts, policy)
    assert found.chance_share == pytest.approx(2 / EXPERTS)
    sets = [{a, b} for a in range(EXPERTS) for b in range(a)]
    each = [len(one & two) / len(one | two) for one in sets for two in sets]
    assert found.chance_jaccard == pytest.approx(sum(each) / len(each))
    assert found.share == pytest.approx(found.chance_share, abs=0.1 if type(policy) is HashRouting else 0.05)


def test_scores_that_are_zero_elsewhere_name_the_chosen_experts():
    scores = torch.tensor([[0.0, 0.3, 0.0, 0.7]])
    assert chosen_experts((scores, scores), 4).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("read", [load, partial(SSMoE.from_base, method="smoe", calibration="none", progress=False)])
def test_a_checkpoint_in_16_bits_is_said_to_be_slow_on_a_cpu_without_units_unless_a_dtype_was_chosen(
    olmoe, tmp_path, monkeypatch, recwarn, read
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False}, raising=False)
    load(olmoe, dtype="bfloat16").save_pretrained(tmp_path)
    load_tokenizer(olmoe).save_pretrained(tmp_path)
    read(tmp_path, dtype="bfloat16")
    assert not [warning for warning in recwarn if "float32" in str(warning.message)]
    with pytest.warns(UserWarning, match="bfloat16.*dtype='float32'"):
        read(tmp_path)
    recwarn.clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    read(tmp_path)
    assert not [warning for warning in recwarn if "float32" in str(warning.message)]
