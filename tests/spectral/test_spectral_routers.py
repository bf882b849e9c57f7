"""W_EV from a live model and from a checkpoint, against the formulas; and its file."""

import json
import shutil

import pytest
import torch
from layouts import LAYOUTS
from reference import spectral_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from tiny import EXPERTS, HIDDEN, SHARDED, TOP_C, make_model
from transformers import AutoModel, AutoModelForCausalLM

from ssmoe_embed import SpectralRouters, SpectralRouting, reroute


@pytest.fixture(scope="module")
def model(olmoe):
    return AutoModel.from_pretrained(olmoe).eval()


@pytest.fixture(scope="module")
def routers(model):
    return SpectralRouters.from_model(model, top_c=TOP_C, progress=False)


@pytest.fixture
def file(routers, tmp_path):
    routers.save(tmp_path / "routers.safetensors")
    return tmp_path / "routers.safetensors"


def assert_close(ours, expected, atol=1e-5):
    assert ours.keys() == expected.keys()
    for index, weight in ours.items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.double(), expected[index].double(), rtol=0, atol=atol)


# --- making them ------------------------------------------------------------------------------------------------------


def test_a_live_model_and_its_checkpoint_give_the_same(family, model_folder):
    folder = model_folder(family)
    live = SpectralRouters.from_model(AutoModelForCausalLM.from_pretrained(folder), top_c=TOP_C, progress=False)
    stored = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, progress=False)
    assert_close(live.weights, stored.weights)
    assert_close(live.fingerprints, stored.fingerprints)
    assert live.settings == stored.settings


def test_a_headless_checkpoint_is_read_too(family, model_folder, tmp_path):
    expected = SpectralRouters.from_checkpoint(model_folder(family), top_c=TOP_C, progress=False)
    AutoModel.from_pretrained(model_folder(family)).save_pretrained(tmp_path)
    assert_close(SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False).weights, expected.weights)


def test_one_of_the_checkpoints_really_is_sharded(model_folder):
    assert len(list(model_folder(SHARDED).glob("*.safetensors"))) > 2


@pytest.mark.parametrize("select", ["router", "average"])
@pytest.mark.parametrize("sign", ["aligned", "canonical"])
@pytest.mark.parametrize("scale", ["none", "router"])
def test_it_equals_the_formulas_in_every_combination_of_settings(select, sign, scale, olmoe, model):
    how = {"top_c": TOP_C, "select": select, "sign": sign, "scale": scale}
    ours = SpectralRouters.from_model(model, **how, progress=False)
    assert_close(ours.weights, spectral_weights(olmoe, "olmoe", **how))


def test_it_equals_the_formulas_in_every_family(family, model_folder):
    ours = SpectralRouters.from_checkpoint(model_folder(family), top_c=TOP_C, progress=False)
    expected = spectral_weights(model_folder(family), family, TOP_C)
    assert list(ours.weights) == list(LAYOUTS[family].sparse)
    assert all(weight.shape == (EXPERTS, HIDDEN) for weight in ours.weights.values())
    assert_close(ours.weights, expected)


@torch.no_grad()
def test_what_experts_share_is_left_out_on_request(olmoe):
    model, rank = AutoModel.from_pretrained(olmoe).eval(), 3
    found = SpectralRouters.from_model(model, top_c=TOP_C, exclude_common=rank, progress=False)
    streamed = SpectralRouters.from_checkpoint(olmoe, top_c=TOP_C, exclude_common=rank, progress=False)
    plain = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    for layer in model.layers:
        experts = layer.mlp.experts
        size = experts.down_proj.shape[2]
        for matrices in (experts.gate_up_proj[:, :size], experts.gate_up_proj[:, size:], experts.down_proj):
            left, values, right = torch.linalg.svd(matrices.double().mean(dim=0), full_matrices=False)
            matrices -= (left[:, :rank] @ values[:rank].diag() @ right[:rank]).float()
    own = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    assert_close(found.weights, own.weights)
    assert_close(streamed.weights, own.weights)
    assert not torch.allclose(found.weights[0], plain.weights[0], atol=1e-2)
    assert found.settings.exclude_common == rank
    with pytest.raises(ValueError, match="exclude_common=500 would leave nothing of matrices of shape"):
        SpectralRouters.from_model(model, exclude_common=500, progress=False)


def test_a_fraction_is_a_share_of_the_eigenvectors(model):
    quarter = SpectralRouters.from_model(model, top_c=0.25, progress=False)  # of m = min(24, 32)
    assert_close(quarter.weights, SpectralRouters.from_model(model, top_c=6, progress=False).weights, atol=0)


def test_a_model_in_bfloat16_gives_nearly_the_same(olmoe, routers):
    rounded = AutoModel.from_pretrained(olmoe, dtype=torch.bfloat16)
    ours = SpectralRouters.from_model(rounded, top_c=TOP_C, progress=False).weights
    for index, weight in routers.weights.items():
        assert ours[index].dtype == torch.float32
        similarity = torch.nn.functional.cosine_similarity(ours[index], weight, dim=1)
        assert similarity.mean() > 0.9


