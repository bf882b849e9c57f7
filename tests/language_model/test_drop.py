"""Expert dropping: which experts stay, what a smaller model computes, and what is refused."""

import copy
import json
import shutil
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from layouts import EACH, LAYOUTS
from reference import mixed_probabilities, routers_of, stored_tensors, watched
from tiny import EXPERTS, TOP_C, VOCABULARY, save_model
from transformers import AutoModel, AutoModelForCausalLM

from ssmoe_embed import SpectralRouters, SpectralRouting, UnsupportedModelError, language_model, reroute
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model import RoutingSettings, drop, drop_experts, load, load_tokenizer
from ssmoe_embed.language_model.dropping import Limits, choose, slice_experts
from ssmoe_embed.language_model.loading import ROUTERS_FILE, skeleton

SETTINGS = RoutingSettings(alpha=0.6, top_c=TOP_C)
BIASED = ("deepseek_v3", "ernie4_5_moe", "lfm2_moe", "minimax_m2")
"""Families whose choice of experts a correction bias shifts."""


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def calibration(texts):
    return "\n".join(texts * 2)


class Masked:
    """A routing that never chooses some experts."""

    def __init__(self, kept):
        self.kept = kept

    def check(self, model):
        pass

    def logits(self, layer, hidden, logits, score):
        masked = torch.full_like(logits, -torch.inf)
        masked[:, self.kept[layer]] = logits[:, self.kept[layer]]
        return masked


def some_experts(model, count=6):
    """Other experts in every layer."""
    generator = torch.Generator().manual_seed(11)
    layers = [layer.index for layer in family_of(model).layers(model)]
    return {layer: torch.randperm(EXPERTS, generator=generator)[:count].sort().values for layer in layers}


# --- what a smaller model computes ------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_without_experts_equals_one_that_never_chooses_them(family, model_folder, ids):
    model = AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()
    kept = some_experts(model)
    untouched = model(ids).logits
    with reroute(model, Masked(kept)):
        expected = model(ids).logits
    slice_experts(model, kept)
    assert not torch.allclose(untouched, expected, atol=1e-3)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)


def test_no_expert_is_dropped_where_a_table_names_them(model_folder):
    with pytest.raises(UnsupportedModelError, match="by token id, so none of them can be dropped"):
        Limits.of(load(model_folder("deepseek_v4")))


NOT_DROPPING = {"deepseek_v4", *(name for name, one in LAYOUTS.items() if one.auto is AutoModel)}


@pytest.mark.parametrize("name", [one for one in EACH if one.values[0] not in NOT_DROPPING])
def test_a_saved_model_holds_the_kept_experts_of_the_published_layout(name, tmp_path, ids):
    folder = save_model(tmp_path / "whole", name)
    layout, whole = copy.copy(LAYOUTS[name]), stored_tensors(folder)
    model = load(folder)
    kept = some_experts(model, 8 if Limits.of(model).groups > 1 else 6)
    slice_experts(model, kept)
    model.save_pretrained(tmp_path / "part")
    again = LAYOUTS[name].auto.from_pretrained(tmp_path / "part").eval()
    part = stored_tensors(tmp_path / "part")
    expected = {}
    for layer, experts in kept.items():
        matrices = [layout.matrices(whole, layer, int(expert)) for expert in experts]
        expected[layer] = layout.router(whole, layer)[experts], matrices
    layout.prefix = next(key for key in part if "layers." in key).split("layers.")[0]  # of the text part alone
    for layer, (router, matrices) in expected.items():
        assert torch.equal(layout.router(part, layer), router)
        for expert, one in enumerate(matrices):
            assert all(map(torch.equal, layout.matrices(part, layer, expert), one))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BIASED)
def test_correction_biases_follow_their_experts(name, tmp_path):
    model = load(save_model(tmp_path / "whole", name))
    before = {key: value.clone() for key, value in model.state_dict().items() if value.shape[-1:] == (EXPERTS,)}
    kept = some_experts(model)
    slice_experts(model, kept)
    biases = {key: value for key, value in before.items() if "bias" in key}
    assert biases
    for key, value in biases.items():
        layer = int(key.split("layers.")[1].split(".")[0])
        assert torch.equal(model.state_dict()[key], value[..., kept[layer]])


