"""Building the small repository, and finding a model by its name."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import stored_tensors
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tiny import FAMILIES, SHARDED, TOP_C
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

import ssmoe_embed
from ssmoe_embed.embedding import calibration
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.hub import models, names
from ssmoe_embed.hub.names import RECIPES, Recipe
from ssmoe_embed.spectral import routers
from ssmoe_embed.spectral.routers import SpectralRouters

QUIET = {"show_progress_bar": False}
METHODS = ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")
COMMIT = "0123456789" * 4
PROBES = ["How do I undo the last commit?", "x", ""]


def build(base, output, texts, **options):
    options = {"top_c": TOP_C, "calibration_texts": texts, "progress": False} | options
    return ssmoe_embed.build(base, output, **options)


def files(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def no_network(*args, **kwargs):
    raise AssertionError("the network was asked")


# --- what is built ----------------------------------------------------------------------------------------------------


def test_a_build_writes_the_small_repository_and_nothing_else(built):
    expected = {
        "README.md",
        "config_sentence_transformers.json",
        "modules.json",
        "ssmoe.safetensors",
        "ssmoe_config.json",
    }
    assert set(files(built)) == expected
    assert sum(map(len, files(built).values())) < 100_000
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_build_returns_its_folder_which_loads(built):
    assert isinstance(built, Path)
    vectors = SentenceTransformer(str(built)).encode(PROBES, **QUIET)
    assert np.isfinite(vectors).all()


def test_every_family_can_be_built_and_loaded(family, model_folder, texts, tmp_path):
    folder = build(model_folder(family), tmp_path / "out", texts[:8])
    vectors = ssmoe_embed.load(folder, progress=False).encode(PROBES, **QUIET)
    assert np.isfinite(vectors).all()
    direct = SSMoE.from_base(model_folder(family), top_c=TOP_C, calibration_texts=texts[:8], progress=False)
    expected = SentenceTransformer(modules=[direct], device="cpu").encode(PROBES, **QUIET)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)


def test_two_builds_give_identical_bytes(model_folder, texts, tmp_path):
    for name in ("first", "second"):
        build(model_folder(SHARDED), tmp_path / name, texts, license="mit", prompts=["prompteol"])
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_all_methods_load_after_a_build_without_fitting_again(built, monkeypatch):
    monkeypatch.setattr(models.EmbeddingModel, "preprocess", SentenceTransformer.preprocess)
    monkeypatch.setattr("ssmoe_embed.embedding.calibration.check_sample", no_network)
    for method in METHODS:
        model = ssmoe_embed.load(built, method=method, progress=False)
        assert np.isfinite(model.encode(PROBES, **QUIET)).all()


def test_further_prompts_are_calibrated_too(olmoe, texts, tmp_path, monkeypatch):
    folder = build(olmoe, tmp_path / "out", texts, prompts=["prompteol", "{text} ="])
    monkeypatch.setattr("ssmoe_embed.embedding.calibration.check_sample", no_network)
    for prompt in ("none", "prompteol", "{text} ="):
        for method in METHODS:
            assert np.isfinite(ssmoe_embed.load(folder, method=method, prompt=prompt).encode(PROBES, **QUIET)).all()


def test_a_calibration_that_was_not_built_is_fitted_when_it_is_loaded(built, texts, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.embedding.calibration.calibration_texts", lambda: list(texts))
    model = ssmoe_embed.load(built, prompt="sentiment", calibration="whiten", progress=False)
    assert np.isfinite(model.encode(PROBES, **QUIET)).all()


def test_a_built_model_keeps_the_settings_it_was_built_with(olmoe, texts, tmp_path):
    settings = {"method": "moee", "alpha": 0.7, "combination": "sum", "calibration": "whiten", "prompt": "prompteol"}
    spectral = {"select": "average", "sign": "canonical", "scale": "router", "top_c": 0.25, "exclude_common": 2}
    folder = build(olmoe, tmp_path / "out", texts, **(settings | spectral))
    module = ssmoe_embed.load(folder, progress=False)[0]
    assert {name: module.settings.as_dict()[name] for name in settings} == settings
    assert module.routers.settings.as_dict() == spectral


@pytest.mark.parametrize("calibration", ["none", "batch"])
def test_a_build_without_a_fitted_calibration_is_possible(calibration, olmoe, tmp_path):
    folder = build(olmoe, tmp_path / "out", None, calibration=calibration)
    assert ssmoe_embed.load(folder, progress=False)[0].calibrations.factors == {}


def test_the_paper_preset_can_be_built(olmoe, texts, tmp_path):
    model = ssmoe_embed.load(build(olmoe, tmp_path / "out", texts, method="paper"), progress=False)
    assert model[0].settings.prompt == "release-none"
    assert np.isfinite(model.encode(PROBES, **QUIET)).all()


def test_a_model_with_an_earlier_hidden_layer_can_be_built(olmoe, texts, tmp_path):
    model = ssmoe_embed.load(build(olmoe, tmp_path / "out", texts, hidden_layer=2), progress=False)
    assert len(model[0].model.layers) == 2
    assert np.isfinite(model.encode(PROBES, **QUIET)).all()


def test_the_dtype_of_a_build_is_the_dtype_it_is_loaded_in(olmoe, texts, tmp_path):
    folder = build(olmoe, tmp_path / "out", texts, dtype="bfloat16")
    assert str(ssmoe_embed.load(folder, progress=False)[0].model.dtype) == "torch.bfloat16"
    full = ssmoe_embed.load(folder, model_kwargs={"dtype": "float32"}, progress=False)
    assert str(full[0].model.dtype) == "torch.float32"


def test_an_included_base_makes_a_folder_that_can_be_moved(olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    expected = ssmoe_embed.load(build(tmp_path / "base", tmp_path / "pointing", texts), progress=False)
    expected = expected.encode(PROBES, **QUIET)
    build(tmp_path / "base", tmp_path / "whole", texts, include_base=True)
    shutil.rmtree(tmp_path / "base")
    shutil.move(tmp_path / "whole", tmp_path / "deep" / "er")
    for model in (
        ssmoe_embed.load(tmp_path / "deep/er", progress=False),
        SentenceTransformer(str(tmp_path / "deep/er")),
    ):
        np.testing.assert_allclose(model.encode(PROBES, **QUIET), expected, rtol=0, atol=1e-6)
    for name, content in files(tmp_path / "deep/er").items():
        assert str(tmp_path).encode() not in content, name


def test_a_model_that_includes_its_base_saved_again_is_still_whole(olmoe, texts, tmp_path):
    build(olmoe, tmp_path / "whole", texts, include_base=True)
    model = ssmoe_embed.load(tmp_path / "whole", progress=False)
    expected = model.encode(PROBES, **QUIET)
    model.save_pretrained(str(tmp_path / "again"))
    shutil.rmtree(tmp_path / "whole")
    again = SentenceTransformer(str(tmp_path / "again")).encode(PROBES, **QUIET)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)


def test_two_builds_with_an_included_base_give_identical_bytes(olmoe, texts, tmp_path):
    for name in ("first", "second"):
        build(olmoe, tmp_path / name, texts[:5], include_base=True)
    assert files(tmp_path / "first") == files(tmp_path / "second")


ANOTHER_RUN = """
import json, sys, torch, ssmoe_embed
torch.set_num_threads(1)
base, output, texts = sys.argv[1:]
texts = json.loads(texts)
for name, quantize, some in (("plain", None, texts), ("packed", "nf4", texts[:8])):
    made = ssmoe_embed.build(
        base, f"{output}/{name}", calibration_texts=some, top_c=5, license="apache-2.0", progress=False, quantize=quantize
    )
    ssmoe_embed.load(made, progress=False)
