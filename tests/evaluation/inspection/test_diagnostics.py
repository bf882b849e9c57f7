"""The diagnostics are what numpy, scipy and scikit-learn compute from the same numbers, and the page holds them all."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from having import having
from scipy.linalg import subspace_angles
from sklearn.cluster import KMeans
from sklearn.metrics import davies_bouldin_score, silhouette_score
from transformers import AutoModelForCausalLM

import ssmoe_embed
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.evaluation.inspection.activations import collect
from ssmoe_embed.evaluation.inspection.alignment import gate_alignment, gradient_alignments, gradients_of
from ssmoe_embed.evaluation.inspection.inspection import InspectionOptions, clusters, inspect_model, standardised
from ssmoe_embed.evaluation.inspection.measures import (
    collapse,
    covariance_bound,
    dominant_bases,
    dominant_directions,
    load,
    subspace_overlap,
    top_tokens,
)
from ssmoe_embed.evaluation.inspection.report import collapse_figure, write_report
from ssmoe_embed.evaluation.inspection.similarity import ExpertSimilarity, PairSimilarity
from ssmoe_embed.evaluation.texts import TextSample, file_sample, shipped_sample, spread
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model import load_tokenizer

OFF = ~np.eye(6, dtype=bool)
PREDICTED = (
    "The quick brown fox jumps over the lazy dog, and the dog does not care.",
    "How do I undo the last commit?",
)


def logits(seed, rows=200, experts=6):
    """Logits with something in common, so that they are correlated."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(rows, experts)) + rng.normal(size=(rows, 1))).float()


def test_collapse_is_numpys_cosine_and_correlation():
    rows, seen = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)) + 0.5, logits(0)
    found, W = collapse(rows, seen), rows.double().numpy()
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    assert found.cosine == pytest.approx(np.abs((unit @ unit.T)[OFF]).mean())
    assert found.rms_cosine == pytest.approx(np.sqrt(((unit @ unit.T)[OFF] ** 2).mean()))
    assert found.correlation == pytest.approx(np.abs(np.corrcoef(seen.numpy().T)[OFF]).mean(), rel=1e-5)
    assert found.random_cosine == pytest.approx(1 / np.sqrt(10))
    shifted = collapse(rows + 3 * torch.ones(10), seen)  # a softmax sees no common row
    assert shifted.cosine > 0.9
    assert shifted.centred_cosine == pytest.approx(found.centred_cosine, rel=1e-5)


