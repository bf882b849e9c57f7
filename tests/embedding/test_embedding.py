"""Representations, calibration and pooling, against plain re-computations; independence of a text's neighbours."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from having import having
from reference import blocks_of, calibrated, combined, features_of, routers_of, spectral_weights
from sentence_transformers import SentenceTransformer
from tiny import EXPERTS, HIDDEN, TOP_C, VOCABULARY, make_tokenizer, save_model
from transformers import AutoModel, AutoTokenizer

import ssmoe_embed
from ssmoe_embed import SSMoE
from ssmoe_embed.embedding.calibration import BlockCalibration
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.settings import Calibration

METHODS = ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")
CALIBRATIONS = ("none", "standardize", "whiten")
COMBINATIONS = ("concat", "sum")
ALPHA = 0.5
PROBES = ("How do I undo the last commit?", "x", "Nobody forgot three letters before the war, in 1999 or on Monday.")


def embed(module, texts):
    """Vectors by the module's own steps, in one batch."""
    with torch.inference_mode():
        return module.forward(module.preprocess(texts))["sentence_embedding"]


@pytest.fixture
def module(calibrated_module):
    """The calibrated module, given back as it was."""
    before = calibrated_module.settings
    yield calibrated_module
    calibrated_module.settings = before


@pytest.fixture
def fresh(olmoe):
    """A module of its own for a test that changes more than settings."""
    return SSMoE.from_base(olmoe, top_c=TOP_C, calibration="none", progress=False)


@pytest.fixture(scope="module")
def model_itself(olmoe):
    return AutoModel.from_pretrained(olmoe).eval()


@pytest.fixture(scope="module")
def weights(olmoe):
    return spectral_weights(olmoe, "olmoe", TOP_C)


@pytest.fixture(scope="module")
def recompute(model_itself, weights, olmoe):
    """Features of a text, each text and forward pass computed once."""
    tokenizer, known = AutoTokenizer.from_pretrained(olmoe), {}

    def features(text, rerouted, alpha=ALPHA, mix="probs"):
        key = (text, rerouted, alpha, mix)
        if key not in known:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][:512]
            known[key] = features_of(model_itself, ids, weights, alpha, rerouted=rerouted, mix=mix)
        return known[key]

    return features


def expected_vector(recompute, sample, text, *, method, calibration="none", combination="concat", signal=None):
    rerouted = method in ("ssmoe", "ssmoe-hidden")
    blocks = blocks_of(method, recompute(text, rerouted), signal)
    if calibration != "none":
        known = [blocks_of(method, recompute(other, rerouted), signal) for other in sample]
        blocks = calibrated(blocks, known, calibration)
    return combined(blocks, combination)


# --- every representation is what the formulas say --------------------------------------------------------------------


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_vector_equals_its_plain_re_computation(method, calibration, combination, *, module, recompute, texts):
    how = {"method": method, "calibration": calibration, "combination": combination}
    having(module, alpha=ALPHA, **how)
    vectors = embed(module, list(PROBES)).double().numpy()
    assert vectors.shape[1] == module.get_embedding_dimension()
    for text, vector in zip(PROBES, vectors, strict=True):
        expected = expected_vector(recompute, texts, text, **how)
        np.testing.assert_allclose(vector, expected, rtol=2e-5, atol=2e-5)


def test_every_familys_vectors_equal_their_plain_re_computation(family, model_folder):
    folder = model_folder(family)
    module = SSMoE.from_base(folder, top_c=TOP_C, calibration="none", progress=False)
    model, weights = AutoModel.from_pretrained(folder).eval(), spectral_weights(folder, family, TOP_C)
    ids = module.tokenizer(PROBES[0])["input_ids"]
    for method in METHODS:
        having(module, method=method)
        [vector] = embed(module, [PROBES[0]]).double().numpy()
        features = features_of(model, ids, weights, ALPHA, rerouted=method.startswith("ssmoe"))
        np.testing.assert_allclose(vector, combined(blocks_of(method, features), "concat"), rtol=0, atol=2e-5)


