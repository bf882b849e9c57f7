"""The ablation's variants are what they say, its controls change one thing only, and a second run measures nothing."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from ssmoe_embed.cli import main
from ssmoe_embed.diagnostics.ablation import vectors
from ssmoe_embed.diagnostics.ablation.agreement import Readings, agreement
from ssmoe_embed.diagnostics.ablation.controls import Control, controlled
from ssmoe_embed.diagnostics.ablation.likelihood import Likelihood, difference, likelihood
from ssmoe_embed.diagnostics.ablation.report import cells, write_report
from ssmoe_embed.diagnostics.ablation.running import AblationOptions, ablate
from ssmoe_embed.diagnostics.ablation.texts import Corpora, corpora
from ssmoe_embed.diagnostics.ablation.variants import VARIANTS, find_variants, routers_of
from ssmoe_embed.diagnostics.activations import collect
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.evaluation.models import EvaluatedModel
from ssmoe_embed.families import Score, family_of
from ssmoe_embed.language_model.loading import load
from ssmoe_embed.routing import SpectralRouting, reroute
from ssmoe_embed.routing.mixing import mixed_scores, scores
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings

SETTINGS = SpectralSettings(top_c=3)


@pytest.fixture(scope="module")
def module(olmoe):
    return SSMoE.from_base(olmoe, top_c=3, calibration="none", progress=False)


@pytest.fixture(scope="module")
def own(module):
    """The spectral rows of one layer."""
    return next(iter(module.routers.weights.values()))


def test_random_rows_are_orthonormal_up_to_the_spectral_rows_lengths(own):
    first, again, other = (vectors.random_orthonormal(own, seed) for seed in (1, 1, 2))
    unit = F.normalize(first, dim=1)
    assert torch.allclose(unit @ unit.T, torch.eye(len(own)), atol=1e-5)
    assert torch.allclose(first.norm(dim=1), own.norm(dim=1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    many = vectors.random_orthonormal(torch.ones(7, 3), 0)  # more experts than dimensions
    assert torch.allclose(many.norm(dim=1), torch.full((7,), 3**0.5))


def test_permuted_rows_are_the_same_ones_none_in_its_place(own):
    for seed in range(5):
        rows = vectors.permuted(own, seed)
        equal = (rows[:, None] == own[None]).all(dim=2)  # [E,E]
        assert equal.sum() == len(own)
        assert not equal.diagonal().any()


def expert_of(seed):
    """Matrices of an expert, far from square."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 16, generator=generator) for _ in range(3)]


def test_bottom_rows_average_the_eigenvectors_least_similar_to_the_router():
    router = torch.randn(2, 16, generator=torch.Generator().manual_seed(9))
    found = vectors.least_similar(expert_of, router, SETTINGS)
    for expert in range(2):
        means = []
        for matrix in expert_of(expert):
            V = torch.linalg.svd(matrix.double(), full_matrices=False)[2]  # [6,16]
            similarity = V @ router[expert].double()
            kept = similarity.abs().argsort()[:3]
            means.append((V[kept] * similarity[kept].sign()[:, None]).mean(dim=0))
        assert torch.allclose(found[expert].double(), torch.stack(means).mean(dim=0), atol=1e-5)


def test_random_signs_keep_the_vectors_that_their_signs_make_similar():
    router = torch.randn(2, 16, generator=torch.Generator().manual_seed(9))

    def one_matrix(expert):
        return expert_of(expert)[:1]

    found = [vectors.random_signs(one_matrix, router, SETTINGS, seed) for seed in range(20)]
    assert torch.equal(found[0], vectors.random_signs(one_matrix, router, SETTINGS, 0))
    assert len({tuple(rows.flatten().tolist()) for rows in found}) > 10
    for expert in range(2):
        V = torch.linalg.svd(one_matrix(expert)[0].double(), full_matrices=False)[2]  # [6,16]
        similarity = V @ router[expert].double()
        for rows in found:
            share = V @ rows[expert].double()  # how much of each vector the row is made of
            kept = share.abs() > 1e-5
            assert int(kept.sum()) == SETTINGS.top_c
            assert torch.allclose(share[kept].abs(), torch.tensor(1 / 3, dtype=torch.float64), atol=1e-5)
            turned_away = kept & (share * similarity < 0)  # only for want of others
            assert int((kept & ~turned_away).sum()) < SETTINGS.top_c or not turned_away.any()