@pytest.mark.slow
def test_the_checkpoint_loads_without_this_package(olmoe, tmp_path, environment):
    drop(olmoe, tmp_path / "part", 0.5, "random", settings=SETTINGS, progress=False)
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A, AutoTokenizer as T;"
        f"m = A.from_pretrained({str(tmp_path / 'part')!r}); t = T.from_pretrained({str(tmp_path / 'part')!r});"
        "out = m.generate(**t('Why', return_tensors='pt'), max_new_tokens=3, do_sample=False);"
        "assert 'ssmoe_embed' not in sys.modules; print(m.config.num_experts, out.shape[1] > 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == ["4", "True"]


# --- which experts stay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["router", "ssmoe"])
@torch.no_grad()
def test_the_experts_of_the_best_mean_score_stay(by, olmoe, calibration):
    model, tokenizer = load(olmoe), load_tokenizer(olmoe)
    routers = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    tokens = torch.tensor(tokenizer(calibration)["input_ids"])
    pieces = [tokens[start : start + 512] for start in range(0, len(tokens), 512)]
    alpha = 0.6 if by == "ssmoe" else 0.0
    sums = dict.fromkeys(routers.weights, 0)
    with reroute(model, SpectralRouting(routers, alpha=alpha)):
        for piece in pieces:
            with watched(model) as seen:
                model(piece[None])
            for layer, calls in seen.items():
                x = calls[0][0].reshape(-1, calls[0][0].shape[-1]).double()
                learned = x @ routers_of(model)[layer].weight.double().T
                p = mixed_probabilities(learned, x @ routers.weights[layer].double().T, alpha)
                sums[layer] = sums[layer] + p.sum(dim=0)
    fresh = load(olmoe)
    found = drop_experts(
        fresh, 0.75, by, tokenizer=tokenizer, calibration=calibration, settings=SETTINGS, progress=False
    )
    assert found.kept == {layer: sorted(total.topk(6).indices.tolist()) for layer, total in sums.items()}


def test_only_the_beginning_of_a_long_calibration_text_is_read(olmoe, calibration):
    tokenizer = load_tokenizer(olmoe)
    keywords = {"tokenizer": tokenizer, "with_routers": False, "progress": False, "calibration_tokens": 600}
    start = tokenizer.decode(tokenizer(calibration)["input_ids"][:600])
    short, long = (
        drop_experts(load(olmoe), 0.5, "router", calibration=text, **keywords) for text in (start, calibration * 50)
    )
    assert short.kept == long.kept
    with pytest.raises(ValueError, match=r"calibration_tokens=100 .* at least 512"):
        drop_experts(load(olmoe), 0.5, "router", calibration=calibration, **keywords | {"calibration_tokens": 100})


def test_random_experts_follow_from_the_seed(olmoe):
    kept = [drop_experts(load(olmoe), 0.5, "random", seed=s, with_routers=False).kept for s in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]


def test_groups_keep_equally_many_of_their_best():
    scores = torch.tensor([9.0, 8, 7, 6, 1, 2, 3, 4])
    assert choose({0: scores}, 4)[0].tolist() == [0, 1, 2, 3]
    assert choose({0: scores}, 4, groups=2)[0].tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize(("keep", "count"), [(0.75, 6), (0.7, 6), (0.25, 2), (1.0, 8)])
def test_the_fraction_is_rounded_up(keep, count):
    assert Limits(experts=8, top_k=2).kept(keep) == count


def test_no_rounding_error_keeps_one_more():
    assert [Limits(experts=100, top_k=1).kept(n / 100) for n in range(1, 101)] == list(range(1, 101))


# --- beside the checkpoint --------------------------------------------------------------------------------------------