@pytest.mark.parametrize("signal", ["logits", "scores", "weights", "ev_logits"])
@pytest.mark.parametrize("method", ["moee", "ssmoe"])
def test_each_routing_signal_is_what_its_name_says(method, signal, module, recompute, texts):
    having(module, method=method, routing_signal=signal, calibration="none", alpha=ALPHA)
    for text, vector in zip(PROBES, embed(module, list(PROBES)).double().numpy(), strict=True):
        expected = expected_vector(recompute, texts, text, method=method, signal=signal)
        np.testing.assert_allclose(vector, expected, rtol=0, atol=2e-5)


def test_the_routers_alone_may_be_read_as_scores_with_no_spectral_share(module, recompute):
    having(module, method="router", routing_signal="scores", calibration="none", alpha=0.9)
    for text, vector in zip(PROBES, embed(module, list(PROBES)).double().numpy(), strict=True):
        np.testing.assert_allclose(vector, recompute(text, False)["scores"], rtol=0, atol=2e-5)
    assert not module.settings.needs_spectral_routers


def test_hidden_is_another_name_for_smoe(module):
    assert module.settings.changed(method="hidden") == module.settings.changed(method="smoe")


@pytest.mark.parametrize("mix", ["probs", "logits"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_alpha_and_mix_reach_both_the_forward_pass_and_the_weights(alpha, mix, module, recompute):
    having(module, method="ssmoe", calibration="none", alpha=alpha, mix=mix)
    for text, vector in zip(PROBES, embed(module, list(PROBES)).double().numpy(), strict=True):
        expected = combined(blocks_of("ssmoe", recompute(text, True, alpha, mix)), "concat")
        np.testing.assert_allclose(vector, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("routing_weight", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("method", ["moee", "ssmoe"])
def test_the_dot_product_of_two_sums_is_the_weighted_sum_of_the_blocks_cosines(
    method, calibration, routing_weight, module
):
    having(module, method=method, calibration=calibration, combination="concat")
    parts = embed(module, list(PROBES)).double().split([HIDDEN, 3 * EXPERTS], dim=1)
    units = [part / part.norm(dim=1, keepdim=True) for part in parts]
    expected = units[0] @ units[0].T + routing_weight * units[1] @ units[1].T
    having(module, combination="sum", routing_weight=routing_weight)
    summed = embed(module, list(PROBES)).double()
    torch.testing.assert_close(summed @ summed.T, expected, rtol=0, atol=1e-5)


def test_the_paper_preset_follows_the_release(module, recompute):
    having(module, method="paper")
    vectors = embed(module, ['A "quoted_word"', "Is it?"]).double().numpy()
    release = ["\"A 'quoted word'\"", '"Is it?"']
    rows = [blocks_of("ssmoe", recompute(text, True), "logits") for text in release]
    rows = np.stack([np.concatenate(row) for row in rows])
    np.testing.assert_allclose(vectors, (rows - rows.mean(0)) / rows.std(0, ddof=1), rtol=2e-4, atol=2e-4)
    assert str(module.settings.method) == "ssmoe"
    assert str(module.settings.calibration) == "batch"


def test_a_preset_can_be_changed_in_part(module):
    having(module, method="paper", calibration="none", prompt="prompteol")
    assert (str(module.settings.calibration), module.settings.prompt) == ("none", "prompteol")
    assert str(module.settings.routing_signal) == "logits"


def test_the_vectors_are_float32_and_have_the_announced_size(module):
    sizes = {"router": 24, "smoe": 32, "moee": 56, "ev": 24, "ssmoe": 56, "ssmoe-hidden": 32}
    for method, size in sizes.items():
        having(module, method=method, calibration="standardize")
        vectors = embed(module, ["one", "two"])
        assert (vectors.shape, vectors.dtype) == ((2, size), torch.float32)
        assert module.get_embedding_dimension() == size


# --- a text's vector is its own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_texts_vector_does_not_depend_on_its_batch(method, calibration, module, texts):
    having(module, method=method, calibration=calibration)
    model = SentenceTransformer(modules=[module])
    some = [*texts[:8], *texts[-6:-2]]
    alone = np.stack([model.encode(text, show_progress_bar=False) for text in some])
    neighbours = [" ".join(texts[8:24]), *reversed(some), "", "z"]
    crowd = model.encode(neighbours, batch_size=64, show_progress_bar=False)[1:-2][::-1]
    np.testing.assert_allclose(crowd, alone, rtol=0, atol=1e-5)
    for size in (2, 5):
        again = model.encode(some, batch_size=size, show_progress_bar=False)
        np.testing.assert_allclose(again, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_texts_vector_does_not_depend_on_the_padding_side(method, calibration, module, texts):
    having(module, method=method, calibration=calibration)
    side, found = module.tokenizer.padding_side, {}
    try:
        for module.tokenizer.padding_side in ("left", "right"):
            found[module.tokenizer.padding_side] = embed(module, texts[:-3])
    finally:
        module.tokenizer.padding_side = side
    torch.testing.assert_close(found["left"], found["right"], rtol=0, atol=1e-5)


def test_in_every_family_a_texts_vector_does_not_depend_on_batch_or_padding(family, model_folder, texts):
    module = SSMoE.from_base(model_folder(family), top_c=TOP_C, calibration="none", progress=False)
    alone = torch.cat([embed(module, [text]) for text in texts[-12:]])
    for module.tokenizer.padding_side in ("left", "right"):
        torch.testing.assert_close(embed(module, texts[-12:]), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_real_token_is_read_wherever_the_padding_is(method, module):
    having(module, method=method, calibration="none")
    ids = torch.randint(3, VOCABULARY, (7,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        bare = module.forward({"input_ids": ids[None], "attention_mask": torch.ones(1, 7, dtype=torch.long)})
        for left, right in [(0, 5), (5, 0), (3, 2)]:
            padded = torch.nn.functional.pad(ids, (left, right))[None]
            mask = torch.nn.functional.pad(torch.ones(7, dtype=torch.long), (left, right))[None]
            vector = module.forward({"input_ids": padded, "attention_mask": mask})["sentence_embedding"]
            torch.testing.assert_close(vector, bare["sentence_embedding"], rtol=0, atol=1e-5)


def test_what_stands_at_padded_positions_does_not_matter(module):
    having(module, method="ssmoe", calibration="none")
    features = module.preprocess(["a short one", "a somewhat longer text that needs no padding at all"])
    with torch.inference_mode():
        expected = module.forward(features)["sentence_embedding"]
        features["input_ids"] = torch.where(features["attention_mask"].bool(), features["input_ids"], 77)
        assert (features["attention_mask"] == 0).any()
        changed = module.forward(features)["sentence_embedding"]
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-6)


def test_an_attention_mask_of_padding_only_is_refused(module):
    features = module.preprocess(["one", "two"])
    features["attention_mask"][1] = 0
    with pytest.raises(ValueError, match=r"positions \[1\] .*no token that is not padding"):
        module.forward(features)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32])
def test_an_attention_mask_may_be_of_any_type(kind, module):
    having(module, method="moee", calibration="none")
    features = module.preprocess(["one", "two and three"])
    with torch.inference_mode():
        expected = module.forward(dict(features))["sentence_embedding"]
        features["attention_mask"] = features["attention_mask"].to(kind)
        torch.testing.assert_close(module.forward(features)["sentence_embedding"], expected, rtol=0, atol=1e-6)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_batch_calibration_is_the_z_score_over_the_batch(module):
    having(module, method="moee", calibration="none")
    raw = embed(module, list(PROBES)).double()
    having(module, calibration="batch")
    expected = (raw - raw.mean(0)) / (raw.std(0) + 1e-8)  # the sample's deviation, as the release has it
    torch.testing.assert_close(embed(module, list(PROBES)).double(), expected, rtol=1e-4, atol=1e-4)


def test_batch_calibration_refuses_a_batch_of_one(module):
    having(module, method="moee", calibration="batch")
    with pytest.raises(ValueError, match=r"calibration='batch'.*batch has one"):
        embed(module, ["alone"])


def test_texts_that_are_all_alike_give_finite_vectors_in_batch_calibration(module):
    having(module, method="ssmoe", calibration="batch")
    assert embed(module, ["the same"] * 4).isfinite().all()


def test_the_calibration_does_not_depend_on_the_order_of_its_texts_or_the_batch_size(fresh, texts):
    found = []
    for sample, size in [(texts, 32), (texts[::-1], 32), (texts, 5)]:
        having(fresh, calibration="standardize").fit_calibration(sample, batch_size=size, refit=True, progress=False)
        found.append(embed(fresh, list(PROBES)))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("calibration", ["standardize", "whiten"])
def test_a_feature_that_does_not_vary_gives_no_nan(calibration, fresh):
    having(fresh, calibration=calibration).fit_calibration(["the same"] * 5, progress=False)
    assert embed(fresh, ["the same", "another"]).isfinite().all()


@pytest.mark.parametrize("calibration", ["standardize", "whiten"])
@pytest.mark.parametrize("sample", [[], ["one"]])
def test_too_few_calibration_texts_are_refused(sample, calibration, fresh):
    having(fresh, calibration=calibration)
    with pytest.raises(ValueError, match=r"too few to fit calibration"):
        fresh.fit_calibration(sample, progress=False)


def test_a_calibration_text_that_is_no_text_is_named(fresh):
    with pytest.raises(ValueError, match=r"position 1 of the calibration texts, got int: 7"):
        having(fresh, calibration="standardize").fit_calibration(["a", 7, "b"], progress=False)


def test_a_single_string_as_calibration_texts_is_not_taken_for_a_list_of_letters(fresh):
    with pytest.raises(ValueError, match="str"):
        having(fresh, calibration="standardize").fit_calibration("some text", progress=False)


def test_a_calibration_that_is_missing_is_named_with_the_next_step(fresh):
    having(fresh, calibration="whiten")
    with pytest.raises(ValueError, match=r"no calibration for 'whiten.*fit_calibration\(\)"):
        embed(fresh, ["a text"])


def test_a_calibration_of_other_settings_is_not_used(fresh, texts):
    having(fresh, calibration="standardize", alpha=0.5).fit_calibration(texts, progress=False)
    for changes in ({"alpha": 0.6}, {"prompt": "prompteol"}, {"mix": "logits"}):
        having(fresh, **({"alpha": 0.5, "prompt": "none", "mix": "probs"} | changes))
        with pytest.raises(ValueError, match="no calibration"):
            embed(fresh, ["a text"])


def test_alphas_that_print_alike_are_not_taken_for_one_another(fresh, texts):
    having(fresh, calibration="standardize", alpha=0.5).fit_calibration(texts, progress=False)
    having(fresh, alpha=0.5000004)
    with pytest.raises(ValueError, match="no calibration"):
        embed(fresh, ["a text"])


def test_fitting_fits_only_what_is_missing(fresh, texts):
    having(fresh, calibration="standardize").fit_calibration(texts, progress=False)
    before = fresh.calibrations.factors
    fresh.fit_calibration(["quite", "other", "texts"], progress=False)
    assert fresh.calibrations.factors.keys() == before.keys()
    assert all(fresh.calibrations.factors[name] is known for name, known in before.items())
    fresh.fit_calibration(["quite", "other", "texts"], refit=True, progress=False)
    assert not torch.equal(next(iter(before.values())).mean, next(iter(fresh.calibrations.factors.values())).mean)


def test_an_interrupted_fit_leaves_the_settings_as_they_were(fresh, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    before = fresh.settings
    variant = before.changed(method="moee", calibration="standardize")
    monkeypatch.setattr(Encoder, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.fit_calibration(["a", "b"], variants=[variant], progress=False)
    assert fresh.settings == before
    assert fresh.calibrations.factors == {}


@pytest.mark.parametrize("kind", [Calibration.STANDARDIZE, Calibration.WHITEN])
def test_factors_placed_on_another_device_while_encoding_can_be_used_in_training(kind):
    """Tensors made in inference mode cannot be saved for a backward pass."""
    calibration = BlockCalibration.fit(torch.randn(20, 4, generator=torch.Generator().manual_seed(7)), kind)
    with torch.inference_mode():
        calibration.apply(torch.ones(2, 4, device="meta"))
    block = torch.ones(2, 4, device="meta", requires_grad=True)
    calibration.apply(block).sum().backward()
    assert block.grad.shape == block.shape


# --- an earlier layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_layer", [1, 2, 3, -1, -2, -3])
def test_a_hidden_layer_is_transformers_hidden_state_of_that_number(hidden_layer, olmoe, model_itself):
    module = SSMoE.from_base(olmoe, method="smoe", calibration="none", hidden_layer=hidden_layer, progress=False)
    features = module.preprocess(list(PROBES))
    with torch.inference_mode():
        ours = module.forward(features)
        states = model_itself(**features, output_hidden_states=True).hidden_states[hidden_layer]
    last = features["attention_mask"].sum(1) - 1
    torch.testing.assert_close(ours["sentence_embedding"], states[torch.arange(3), last], rtol=0, atol=1e-5)


def test_the_layers_after_it_are_neither_loaded_nor_read(olmoe):
    module = SSMoE.from_base(olmoe, method="moee", calibration="none", hidden_layer=2, progress=False)
    assert len(module.model.layers) == 2
    assert embed(module, ["a text"]).shape == (1, HIDDEN + 2 * EXPERTS)


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_an_earlier_layer_of_a_family_with_layers_of_two_kinds(family, model_folder):
    folder = model_folder(family)
    module = SSMoE.from_base(folder, top_c=TOP_C, calibration="none", hidden_layer=1, progress=False)
    model = AutoModel.from_pretrained(folder).eval()
    features = module.preprocess([PROBES[2]])
    with torch.inference_mode():
        ours = having(module, method="smoe").forward(features)["sentence_embedding"]
        expected = model(**features, output_hidden_states=True).hidden_states[1][:, -1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert list(routers_of(module.model)) == [0]


@pytest.mark.parametrize("hidden_layer", [0, 4, -4, -5])
def test_a_hidden_layer_out_of_range_is_refused(hidden_layer, olmoe):
    with pytest.raises(ValueError, match=rf"hidden_layer={hidden_layer} is out of range for 3 layers"):
        SSMoE.from_base(olmoe, method="smoe", calibration="none", hidden_layer=hidden_layer, progress=False)


def test_the_hidden_layer_of_a_built_model_can_be_chosen_when_it_is_loaded(built, olmoe):
    model = ssmoe_embed.load(built, hidden_layer=2, calibration="none", progress=False)
    direct = SSMoE.from_base(olmoe, top_c=TOP_C, hidden_layer=2, calibration="none", progress=False)
    vectors = model.encode(list(PROBES), convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(vectors, embed(direct, list(PROBES)), rtol=0, atol=1e-5)


# --- settings ---------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"method": "sssmoe"}, r"method='sssmoe' is not known.*Did you mean 'ssmoe'"),
    ({"method": None}, r"method=None"),
    ({"alpha": 1.5}, r"alpha=1.5 is outside \[0, 1\]"),
    ({"mix": "odds"}, r"mix='odds' is not known.*'probs', 'logits'"),
    ({"combination": "add"}, r"combination='add' is not known.*'concat', 'sum'"),
    ({"calibration": "standardise"}, r"calibration='standardise'.*Did you mean 'standardize'"),
    ({"prompt": "promptoel"}, r"prompt='promptoel' is not known.*Did you mean 'prompteol'"),
    ({"routing_signal": "logit"}, r"routing_signal='logit' is not known.*Did you mean 'logits'"),
    ({"routing_weight": 0}, r"routing_weight=0 is not a positive number"),
    ({"routing_weight": float("nan")}, r"routing_weight=nan"),
    ({"max_seq_length": 0}, r"max_seq_length=0"),
    ({"max_seq_length": 2.5}, r"max_seq_length=2.5"),
    ({"hidden_layer": 2}, r"hidden_layer=2 cannot be set on a loaded model.*load"),
    ({"hidden_layer": "last"}, r"hidden_layer='last' is not a whole number"),
    ({"methd": "ev"}, r"setting='methd' is not known.*Did you mean 'method'"),
    ({"method": "smoe", "routing_signal": "logits"}, r"method='smoe', which has no routing block"),
    ({"method": "ev", "routing_signal": "logits"}, r"cannot be combined with method='ev'"),
    ({"prompt": "prompteol", "max_seq_length": 3}, r"max_seq_length=3 leaves no room.*at least"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_a_refused_setting_leaves_the_module_as_it_was(changes, message, module):
    having(module, method="ssmoe", calibration="standardize", alpha=ALPHA)
    settings, before = module.settings, embed(module, list(PROBES))
    with pytest.raises(ValueError, match=message):
        having(module, **({"alpha": 0.9} | changes))
    assert module.settings == settings
    assert torch.equal(embed(module, list(PROBES)), before)


def test_settings_can_be_changed_back_and_forth(module):
    having(module, method="ssmoe", calibration="standardize")
    before = embed(module, list(PROBES))
    for method, calibration in itertools.product(METHODS, CALIBRATIONS):
        having(module, method=method, calibration=calibration, combination="sum", prompt="prompteol")
    having(module, method="ssmoe", calibration="standardize", combination="concat", prompt="none")
    assert torch.equal(embed(module, list(PROBES)), before)


def test_settings_cannot_be_changed_behind_the_modules_back(module):
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.settings.alpha = 0.9


def test_a_method_that_needs_spectral_routers_says_where_to_get_them(olmoe):
    module = SSMoE.from_base(olmoe, method="moee", calibration="none", progress=False)
    assert module.routers is None
    with pytest.raises(ValueError, match=r"needs spectral routers.*SpectralRouters\.from_model"):
        having(module, method="ev")
    assert str(module.settings.method) == "moee"


def test_spectral_routers_can_be_given_ready_made(olmoe, fresh, tmp_path):
    fresh.routers.save(tmp_path / "routers.safetensors")
    for routers in (fresh.routers, tmp_path / "routers.safetensors", str(tmp_path / "routers.safetensors")):
        again = SSMoE.from_base(olmoe, routers=routers, calibration="none", progress=False)
        assert torch.equal(embed(again, list(PROBES)), embed(fresh, list(PROBES)))


def test_spectral_routers_of_another_model_are_refused(fresh, tmp_path):
    other = save_model(tmp_path, "olmoe", seed=1)
    with pytest.raises(ValueError, match="the learned routers of layer 0 differ"):
        SSMoE.from_base(other, routers=fresh.routers, calibration="none", progress=False)


OVERRIDES = [
    {"method": "router"},
    {"method": "ev", "calibration": "none"},
    {"alpha": 0.9, "calibration": "none"},
    {"prompt": "prompteol", "calibration": "none"},
    {"prompt": "Topic: {text} Answer:", "calibration": "none"},
    {"combination": "sum", "routing_weight": 2.0},
    {"max_seq_length": 4},
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=map(str, OVERRIDES))
def test_what_load_overrides_equals_what_configure_changes(overrides, built, loaded):
    ours = ssmoe_embed.load(built, progress=False, **overrides).encode(list(PROBES), show_progress_bar=False)
    before = loaded.encode(list(PROBES), show_progress_bar=False)
    having(loaded[0], **overrides)
    expected = loaded.encode(list(PROBES), show_progress_bar=False)
    np.testing.assert_array_equal(ours, expected)
    assert before.shape != ours.shape or not np.allclose(before, ours)


def test_a_bad_override_is_refused_before_anything_is_loaded(built, monkeypatch):
    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    with pytest.raises(ValueError, match=r"method='ev2'.*Did you mean 'ev'"):
        ssmoe_embed.load(built, method="ev2", progress=False)


def test_left_padding_and_a_bos_token_change_nothing_about_that(tmp_path, texts):
    folder = save_model(tmp_path, "mixtral", make_tokenizer(bos=True, side="left"))
    module = SSMoE.from_base(folder, top_c=TOP_C, calibration="none", progress=False)
    assert module.tokenizer.padding_side == "left"
    alone = torch.cat([embed(module, [text]) for text in texts[-8:]])
    torch.testing.assert_close(embed(module, texts[-8:]), alone, rtol=0, atol=1e-5)
