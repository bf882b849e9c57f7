"""An ablation measures what it says, with intervals, and a second run measures nothing."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from having import having
from transformers import AutoModel, AutoTokenizer

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.evaluation.ablation.measures import Likelihood, Readings, agreement, difference, likelihood
from ssmoe_embed.evaluation.ablation.report import numbers, write_report
from ssmoe_embed.evaluation.ablation.running import AblationOptions, ablate
from ssmoe_embed.evaluation.ablation.variants import find_variants
from ssmoe_embed.evaluation.inspection.activations import collect
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.texts import Corpora, corpora
from ssmoe_embed.families import Score
from ssmoe_embed.language_model.loading import load
from ssmoe_embed.spectral.routers import SpectralRouters

NORM = "competition:response=norm"
SHOWN = f"routing={NORM}"


@pytest.fixture(scope="module")
def module(olmoe):
    return SSMoE.from_base(olmoe, top_c=3, calibration="none", progress=False)


def test_likelihood_is_that_of_each_document_alone(olmoe, texts):
    model, tokenizer = load(olmoe, dtype="float32"), AutoTokenizer.from_pretrained(olmoe)
    documents = texts[8:14]
    found = likelihood(model, tokenizer, documents, batch_size=4)
    for i, document in enumerate(documents):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(document)["input_ids"]]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        assert found.tokens[i] == ids.shape[1] - 1
        assert found.losses[i] / found.tokens[i] == pytest.approx(float(loss), rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(sum(found.losses) / sum(found.tokens)))


def test_the_interval_of_a_difference_is_that_of_documents_and_seeds():
    rng = np.random.default_rng(0)
    tokens = tuple(int(n) for n in rng.integers(5, 50, 80))
    first = Likelihood(tuple(4.0 * n for n in tokens), tokens)
    shifted = Likelihood(tuple(4.5 * n for n in tokens), tokens)
    exact = difference(first, [shifted])
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    noisy = Likelihood(tuple(n * (4 + float(rng.normal())) for n in tokens), tokens)
    found = difference(first, [noisy])
    extra = np.array(noisy.losses) - np.array(first.losses)
    drawn = [rng.integers(80, size=80) for _ in range(4000)]
    means = [extra[one].sum() / np.array(tokens)[one].sum() for one in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.03)
    seeds = difference(first, [shifted, first])
    assert (seeds.low, seeds.value, seeds.high) == pytest.approx((0, 0.25, 0.5))
    with pytest.raises(ValueError, match="different documents"):
        difference(first, [Likelihood((1.0,), (2,))])


def test_agreement_knows_the_router_itself_and_a_router_that_looks_at_nothing(module, texts):
    clean, other = (collect(module, part, inputs=True) for part in (texts[8:20], texts[20:30]))
    readings = Readings(clean, clean, other)
    same = agreement(readings, module.routers, 0.0, Score.SOFTMAX)
    assert (same.with_router, same.corrupted) == (1, 1)
    assert same.same_token > same.any_tokens
    assert same.chance == pytest.approx(clean.layers[0].chosen.shape[1] / clean.layers[0].learned.shape[1])
    blind = SpectralRouters(
        {index: torch.zeros_like(rows) for index, rows in module.routers.weights.items()},
        module.routers.fingerprints,
        module.routers.settings,
    )
    found = agreement(readings, blind, 1.0, Score.SOFTMAX)
    assert (found.same_token, found.any_tokens, found.load_shift) == (1, 1, 0)


def test_a_routing_is_told_from_a_variant_of_the_same_name():
    found = find_variants(["random", "random:seed=0", "random:seed=1"])
    assert [one.name for one in found] == ["original", "ev", "random", "routing=random", "routing=random:seed=1"]
    assert [one.routing for one in found] == [None, None, None, "random", "random:seed=1"]


@pytest.fixture
def kinds(texts):
    return Corpora(("long", tuple(texts[8:26])), ("short", tuple(text for text in texts[:8] if len(text) > 4) * 4))


def test_an_ablation_goes_on_where_it_stopped_and_leaves_the_model_as_it_was(olmoe, texts, kinds, tmp_path):
    model = EvaluatedModel.load(olmoe, calibration="none", top_c=3, progress=False)
    before = model.model.encode(texts[:4])
    options = AblationOptions(alphas=(0.5,), seeds=2, tasks=("WordRelatednessSTS",), calibration_texts=24)
    chosen = find_variants(["random", "weights-only", NORM])
    first = list(numbers(ablate("m", model, chosen, kinds, tmp_path, options=options)))
    assert np.array_equal(model.model.encode(texts[:4]), before)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json") if path.name != "tasks.json"}
    again = ablate("m", model, chosen, kinds, tmp_path, options=options)
    assert list(numbers(again)) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files
    written = write_report(again, tmp_path)
    rows = list(csv.DictReader(written[1].open(encoding="utf-8")))
    tasks = [row for row in rows if row["measure"] == "task"]
    assert {row["variant"] for row in tasks} == {"original", "ev", "random", "weights-only", SHOWN}
    assert [row["seeds"] for row in tasks if row["variant"] == "random"] == ["2", "2"]
    assert next(row for row in tasks if row["variant"] == "random")["ev_low"] != ""
    assert written[2].read_bytes().startswith(b"\x89PNG")
    assert not [row for row in rows if (row["measure"], row["variant"]) == ("choices", SHOWN)]
    tokenizer = AutoTokenizer.from_pretrained(olmoe)
    alone = likelihood(load(olmoe, NORM, dtype="float32"), tokenizer, kinds.first[1]).perplexity
    found = next(row["value"] for row in rows if (row["variant"], row["name"]) == (SHOWN, "long"))
    assert float(found) == pytest.approx(alone, rel=1e-5)
    for name in ("Perplexity of long", "Choices, α = 0.5", "`weights-only`"):
        assert name in written[0].read_text(encoding="utf-8")


def test_a_model_without_head_is_ablated_without_perplexity(olmoe, kinds, tmp_path):
    folder = tmp_path / "headless"
    AutoModel.from_pretrained(olmoe).save_pretrained(folder)
    AutoTokenizer.from_pretrained(olmoe).save_pretrained(folder)
    model = EvaluatedModel.load(folder, calibration="none", top_c=3, progress=False)
    found = ablate("m", model, find_variants(["permuted"]), kinds, tmp_path / "out", options=AblationOptions(seeds=1))
    assert "no language-model head" in found.notes[0]
    assert {cell.measure for cell in numbers(found)} == {"choices"}


def test_results_of_another_dtype_or_mix_are_not_taken_for_these(olmoe, kinds, tmp_path):
    model = EvaluatedModel.load(olmoe, calibration="none", top_c=3, progress=False)
    options = AblationOptions(seeds=1)

    def measured_files(model):
        ablate("m", model, find_variants(["permuted"]), kinds, tmp_path, options=options)
        return len(list(tmp_path.glob("likelihood/*/*.json")))

    first = measured_files(model)
    assert measured_files(model) == first
    assert measured_files(replace(model, loading={"dtype": "bfloat16"})) == 2 * first
    having(model.model[0], mix="logits")
    assert measured_files(model) == 3 * first


def test_the_shipped_kinds_have_no_document_twice():
    kinds = corpora(None, None, 200)
    for _, documents in (kinds.first, kinds.second):
        assert len(set(documents)) == len(documents) >= 100


def test_two_kinds_of_text_have_two_names(texts, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "held_out.txt").write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(ValueError, match="Both kinds of text are called 'held_out'"):
        corpora(tmp_path / "a" / "held_out.txt", tmp_path / "b" / "held_out.txt", 20)
    with pytest.raises(ValueError, match="two text files"):
        corpora(tmp_path / "one.txt", None, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "randon"], "Did you mean 'random'?"),
        (["--variant", "usmoe"], "Set causal=true"),
        (["--tasks", "WordSimilarity"], "'WordSimilarity' is not known"),
        (["--corrupt", "clean"], "changes no text"),
        (["--alpha", "1.5"], "outside [0, 1]"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(ssmoe, options, message):
    ran = ssmoe("ablate", "no/such-model", *options)
    assert ran.status == 1
    assert message in ran.err