def test_the_spectral_routers_are_sliced_alike_and_used_again(olmoe, tmp_path):
    drop(olmoe, tmp_path / "part", 0.75, "random", settings=SETTINGS, progress=False)
    beside = SpectralRouters.load(tmp_path / "part" / ROUTERS_FILE)
    smaller = load(tmp_path / "part")
    beside.check(smaller)
    for layer, weight in SpectralRouters.from_model(smaller, top_c=TOP_C, progress=False).weights.items():
        torch.testing.assert_close(beside.weights[layer], weight)
    again = language_model.loading.policy_of("ssmoe", smaller, SETTINGS, progress=False)
    assert all(torch.equal(again.routers.weights[layer], weight) for layer, weight in beside.weights.items())


def test_the_command_prints_memory_and_records_what_stayed(ssmoe, olmoe, tmp_path, calibration):
    text = tmp_path / "text.txt"
    text.write_text(calibration, encoding="utf-8")
    arguments = ["drop", olmoe, "--keep", 0.75, "--by", "ssmoe", "--top-c", TOP_C, "--quiet"]
    done = ssmoe(*arguments, "--calibration", text, "--output", tmp_path / "part")
    before, after = (sum(w.nbytes for w in load(folder).parameters()) for folder in (olmoe, tmp_path / "part"))
    assert "Writing" not in done.err
    assert f"{before / 1e6:,.2f} MB before, {after / 1e6:,.2f} MB after" in done.out
    record = json.loads((tmp_path / "part" / "ssmoe_drop.json").read_text(encoding="utf-8"))
    assert (record["by"], record["keep"]) == ("ssmoe", 0.75)
    digest = sha256(calibration.encode()).hexdigest()[:16]
    assert record["calibration"] == {"text": "text.txt", "digest": digest, "tokens": 32_768}
    whole, part = (AutoModel.from_pretrained(folder) for folder in (olmoe, tmp_path / "part"))
    for layer, router in routers_of(part).items():
        assert torch.equal(router.weight, routers_of(whole)[layer].weight[record["kept"][str(layer)]])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_fewer_experts_than_a_token_needs_are_refused(olmoe):
    with pytest.raises(ValueError, match=r"keep at least 0.25"):
        drop_experts(load(olmoe), 0.1, "random")


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan")])
def test_a_keep_that_is_no_fraction_is_refused(keep):
    with pytest.raises(ValueError, match="fraction"):
        Limits(experts=8, top_k=2).kept(keep)


def test_groups_that_would_be_too_small_are_refused_unless_experts_are_chosen_without_them(tmp_path):
    model = load(save_model(tmp_path / "grouped", "deepseek_v2"))
    with pytest.raises(UnsupportedModelError, match="4 groups"):
        drop_experts(model, 0.75, "random")
    model.config.topk_method = "greedy"
    assert Limits.of(model).kept(0.75) == 6


@pytest.mark.parametrize(
    ("keep", "text", "message"), [(0.1, "", "keep at least 0.25"), (0.75, "Too little.", "too short")]
)
def test_what_needs_no_weights_is_refused_before_they_are_read(keep, text, message, olmoe, tmp_path):
    folder = tmp_path / "without weights"
    shutil.copytree(olmoe, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    (tmp_path / "short.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        drop(folder, tmp_path / "part", keep, calibration=tmp_path / "short.txt", settings=SETTINGS, progress=False)
    assert not (tmp_path / "part").exists()


def test_a_model_without_weights_has_the_limits_of_the_model(family, model_folder):
    assert Limits.of(skeleton(model_folder(family))) == Limits.of(load(model_folder(family)))


def test_a_model_without_a_head_is_refused(olmoe, tmp_path):
    AutoModel.from_pretrained(olmoe).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="no language-model head"):
        load(tmp_path / "headless")


def test_a_rerouted_model_is_refused_and_left_as_it_was(olmoe, ids):
    model = load(olmoe, "hash")
    before = model(ids).logits
    with pytest.raises(ValueError, match="re-routed"):
        drop_experts(model, 0.5, "random", with_routers=False)
    assert torch.equal(model(ids).logits, before)


def test_an_existing_folder_is_kept(olmoe, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="overwrite"):
        drop(olmoe, tmp_path / "mine", by="random")


def test_a_model_is_not_overwritten_by_its_own_part(olmoe):
    with pytest.raises(ValueError, match="is the model itself"):
        drop(olmoe, olmoe / ".." / olmoe.name, by="random", overwrite=True)