def test_the_making_leaves_the_model_as_it_was(olmoe):
    model = AutoModel.from_pretrained(olmoe).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    assert not any(weight.requires_grad for weight in made.weights.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_does_not_depend_on_the_number_of_lapack_threads(olmoe, routers):
    assert torch.get_num_threads() == 1
    try:
        torch.set_num_threads(3)
        with threadpool_limits(3):
            made = SpectralRouters.from_checkpoint(olmoe, top_c=TOP_C, workers=3, progress=False)
    finally:
        torch.set_num_threads(1)
    for index, weight in made.weights.items():
        assert torch.nn.functional.cosine_similarity(weight, routers.weights[index], dim=1).min() >= 0.9999
        torch.testing.assert_close(weight, routers.weights[index], rtol=0, atol=1e-5)


def test_a_count_above_the_rank_is_clipped_with_a_warning(model):
    with pytest.warns(UserWarning, match=r"top_c=50 is more than the 24 eigenvectors"):
        clipped = SpectralRouters.from_model(model, top_c=50, progress=False)
    assert_close(clipped.weights, SpectralRouters.from_model(model, top_c=24, progress=False).weights, atol=0)


@pytest.mark.parametrize("top_c", [0, -3, 1.5, 0.0, -0.1, True, "50", None, float("nan"), float("inf"), [50]])
def test_a_bad_top_c_is_named_with_what_is_allowed(top_c, olmoe):
    with pytest.raises(ValueError, match=r"top_c=.*count of at least 1.*fraction in \(0, 1\]"):
        SpectralRouters.from_checkpoint(olmoe, top_c=top_c, progress=False)


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("select", "routers", ["'router'", "'average'"]),
        ("sign", "positive", ["'aligned'", "'canonical'", "'raw'"]),
        ("scale", None, ["'none'", "'router'"]),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(setting, value, allowed, olmoe):
    with pytest.raises(ValueError, match=setting) as refusal:
        SpectralRouters.from_checkpoint(olmoe, progress=False, **{setting: value})
    assert repr(value) in str(refusal.value)
    assert all(name in str(refusal.value) for name in allowed)


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(olmoe, tmp_path):
    shutil.copy(olmoe / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        SpectralRouters.from_checkpoint(tmp_path, progress=False)


def test_a_checkpoint_without_one_of_the_experts_names_the_missing_tensor(olmoe, tmp_path):
    shutil.copytree(olmoe, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.3\.up_proj"):
        SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)


def test_a_checkpoint_without_the_router_of_a_sparse_layer_is_refused(olmoe, tmp_path):
    shutil.copytree(olmoe, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.gate.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="layer"):
        SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)


def test_packed_experts_without_their_scales_are_refused(model_folder, tmp_path):
    shutil.copytree(model_folder("gpt_oss"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    packed = {name.replace("experts.gate_up_proj", "experts.gate_up_proj_blocks"): t for name, t in tensors.items()}
    save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.0\.mlp\.experts\.gate_up_proj_scales'"):
        SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)


def test_a_missing_shard_is_named(model_folder, tmp_path):
    shutil.copytree(model_folder(SHARDED), tmp_path, dirs_exist_ok=True)
    [*_, last] = sorted(tmp_path.glob("*.safetensors"))
    last.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=last.name):
        SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)


@pytest.mark.parametrize("text", ['{"weight_map": {"mod', "{}", "[]"])
def test_a_damaged_index_is_named(model_folder, tmp_path, text):
    shutil.copytree(model_folder(SHARDED), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is no index.*download the checkpoint again"):
        SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)


def test_a_misspelt_setting_is_not_taken_for_one_of_the_hub(olmoe):
    with pytest.raises(TypeError, match="topc"):
        SpectralRouters.from_checkpoint(olmoe, topc=TOP_C, progress=False)


# --- their file -------------------------------------------------------------------------------------------------------


def test_a_loaded_file_equals_what_was_saved(routers, file):
    again = SpectralRouters.load(file)
    assert_close(again.weights, routers.weights, atol=0)
    assert_close(again.fingerprints, routers.fingerprints, atol=0)
    assert (again.settings, again.base_model) == (routers.settings, routers.base_model)


def test_two_runs_give_the_same_bytes(model, file, tmp_path):
    SpectralRouters.from_model(model, top_c=TOP_C, progress=False).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_the_settings_and_the_base_model_are_in_the_metadata(file, olmoe):
    with safe_open(str(file), framework="pt") as content:
        text = json.dumps(content.metadata())
    for part in ("top_c", "aligned", "base_model", "base_revision", olmoe.name):
        assert part in text


