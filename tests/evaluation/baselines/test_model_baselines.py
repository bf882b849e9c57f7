"""Training-free baselines of a model, each against its own equations, computed text by text without padding."""

import math

import numpy as np
import pytest
import torch
from mteb.mocks import MockSTSTask
from reference import watched
from tiny import TOP_C, make_tokenizer, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import ssmoe_embed
from ssmoe_embed.embedding.prompts import ENSEMBLES, TEMPLATES
from ssmoe_embed.evaluation.baselines import hidden_states
from ssmoe_embed.evaluation.baselines.of_model import MODEL_BASELINES, ModelBaselineEncoder
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions, evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.routing import derived

PROMPTEOL = Run(prompt="prompteol")


@pytest.fixture(scope="module")
def plain(olmoe):
    """The language model and its tokenizer, as transformers loads them; attention that shows its weights."""
    return AutoModelForCausalLM.from_pretrained(olmoe, attn_implementation="eager"), AutoTokenizer.from_pretrained(
        olmoe
    )


@pytest.fixture
def short(texts):
    """Those that are read whole, twice too."""
    return [text for text in texts if len(text) < 400]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch, short):
    for module in (hidden_states, derived):
        monkeypatch.setattr(module, "calibration_texts", lambda: short)


def vectors(model, name, short, run=None, **options):
    return ModelBaselineEncoder(model, name, run).vectors(short, **options).double().numpy()


def states(plain, row, **wanted):
    model, _ = plain
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([row]), **wanted)


def wrapped(plain, text, template=TEMPLATES["prompteol"]):
    return plain[1](template.wrap(template.clean(text)))["input_ids"]


def test_mean_pooling_is_the_mean_over_all_tokens(evaluated_olmoe, plain, short):
    expected = [states(plain, plain[1](text)["input_ids"]).last_hidden_state[0].double().mean(dim=0) for text in short]
    np.testing.assert_allclose(vectors(evaluated_olmoe, "mean", short), torch.stack(expected), atol=1e-5)


def test_echo_pools_the_second_copy_only(evaluated_olmoe, plain, short):
    expected = []
    for text in short:
        whole = TEMPLATES["echo"].wrap(text)
        row = plain[1](whole, return_offsets_mapping=True)
        start = whole.rindex("sentence: ") + len("sentence: ")
        second = [end > start for _, end in row["offset_mapping"]]
        expected.append(states(plain, row["input_ids"]).last_hidden_state[0, second].double().mean(dim=0))
    np.testing.assert_allclose(vectors(evaluated_olmoe, "echo", short), torch.stack(expected), atol=1e-5)


def test_both_copies_of_a_long_text_are_cut_alike_and_an_empty_text_has_a_vector(evaluated_olmoe):
    run = Run(overrides={"max_seq_length": 60})
    echo = ModelBaselineEncoder(evaluated_olmoe, "echo", run).baseline
    tokens = echo.tokens(["How do I undo the last commit? " * 20, "", "a"])
    assert tokens["input_ids"].shape[1] <= 60
    row = tokens["input_ids"][0][tokens["attention_mask"][0].bool()]
    tokenizer = evaluated_olmoe.model[0].tokenizer
    first, _, second = (
        tokenizer.decode(row).removeprefix("Rewrite the sentence: ").partition("\nThe rewritten sentence: ")
    )
    assert first == second
    assert tokenizer.decode(row[tokens["pooled"][0][: len(row)].bool()]).strip() == second
    assert len(second) > 40
    assert np.isfinite(echo.features([""]).numpy()).all()


def test_metaeol_is_the_mean_over_its_templates(evaluated_olmoe, plain, short):
    expected = []
    for text in short[:12]:
        rows = [wrapped(plain, text, template) for template in ENSEMBLES["metaeol"]]
        expected.append(torch.stack([states(plain, row).last_hidden_state[0, -1] for row in rows]).double().mean(dim=0))
    np.testing.assert_allclose(vectors(evaluated_olmoe, "metaeol", short[:12]), torch.stack(expected), atol=1e-5)


