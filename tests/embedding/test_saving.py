"""What is saved is what gives the vectors: changed weights, tokenizers and adapters, whatever changed them."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import ssmoe_embed
from ssmoe_embed import SSMoE
from ssmoe_embed.embedding.fingerprint import Fingerprint
from ssmoe_embed.embedding.settings import EmbeddingSettings

PROBES = ["How do I undo the last commit?", "x", "", "<new> things"]
PLAIN = {"method": "moee", "calibration": "none", "progress": False}
ATTENTION = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
EXPERTS = {"r": 2, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def vectors(model):
    if isinstance(model, SSMoE):
        model = SentenceTransformer(modules=[model], device="cpu")
    return model.encode(PROBES, show_progress_bar=False)


def saved(module, folder):
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(folder))
    return folder


def shaken(model, named="lora_"):
    """The model with other weights in its adapter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if named in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# --- changed weights --------------------------------------------------------------------------------------------------


@torch.no_grad()
def edit_in_place(module):
    module.model.layers[1].mlp.experts.down_proj.add_(0.5)


def edit_the_data_of_one_entry(module):
    module.model.layers[0].self_attn.o_proj.weight.data[0, 0] += 5


def swap_experts(module):
    with torch.no_grad():
        experts = module.model.layers[0].mlp.experts
        experts.down_proj.copy_(experts.down_proj.flip(0).clone())


def merge_an_adapter(module):
    module.model = shaken(get_peft_model(module.model, LoraConfig(**ATTENTION))).merge_and_unload()


def add_tokens(module):
    module.tokenizer.add_tokens(["<new>"])
    torch.manual_seed(0)
    module.model.resize_token_embeddings(len(module.tokenizer))


def change_the_tokenizer(module):
    module.tokenizer.add_tokens(["things"])  # the tiny model's embeddings have rows to spare
    module.tokenizer.backend_tokenizer.normalizer = None


CHANGES = [edit_in_place, edit_the_data_of_one_entry, swap_experts, merge_an_adapter, add_tokens, change_the_tokenizer]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_base_is_saved_whole(change, olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN)
    before = vectors(module)
    change(module)
    expected = vectors(module)
    if change is not change_the_tokenizer:
        assert not np.allclose(before, expected, atol=1e-4)
    saved(module, tmp_path)
    assert (tmp_path / "base/config.json").is_file()
    again = ssmoe_embed.load(tmp_path, progress=False)
    np.testing.assert_allclose(vectors(again), expected, rtol=0, atol=1e-6)
    assert again.tokenizer.get_vocab() == module.tokenizer.get_vocab()


def test_a_model_of_unknown_origin_is_saved_whole(olmoe, tmp_path):
    model = AutoModel.from_pretrained(olmoe).eval()
    with torch.no_grad():
        model.layers[0].self_attn.o_proj.weight.mul_(2)
    settings = EmbeddingSettings(method="smoe", calibration="none")
    module = SSMoE(model, AutoTokenizer.from_pretrained(olmoe), settings)
    expected = vectors(module)
    np.testing.assert_allclose(vectors(ssmoe_embed.load(saved(module, tmp_path))), expected, rtol=0, atol=1e-6)