def test_saving_leaves_nothing_beside_the_file(file):
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_saving_makes_the_folder_it_needs(routers, tmp_path):
    routers.save(tmp_path / "new" / "routers.safetensors")
    assert SpectralRouters.load(tmp_path / "new" / "routers.safetensors").settings == routers.settings


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(kept, file):
    content = file.read_bytes()
    end = round(kept * len(content)) if isinstance(kept, float) else kept
    file.write_bytes(content[:end])
    with pytest.raises(ValueError, match=r"routers\.safetensors is truncated or corrupted.*ssmoe build"):
        SpectralRouters.load(file)


@pytest.mark.parametrize("position", [0, 7, 8, 20])
def test_a_file_with_a_corrupted_header_is_refused(position, file):
    content = bytearray(file.read_bytes())
    content[position : position + 1] = b"\xff"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"routers\.safetensors.*(truncated or corrupted|not written by)"):
        SpectralRouters.load(file)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors was not written by ssmoe_embed"):
        SpectralRouters.load(tmp_path / "other.safetensors")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors.*ssmoe build"):
        SpectralRouters.load(tmp_path / "nowhere.safetensors")


def rewritten(file, change):
    """The file with its metadata's content changed."""
    tensors = load_file(file)
    with safe_open(str(file), framework="pt") as content:
        [(key, text)] = content.metadata().items()
    metadata = json.loads(text)
    change(metadata, tensors)
    save_file(tensors, file, metadata={key: json.dumps(metadata)})
    return file


def test_a_file_without_spectral_settings_is_refused(file):
    rewritten(file, lambda metadata, tensors: metadata.pop("spectral"))
    with pytest.raises(ValueError, match="holds no spectral routers"):
        SpectralRouters.load(file)


def test_a_file_with_settings_of_a_later_version_is_refused_by_name(file):
    rewritten(file, lambda metadata, tensors: metadata["spectral"].update(from_the_future=1))
    with pytest.raises(ValueError, match=r"routers\.safetensors"):
        SpectralRouters.load(file)


@pytest.mark.parametrize("name", ["spectral.0.bias", "spectral.x.weight", "spectral.weight"])
def test_a_file_with_parts_that_are_not_known_is_refused(file, name):
    rewritten(file, lambda metadata, tensors: tensors.update({name: torch.ones(1)}))
    with pytest.raises(
        ValueError, match=rf"routers\.safetensors: '{name}' is no part of spectral routers; make them again"
    ):
        SpectralRouters.load(file)


def test_a_file_whose_weights_hold_nan_is_refused(file):
    rewritten(file, lambda metadata, tensors: tensors["spectral.0.weight"].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"NaN|not finite|infinity"):
        SpectralRouters.load(file)


# --- on a model -------------------------------------------------------------------------------------------------------


def test_routers_of_a_model_of_another_shape_are_refused(routers, model_folder):
    other = AutoModel.from_pretrained(model_folder("qwen2_moe"))
    with pytest.raises(ValueError, match=r"(?s)not from|lack layers"):
        reroute(other, SpectralRouting(routers))
    with pytest.raises(ValueError, match=r"layer 0 has \[experts, hidden\]"):
        routers.check(make_model("olmoe", hidden_size=64))


def test_routers_of_another_model_of_the_same_shape_are_refused(routers):
    with pytest.raises(ValueError, match=r"not from .*the learned routers of layer 0 differ.*ssmoe build"):
        reroute(make_model("olmoe", seed=1), SpectralRouting(routers))


def test_routers_that_lack_a_layer_are_refused(file, model):
    rewritten(file, lambda metadata, tensors: [tensors.pop(name) for name in list(tensors) if ".1." in name])
    with pytest.raises(ValueError, match=r"lack layers \[1\]"):
        reroute(model, SpectralRouting(SpectralRouters.load(file)))


def test_a_file_without_a_layers_fingerprint_is_refused(file, model):
    rewritten(file, lambda metadata, tensors: tensors.pop("spectral.1.fingerprint"))
    with pytest.raises(ValueError, match=r"fingerprint|routers"):
        SpectralRouters.load(file).check(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_routers_fit_their_model_in_any_dtype(dtype, routers, olmoe):
    routers.check(AutoModel.from_pretrained(olmoe, dtype=dtype))


def test_what_was_placed_on_another_device_while_encoding_can_be_used_in_training(model):
    """Tensors made in inference mode cannot be saved for a backward pass."""
    routers = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    with torch.inference_mode():
        routers.logits(0, torch.ones(2, HIDDEN, device="meta"))
    hidden = torch.ones(2, HIDDEN, device="meta", requires_grad=True)
    routers.logits(0, hidden).sum().backward()
    assert hidden.grad.shape == hidden.shape


def test_a_refused_policy_leaves_the_model_as_it_was(routers):
    other = make_model("olmoe", seed=1)
    with pytest.raises(ValueError, match="differ"):
        reroute(other, SpectralRouting(routers))
    assert all("forward" not in vars(layer.mlp.gate) for layer in other.model.layers)