"""


@pytest.mark.slow
def test_another_run_gives_identical_bytes_and_without_progress_shows_nothing(
    built, olmoe, texts, tmp_path, environment
):
    command = [sys.executable, "-c", ANOTHER_RUN, str(olmoe), str(tmp_path), json.dumps(texts)]
    bars = {name: value for name, value in environment.items() if name != "TQDM_DISABLE"} | {"PYTHONHASHSEED": "1"}
    shown = subprocess.run(command, env=bars, check=True, capture_output=True, encoding="utf-8")
    assert files(tmp_path / "plain") == files(built)
    assert "%|" not in shown.stderr
    assert "Loading" not in shown.stdout + shown.stderr


def test_only_a_local_base_can_be_included(tmp_path, texts):
    with pytest.raises(ValueError, match="'some/model' is none"):
        build("some/model", tmp_path / "out", texts, include_base=True)
    assert list(tmp_path.iterdir()) == []


# --- what is refused or interrupted -----------------------------------------------------------------------------------


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


STEPS = [
    (SpectralRouters, "from_checkpoint"),
    (AutoModel, "from_pretrained"),
    (Encoder, "read"),
    (SSMoE, "save"),
    (models.EmbeddingModel, "save_pretrained"),
    (models.shutil, "copytree"),
]


@pytest.mark.parametrize("how", [interrupted, full_disk])
@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
def test_an_interrupted_build_leaves_nothing_behind(where, step, how, *, olmoe, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(where, step, how)
    with pytest.raises((KeyboardInterrupt, OSError)):
        build(olmoe, tmp_path / "deep" / "out", texts, include_base=True)
    assert [path for path in tmp_path.rglob("*") if path.name != "deep"] == []


def test_an_interruption_in_the_midst_of_the_calibration_leaves_nothing_behind(olmoe, texts, tmp_path, monkeypatch):
    calls, read = [], Encoder.read

    def third_time(*args):
        calls.append(1)
        return interrupted() if len(calls) == 3 else read(*args)

    monkeypatch.setattr(Encoder, "read", third_time)
    with pytest.raises(KeyboardInterrupt):
        build(olmoe, tmp_path / "out", texts, batch_size=8)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten_unasked_and_nothing_is_computed(built, olmoe, texts, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "out")
    before = files(tmp_path / "out")
    monkeypatch.setattr(SpectralRouters, "from_checkpoint", no_network)
    with pytest.raises(FileExistsError, match=r"out exists already.*overwrite=True"):
        build(olmoe, tmp_path / "out", texts)
    assert files(tmp_path / "out") == before


def test_what_exists_is_replaced_as_a_whole_when_asked(built, olmoe, texts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stale.txt").write_text("old", encoding="utf-8")
    build(olmoe, tmp_path / "out", texts, overwrite=True, license="apache-2.0")
    assert files(tmp_path / "out") == files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_failed_overwrite_keeps_what_was_there(where, step, *, built, olmoe, texts, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "out")
    monkeypatch.setattr(where, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(olmoe, tmp_path / "out", texts, overwrite=True, include_base=True)
    assert files(tmp_path / "out") == files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_of_the_very_last_rename_keeps_what_was_there(built, olmoe, texts, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "out")
    replace, calls = Path.replace, []

    def fail_on_the_new_folder(path, target):
        if path.name == "new":
            calls.append(path)
            full_disk()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_on_the_new_folder)
    with pytest.raises(OSError, match="No space left"):
        build(olmoe, tmp_path / "out", texts, overwrite=True)
    assert calls
    assert files(tmp_path / "out") == files(built)


def test_the_base_model_is_not_overwritten_by_what_is_built_from_it(olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    with pytest.raises((ValueError, FileExistsError)):
        build(tmp_path / "base", tmp_path / "base", texts, overwrite=True)
    assert files(tmp_path / "base") == files(olmoe)


def test_a_folder_that_holds_the_base_model_is_not_overwritten(olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "models/base")
    with pytest.raises((ValueError, FileExistsError)):
        build(tmp_path / "models/base", tmp_path / "models", texts, overwrite=True)
    assert files(tmp_path / "models/base") == files(olmoe)


def test_a_base_is_copied_into_a_folder_inside_itself_without_the_folder_being_copied_too(olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    before = set(files(tmp_path / "base"))
    try:
        build(tmp_path / "base", tmp_path / "base/embedder", texts[:5], include_base=True)
    except ValueError:
        assert set(files(tmp_path / "base")) == before
    except shutil.Error:
        pytest.fail("the folder was copied into itself, until its name was too long", pytrace=False)
    else:
        assert set(files(tmp_path / "base/embedder/base")) == before


REFUSED = [
    ({"methd": "ev"}, r"'methd'.*Did you mean 'method'"),
    ({"topc": 5}, r"'topc'.*Did you mean 'top_c'"),
    ({"calibration_text": ["a"]}, r"'calibration_text'"),
    ({"method": "sssmoe"}, r"method='sssmoe'.*Did you mean 'ssmoe'"),
    ({"alpha": 2}, r"alpha=2"),
    ({"top_c": 0}, r"top_c=0"),
    ({"sign": "algned"}, r"sign='algned'.*Did you mean 'aligned'"),
    ({"prompts": ["promptoel"]}, r"prompt='promptoel'.*Did you mean 'prompteol'"),
    ({"hidden_layer": 9}, r"hidden_layer=9 is out of range"),
    ({"calibration_texts": ["a", None]}, r"position 1 of the calibration texts"),
    ({"calibration_texts": []}, r"calibration text"),
    ({"calibration_texts": "one string"}, r"str"),
    ({"max_seq_length": 3, "prompt": "prompteol"}, r"max_seq_length=3 leaves no room"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_a_bad_setting_is_named_and_leaves_nothing_behind(options, message, olmoe, texts, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(olmoe, tmp_path / "out", texts, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_is_refused_before_the_long_work(olmoe, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(SpectralRouters, "from_checkpoint", no_network)
    for options in ({"methd": "ev"}, {"top_c": -1}, {"prompts": ["promptoel"]}, {"calibration_texts": ["a", 3]}):
        with pytest.raises(ValueError, match=r"methd|top_c|promptoel|position 1"):
            build(olmoe, tmp_path / "out", texts, **options)


def test_a_dense_model_is_refused_with_what_is_supported(texts, tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(ssmoe_embed.UnsupportedModelError) as refusal:
        build(tmp_path / "dense", tmp_path / "out", texts)
    assert all(name in str(refusal.value) for name in FAMILIES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "missing", ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_a_checkpoint_that_lacks_a_weight_is_refused(missing, olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    tensors = stored_tensors(olmoe)
    del tensors[missing]
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=missing.removeprefix("model.").replace(".", r"\.") + r".*incomplete"):
        build(tmp_path / "base", tmp_path / "out", texts)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_an_experts_weight_is_refused(olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    tensors = stored_tensors(olmoe)
    del tensors["model.layers.1.mlp.experts.4.down_proj.weight"]
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts"):
        build(tmp_path / "base", tmp_path / "out", texts)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts"):
        SSMoE.from_base(tmp_path / "base", method="moee", calibration="none", progress=False)


def test_a_truncated_checkpoint_is_named(olmoe, texts, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    content = (tmp_path / "base/model.safetensors").read_bytes()
    (tmp_path / "base/model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises((ValueError, OSError), match=r"model\.safetensors"):
        build(tmp_path / "base", tmp_path / "out", texts)


# --- a run that was killed --------------------------------------------------------------------------------------------


def killed(olmoe, output, texts, place):
    """A build that got SIGKILL after its first layer or in its calibration, in a copy of this process."""
    module, name = {"layer": (routers, "save_tensors"), "read": (Encoder, "read")}[place]

    def build_and_die():
        before, calls = getattr(module, name), []

        def dying(*args, **kwargs):
            calls.append(before(*args, **kwargs))
            if len(calls) == (1 if place == "layer" else 3):
                os.kill(os.getpid(), signal.SIGKILL)
            return calls[-1]

        setattr(module, name, dying)
        calibration._NOTED = 1
        build(olmoe, output, texts, license="apache-2.0")

    process = multiprocessing.get_context("fork").Process(target=build_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name.startswith(".out.") for path in output.parent.iterdir()] == [True]


@pytest.mark.parametrize("place", ["layer", "read"])
def test_a_killed_build_goes_on_and_gives_the_same_bytes(place, *, built, olmoe, texts, tmp_path, monkeypatch):
    killed(olmoe, tmp_path / "out", texts, place)
    made, read = [], []
    passes = 2 * len(calibration._batches(sorted(texts, key=len), 32, calibration._CPU_CHARACTERS))
    embeddings = routers.spectral_embeddings
    monkeypatch.setattr(routers, "spectral_embeddings", lambda *a, **k: made.append(1) or embeddings(*a, **k))
    monkeypatch.setattr(calibration, "_NOTED", 1)
    monkeypatch.setattr(calibration, "save_tensors", lambda *args: read.append(1))
    build(olmoe, tmp_path / "out", texts, license="apache-2.0")
    assert len(read) == passes - (2 if place == "read" else 0)
    assert len(made) == (2 if place == "layer" else 0)  # of three layers
    assert files(tmp_path / "out") == files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_build_takes_nothing_from_a_killed_one_and_removes_it(olmoe, texts, tmp_path):
    killed(olmoe, tmp_path / "out", texts, "layer")
    build(olmoe, tmp_path / "out", texts, top_c=4)
    build(olmoe, tmp_path / "other", texts, top_c=4)
    assert files(tmp_path / "out") == files(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_room_and_rights_are_looked_at_before_the_work(olmoe, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(SpectralRouters, "from_checkpoint", no_network)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"MB are needed and 0 MB are free.*'/.*/out'$"):
        build(olmoe, tmp_path / "out", texts)
    assert list(tmp_path.iterdir()) == []


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path):
    """Given a repository id and a folder, a hub cache that holds it."""

    def cache(repository, folder):
        place = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs/main").write_text(COMMIT, encoding="utf-8")
        return str(tmp_path / "cache")

    return cache


def test_a_folder_with_an_embedding_model_is_loaded(built):
    for name in (built, str(built)):
        assert ssmoe_embed.load(name, progress=False)[0].settings.alpha == 0.5


def test_a_folder_with_a_language_model_becomes_an_embedding_model(olmoe):
    model = ssmoe_embed.load(olmoe, method="moee", calibration="none", progress=False)
    assert model.encode(PROBES, **QUIET).shape == (3, 56)


def test_a_folder_with_neither_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither modules\.json .* nor config\.json"):
        ssmoe_embed.load(tmp_path)


def test_a_relative_folder_wins_over_a_recipe_of_that_name(built, tmp_path, monkeypatch):
    [name, *_] = RECIPES
    shutil.copytree(built, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "model_info", no_network)
    monkeypatch.setattr(models, "build", no_network)
    assert ssmoe_embed.load(name, progress=False).encode(PROBES, **QUIET).shape == (3, 56)


def test_a_relative_folder_wins_over_the_bundled_model(built, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path / "ssmoe/tiny")
    monkeypatch.chdir(tmp_path)
    assert ssmoe_embed.load("ssmoe/tiny", progress=False).get_embedding_dimension() == 56


def test_a_model_in_the_hub_cache_is_loaded_without_network(built, hub_cache, monkeypatch):
    cache = hub_cache("someone/some-embedder", built)
    monkeypatch.setattr(names, "model_info", no_network)
    model = ssmoe_embed.load("someone/some-embedder", cache_folder=cache, local_files_only=True, progress=False)
    expected = ssmoe_embed.load(built, progress=False).encode(PROBES, **QUIET)
    np.testing.assert_array_equal(model.encode(PROBES, **QUIET), expected)


def test_a_base_model_in_the_hub_cache_is_loaded_without_network(olmoe, hub_cache, monkeypatch):
    cache = hub_cache("someone/some-moe", olmoe)
    monkeypatch.setattr(names, "model_info", no_network)
    options = {"cache_folder": cache, "local_files_only": True, "progress": False}
    model = ssmoe_embed.load("someone/some-moe", top_c=TOP_C, calibration="none", **options)
    assert model.encode(PROBES, **QUIET).shape == (3, 56)


def test_the_hub_cache_wins_over_a_recipe(built, hub_cache, monkeypatch):
    [name, *_] = RECIPES
    monkeypatch.setattr(models, "build", no_network)
    options = {"cache_folder": hub_cache(name, built), "local_files_only": True, "progress": False}
    assert ssmoe_embed.load(name, **options).get_embedding_dimension() == 56


def test_a_recipe_is_built_once_into_the_users_cache(olmoe, texts, tmp_path, monkeypatch):
    [name, *_] = RECIPES
    built_models = []

    def build_from_the_tiny_one(base, output, **options):
        built_models.append(base)
        return build(olmoe, output, texts, prompt="prompteol")

    monkeypatch.setattr(models, "build", build_from_the_tiny_one)
    monkeypatch.setattr(models, "user_cache_path", lambda *args: tmp_path)
    for _ in range(2):
        model = ssmoe_embed.load(name, local_files_only=True, progress=False)
        assert model[0].settings.prompt == "prompteol"
    assert built_models == [name]


@pytest.mark.parametrize("name", ["no/such-model", "nosuchmodel", "ssmoe/olmo-7b", "with space"])
def test_an_unknown_name_lists_the_recipes(name):
    with pytest.raises(FileNotFoundError) as refusal:
        ssmoe_embed.load(name, local_files_only=True)
    for part in (repr(name), "ssmoe/tiny", *RECIPES, "ssmoe build"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", ["/nope", "a/b/c", "./no/folder", "../none", "~/no-such-folder", Path("none")])
def test_a_path_is_a_missing_folder_and_no_name_to_ask_the_hub_for(name, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "model_info", no_network)
    for use in (ssmoe_embed.load, lambda base: build(base, tmp_path / "out", None)):
        with pytest.raises(FileNotFoundError, match=r"The folder .* does not exist"):
            use(name)


@pytest.mark.parametrize(("typed", "meant"), [("ssmoe/tinny", "ssmoe/tiny"), ("ssmoe/olmo-7b", "ssmoe/olmoe-7b")])
def test_a_mistyped_name_suggests_the_nearest(typed, meant):
    with pytest.raises(FileNotFoundError, match=f"Did you mean '{meant}'"):
        ssmoe_embed.load(typed, local_files_only=True)


@pytest.mark.parametrize("name", ["ssmoe/tiny", None])
def test_an_embedding_model_is_not_built_again(name, built, tmp_path, texts):
    with pytest.raises(ValueError, match="is an embedding model already"):
        build(name or built, tmp_path / "out", texts)


def test_a_home_folder_is_found(built, olmoe, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(built, tmp_path / "model")
    shutil.copytree(olmoe, tmp_path / "base")
    assert ssmoe_embed.load("~/model", progress=False).get_embedding_dimension() == 56
    assert build("~/base", "~/out", texts) == tmp_path / "out"
    assert ssmoe_embed.load("~/out", progress=False).get_embedding_dimension() == 56


def test_a_recipe_can_be_built_into_any_folder_with_settings_of_ones_own(olmoe, texts, tmp_path, monkeypatch):
    recipe = Recipe(str(olmoe), "mit", "2024-01-01", settings={"prompt": "prompteol", "alpha": 0.7, "top_c": 3})
    monkeypatch.setitem(RECIPES, "ssmoe/own", recipe)
    module = ssmoe_embed.load(build("ssmoe/own", tmp_path / "out", texts, alpha=0.9), progress=False)[0]
    assert (module.settings.prompt, module.settings.alpha) == ("prompteol", 0.9)
    assert (module.routers.settings.top_c, module.source.license) == (TOP_C, "mit")


def test_without_a_network_an_unknown_name_says_so(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such folder.*(offline|OfflineMode).*Recipes: ssmoe/tiny"):
        ssmoe_embed.load("no/such-model")


def test_spectral_settings_cannot_override_those_of_a_built_model_silently(built):
    with pytest.raises(ValueError, match="top_c"):
        ssmoe_embed.load(built, top_c=3, progress=False)


def test_an_unknown_setting_of_load_suggests_the_nearest(built, olmoe):
    for name in (built, olmoe):
        with pytest.raises(ValueError, match=r"'methd'.*Did you mean 'method'"):
            ssmoe_embed.load(name, methd="ev", progress=False)


def test_a_small_repository_names_its_base_and_the_settings(built, olmoe):
    config = json.loads((built / "ssmoe_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(olmoe)
    assert (config["method"], config["base_license"]) == ("ssmoe", "apache-2.0")