def test_mean_rows_and_flat_router_are_as_long_as_the_spectral_rows(own):
    rows = vectors.mean_rows(expert_of, torch.full((2, 16), 0.5))
    mean = torch.stack([matrix.mean(dim=0) for matrix in expert_of(1)]).mean(dim=0)
    assert torch.allclose(F.normalize(mean, dim=0) * 2, rows[1], atol=1e-6)
    assert torch.allclose(vectors.as_long_as(torch.rand(own.shape), own).norm(dim=1), own.norm(dim=1))


def test_every_variant_makes_routers_that_fit_the_model(module):
    for variant in VARIANTS:
        routers = routers_of(variant, module, module.routers, 0)
        routers.check(module.model)
        assert all(torch.isfinite(rows).all() for rows in routers.weights.values())
    with pytest.raises(ValueError, match="variant='spectrum' is not known"):
        find_variants(["spectrum"])


@pytest.mark.parametrize(
    "family_name", ["olmoe", "mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "jamba"]
)
def test_controls_take_choice_from_one_routing_and_weights_from_the_other(family_name, model_folder):
    model = load(model_folder(family_name), dtype="float32")
    adapter = family_of(model)
    policy = SpectralRouting(SpectralRouters.from_model(model, 3, scale="router", progress=False), 0.6)
    layer = adapter.layers(model)[0]
    x = torch.randn(1, 50, adapter.router_weight(layer.router).shape[1], generator=torch.Generator().manual_seed(0))
    seen = {}
    spy = layer.experts.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(zip("xiw", (*args, *kwargs.values()), strict=False)), with_kwargs=True
    )
    block = adapter.decoder(model).layers[layer.index]
    block = getattr(block, adapter.block_attribute)

    def routed(control, *, mixed):
        with torch.no_grad(), controlled(model, policy, control):
            if mixed:
                with reroute(model, policy):
                    block(x)
            else:
                block(x)
        order = seen["i"].argsort(dim=1)
        return seen["i"].gather(1, order), seen["w"].float().gather(1, order)

    (own_i, own_w), (mix_i, mix_w) = routed(None, mixed=False), routed(None, mixed=True)
    weights_i, weights_w = routed(Control.WEIGHTS, mixed=True)
    choice_i, choice_w = routed(Control.CHOICE, mixed=True)
    spy.remove()
    assert torch.equal(weights_i, own_i)
    assert torch.equal(choice_i, mix_i)
    assert not torch.equal(own_i, mix_i)
    same = (own_i == mix_i).all(dim=1)
    assert same.any()
    assert torch.allclose(weights_w[same], mix_w[same], atol=1e-5)  # where both choose alike, only weights are left
    assert torch.allclose(choice_w[same], own_w[same], atol=1e-5)
    learned = adapter.router_logits(layer.router, x[0]).float()
    p = mixed_scores(learned, policy.routers.logits(layer.index, x[0]), 0.6, policy.mix, adapter.score).gather(1, own_i)
    q = scores(learned, adapter.score).gather(1, mix_i)
    assert torch.allclose(F.normalize(weights_w, dim=1), F.normalize(p, dim=1), atol=1e-5)
    assert torch.allclose(F.normalize(choice_w, dim=1), F.normalize(q, dim=1), atol=1e-5)


def test_controls_are_refused_where_a_family_does_not_tell_its_choice(model_folder):
    model = load(model_folder("llama4"))
    policy = SpectralRouting(SpectralRouters.from_model(model, 3, progress=False), 0.5)
    refused = pytest.raises(ValueError, match="leave the variants weights-only and choice-only out")
    with refused, controlled(model, policy, Control.WEIGHTS):
        model(input_ids=torch.arange(3, 9)[None])


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


