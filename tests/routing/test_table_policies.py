"""Steering, codebook and smoothed routing: from their equations by hand, and that they do nothing where they should not."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import routed_by_hand, routers_of, spectral_weights, watched
from routed import BATCH, run
from tiny import EXPERTS, TOP_C, make_model, make_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from ssmoe_embed import SSMoE, language_model, reroute
from ssmoe_embed.families import Score
from ssmoe_embed.language_model.steering import important, saliency, steering_table
from ssmoe_embed.routing.derived import CodebookSettings, SmoothedSettings, SteeringSettings, SteeringTable
from ssmoe_embed.routing.mixing import scores
from ssmoe_embed.routing.named import canonical, policy_named
from ssmoe_embed.routing.sites import recording

LEAST = f"least-similar:top_c={TOP_C}"
LINES = [
    f"The {a} {b} near the {c}."
    for a in ("cat", "cook")
    for b in ("sat", "slept")
    for c in ("gate", "old mill", "sea", "inn")
]


@pytest.fixture(scope="module")
def model(olmoe):
    """Never change it."""
    return AutoModelForCausalLM.from_pretrained(olmoe).eval()


@pytest.fixture(scope="module")
def tokenizer(olmoe):
    return AutoTokenizer.from_pretrained(olmoe)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "lines.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def table(ssmoe, olmoe, lines, tmp_path_factory):
    """Made by the command line."""
    file = tmp_path_factory.mktemp("tables") / "steering.safetensors"
    status, output, errors = ssmoe("steer", olmoe, "--texts", lines, "--output", file, "--quiet")
    assert status == 0, errors
    assert "layer" in output
    return file


@torch.no_grad()
def recorded(model, ids):
    """What entered each router at the tokens of a text, and its logits, by layer."""
    with reroute(model, SmoothedSettings(noise=0).made(model)), recording(torch.arange(ids.numel())) as taken:
        model(input_ids=ids, use_cache=False)
    return taken


# --- what changes nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoothed:noise=0", "steer:pairs=0,table=", "steer:strength=0,table="])
def test_without_strength_or_noise_no_bit_changes(name, model, table):
    policy = policy_named(f"{name}{table}" if name.startswith("steer") else name, model)
    with reroute(model, policy):
        found = run(model)
    assert torch.equal(found, run(model))


@torch.no_grad()
def test_where_every_input_has_a_code_of_its_own_no_bit_changes(model, tokenizer, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("How do I undo the last commit?", encoding="utf-8")
    ids = torch.tensor([tokenizer("How do I undo the last commit?")["input_ids"]])
    with reroute(model, CodebookSettings(codes=500, texts=str(file)).made(model)):
        found = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, model(input_ids=ids, use_cache=False).logits)


# --- the equations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", list(Score))
def test_smoothed_scores_are_the_mean_over_noisy_inputs(score):
    model = make_model("olmoe")
    policy = SmoothedSettings(noise=0.3, copies=5, seed=2).made(model)
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    for layer, router in routers_of(model).items():
        noise = torch.randn(5, 32, generator=torch.Generator().manual_seed(2000 + layer))
        rms = (x**2).mean(dim=1).sqrt()
        expected = torch.stack([scores((x + 0.3 * rms[:, None] * one) @ router.weight.T, score) for one in noise]).mean(
            0
        )
        found = policy.logits(layer, x, x @ router.weight.T, score)
        torch.testing.assert_close(scores(found, score), expected, rtol=1e-4, atol=1e-6)


def test_the_least_similar_experts_are_those_of_the_negative_spectral_router(olmoe, model):
    rows = {layer: -row for layer, row in spectral_weights(olmoe, "olmoe", TOP_C).items()}
    with routed_by_hand(model, rows, alpha=1.0):
        expected = run(model)
    with reroute(model, policy_named(LEAST, model)):
        torch.testing.assert_close(run(model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
@torch.no_grad()
def test_a_token_is_routed_as_the_router_routes_the_nearest_mean(family, model_folder, lines):
    model = AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()
    policy = CodebookSettings(codes=5, texts=str(lines), tokens=200).made(model)
    taken = recorded(model, BATCH["input_ids"][:1])
    shares = policy.histogram(taken.inputs)
    for place, (layer, router) in enumerate(routers_of(model).items()):
        x, book = taken.inputs[layer], policy.books[layer]
        nearest = torch.cdist(x, book).argmin(dim=1)
        expected = torch.nn.functional.linear(book[nearest], router.weight, getattr(router, "bias", None))
        found = policy.logits(layer, x, taken.logits[layer], Score.SOFTMAX)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        counted = [float((nearest == code).double().mean()) for code in range(5)]
        np.testing.assert_allclose(shares[5 * place : 5 * place + 5], counted, atol=1e-6)


def test_the_best_pairs_of_the_whole_model_are_favoured(model, table, tmp_path):
    steering = SteeringTable.load(table)
    ranked = sorted(
        ((-float(v), layer, e) for layer, values in steering.scores.items() for e, v in enumerate(values)),
    )
    best = {pair[1:] for pair in ranked[:3]}
    z = torch.randn(4, EXPERTS, generator=torch.Generator().manual_seed(1))
    for mode in ("multiplicative", "additive"):
        policy = SteeringSettings(str(table), 3, 0.7, mode).made()
        for layer in steering.scores:
            made = policy.logits(layer, z, z, Score.SOFTMAX)
            favoured = torch.tensor([(layer, expert) in best for expert in range(EXPERTS)])
            raised = z.softmax(dim=-1) * torch.where(favoured, 1.7 if mode == "multiplicative" else math.exp(0.7), 1.0)
            torch.testing.assert_close(made.softmax(dim=-1), raised / raised.sum(dim=-1, keepdim=True))
    half = SteeringSettings(str(table), 0.5, 1.0).made()
    assert sum(int((bias > 0).sum()) for bias in half.biases.values()) == len(ranked) // 2


@torch.no_grad()
def counts(model, tokenizer, texts, important_of):
    """How often each pair is chosen, by important and by other tokens, by loops."""
    found = {(layer, e): [0, 0] for layer in routers_of(model) for e in range(EXPERTS)}
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        matters = important_of(text)
        with watched(model) as seen:
            model(input_ids=torch.tensor([ids]), use_cache=False)
        for layer, [(_, output)] in seen.items():
            for token, experts in enumerate(output[2].tolist()):
                for expert in experts:
                    found[layer, expert][0 if matters[token] else 1] += 1
    return found


def test_the_score_by_saliency_is_the_authors(model, tokenizer, table):
    @torch.enable_grad()
    def matters(text):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        embedded = model.get_input_embeddings()(ids[None]).detach().requires_grad_()
        model(inputs_embeds=embedded, labels=ids[None], use_cache=False).loss.backward()
        found = (embedded.grad * embedded.detach())[0].norm(dim=1)
        torch.testing.assert_close(saliency(model, ids), found, rtol=1e-3, atol=1e-6)
        return important(ids, found, tokenizer).tolist()

    texts = [LINES[0], LINES[3]]
    found = steering_table(model, tokenizer, texts, progress=False)
    counted = counts(model, tokenizer, texts, matters)
    total = sum(map(sum, counted.values()))
    for (layer, expert), (more, less) in counted.items():
        assert float(found.scores[layer][expert]) == pytest.approx((more - less) * (more + less) / total, abs=1e-5)
    model.zero_grad()


def test_the_score_by_frequency_compares_with_a_background(model, tokenizer):
    domain, other = LINES[:2], ["How do I undo the last commit?", "git reset --soft HEAD~1"]
    found = steering_table(model, tokenizer, domain, "frequency", background=other, progress=False)
    shares = []
    for texts in (domain, other):
        counted = counts(model, tokenizer, texts, lambda text: [True] * len(tokenizer(text)["input_ids"]))
        totals = {layer: sum(counted[layer, e][0] + 1 for e in range(EXPERTS)) for layer in routers_of(model)}
        shares.append({pair: (counted[pair][0] + 1) / totals[pair[0]] for pair in counted})
    for layer, expert in shares[0]:
        p, q = shares[0][layer, expert], shares[1][layer, expert]
        assert float(found.scores[layer][expert]) == pytest.approx(p * math.log(p / q), abs=1e-5)


def test_stop_words_punctuation_and_the_least_salient_are_not_important():
    tokenizer = make_tokenizer()
    ids = torch.tensor(tokenizer("the dog, and the lazy fox")["input_ids"])
    saliencies = torch.linspace(2, 1, len(ids))  # the last token is the least salient
    words = [tokenizer.decode([token]).strip() for token in ids.tolist()]
    found = [word for word, one in zip(words, important(ids, saliencies, tokenizer).tolist(), strict=True) if one]
    assert "the" not in found
    assert "," not in found
    assert "dog" in found
    assert words[-1] not in found


# --- what holds for all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoothed", "codebook:codes=4,tokens=200,texts=", "steer:pairs=0.5,table=", LEAST])
@torch.no_grad()
def test_a_texts_vector_depends_neither_on_its_batch_nor_on_padding(name, olmoe, table, lines):
    body = AutoModel.from_pretrained(olmoe).eval()
    written = name + {"codebook": str(lines), "steer": str(table)}.get(name.partition(":")[0], "")
    before = body(**BATCH, use_cache=False).last_hidden_state
    with reroute(body, policy_named(written, body)):
        together = body(**BATCH, use_cache=False).last_hidden_state
        for text, length in enumerate(BATCH["attention_mask"].sum(dim=1).tolist()):
            alone = body(BATCH["input_ids"][text : text + 1, :length], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(alone, together[text, :length], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, before, atol=1e-3)


@pytest.mark.parametrize("name", ["smoothed", "codebook:codes=4,tokens=200", "steer"])
def test_they_refuse_another_model(name, model, table):
    policy = policy_named(f"{name}:table={table}" if name == "steer" else name, model)
    with pytest.raises(ValueError, match="another model"):
        reroute(make_model("olmoe", seed=5), policy)


def test_a_file_is_known_by_its_content(table, tmp_path, olmoe):
    file = tmp_path / "table.safetensors"
    file.write_bytes(table.read_bytes())
    written = canonical(f"steer:table={file},pairs=0.5")
    assert "#" in written
    assert canonical(written) == written
    assert language_model.load(olmoe, written, progress=False)
    module = SSMoE.from_base(olmoe, method="smoe", calibration="none", routing=written, progress=False)
    assert module.get_config_dict()["routing"] == written
    SteeringTable({0: torch.zeros(EXPERTS)}, {}).save(file)
    with pytest.raises(ValueError, match="another file"):
        canonical(written)
    Path(file).unlink()
    with pytest.raises(FileNotFoundError):
        canonical(written)


def test_codes_are_made_once_for_all_views_of_a_model_and_anew_when_its_weights_change(olmoe):
    named = {"method": "smoe", "calibration": "none", "routing": "codebook:codes=4,tokens=200"}
    module = SSMoE.from_base(olmoe, progress=False, **named)
    view = module.using(method="router")
    made = module.encoder.policy(module.settings.forward)
    assert view.encoder.policy(view.settings.forward) is made
    with torch.no_grad():
        module.model.get_input_embeddings().weight.mul_(2)
    changed = module.using(method="moee")
    assert not torch.equal(changed.encoder.policy(changed.settings.forward).books[0], made.books[0])


@torch.no_grad()
def test_experts_are_dropped_by_the_scores_of_a_routing(olmoe, tokenizer, table):
    text = " ".join(LINES * 10)
    ids = torch.tensor([tokenizer(text)["input_ids"][:512]])
    by = f"steer:table={table},pairs=0.3,strength=2"
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    with reroute(model, policy_named(by, model)), watched(model) as seen:
        model(ids, use_cache=False)
    means = {layer: calls[0][1][0].softmax(dim=-1).mean(dim=0) for layer, calls in seen.items()}
    options = {"tokenizer": tokenizer, "calibration": text, "calibration_tokens": 512, "progress": False}
    dropped = language_model.drop_experts(model, 0.5, by, with_routers=False, **options)
    assert dropped.kept == {i: sorted(mean.topk(EXPERTS // 2).indices.tolist()) for i, mean in means.items()}


def test_steering_without_a_table_says_how_to_make_one():
    with pytest.raises(ValueError, match="ssmoe steer BASE"):
        canonical("steer")


def test_a_codebooks_texts_in_another_encoding_are_named(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text"):
        CodebookSettings(texts=str(file)).made(None, tokenizer=object())