def test_what_changes_no_weight_is_saved_as_a_reference(olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN)
    module.model.requires_grad_(True).train()
    vectors(module.using(method="smoe"))
    module.model.eval()
    saved(module, tmp_path)
    assert not (tmp_path / "base").exists()
    assert json.loads((tmp_path / "ssmoe_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == str(
        olmoe
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_remembered_and_no_change(dtype, olmoe, tmp_path):
    for number, module in enumerate(
        (
            SSMoE.from_base(olmoe, **PLAIN).to(dtype),  # which rounds the rotary frequencies too, as loading does not
            SSMoE.from_base(olmoe, dtype=dtype, **PLAIN),
            SSMoE.from_base(olmoe, model_kwargs={"torch_dtype": dtype}, **PLAIN),
            SSMoE.from_base(olmoe, model_kwargs={"dtype": str(dtype).removeprefix("torch.")}, **PLAIN),
        )
    ):
        assert module.model.dtype == dtype
        folder = saved(module, tmp_path / str(number))
        assert not (folder / "base").exists()
        again = ssmoe_embed.load(folder, progress=False)
        assert again[0].model.dtype == dtype
        np.testing.assert_allclose(vectors(again), vectors(module), rtol=0, atol=0 if number else 0.05)


def test_rounding_to_another_dtype_and_back_is_a_change(olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN).to(torch.bfloat16).to(torch.float32)
    expected = module.model.state_dict()
    again = ssmoe_embed.load(saved(module, tmp_path), progress=False)[0].model.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in expected.items())


def test_a_fingerprint_does_not_depend_on_how_the_tokenizer_was_used(olmoe):
    model, tokenizer = AutoModel.from_pretrained(olmoe), AutoTokenizer.from_pretrained(olmoe)
    before = Fingerprint.of(model, tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)
    assert before.matches(model, tokenizer)


def test_a_changed_4_bit_model_is_refused_with_the_way_out(olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, quantize="nf4", **PLAIN)
    saved(module, tmp_path / "unchanged")
    with torch.no_grad():
        module.model.norm.weight.mul_(2)
    with pytest.raises(ValueError, match=r"rounded to 4 bits.*load_in_4bit.*False"):
        saved(module, tmp_path / "changed")


def test_a_base_folder_that_was_moved_is_named(olmoe, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    saved(SSMoE.from_base(tmp_path / "base", **PLAIN), tmp_path / "model")
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"/base is not there.*base_model_name_or_path"):
        SentenceTransformer(str(tmp_path / "model"))


# --- adapters ---------------------------------------------------------------------------------------------------------


def wrap(module, options):
    module.model = get_peft_model(module.model, LoraConfig(**options))


def inject(module, options):
    """What `model.add_adapter` of transformers does, which asks for another version of peft now and then."""
    inject_adapter_in_model(LoraConfig(**options), module.model)
    module.model._hf_peft_config_loaded = True


def wrap_and_forget(module, options):
    get_peft_model(module.model, LoraConfig(**options))


WAYS = [wrap, inject, wrap_and_forget]


@pytest.mark.parametrize("options", [ATTENTION, EXPERTS], ids=["attention", "experts"])
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_is_saved_by_itself(way, options, olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN | {"method": "ssmoe", "top_c": 5})
    plain = vectors(module)
    way(module, options)
    shaken(module.model)
    expected = vectors(module)
    assert not np.allclose(plain, expected, atol=1e-3)
    saved(module, tmp_path)
    assert not (tmp_path / "base").exists()
    assert size(tmp_path) < size(olmoe) / 2
    for again in (SentenceTransformer(str(tmp_path)), ssmoe_embed.load(tmp_path, progress=False)):
        np.testing.assert_allclose(vectors(again), expected, rtol=0, atol=1e-6)
        assert again[0].model.state_dict().keys() == module.model.state_dict().keys()
    again.save_pretrained(str(tmp_path / "again"))
    np.testing.assert_allclose(vectors(ssmoe_embed.load(tmp_path / "again")), expected, rtol=0, atol=1e-6)


def test_what_is_saved_is_an_adapter_that_peft_loads(olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN | {"method": "smoe"})
    wrap(module, ATTENTION)
    shaken(module.model)
    saved(module, tmp_path)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(olmoe).eval(), tmp_path / "adapter")
    other = SSMoE(model, AutoTokenizer.from_pretrained(olmoe), module.settings)
    np.testing.assert_allclose(vectors(other), vectors(module), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [ATTENTION, EXPERTS], ids=["attention", "experts"])