@pytest.fixture
def kinds(texts):
    return Corpora(("long", tuple(texts[8:26])), ("short", tuple(text for text in texts[:8] if len(text) > 4) * 4))


def test_an_ablation_goes_on_where_it_stopped_and_leaves_the_model_as_it_was(olmoe, texts, kinds, tmp_path):
    model = EvaluatedModel.load(olmoe, calibration="none", top_c=3, progress=False)
    before = model.model.encode(texts[:4])
    options = AblationOptions(alphas=(0.5,), seeds=2, tasks=("WordRelatednessSTS",), calibration_texts=24)
    chosen = find_variants(["random", "weights-only"])
    first = list(cells(ablate("m", model, chosen, kinds, tmp_path, options=options)))
    assert np.array_equal(model.model.encode(texts[:4]), before)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json") if path.name != "tasks.json"}
    again = ablate("m", model, chosen, kinds, tmp_path, options=options)
    assert list(cells(again)) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files
    written = write_report(again, tmp_path)
    rows = list(csv.DictReader(written[1].open()))
    tasks = [row for row in rows if row["measure"] == "task"]
    assert {row["variant"] for row in tasks} == {"original", "ev", "random", "weights-only"}
    assert [row["seeds"] for row in tasks if row["variant"] == "random"] == ["2", "2"]
    assert next(row for row in tasks if row["variant"] == "random")["ev_low"] != ""
    assert written[2].read_bytes().startswith(b"\x89PNG")
    for name in ("Perplexity of long", "Choices, α = 0.5", "`weights-only`"):
        assert name in written[0].read_text()


def test_a_model_without_head_is_ablated_without_perplexity(olmoe, kinds, tmp_path):
    folder = tmp_path / "headless"
    AutoModel.from_pretrained(olmoe).save_pretrained(folder)
    AutoTokenizer.from_pretrained(olmoe).save_pretrained(folder)
    model = EvaluatedModel.load(folder, calibration="none", top_c=3, progress=False)
    found = ablate("m", model, find_variants(["permuted"]), kinds, tmp_path / "out", options=AblationOptions(seeds=1))
    assert "no language-model head" in found.notes[0]
    assert {cell.measure for cell in cells(found)} == {"choices"}


def test_results_of_another_dtype_or_mix_are_not_taken_for_these(olmoe, kinds, tmp_path):
    model = EvaluatedModel.load(olmoe, calibration="none", top_c=3, progress=False)
    options = AblationOptions(seeds=1)

    def measured_files(model):
        ablate("m", model, find_variants(["permuted"]), kinds, tmp_path, options=options)
        return len(list(tmp_path.glob("likelihood/*/*.json")))

    first = measured_files(model)
    assert measured_files(model) == first
    assert measured_files(replace(model, loading={"dtype": "bfloat16"})) == 2 * first
    model.model[0].configure(mix="logits")
    assert measured_files(model) == 3 * first


def test_the_shipped_kinds_have_no_document_twice():
    kinds = corpora(None, None, 200)
    for _, documents in (kinds.first, kinds.second):
        assert len(set(documents)) == len(documents) >= 100


def test_two_kinds_of_text_have_two_names(texts, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "held_out.txt").write_text("\n".join(texts))
    with pytest.raises(ValueError, match="Both kinds of text are called 'held_out'"):
        corpora(tmp_path / "a" / "held_out.txt", tmp_path / "b" / "held_out.txt", 20)
    with pytest.raises(ValueError, match="two text files"):
        corpora(tmp_path / "one.txt", None, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "randon"], "Did you mean 'random'?"),
        (["--tasks", "WordSimilarity"], "'WordSimilarity' is not known"),
        (["--corrupt", "clean"], "changes no text"),
        (["--alpha", "1.5"], "outside [0, 1]"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(options, message, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sys.argv", ["ssmoe", "ablate", "no/such-model", *options])
        main()
    assert message in " ".join(capsys.readouterr().err.split())