def test_random_directions_lie_on_the_line_of_lemma_b1():
    rows = torch.randn(64, 400, generator=torch.Generator().manual_seed(0))
    found = collapse(rows, logits(0, experts=64))
    assert found.rms_cosine == pytest.approx(1 / np.sqrt(400), rel=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_both_sides_of_lemma_3_1_are_numpys_covariances(alpha):
    r, e = logits(1), logits(2)
    found = covariance_bound(r, e, alpha)
    cov_r = np.cov(r.double().numpy().T, bias=True)[OFF]
    left = np.cov(((1 - alpha) * r.double() + alpha * e.double()).numpy().T, bias=True)[OFF]
    right = (1 - alpha) ** 2 * cov_r
    assert found.mixed == pytest.approx(np.abs(left).mean(), rel=1e-6)
    assert found.bound == pytest.approx(np.abs(right).mean(), rel=1e-6)
    assert found.holds == pytest.approx((np.abs(left) <= np.abs(right) * (1 + 1e-6) + 1e-300).mean())
    joint = np.corrcoef(r.double().numpy().T, e.double().numpy().T)
    assert found.own_correlation == pytest.approx(np.diag(joint[6:, :6]).mean())
    assert found.cross_correlation == pytest.approx(np.abs(joint[6:, :6][OFF]).mean())


def test_the_bound_holds_where_the_lemmas_assumptions_do():
    centred = logits(3).double() - logits(3).double().mean(dim=0)
    Q, _ = torch.linalg.qr(torch.cat([centred, torch.randn(200, 6, dtype=torch.float64)], dim=1))
    e = Q[:, 6:] - Q[:, 6:].mean(dim=0)  # nearly uncorrelated; made exactly so:
    e = torch.linalg.qr(torch.cat([torch.ones(200, 1, dtype=torch.float64), centred, e], dim=1)).Q[:, 7:]
    found = covariance_bound(centred, e, 0.6)
    assert found.holds == 1
    assert found.mixed == pytest.approx(found.bound, rel=1e-3)
    assert found.from_cross < 1e-8


def test_load_tells_shares_entropy_and_dead_experts():
    found = load(torch.tensor([[0, 1], [0, 1], [0, 3], [1, 0]]), 5)
    shares = np.array([4, 3, 0, 1, 0]) / 8
    assert np.allclose(found.shares, shares * 5)
    assert found.dead == (2, 4)
    kept = shares[shares > 0]
    assert found.entropy == pytest.approx(-(kept * np.log(kept)).sum() / np.log(5))
    assert load(torch.arange(10)[:, None], 10).entropy == pytest.approx(1)


def test_top_tokens_are_those_that_meet_an_expert_more_often_than_by_chance():
    tokens = torch.tensor([7, 7, 7, 9, 9, 9, 11])
    chosen = torch.tensor([[0], [0], [0], [1], [1], [1], [2]])
    assert top_tokens(tokens, chosen, 4) == [[7], [9], [11], []]
    assert top_tokens(torch.tensor([5, 5]), torch.tensor([[0, 1], [0, 1]]), 2) == [[], []]  # all alike


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(3, 20, generator=generator)
    experts = [
        [torch.randn(8, 20, generator=generator), torch.randn(30, 3, generator=generator) @ shared] for _ in range(4)
    ]
    loose, tight = map(subspace_overlap, dominant_bases(lambda expert: experts[expert], range(4), 3))
    for place, found in enumerate((loose, tight)):
        bases = [np.linalg.svd(each[place].double().numpy())[2][:3].T for each in experts]
        for i in range(4):
            for j in range(4):
                angles = subspace_angles(bases[i], bases[j])
                assert found.pairs[i][j] == pytest.approx((np.cos(angles) ** 2).mean(), abs=1e-4)
    assert tight.mean == pytest.approx(1, abs=1e-4)  # the same three directions in all experts
    assert loose.mean < 0.5
    assert loose.chance == pytest.approx(3 / 20)


def test_gates_align_with_an_expert_as_far_as_their_rows_lie_in_its_subspace():
    generator = torch.Generator().manual_seed(3)
    bases = torch.linalg.qr(torch.randn(5, 20, 3, generator=generator)).Q.mT  # [E,k,H]
    rows = torch.randn(5, 20, generator=generator) + 8 * bases[:, 0]
    found = gate_alignment(rows, bases)
    for i in range(5):
        for j in range(5):
            [angle] = subspace_angles(rows[i, :, None].double().numpy(), bases[j].T.double().numpy())
            assert found.pairs[i][j] == pytest.approx(np.cos(angle) ** 2, abs=1e-5)
    pairs = np.array(found.pairs)
    others = (pairs.sum(axis=1) - pairs.diagonal()) / 4
    assert found.own == pytest.approx(pairs.diagonal().mean())
    assert found.others == pytest.approx(others.mean())
    assert found.specificity == pytest.approx((pairs.diagonal() / others).mean())
    assert found.specificity > 2  # rows were drawn towards their own expert
    assert found.chance == pytest.approx(3 / 20)
    assert gate_alignment(bases[:, 1], bases).own == pytest.approx(1)
    assert gate_alignment(rows[:1], bases[:1]).others == pytest.approx(3 / 20)  # one expert: chance alone


def test_gradients_are_compared_as_autograd_gives_them_and_the_model_stays_as_it_was(olmoe, texts):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(olmoe), load_tokenizer(olmoe)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = gradient_alignments(model, tokenizer, ["a", *PREDICTED], 2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in PREDICTED]
    losses = [model(input_ids=one, labels=one).loss * (one.shape[1] - 1) for one in ids]
    loss = sum(losses) / sum(one.shape[1] - 1 for one in ids)
    experts = model.model.layers[1].mlp.experts
    fused, down = torch.autograd.grad(loss, [experts.gate_up_proj, experts.down_proj])
    kinds = [*fused.chunk(2, dim=1), down.mT]  # [E,I,H] each
    ranks = [np.linalg.matrix_rank(kind.double().numpy(), rtol=1e-5) for kind in kinds]
    reached = [expert for expert in range(len(down)) if min(rank[expert] for rank in ranks) >= 2]
    assert len(reached) > 2
    for one, gradient in zip(found[1], kinds, strict=True):
        assert one.experts == tuple(reached)
        bases = [np.linalg.svd(gradient[expert].double().numpy())[2][:2].T for expert in reached]
        flat = gradient[reached].flatten(1).double().numpy()
        for i in range(len(reached)):
            for j in range(len(reached)):
                angles = subspace_angles(bases[i], bases[j])
                assert one.overlap.pairs[i][j] == pytest.approx((np.cos(angles) ** 2).mean(), abs=1e-3)
        unit = flat / np.linalg.norm(flat, axis=1)[:, None]
        apart = np.abs(unit @ unit.T)[~np.eye(len(reached), dtype=bool)]
        assert one.cosine == pytest.approx(apart.mean(), abs=1e-4)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        gradient_alignments(model, tokenizer, [""])


def test_experts_that_too_few_tokens_reached_are_left_out_of_the_gradients(olmoe):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(olmoe), load_tokenizer(olmoe)
    [layer, *_] = gradient_alignments(model, tokenizer, ["one fox"], 1).values()
    assert 1 < len(layer[0].experts) < 8
    assert len(layer[0].overlap.pairs) == len(layer[0].experts)
    assert not any(gradient_alignments(model, tokenizer, ["on"], 8).values())


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)])
def test_dominant_directions_are_the_first_right_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found, expected = dominant_directions(matrix, 3), torch.linalg.svd(matrix.double())[2][:3]
    assert torch.allclose((found * expected).sum(dim=1).abs(), torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_clusters_are_scikit_learns_on_standardised_features():
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 100, 0.01, 1, 0])
    vectors[:20, 0] += 9
    known = ["a"] * 20 + ["b"] * 20
    found = clusters(vectors, 2, known=known)
    x = standardised(vectors)
    assert np.allclose(x.std(axis=0), [1, 1, 1, 1, 0])
    labels = KMeans(2, n_init=4, random_state=0).fit_predict(x)
    assert found.silhouette == pytest.approx(silhouette_score(x, labels))
    assert found.davies_bouldin == pytest.approx(davies_bouldin_score(x, labels))
    assert found.by_label == pytest.approx(silhouette_score(x, known))
    assert len(found.places) == 40
    with pytest.raises(ValueError, match="do not fall into 40 clusters"):
        clusters(vectors, 40)


