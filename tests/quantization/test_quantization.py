"""4-bit base models: experts included, routers not; the same however they are asked for; nothing saved that was rounded."""

import copy
import gc
import json
import pickle
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from having import having
from layouts import STORED
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny import TOP_C, save_model
from torch import nn
from transformers import AutoModel, BitsAndBytesConfig

import ssmoe_embed
from ssmoe_embed import SpectralRouters, SSMoE
from ssmoe_embed.data import tiny_folder
from ssmoe_embed.embedding.base_model import BaseModelSource
from ssmoe_embed.families import family_of
from ssmoe_embed.quantization import Component, Quantization, QuantizationSettings, memory_by_component
from ssmoe_embed.quantization.loading import weight_count
from ssmoe_embed.quantization.packed import BlockwiseMatrices, PackedMatrices, is_packed
from ssmoe_embed.quantization.quantizer import FourBitConfig, FourBitQuantizer
from ssmoe_embed.quantization.settings import PRESETS, requested

IDS = torch.randint(3, 500, (3, 11), generator=torch.Generator().manual_seed(0))
EXPERT = "model.layers.1.mlp.experts.7.up_proj.weight"
ATTENTION = "model.layers.0.self_attn.q_proj.weight"
FULL_PRECISION = ("norm", "embed", "router", "gate.weight", "wg.weight", "bias")
"""What stands in the names of weights that no 4-bit model may round."""


def loaded(folder, **changes):
    return BaseModelSource(
        str(folder), **({"quantization": "nf4", "model_kwargs": {"dtype": "float32"}} | changes)
    ).load()[0]


@pytest.fixture(scope="module", params=STORED)
def folder(request, model_folder):
    return model_folder(request.param)


@pytest.fixture(scope="module")
def packed(folder):
    """The model in 4 bits; never change it."""
    return loaded(folder)


@pytest.fixture(scope="module")
def plain(folder):
    """The same model at full precision; never change it."""
    return loaded(folder, quantization=None)


def weights_a_scale(name):
    """64 in experts and other MLPs, 32 in attention and what stands in its place."""
    return 64 if any(part in name for part in ("mlp", "feed_forward", "moe", "shared", "experts", "latent")) else 32


def rounded(matrix, double=False, block=64):
    """A matrix `[A,B]` packed by bitsandbytes and unpacked by hand: the higher half of a byte first, a scale a block."""
    packed, state = quantize_4bit(matrix.contiguous(), quant_type="nf4", compress_statistics=double, blocksize=block)
    scales = state.absmax
    if double:
        nested = state.state2
        scales = nested.code[scales.int()] * nested.absmax.repeat_interleave(256)[: len(scales)] + state.offset
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()[: matrix.numel()]
    return (state.code[codes.int()] * scales.repeat_interleave(block)[: len(codes)]).view(matrix.shape).to(matrix.dtype)