def test_token_prepending_gives_the_end_of_each_layer_to_the_place_before_the_text(evaluated_olmoe, plain, short):
    model, tokenizer = plain
    head = tokenizer('This sentence : "')["input_ids"]
    expected = []
    for text in short:
        row = wrapped(plain, text)
        place = next((i for i, (a, b) in enumerate(zip(head, row, strict=False)) if a != b), len(head))
        row = [*row[:place], tokenizer.eos_token_id, *row[place:]]
        with torch.inference_mode():  # the decoder by hand, layer by layer
            decoder, ids = model.model, torch.tensor([row])
            hidden, where = decoder.embed_tokens(ids), torch.arange(len(row))[None]
            mask = torch.full((1, 1, len(row), len(row)), -torch.inf).triu(1)
            for index, layer in enumerate(decoder.layers):
                if index == 1:  # a quarter of two layers is at least one
                    hidden = hidden.clone()
                    hidden[0, place] = hidden[0, -1]
                turned = decoder.rotary_emb(hidden, where)
                hidden = layer(hidden, attention_mask=mask, position_ids=where, position_embeddings=turned)
            expected.append(decoder.norm(hidden)[0, -1].double())
    found = vectors(evaluated_olmoe, "token-prepending", short, PROMPTEOL)
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)
    assert not np.allclose(found, vectors(evaluated_olmoe, "token-prepending", short), atol=1e-3)


