"""`method="paper"` is what the script of the paper's release computes, written down again here from its formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from layouts import LAYOUTS
from reference import stored_tensors, watched
from tiny import TOP_C
from transformers import AutoModel, AutoTokenizer

import ssmoe_embed
from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, reroute

FAMILIES = ("olmoe", "qwen2_moe", "deepseek")
TASK = 'Retrieve a text that means "the same"_'
ODD = ["", 'He said "no_thing"', "Why?", "no end", "x"]


def raw_weights(folder, layout):
    """`W_EV`: of each float32 matrix the right singular vectors as they come, those most similar to the router's row."""
    tensors, weights = stored_tensors(folder), {}
    for layer in layout.sparse:
        rows = []
        for expert, row in enumerate(layout.router(tensors, layer)):
            means = []
            for matrix in layout.matrices(tensors, layer, expert):
                vectors = torch.linalg.svd(matrix.float(), full_matrices=False)[2]  # [m,H]
                means.append(vectors[(vectors @ row.float()).topk(TOP_C).indices].mean(0))
            rows.append(torch.stack(means).mean(0))
        weights[layer] = torch.stack(rows)
    return weights


def written(text, template, instruction):
    """The text as the release writes it into its prompt."""
    if instruction:
        text = f"<|user|>\n{instruction}\n<|embed|>\n{text}"
    if text and text[-1] not in ".?!\"'":
        text += "."
    return template.format(text.replace('"', "'").replace("_", " "))


@torch.inference_mode()
def release(folder, family, texts, *, batch_size=8, template='"{}"', instruction="", hidden=True, alpha=0.5):
    """Vectors of texts: batches in the order given, padded on the left, standardised over each batch."""
    layout, tokenizer = LAYOUTS[family], AutoTokenizer.from_pretrained(folder)
    ssmoe_embed.families.register_families()
    model = AutoModel.from_pretrained(folder).eval()
    made = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    policy = SpectralRouting(replace(made, weights=raw_weights(folder, layout)), alpha=alpha)
    vectors = []
    for start in range(0, len(texts), batch_size):
        rows = [
            tokenizer(written(text, template, instruction))["input_ids"] for text in texts[start : start + batch_size]
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with reroute(model, policy), watched(model) as seen:
            states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
        logits = [
            torch.nn.functional.linear(calls[0][0].reshape(len(rows), longest, -1)[:, -1], router.weight)
            for (_, calls), router in zip(sorted(seen.items()), layout.routers(model).values(), strict=True)
        ]
        features = torch.cat([states, *logits] if hidden else logits, dim=1)
        vectors.append(((features - features.mean(0)) / (features.std(0) + 1e-8)).nan_to_num(0.0))
    return torch.cat(vectors).numpy()


def paper(folder, **settings):
    module = SSMoE.from_base(folder, **{"method": "paper", "top_c": TOP_C, "progress": False} | settings)
    return ssmoe_embed.EmbeddingModel(modules=[module], device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_the_releases(family, model_folder, texts):
    found = paper(model_folder(family)).encode(texts[:8], batch_size=8)
    np.testing.assert_allclose(found, release(model_folder(family), family, texts[:8]), rtol=0, atol=1e-5)


def test_batches_are_those_of_the_order_given_whatever_the_lengths(olmoe, texts):
    found = paper(olmoe).encode(texts, batch_size=8)
    np.testing.assert_allclose(found, release(olmoe, "olmoe", texts), rtol=0, atol=2e-5)
    tensors = paper(olmoe).encode(texts, batch_size=8, convert_to_tensor=True)
    np.testing.assert_allclose(tensors.numpy(), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("instruction", ["", TASK])
def test_odd_texts_are_written_as_the_release_writes_them(instruction, olmoe):
    odd = ODD if not instruction else ODD[1:]  # an instruction before nothing gets a full stop there, and none here
    found = paper(olmoe, instruction=instruction).encode(odd, batch_size=8)
    np.testing.assert_allclose(found, release(olmoe, "olmoe", odd, instruction=instruction), rtol=0, atol=1e-4)


def test_prompteol_stands_in_the_same_place(olmoe, texts):
    found = paper(olmoe, prompt="prompteol", instruction=TASK).encode(texts[:8], batch_size=8)
    template = 'This sentence : "{}" means in one word:"'
    expected = release(olmoe, "olmoe", texts[:8], template=template, instruction=TASK)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_no_text_is_cut(model_folder):
    longest = "word " * 300
    model = paper(model_folder("olmoe"))
    assert model[0].max_seq_length == model[0].model.config.max_position_embeddings
    [short, long] = (model[0].preprocess([text])["input_ids"].shape[1] for text in ("word", longest))
    assert long - short >= 250


def test_it_refuses_a_model_whose_spectral_routers_have_other_signs(built):
    with pytest.raises(ValueError, match=r"method='paper' takes spectral routers of sign='raw'.*--method paper"):
        ssmoe_embed.load(built, method="paper", progress=False)


def test_its_spectral_routers_have_raw_signs(olmoe):
    assert str(paper(olmoe)[0].routers.settings.sign) == "raw"


def test_the_scores_of_the_routers_are_what_moee_reads_of_deepseek(model_folder, texts):
    folder = model_folder("deepseek")
    module = SSMoE.from_base(
        folder, method="router", routing_signal="scores", calibration="none", prompt="release-none", progress=False
    )
    features = module.preprocess(texts[:4])
    with torch.inference_mode(), watched(module.model) as seen:
        found = module.forward(features)["sentence_embedding"]
    last = features["attention_mask"].sum(1) - 1
    expected = []
    for (_, [(x, _)]), router in zip(
        sorted(seen.items()), LAYOUTS["deepseek"].routers(module.model).values(), strict=True
    ):
        x = x.reshape(4, -1, x.shape[-1])[torch.arange(4), last]
        expected.append(torch.softmax(x @ router.weight.T, dim=-1))
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=0, atol=1e-5)
