"""Checkpoints that keep their experts in eight bits, with a scale a block, as DeepSeek-V3 and MiniMax-M2 are published."""

import json
import shutil

import pytest
import torch
from layouts import LAYOUTS
from reference import spectral_row, stored_tensors
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, FineGrainedFP8Config

from ssmoe_embed import SpectralRouters, SSMoE, language_model
from ssmoe_embed.checkpoints import read_row, read_weight
from ssmoe_embed.language_model import RoutingSettings, drop

FLOAT8 = torch.float8_e4m3fn
BLOCK = 8
"""It divides every size here, which transformers needs to unpack a matrix."""


class Tensors(dict):
    """Tensors by name, as a checkpoint gives them."""

    def names(self):
        return self.keys()

    def read(self, name):
        return self[name]

    def read_row(self, name, row):
        return self[name][row]


def packed(weight, block=BLOCK):
    """A matrix in eight bits and its scales, `[⌈R/block⌉,⌈C/block⌉]`, block by block."""
    rows, columns = (-(-size // block) for size in weight.shape)
    scales, small = torch.empty(rows, columns), torch.empty(weight.shape, dtype=FLOAT8)
    for i in range(rows):
        for j in range(columns):
            part = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = weight[part].abs().max() / 448
            small[part] = (weight[part] / scales[i, j]).to(FLOAT8)
    return small, scales


def unpacked(small, scales, block=BLOCK):
    """Entry by entry."""
    values = small.double()
    return torch.tensor(
        [
            [float(values[r, c]) * float(scales[r // block, c // block]) for c in range(small.shape[1])]
            for r in range(small.shape[0])
        ],
        dtype=torch.float64,
    )


@pytest.fixture(scope="module", params=["deepseek_v3", "minimax_m2"])
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def folder(layout, tmp_path_factory):
    """A tiny checkpoint whose linear layers are packed, except routers and what comes first and last."""
    folder = tmp_path_factory.mktemp("float8") / layout.model_type
    layout.write(folder)
    make_tokenizer().save_pretrained(folder)
    tensors = {}
    for name, tensor in stored_tensors(folder).items():
        kept = any(word in name for word in ("embed", "lm_head", "gate.weight", "norm", "bias"))
        if kept or tensor.ndim != 2:
            tensors[name] = tensor
        else:
            tensors[name], tensors[f"{name}_scale_inv"] = packed(tensor.float())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["gate", "lm_head", "embed_tokens"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_spectral_routers_streamed_from_disk_equal_those_of_the_unpacked_weights(layout, folder):
    tensors = stored_tensors(folder)
    plain = {
        name: unpacked(tensor, tensors[f"{name}_scale_inv"]) if tensor.dtype == FLOAT8 else tensor
        for name, tensor in tensors.items()
    }
    made = SpectralRouters.from_checkpoint(folder, top_c=5, progress=False)
    assert list(made.weights) == list(layout.sparse)
    for layer, weight in made.weights.items():
        for expert, row in enumerate(layout.router(plain, layer)):
            expected = spectral_row(layout.matrices(plain, layer, expert), row, 5)
            torch.testing.assert_close(weight[expert].double(), expected, rtol=0, atol=1e-5)


def test_streamed_from_disk_equals_what_transformers_unpacks(layout, folder):
    model = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(BLOCK, BLOCK)),
    )
    live = SpectralRouters.from_model(model, top_c=5, progress=False)
    streamed = SpectralRouters.from_checkpoint(folder, top_c=5, progress=False)
    for layer, weight in streamed.weights.items():
        torch.testing.assert_close(weight, live.weights[layer], rtol=0, atol=1e-5)


def test_an_embedding_module_is_made_of_it(layout, folder):
    module = SSMoE.from_base(folder, top_c=5, calibration="none", progress=False)
    streamed = SpectralRouters.from_checkpoint(folder, top_c=5, progress=False)
    for layer, weight in streamed.weights.items():
        torch.testing.assert_close(weight, module.routers.weights[layer], rtol=0, atol=1e-5)
    with torch.inference_mode():
        assert module.forward(module.preprocess(["one text", "two"]))["sentence_embedding"].isfinite().all()


def test_in_4_bits_it_holds_what_the_unpacked_model_does(layout, folder, tmp_path):
    """Every weight is unpacked as it is read, packed, and equal to that of a checkpoint that has it unpacked."""
    tensors = stored_tensors(folder)
    plain = {
        name: unpacked(tensor, tensors[f"{name}_scale_inv"]).float() if tensor.dtype == FLOAT8 else tensor
        for name, tensor in tensors.items()
        if not name.endswith("_scale_inv")
    }
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = {"dtype": "float32", "method": "smoe", "calibration": "none", "quantize": "nf4", "progress": False}
    found, expected = (SSMoE.from_base(place, **settings).model.state_dict() for place in (folder, tmp_path))
    assert found.keys() == expected.keys()
    assert any(name.endswith("gate_up_proj.packed") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_checkpoint_that_is_quantised_in_another_form_is_not_packed_again(olmoe, tmp_path):
    shutil.copytree(olmoe, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"quantised already \(quant_method='gptq'\).*Leave load_in_4bit"):
        SSMoE.from_base(tmp_path, quantize="nf4", method="smoe", calibration="none", progress=False)


@torch.no_grad()
def test_a_language_model_of_it_loses_experts_and_is_saved_in_its_familys_plain_layout(layout, folder, tmp_path):
    drop(folder, tmp_path / "part", 1.0, "random", settings=RoutingSettings(top_c=5), progress=False)
    expected, found = language_model.load(folder), AutoModelForCausalLM.from_pretrained(tmp_path / "part")
    ids = torch.arange(3, 20)[None]
    assert torch.equal(found(ids).logits, expected(ids).logits)
    written = load_file(tmp_path / "part" / "model.safetensors")
    assert set(written) <= {name for name in stored_tensors(folder) if not name.endswith("_scale_inv")}


def test_llama_4_with_its_experts_split_up_and_a_scale_a_row_equals_the_packed_one(model_folder, tmp_path):
    """As quantisers that split the experts up leave them, one scale a row."""
    layout, folder = LAYOUTS["llama4"], model_folder("llama4")
    tensors, split, rounded = stored_tensors(folder), {}, {}
    for name, tensor in tensors.items():
        if ".experts." not in name:
            split[name] = rounded[name] = tensor
    for layer in layout.sparse:
        kept = []
        for expert in range(8):
            gate, up, down = layout.matrices(tensors, layer, expert)
            parts = {}
            for part, matrix in {"gate": gate, "up": up, "down": down.T}.items():
                scale = matrix.abs().amax(dim=1, keepdim=True).float() / 448
                small = (matrix / scale).to(FLOAT8)
                name = f"{layout.start(layer)}experts.{expert}.{part}_proj.weight"
                split |= {name: small, f"{name}_scale": scale}
                parts[part] = small.float() * scale
            kept.append((torch.cat([parts["gate"], parts["up"]]).T, parts["down"].T))
        for position, part in enumerate(("gate_up", "down")):
            rounded[f"{layout.start(layer)}experts.{part}_proj"] = torch.stack([pair[position] for pair in kept])
    made = []
    for number, content in enumerate((split, rounded)):
        copy = tmp_path / str(number)
        copy.mkdir()
        shutil.copy(folder / "config.json", copy)
        content = {name: tensor.contiguous() for name, tensor in content.items()}
        save_file(content, copy / "model.safetensors", {"format": "pt"})
        made.append(SpectralRouters.from_checkpoint(copy, top_c=5, progress=False).weights)
    assert list(made[0]) == list(layout.sparse)
    for layer, weight in made[0].items():
        torch.testing.assert_close(weight, made[1][layer], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "block"), [((40, 24), 16), ((16, 16), 16), ((33, 70), 32), ((128, 300), 128)])
def test_a_matrix_is_unpacked_block_by_block(shape, block):
    small, scales = packed(torch.randn(shape, generator=torch.Generator().manual_seed(0)), block)
    found = read_weight(Tensors(w=small, w_scale_inv=scales), "w")
    torch.testing.assert_close(found.double(), unpacked(small, scales, block), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.full((4, 1), 0.5)])
def test_one_scale_a_matrix_or_a_row_will_do(scale):
    small = torch.randn(4, 6).to(FLOAT8)
    assert torch.equal(read_weight(Tensors(w=small, w_scale=scale), "w"), small.float() * 0.5)


def test_other_dtypes_are_read_as_they_are():
    weight = torch.randn(4, 6).to(torch.bfloat16)
    assert read_weight(Tensors(w=weight), "w") is weight


@pytest.mark.parametrize("weight", [torch.randn(4, 6).to(FLOAT8), torch.ones(4, 6, dtype=torch.uint8)])
def test_eight_bits_without_a_scale_are_refused(weight):
    with pytest.raises(ValueError, match=r"w is kept as torch\..*SpectralRouters.from_model"):
        read_weight(Tensors(w=weight), "w")


def test_one_expert_of_a_packed_tensor_in_eight_bits_is_refused():
    with pytest.raises(ValueError, match="w is kept as"):
        read_row(Tensors(w=torch.randn(2, 4, 6).to(FLOAT8)), "w", 1)


def test_scales_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"w_scale_inv has shape \(3, 2\)"):
        read_weight(Tensors(w=torch.randn(4, 6).to(FLOAT8), w_scale_inv=torch.ones(3, 2)), "w")


def test_experts_of_a_live_model_in_eight_bits_are_refused(olmoe):
    model = AutoModel.from_pretrained(olmoe)
    experts = model.layers[0].mlp.experts
    experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj.to(FLOAT8), requires_grad=False)
    with pytest.raises(ValueError, match=r"float8_e4m3fn.*SpectralRouters\.from_checkpoint"):
        SpectralRouters.from_model(model, progress=False)