def test_embed_filter_keeps_the_middle_half_of_the_unembeddings_spectrum(evaluated_olmoe, plain, short):
    head = plain[0].lm_head.weight.detach().double().numpy()
    assert not np.array_equal(head, plain[0].model.embed_tokens.weight.detach())
    _, values, right = np.linalg.svd(head)
    H = len(right)
    kept = right[H // 4 : H // 4 + H // 2]
    assert values[H // 4 - 1] - values[H // 4] > 1e-5  # or the half would not be one
    hidden = np.stack([states(plain, wrapped(plain, text)).last_hidden_state[0, -1].double() for text in short])
    found = vectors(evaluated_olmoe, "embed-filter", short, PROMPTEOL)
    assert found.shape == (len(short), H // 2)
    expected = hidden @ kept.T  # signs of singular vectors are free
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_embed_filter_of_tied_weights_and_of_a_checkpoint_without_any(tmp_path, short, olmoe):
    tied = save_model(tmp_path / "tied", "olmoe", tie_word_embeddings=True)
    module = ssmoe_embed.SSMoE.from_base(tied, top_c=TOP_C, method="smoe", calibration="none", progress=False)
    model = EvaluatedModel.of(ssmoe_embed.EmbeddingModel(modules=[module], device="cpu"), "test/tied")
    assert vectors(model, "embed-filter", short[:2]).shape == (2, module.encoder.hidden_size // 2)
    module.model.config.tie_word_embeddings = False
    with pytest.raises(ValueError, match=r"has no lm_head\.weight"):
        vectors(model, "embed-filter", short[:2])


def test_aligned_wva_is_the_values_under_the_last_tokens_attention_through_the_output_projection(
    evaluated_olmoe, plain, short
):
    layers, config = plain[0].model.layers, plain[0].config
    groups, size = config.num_attention_heads // config.num_key_value_heads, layers[0].self_attn.head_dim
    expected = []
    for text in short:
        seen = states(plain, wrapped(plain, text), output_attentions=True, output_hidden_states=True)
        added = []
        for index in range(len(layers) // 2, len(layers)):
            attention = layers[index].self_attn
            x = layers[index].input_layernorm(seen.hidden_states[index][0])  # [T,H]
            values = attention.v_proj(x).unflatten(-1, (-1, size)).repeat_interleave(groups, dim=1)  # [T,heads,size]
            weighed = torch.einsum("ht,thd->hd", seen.attentions[index][0, :, -1], values)
            added.append((weighed.flatten() @ attention.o_proj.weight.T).detach().double())
        expected.append(torch.stack(added).mean(dim=0))
    found = vectors(evaluated_olmoe, "aligned-wva", short, PROMPTEOL)
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


def test_idf_router_weighs_scores_by_how_rarely_experts_are_chosen(evaluated_olmoe, plain, short):
    def scores(text):
        logits = plain[0](input_ids=torch.tensor([wrapped(plain, text)]), output_router_logits=True).router_logits
        return torch.stack([one[-1].detach().double().softmax(dim=-1) for one in logits])  # [L,E]

    every = torch.stack([scores(text) for text in short])
    idf = -every.mean(dim=0).log()
    found = vectors(evaluated_olmoe, "idf-router", short, PROMPTEOL)
    np.testing.assert_allclose(found, (every * idf).flatten(1), atol=1e-5)
    assert math.isclose(float(idf.neg().exp().sum()), len(idf), rel_tol=1e-6)


def test_codes_are_counted_over_all_tokens(evaluated_olmoe, plain, short):
    module = evaluated_olmoe.model[0]
    books = derived.CodebookSettings().made(module.model, module.tokenizer).books
    expected = []
    for text in short[:8]:
        with watched(plain[0]) as seen:
            states(plain, wrapped(plain, text))
        nearest = [
            torch.cdist(calls[0][0].reshape(-1, books[layer].shape[1]), books[layer]).argmin(dim=1)
            for layer, calls in seen.items()
        ]
        counted = [
            one.bincount(minlength=len(book)) / len(one) for one, book in zip(nearest, books.values(), strict=True)
        ]
        expected.append(torch.cat(counted))
    found = vectors(evaluated_olmoe, "codes", short[:8], PROMPTEOL)
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("name", MODEL_BASELINES)
def test_a_vector_depends_on_its_text_alone_whatever_side_is_padded(name, evaluated_olmoe, short, monkeypatch):
    some, encoder = [*short[:6], *short[-3:]], ModelBaselineEncoder(evaluated_olmoe, name)
    alone = np.concatenate([encoder.vectors([text]) for text in some])
    np.testing.assert_allclose(encoder.vectors(some, batch_size=9), alone, atol=2e-5)
    monkeypatch.setattr(evaluated_olmoe.model[0].tokenizer, "padding_side", "left")
    np.testing.assert_allclose(encoder.vectors(some[::-1], batch_size=4).flip(0), alone, atol=2e-5)
    assert len(np.unique(alone.round(5), axis=0)) == len(some)


@pytest.mark.parametrize("name", ["echo", "token-prepending"])
def test_the_tokenizers_first_token_stays_first(name, tmp_path, short):
    folder = save_model(tmp_path / "model", "qwen2_moe", tokenizer=make_tokenizer(bos=True, eos=True))
    module = ssmoe_embed.SSMoE.from_base(folder, top_c=TOP_C, method="smoe", calibration="none", progress=False)
    model = EvaluatedModel.of(ssmoe_embed.EmbeddingModel(modules=[module], device="cpu"), "test/bos")
    tokens = ModelBaselineEncoder(model, name).baseline.tokens(short[:3])
    assert (tokens["input_ids"][:, 0] == module.tokenizer.bos_token_id).all()
    assert (tokens["input_ids"] == module.tokenizer.bos_token_id).sum() == 3


def test_evaluate_measures_them_of_each_model_and_keeps_them_beside_its_methods(evaluated_olmoe, tmp_path):
    names = ["mean", "echo", "idf-router", "chance"]
    runs = [Run("smoe"), Run("ev")]
    options = EvaluationOptions(progress=False)
    report = evaluate([evaluated_olmoe], [MockSTSTask()], runs, tmp_path, baselines=names, options=options)
    assert report.failures == []
    found = {(score.model, score.method, score.settings_text): score.score for score in report.scores()}
    assert {method for model, method, _ in found if model == "test/olmoe"} == {
        "smoe",
        "ev",
        "mean",
        "echo",
        "idf-router",
    }
    again = evaluate([evaluated_olmoe], [MockSTSTask()], runs, tmp_path, baselines=names, options=options)
    assert (again.done, again.kept) == (0, 6)
    more = [Run("smoe", None, None, {"calibration": "standardize"})]
    other = evaluate([evaluated_olmoe], [MockSTSTask()], more, tmp_path, baselines=["mean"], options=options)
    assert other.failures == []
    assert ("test/olmoe", "mean", "calibration=standardize") in {
        (score.model, score.method, score.settings_text) for score in other.scores()
    }


def test_a_fitted_calibration_is_that_of_the_sample(evaluated_olmoe, short):
    raw = vectors(evaluated_olmoe, "mean", short)
    scaled = vectors(evaluated_olmoe, "mean", short, Run(overrides={"calibration": "standardize"}))
    np.testing.assert_allclose(scaled, (raw - raw.mean(axis=0)) / raw.std(axis=0), atol=1e-3)


def test_what_is_refused(evaluated_olmoe, tmp_path):
    with pytest.raises(ValueError, match="name a MODEL"):
        evaluate([], [MockSTSTask()], output=tmp_path, baselines=["echo"])
    with pytest.raises(ValueError, match="Did you mean 'echo'"):
        ModelBaselineEncoder(evaluated_olmoe, "ecoh")
    with pytest.raises(ValueError, match="takes none, standardize or whiten"):
        ModelBaselineEncoder(evaluated_olmoe, "mean", Run(overrides={"calibration": "batch"}))