@pytest.fixture(scope="module")
def module_of(model_folder):
    """Given a family, an uncalibrated module of it."""
    made = {}

    def module(family):
        if family not in made:
            made[family] = SSMoE.from_base(model_folder(family), top_c=3, calibration="none", progress=False)
            having(made[family], method="smoe")  # by the model's own routing
        return made[family]

    return module


def keep(seen, layer, _, args, output):
    """A forward hook that keeps what went in and came out."""
    seen[layer] = (args[0], output)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss", "llama4", "phimoe"])
def test_activations_are_those_of_each_text_alone(family, module_of, texts):
    module, few = module_of(family), texts[:6]
    whole = collect(module, few, batch_size=4)
    assert len(whole.last) == 6
    adapter = family_of(module.model)
    start = 0
    for place, text in enumerate(few):
        ids = module.preprocess([text])["input_ids"]
        seen = {}
        handles = [
            layer.router.register_forward_hook(partial(keep, seen, layer.index))
            for layer in adapter.layers(module.model)
        ]
        with torch.no_grad():
            module.model(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        rows = slice(start, start + ids.shape[1])
        assert torch.equal(whole.tokens[rows], ids[0])
        assert whole.last[place] == rows.stop - 1
        for layer, live in zip(whole.layers, adapter.layers(module.model), strict=True):
            x, out = seen[live.index]
            x = x.reshape(-1, x.shape[-1]).float()
            assert torch.allclose(
                layer.learned[rows],
                torch.nn.functional.linear(x, adapter.router_weight(live.router), getattr(live.router, "bias", None)),
                atol=1e-4,
            )
            assert torch.allclose(layer.spectral[rows], x @ module.routers.weights[live.index].T, atol=1e-4)
            index = out[2] if len(out) > 2 else out[0].topk(layer.chosen.shape[1]).indices
            same = layer.chosen[rows].sort(dim=1).values == index.reshape(ids.shape[1], -1).sort(dim=1).values
            assert same.float().mean() > 0.95  # ties may fall otherwise in another batch
        start = rows.stop
    assert start == len(whole.tokens)


KINDS = (
    "olmoe",
    "jamba",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("mixtral", "hunyuan_v1_moe", "llama4")),
)


