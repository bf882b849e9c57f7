"""The published state dict is read whole, under the right names, or refused with what is wrong."""

import pickle

import pytest
import torch
from clip_moe import PUBLISHED, Release, published, shapes
from safetensors.torch import save_file

from ssmoe_embed.vision import ClipMoeModel, load_published
from ssmoe_embed.vision.checkpoint import converted, published_config, published_shapes


@pytest.fixture(scope="module")
def tensors():
    return published()


def test_the_published_size_has_915_tensors_each_with_its_place_in_the_model():
    expected = shapes(PUBLISHED)
    assert len(expected) == 915
    assert round(sum(torch.Size(shape).numel() for shape in expected.values()) / 1e6, 1) == 1202.4
    config = published_config(expected)
    assert published_shapes(config) == expected
    assert (config.text_config.num_attention_heads, config.vision_config.num_attention_heads) == (12, 16)
    assert (config.vision_config.image_size, config.text_config.max_position_embeddings) == (224, 248)
    with torch.device("meta"):
        model = ClipMoeModel(config)
    made = converted({name: torch.empty(shape, device="meta") for name, shape in expected.items()}, config)
    assert {name: tensor.shape for name, tensor in made.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


def test_every_published_tensor_moves_the_vectors(tensors):
    """None is dropped or put in two places: with all of them marked, each mark is found once."""
    marked = {name: torch.full_like(tensor, float(place)) for place, (name, tensor) in enumerate(tensors.items())}
    found = converted(marked, published_config({name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    places = {name: set(tensor.flatten().tolist()) for name, tensor in found.items()}
    assert set.union(*places.values()) == set(map(float, range(len(tensors))))
    assert sum(tensor.numel() for tensor in found.values()) == (
        sum(tensor.numel() for tensor in tensors.values()) - tensors["positional_embedding"].numel()
    )
    assert places["text_model.embeddings.position_embedding.weight"] == {0.0, 1.0}
    assert found["text_model.embeddings.position_embedding.weight"][:, 0].tolist() == [0.0] * 20 + [1.0] * 10


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip-moe.pt", "clip-moe.safetensors"])
def test_it_is_loaded_from_both_kinds_of_files_and_saved_as_safetensors(tensors, name, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
    model = load_published(tmp_path / name)
    assert not model.training
    pixels = torch.randn(2, 3, 12, 12)
    own = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(own.double(), Release(tensors).image(pixels), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    loaded = ClipMoeModel.from_pretrained(tmp_path / "saved").eval()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded.get_image_features(pixels).pooler_output, own)  # but for where tensors begin


def test_half_precision_is_loaded_as_asked_for(tensors, tmp_path):
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "half.pt")
    assert load_published(tmp_path / "half.pt").dtype == torch.float32
    assert load_published(tmp_path / "half.pt", dtype=torch.bfloat16).dtype == torch.bfloat16


BLOCK = "visual.transformer.resblocks.1."


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{BLOCK}experts.2.c_fc.bias"), rf"lacks {BLOCK}experts\.2\.c_fc\.bias\."),
        (without("positional_embedding_res"), r"is no CLIP-MoE: it lacks 'positional_embedding_res'"),
        (lambda tensors: tensors | {"extra": torch.zeros(1)}, r"has unknown extra\."),
        (
            replaced(f"{BLOCK}experts.0.c_proj.weight", lambda x: x.T),
            r"c_proj\.weight is \[512, 128\], not \[128, 512\]",
        ),
        (
            replaced("visual.positional_embedding", lambda x: x[:-1]),
            r"visual\.positional_embedding is \[9, 128\], not \[5",
        ),
        (replaced("ln_final.bias", lambda x: x * torch.nan), r"ln_final\.bias hold NaN or infinity"),
        (lambda tensors: {f"module.{key}": value for key, value in tensors.items()}, r"it lacks 'text_projection'"),
        (lambda _: {}, r"it lacks 'text_projection'"),
        (replaced("visual.class_embedding", lambda x: x[:100]), r"no multiple of 64, an attention head's: 100\."),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(tensors, change, message, tmp_path):
    torch.save(change(tensors), tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=message) as refusal:
        load_published(tmp_path / "broken.pt")
    assert "broken.pt" in str(refusal.value)


def test_many_faults_are_summed_up(tensors):
    lacking = {name: tuple(x.shape) for name, x in tensors.items() if "resblocks.1.experts" not in name}
    with pytest.raises(ValueError, match=r"lacks .* and 27 more\."):
        published_config(lacking)


def test_a_dense_checkpoint_is_told_how_to_become_one(tensors):
    dense = {name.replace("experts.0.", "mlp."): tuple(x.shape) for name, x in tensors.items() if "gate" not in name}
    with pytest.raises(
        ValueError, match=r"It is a dense CLIP: load that in transformers and use ClipMoeModel\.from_clip"
    ):
        published_config(dense)


class Harm:
    """What unpickling would run."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Harm()), "holds other things than tensors"),
        (b"", "truncated"),
        (b"not a checkpoint", "truncated, or holds other things"),
    ],
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_that_is_no_state_dict_is_refused_and_nothing_is_run(content, message, name, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path / name)
    assert "unpickled" not in capfd.readouterr().out


def test_a_whole_training_state_is_refused(tensors, tmp_path):
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match=r"a dictionary with \['epoch', 'state_dict'\], not a state dict"):
        load_published(tmp_path / "training.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="a list, not a state dict"):
        load_published(tmp_path / "list.pt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.pt; download clip-moe-4-2-sharegpt4v\.pt"):
        load_published(tmp_path / "x.pt")