@pytest.mark.parametrize("full_names", [False, True])
def test_an_adapter_of_the_model_with_its_head_fits_the_decoder(full_names, options, olmoe, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    field = next(name for name in options if name.startswith("target"))
    if full_names:
        every = [name for name, _ in [*whole.named_modules(), *whole.named_parameters()]]
        options = options | {field: [name for name in every if name.endswith(tuple(options[field]))]}
    model = shaken(get_peft_model(whole, LoraConfig(**options)))
    model.save_pretrained(tmp_path)
    module = SSMoE.from_base(tmp_path, **PLAIN | {"method": "smoe"})
    decoder = model.merge_and_unload().model
    expected = SSMoE(decoder, AutoTokenizer.from_pretrained(olmoe), module.settings)
    np.testing.assert_allclose(vectors(module), vectors(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [SSMoE.from_base, lambda folder, **options: ssmoe_embed.load(folder, **options)[0]])
def test_an_adapters_folder_is_a_model_like_any_other(make, olmoe, tmp_path):
    model = shaken(get_peft_model(AutoModel.from_pretrained(olmoe).eval(), LoraConfig(**ATTENTION)))
    model.save_pretrained(tmp_path / "trained")
    module = make(tmp_path / "trained", **PLAIN | {"method": "ssmoe", "top_c": 5})
    expected = SSMoE(model, AutoTokenizer.from_pretrained(olmoe), module.settings, routers=module.routers)
    np.testing.assert_allclose(vectors(module), vectors(expected), rtol=0, atol=1e-6)
    again = ssmoe_embed.load(saved(module, tmp_path / "model"), progress=False)
    np.testing.assert_allclose(vectors(again), vectors(module), rtol=0, atol=1e-6)
    shutil.rmtree(tmp_path / "trained")
    np.testing.assert_allclose(vectors(ssmoe_embed.load(tmp_path / "model")), vectors(module), rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_on_a_changed_base_is_saved_with_it(way, olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN)
    add_tokens(module)
    way(module, ATTENTION)
    shaken(module.model)
    expected = vectors(module)
    shutil.move(saved(module, tmp_path / "model"), tmp_path / "moved")
    assert (tmp_path / "moved/base/model.safetensors").is_file()
    np.testing.assert_allclose(vectors(ssmoe_embed.load(tmp_path / "moved")), expected, rtol=0, atol=1e-6)


def test_a_model_that_includes_its_base_is_whole_with_an_adapter(olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, include_base=True, **PLAIN)
    wrap(module, ATTENTION)
    shaken(module.model)
    expected = vectors(module)
    shutil.move(saved(module, tmp_path / "model"), tmp_path / "moved")
    np.testing.assert_allclose(vectors(ssmoe_embed.load(tmp_path / "moved")), expected, rtol=0, atol=1e-6)


def two(module):
    module.model.add_adapter("second", LoraConfig(**ATTENTION))


def switched_off(module):
    module.model.base_model.disable_adapter_layers()


def merged(module):
    module.model.merge_adapter()


@pytest.mark.parametrize("change", [two, switched_off, merged])
def test_adapters_that_cannot_be_saved_are_refused_with_the_way_out(change, olmoe, tmp_path):
    module = SSMoE.from_base(olmoe, **PLAIN)
    wrap(module, ATTENTION)
    change(module)
    with pytest.raises(ValueError, match=r"one adapter, active and not merged.*merge_and_unload"):
        saved(module, tmp_path)


def test_an_adapter_of_another_model_is_refused(olmoe, model_folder, tmp_path):
    model = get_peft_model(
        AutoModel.from_pretrained(olmoe), LoraConfig(r=4, target_modules=["layers.0.self_attn.q_proj"])
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    for changes, message in (
        ({"target_modules": ["q_proj"]}, "has no weights for"),
        ({"base_model_name_or_path": None}, "does not say which model"),
        ({"base_model_name_or_path": "/nowhere/base"}, "/nowhere/base is not there"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            SSMoE.from_base(tmp_path, **PLAIN)


# --- training with an adapter -----------------------------------------------------------------------------------------


def trainer(model, folder, steps, **options):
    pairs = Dataset.from_dict(
        {"anchor": ["a cat", "a dog", "rain", "snow"], "positive": ["cats", "dogs", "wet", "cold"]}
    )
    settings = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": steps, "save_steps": 1, "seed": 1}
    settings |= {"output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "use_cpu": True} | options
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**settings),
        train_dataset=pairs,
        eval_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
    )


def to_train(olmoe, way):
    module = SSMoE.from_base(olmoe, **PLAIN | {"method": "smoe"})
    torch.manual_seed(0)
    way(module, ATTENTION)
    return SentenceTransformer(modules=[module], device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("way", [wrap, inject])
def test_a_fine_tune_with_an_adapter_is_resumed_and_its_best_model_loaded(way, olmoe, tmp_path):
    model = to_train(olmoe, way)
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "logging_steps": 1}
    run = trainer(model, tmp_path / "run", 2, **best)
    run.train()
    np.testing.assert_allclose(
        vectors(model), vectors(SentenceTransformer(run.state.best_model_checkpoint)), rtol=0, atol=1e-6
    )
    whole = to_train(olmoe, way)
    trainer(whole, tmp_path / "whole", 2).train()
    first, second = (SentenceTransformer(str(tmp_path / f"whole/checkpoint-{step}")) for step in (1, 2))
    assert not np.allclose(vectors(first), vectors(second), atol=1e-4)
    resumed = to_train(olmoe, way)
    shutil.copytree(tmp_path / "whole/checkpoint-1", tmp_path / "resumed/checkpoint-1")
    trainer(resumed, tmp_path / "resumed", 2).train(resume_from_checkpoint=True)
    np.testing.assert_allclose(vectors(resumed), vectors(second), rtol=0, atol=1e-5)