@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_family_can_be_inspected(family, model_folder, texts):
    model = ssmoe_embed.load(model_folder(family), calibration="none", top_c=3, progress=False)
    before, settings = model.encode(texts[:3]), model[0].settings
    gradients = gradients_of(str(model_folder(family)), PREDICTED, 2, dtype="float32")
    sample, options = TextSample(tuple(texts[:20]), None, "texts"), InspectionOptions(clusters=2, directions=2)
    found = inspect_model("m", model, sample, options, gradients=gradients)
    assert len(found.layers) == len(family_of(model[0].model).layers(model[0].model))
    assert set(found.clusters) == {"router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden"}
    assert "\N{REPLACEMENT CHARACTER}" not in json.dumps([layer.tokens for layer in found.layers], ensure_ascii=False)
    for layer in found.layers:
        assert set(layer.loads) == {"original", "ssmoe", "ev"}
        assert layer.gates.keys() == layer.overlaps.keys() == layer.gradients.keys()
        assert len(layer.tokens) == layer.experts
        assert 0 <= layer.covariance.holds <= 1
        if family == "llama4":  # its experts are not told tokens, experts and weights
            assert layer.answers is None
        else:
            assert layer.answers.pairs > 0
    assert model[0].settings == settings
    assert np.array_equal(model.encode(texts[:3]), before)


def test_the_page_is_one_file_with_all_numbers_beside_it(olmoe, texts, tmp_path):
    model = ssmoe_embed.load(olmoe, calibration="none", top_c=3, progress=False)
    sample = TextSample(tuple(texts[:20]), tuple("ab"[i % 2] for i in range(20)), "texts <of mine>")
    found = inspect_model("a<b>", model, sample, InspectionOptions(clusters=2, directions=2))
    alike = ExpertSimilarity(0.1, 0.75, 3, (PairSimilarity(4, 7, 0.75, 99),))
    found = replace(found, layers=(replace(found.layers[0], answers=alike), replace(found.layers[1], answers=None)))
    page, numbers = write_report([found, found], tmp_path / "page.html")
    html = page.read_text(encoding="utf-8")
    assert "a&lt;b&gt;" in html
    assert "<b>" not in html
    assert "4–7 (0.750)" in html
    assert html.count("cannot be asked one by one") == 2
    assert re.findall(r'src="(?!data:image/svg\+xml;base64,)', html) == []
    assert html.count("data:image/svg+xml;base64,") == 6
    style, dark = re.search(
        r"<style>(.*?)@media \(prefers-color-scheme: dark\) \{(.*?)\n  \}", html, re.DOTALL
    ).groups()
    assert re.findall(r"--\w+", style) == re.findall(r"--\w+", dark)
    rules = html.split("</style>")[0].split(dark)[1]
    assert not re.search(r"#[0-9a-f]{3}", rules)  # every colour of the page has one for the dark
    assert json.loads(numbers.read_text(encoding="utf-8"))["models"][1] == json.loads(json.dumps(found.as_dict()))
    assert collapse_figure([found]) == collapse_figure([found])