def round_weights(plain, packed):
    """A copy of the plain model in which exactly what is packed in the other went through bitsandbytes."""
    model = copy.deepcopy(plain)
    names = {name for name, module in packed.named_modules() if isinstance(module, PackedMatrices)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                block = weights_a_scale(name)
                matrices = [rounded(matrix, block=block) for matrix in (weight if weight.ndim == 3 else weight[None])]
                weight.copy_(torch.stack(matrices).view(weight.shape))
    return model


@torch.no_grad()
def hidden(model):
    return model(IDS, use_cache=False).last_hidden_state


def embed(module, texts=("a", "How do I undo the last commit?")):
    with torch.inference_mode():
        return module.forward(module.preprocess(list(texts)))["sentence_embedding"]


# --- what is packed, for every family ---------------------------------------------------------------------------------


def test_every_expert_is_packed_and_its_weights_are_those_of_bitsandbytes(packed, plain):
    family = family_of(plain)
    for layer, reference in zip(family.layers(packed), family.layers(plain), strict=True):
        for expert in range(family.expert_count(layer)):
            for ours, trained in zip(
                family.expert_matrices(layer.block, expert),
                family.expert_matrices(reference.block, expert),
                strict=True,
            ):
                assert ours.shape == trained.shape
                assert not torch.equal(ours, trained)
        fused = {name: weight for name, weight in reference.experts.named_parameters() if weight.ndim == 3}
        assert fused
        for name, weight in fused.items():
            stack = getattr(layer.experts, name)
            assert torch.equal(stack.unpacked(), torch.stack([rounded(matrix) for matrix in weight.detach()]))


def test_routers_gates_norms_biases_and_embeddings_are_not_touched(packed, plain):
    kept = dict(packed.named_parameters())
    for name, weight in plain.named_parameters():
        if any(part in name.replace("output_gate", "") for part in FULL_PRECISION):  # a matrix of MiniMax's attention
            assert torch.equal(kept[name], weight), name
    assert not any(weight.ndim == 3 and weight.shape[0] == 8 and "conv" not in name for name, weight in kept.items())


def test_the_linear_layers_of_attention_are_packed(packed, plain):
    linears = {name for name, module in plain.named_modules() if type(module) is nn.Linear and "proj" in name}
    linears -= {name for name in linears if "router" in name}
    assert linears
    for name in linears:
        ours = packed.get_submodule(name)
        expected = rounded(plain.get_submodule(name).weight.detach(), block=weights_a_scale(name))
        assert torch.equal(ours.weight.unpacked(), expected), name


def test_it_computes_what_the_family_computes_with_the_rounded_weights(packed, plain):
    reference = round_weights(plain, packed)
    assert torch.allclose(hidden(packed), hidden(reference), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(hidden(packed), hidden(plain), atol=2e-4, rtol=1e-3)


def test_fingerprints_of_spectral_routers_match_since_routers_are_not_rounded(folder, packed):
    SpectralRouters.from_checkpoint(folder, top_c=TOP_C, progress=False).check(packed)


def test_bytes_by_component_show_the_experts_shrink_and_the_routers_not(packed, plain):
    small, large = memory_by_component(packed), memory_by_component(plain)
    assert small[Component.EXPERTS] < large[Component.EXPERTS] / 4
    assert small[Component.ROUTERS] == large[Component.ROUTERS] > 0
    assert small[Component.EMBEDDINGS] == large[Component.EMBEDDINGS] > 0
    assert weight_count(packed) == weight_count(plain)


def test_attention_can_be_left_at_full_precision(folder, plain):
    model = loaded(folder, quantization="nf4-experts")
    kept = memory_by_component(model)
    assert kept[Component.ATTENTION] == memory_by_component(plain)[Component.ATTENTION] > 0
    for component in (Component.EXPERTS, Component.SHARED_EXPERTS, Component.DENSE):
        assert (
            kept[component] <= memory_by_component(plain)[component] / 2
        )  # a quarter, but for the scales of tiny matrices
    assert kept[Component.EXPERTS] > 0


# --- on one family ----------------------------------------------------------------------------------------------------


def test_streaming_gives_what_bitsandbytes_gives_on_the_loaded_model(tmp_path):
    folder = save_model(tmp_path, "olmoe", hidden_size=64, intermediate_size=64)
    reference = AutoModel.from_pretrained(folder)
    streamed = loaded(folder)
    for ours, theirs in zip(streamed.layers, reference.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            replace_parameter_4bit(theirs.mlp.experts, name, quant_type="nf4")
            assert torch.equal(getattr(ours.mlp.experts, name).unpacked(), getattr(theirs.mlp.experts, name))


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_double_quantisation_is_that_of_bitsandbytes_an_expert(model_folder, family):
    packed, plain = (loaded(model_folder(family), quantization=name) for name in ("paper-nf4", None))
    experts, reference = (model.layers[0].mlp.experts for model in (packed, plain))
    for index in range(8):
        expected = rounded(reference.down_proj[index].detach(), double=True)
        assert torch.equal(experts.down_proj[index], expected)
    assert experts.down_proj.scales.dtype == torch.uint8


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_while_it_is_loaded_no_more_than_one_expert_is_unpacked_in_memory(model_folder, family, monkeypatch):
    seen, put = [], BlockwiseMatrices.put

    def counted(self, index, matrix):
        if len(self.shape) == 3:
            alive = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
            floats = [tensor for tensor in alive if not tensor.is_meta and tensor.is_floating_point()]
            storages = {(tensor.untyped_storage().data_ptr(), tensor.shape[-2:]) for tensor in floats}
            seen.append(sum(shape == matrix.shape for _, shape in storages))
        return put(self, index, matrix)

    monkeypatch.setattr(BlockwiseMatrices, "put", counted)
    gc.freeze()  # what other tests left is not looked at
    try:
        loaded(model_folder(family))
    finally:
        gc.unfreeze()
    assert set(seen) == {1}


@pytest.mark.slow
def test_the_bundled_model_keeps_its_vectors_where_attention_is_left_alone(texts):
    """With attention rounded too its cosine is 0.97: benchmarks/results/quantization.md."""
    base, chosen = tiny_folder() / "base", {"method": "ssmoe", "calibration": "standardize"}
    vectors = [
        embed(
            SSMoE.from_base(base, quantize=quantize, top_c=TOP_C, calibration_texts=texts, progress=False, **chosen),
            texts,
        )
        for quantize in (None, "nf4-experts")
    ]
    cosines = torch.cosine_similarity(*vectors)
    assert cosines.mean() >= 0.98


def test_the_papers_setting_is_a_preset(olmoe, texts):
    module = SSMoE.from_base(olmoe, quantize="paper-nf4", top_c=TOP_C, calibration_texts=texts, progress=False)
    assert module.model.dtype == torch.bfloat16
    assert module.model.layers[0].mlp.experts.gate_up_proj.settings.double
    seen = []
    module.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ssmoe_embed.EmbeddingModel(modules=[module]).encode([f"text {number}" for number in range(140)])
    assert seen == [128, 12]


def test_moving_the_dtype_changes_what_weights_are_unpacked_to_and_never_the_packed_numbers(olmoe):
    model = loaded(olmoe)
    before, packed = hidden(model), model.layers[0].mlp.experts.down_proj
    scales = packed.scales.clone()
    assert hidden(model.to(torch.bfloat16)).dtype == torch.bfloat16
    assert packed.scales.dtype == torch.float32
    assert torch.equal(packed.scales, scales)
    assert torch.allclose(hidden(model.to(torch.float32)), before, atol=0.1)


def test_packed_models_can_be_pickled_and_copied(olmoe):
    model = loaded(olmoe)
    expected = hidden(model)
    assert torch.equal(hidden(pickle.loads(pickle.dumps(model))), expected)
    assert torch.equal(hidden(copy.deepcopy(model)), expected)


def test_all_matrices_at_once_stand_in_for_a_parameter():
    """Families that multiply all experts in one product, as Llama 4, see the whole stack."""
    weights = torch.randn(4, 16, 32)
    stack = BlockwiseMatrices((4, 16, 32), torch.float32, torch.device("cpu"), QuantizationSettings())
    for index, matrix in enumerate(weights):
        stack.put(index, matrix)
    x = torch.randn(4, 3, 16)
    assert torch.equal(torch.bmm(x, stack), torch.bmm(x, torch.stack([rounded(matrix) for matrix in weights])))


def test_a_hidden_layer_in_the_middle_is_read_in_4_bits_too(olmoe):
    module = SSMoE.from_base(olmoe, quantize="nf4", method="smoe", hidden_layer=2, calibration="none", progress=False)
    assert len(module.model.layers) == 2
    assert is_packed(module.model)


# --- asking for it ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built_nf4(olmoe, texts, tmp_path_factory):
    """A model built with quantize="nf4"; never change it."""
    output = tmp_path_factory.mktemp("built") / "nf4"
    return ssmoe_embed.build(olmoe, output, quantize="nf4", top_c=TOP_C, calibration_texts=texts, progress=False)


def test_a_built_4_bit_model_says_so_and_is_4_bit_when_loaded_again(built_nf4, texts):
    assert json.loads((built_nf4 / "ssmoe_config.json").read_text(encoding="utf-8"))["quantization"] == "nf4"
    assert "`nf4`" in (built_nf4 / "README.md").read_text(encoding="utf-8")
    ours, theirs = ssmoe_embed.load(built_nf4, progress=False), SentenceTransformer(str(built_nf4))
    assert is_packed(ours)
    assert is_packed(theirs)
    assert torch.equal(torch.tensor(ours.encode(texts)), torch.tensor(theirs.encode(texts)))


def test_saved_and_loaded_again_it_gives_the_same_vectors(built_nf4, texts, tmp_path):
    model = ssmoe_embed.load(built_nf4, progress=False)
    model.save(str(tmp_path / "again"))
    assert not (tmp_path / "again" / "base").exists()
    again = ssmoe_embed.load(tmp_path / "again", progress=False)
    assert is_packed(again)
    assert (again.encode(texts) == model.encode(texts)).all()


def test_all_ways_of_asking_for_4_bits_give_the_same_vectors(built, texts):
    expected = ssmoe_embed.load(built, load_in_4bit=True, progress=False).encode(texts)
    assert (SentenceTransformer(str(built), model_kwargs={"load_in_4bit": True}).encode(texts) == expected).all()
    assert not (ssmoe_embed.load(built, progress=False).encode(texts) == expected).all()


def test_a_configuration_of_bitsandbytes_rounds_attention_as_bitsandbytes_does(built, olmoe):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for own in (config, config.to_dict()):
        model = SentenceTransformer(str(built), model_kwargs={"quantization_config": own})[0].model
        for name, weight in AutoModel.from_pretrained(olmoe).named_parameters():
            if "self_attn" in name and "proj" in name:
                packed = model.get_submodule(name.removesuffix(".weight")).weight
                assert torch.equal(packed.unpacked(), rounded(weight.detach().to(packed.dtype), block=64)), name


def test_a_built_4_bit_model_can_be_loaded_at_full_precision(built_nf4, built, texts):
    full = ssmoe_embed.load(built_nf4, load_in_4bit=False, calibration="none", progress=False)
    assert not is_packed(full)
    assert (full.encode(texts) == ssmoe_embed.load(built, calibration="none", progress=False).encode(texts)).all()


def test_a_language_model_loaded_in_4_bits_stays_so_when_it_is_saved(olmoe, tmp_path):
    ssmoe_embed.load(olmoe, load_in_4bit=True, method="router", calibration="none", progress=False).save(
        str(tmp_path / "a")
    )
    assert is_packed(ssmoe_embed.load(tmp_path / "a", progress=False))


def test_a_users_own_configuration_is_taken_over_and_reaches_the_experts():
    own = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    settings, rest = requested({"quantization_config": own, "attn_implementation": "sdpa"}, "nf4")
    assert settings == QuantizationSettings("fp4", double=True, dtype="bfloat16")
    assert rest == {"attn_implementation": "sdpa"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"load_in_4bit": "paper-nf4"}, r"load_in_4bit='paper-nf4' is neither True nor False.*ssmoe build --quantize"),
        ({"load_in_4bit": True, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "contradicts"),
        ({"load_in_4bit": False, "quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "contradicts"),
        (
            {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["o_proj"])},
            r"llm_int8_skip_modules=\['o_proj'\].*nf4-experts",
        ),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_and_not_dropped(kwargs, message):
    with pytest.raises(ValueError, match=message):
        requested(kwargs, None)


def test_8_bits_are_left_to_transformers_with_a_warning_about_the_experts():
    own = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.warns(UserWarning, match="experts"):
        assert requested({"quantization_config": own}, None) == (None, {"quantization_config": own})


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_spectral_routers_of_a_4_bit_model_are_made_from_the_trained_weights(model_folder, family):
    settings = {"top_c": TOP_C, "calibration": "none", "progress": False, "model_kwargs": {"dtype": "float32"}}
    four, full = (SSMoE.from_base(model_folder(family), quantize=quantize, **settings) for quantize in ("nf4", None))
    for index, weight in full.routers.weights.items():
        assert torch.allclose(four.routers.weights[index], weight, atol=1e-6)


def test_rerouting_changes_what_a_4_bit_model_computes_and_alpha_0_does_not(olmoe):
    module = SSMoE.from_base(olmoe, quantize="nf4", top_c=TOP_C, scale="router", calibration="none", progress=False)
    having(module, alpha=0.0)
    unmixed = embed(module)
    having(module, alpha=0.9)
    mixed = embed(module)
    plain = SSMoE.from_base(olmoe, quantize="nf4", method="smoe", calibration="none", progress=False)
    assert torch.equal(unmixed[:, :32], embed(plain))
    assert not torch.equal(mixed[:, :32], unmixed[:, :32])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_that_carries_its_base_is_not_saved_in_4_bits(tmp_path):
    model = ssmoe_embed.load("ssmoe/tiny", load_in_4bit=True, progress=False)
    with pytest.raises(ValueError, match=r"loses the trained weights.*load_in_4bit.: False"):
        model.save(str(tmp_path / "copy"))


def test_transformers_own_saving_is_refused_too(olmoe, tmp_path):
    with pytest.raises(ValueError, match="not serializable"):
        loaded(olmoe).save_pretrained(tmp_path)


def test_a_base_that_is_carried_can_be_built_to_be_4_bit_each_time(olmoe, texts, tmp_path):
    folder = ssmoe_embed.build(
        olmoe, tmp_path / "own", quantize="nf4", include_base=True, top_c=TOP_C, calibration_texts=texts, progress=False
    )
    model = ssmoe_embed.load(folder, progress=False)
    assert is_packed(model)
    assert torch.equal(
        AutoModel.from_pretrained(folder / "base").layers[0].mlp.experts.down_proj,
        AutoModel.from_pretrained(olmoe).layers[0].mlp.experts.down_proj,
    )


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_plan_for_several_devices_counts_what_packed_weights_take(preset, tmp_path):
    folder = save_model(tmp_path, "olmoe", hidden_size=64, intermediate_size=64)
    plain, packed = loaded(folder, quantization=None), loaded(folder, quantization=str(preset))
    quantizer = FourBitQuantizer(FourBitConfig(PRESETS[preset]))
    quantizer._process_model_before_weight_loading(plain)
    for name, module in packed.named_modules():
        if isinstance(module, BlockwiseMatrices):
            weight = plain.get_parameter(name)
            planned = weight.numel() * quantizer.param_element_size(plain, name, weight)
            taken = sum(part.nbytes for part in (module.packed, module.scales))
            assert planned == taken, name
    norm = plain.get_parameter("norm.weight")
    assert quantizer.param_element_size(plain, "norm.weight", norm) == norm.element_size()


@pytest.mark.parametrize(
    "place", [{"": "disk"}, {"embed_tokens": "cpu", "layers": "disk", "norm": "cpu", "rotary_emb": "cpu"}]
)
def test_offloading_of_packed_weights_is_refused(olmoe, place, tmp_path):
    with pytest.raises(ValueError, match="cannot be offloaded"):
        loaded(olmoe, model_kwargs={"device_map": place, "offload_folder": str(tmp_path)})


def test_auto_that_would_offload_packed_weights_is_refused(olmoe, tmp_path):
    kwargs = {"device_map": "auto", "max_memory": {"cpu": 90_000}, "offload_folder": str(tmp_path)}
    with pytest.raises(ValueError, match="cannot be offloaded"):
        loaded(olmoe, model_kwargs=kwargs)


def test_an_unknown_name_is_refused_before_anything_is_read(olmoe, tmp_path):
    with pytest.raises(
        ValueError, match=r"quantize='nf3' is not known; choose one of 'nf4', 'nf4-experts', 'paper-nf4'"
    ):
        ssmoe_embed.build(olmoe, tmp_path / "x", quantize="nf3", progress=False)
    with pytest.raises(ValueError, match=r"Did you mean 'nf4'"):
        SSMoE.from_base(olmoe, quantize="nf3")


def test_a_block_size_that_bitsandbytes_does_not_have_is_refused():
    for name in ("block_size", "attention_block_size"):
        with pytest.raises(ValueError, match=rf"^{name}=48 .*64"):
            QuantizationSettings(**{name: 48})


def test_a_truncated_checkpoint_is_refused_in_4_bits_as_well(olmoe, tmp_path):
    copied = tmp_path / "cut"
    copied.mkdir()
    for file in olmoe.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    shard = copied / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        loaded(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(EXPERT), r"layers\.1\.mlp\.experts\.gate_up_proj has 8 experts .* 7 of .*up_proj"),
        (
            lambda tensors: tensors.update({EXPERT: tensors[EXPERT][:4].clone()}),
            r"Expert 7 of layers\.1\.mlp\.experts\.gate_up_proj .*up_proj.*\(4, 32\)",
        ),
        (
            lambda tensors: tensors.update({ATTENTION: torch.zeros(4, 4)}),
            r"q_proj\.weight is \(4, 4\) on disk and \(32, 32\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(olmoe, tmp_path, change, message):
    copied = tmp_path / "changed"
    copied.mkdir()
    for file in olmoe.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"does not fit its config\.json: .*{message}.*[Dd]ownload it again"):
        loaded(copied)


def test_a_full_device_is_not_taken_for_a_broken_checkpoint(olmoe, monkeypatch):
    tried = []

    def full(self, index, matrix):
        tried.append(index)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(BlockwiseMatrices, "put", full)
    with pytest.raises(MemoryError, match=r"no room for .*olmoe in 4 bits: CUDA out of memory.*device_map"):
        loaded(olmoe)
    assert len(tried) == 1


# --- memory and the command -------------------------------------------------------------------------------------------

_EVERY_TENSOR = """
import gc, sys, torch
import ssmoe_embed
from ssmoe_embed import *  # what is imported when it is used, and keeps tensors
from ssmoe_embed.quantization import memory_by_component

def storages():
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found

from ssmoe_embed.quantization.packed import _bitsandbytes
library = _bitsandbytes()
library.dequantize_4bit(*library.quantize_4bit(torch.ones(64, 64), quant_type="nf4"))  # its tables stay for good
for packed in (True, False):
    model = None
    before = storages()
    model = ssmoe_embed.load(sys.argv[1], load_in_4bit=packed, progress=False)
    model.encode(["a text"])
    after = storages()
    new = sum(size for place, size in after.items() if place not in before)
    print(new, sum(memory_by_component(model).values()), sum(memory_by_component(model[0].model).values()))
"""


@pytest.mark.slow
def test_bytes_by_component_add_up_to_all_tensors_of_the_process(built, environment):
    command = [sys.executable, "-c", _EVERY_TENSOR, str(built)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    if find_spec("peft") is None:  # which imports bitsandbytes by itself
        assert "pip install kernels" not in done.stderr  # bitsandbytes' advice for what is not used here
    packed, plain = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    for new, whole, base in (packed, plain):
        assert whole == new
        assert base < whole
    assert packed < plain


def test_the_command_builds_and_prints_bytes_by_component(ssmoe, olmoe, texts, tmp_path):
    sample = tmp_path / "texts.txt"
    sample.write_text("\n".join(texts), encoding="utf-8")
    arguments = ["build", olmoe, "-o", tmp_path / "m", "--quantize", "nf4", "--top-c", 5]
    result = ssmoe(*arguments, "--calibration-texts", sample)
    assert result.status == 0, result.err
    module = ssmoe_embed.load(tmp_path / "m", progress=False)[0]
    experts = memory_by_component(module)[Component.EXPERTS]
    assert f"experts: {experts / 1e6:,.2f} MB" in result.err
    shown = ssmoe("info", tmp_path / "m")
    assert f"experts: {experts / 1e6:,.2f} MB" in shown.out
    assert "nf4" in shown.out


def test_names_of_presets_are_what_the_documentation_says():
    assert [str(name) for name in Quantization] == ["nf4", "nf4-experts", "paper-nf4"]
    assert QuantizationSettings.of("paper-nf4") == QuantizationSettings(double=True, dtype="bfloat16", batch_size=128)