@pytest.mark.slow
def test_the_command_writes_page_and_numbers(ssmoe, olmoe, tmp_path, texts):
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(texts), encoding="utf-8")
    options = ["--text", lines, "--clusters", "3", "--device", "cpu", "-q"]
    ran = ssmoe(
        "inspect",
        olmoe,
        olmoe,
        "--gradients",
        " ".join(PREDICTED),
        "--directions",
        2,
        "--output",
        tmp_path / "r.html",
        *options,
    )
    assert ran.status == 0, ran.err
    before, after = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["models"]
    assert before["texts"] == 40
    assert before["layers"] == after["layers"]
    assert before["layers"][0]["gradients"]["down"]["experts"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "report.pdf"], "end in .html"),
        (["--map", "pca"], "choose one of 'tsne', 'umap'"),
        (["--text", "nowhere.txt"], "no file nowhere.txt"),
        (["--gradients", "nowhere.txt"], "no file nowhere.txt"),
        (["--gradients", " "], "holds no text"),
        (["--alpha", "2"], "outside"),
        (["--clusters", "400"], "400 texts do not fall into 400 clusters"),
        (["--device", "gpu"], "device='gpu' names no device"),
        (["--dtype", "float7"], "dtype='float7' is not known"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(ssmoe, options, message):
    ran = ssmoe("inspect", "no/such-model", *options)
    assert ran.status == 1
    assert message in ran.err


@pytest.mark.parametrize(("there", "wanted"), [(10, 3), (10, 10), (10, 400), (7, 5), (120, 200), (0, 5)])
def test_a_sample_has_no_item_twice_and_spans_all_of_them(there, wanted):
    found = spread(range(there), wanted)
    assert len(set(found)) == len(found) == min(there, wanted)
    gaps = np.diff([*found, there])
    assert all(gaps >= there // max(len(found), 1))
    assert all(gaps <= -(-there // max(len(found), 1)))


def test_samples_are_spread_over_what_there_is(tmp_path, texts):
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(texts), encoding="utf-8")
    assert file_sample(lines, 400).texts == tuple(texts)
    sample = shipped_sample(50)
    assert len(sample.texts) == len(sample.labels) == 50
    assert len(set(sample.labels)) > 3
    short = tmp_path / "short.txt"
    short.write_text("one\n\ntwo\n", encoding="utf-8")
    with pytest.raises(ValueError, match="say too little"):
        file_sample(short, 100)
    short.write_text("the same line\n" * 40, encoding="utf-8")
    with pytest.raises(ValueError, match="1 different text"):
        file_sample(short, 100)
    short.write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(ValueError, match="not UTF-8"):
        file_sample(short, 100)


@pytest.mark.parametrize(("package", "hint"), [("matplotlib", r"ssmoe-embed\[plots\]"), ("umap", "umap-learn")])
def test_a_missing_package_is_named_before_any_model_is_read(package, hint, monkeypatch, tmp_path):
    from ssmoe_embed.cli import info as command
    from ssmoe_embed.common import lazy as dependencies

    found = dependencies.find_spec
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(ImportError, match=f"{package}.*{hint}"):
        command.inspect(["no model of that name"], output=tmp_path / "report.html", map_="umap")
    assert not list(tmp_path.iterdir())
