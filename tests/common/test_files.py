"""Nothing half-written, nothing pickled, the same bytes twice."""

import pytest
import torch

from ssmoe_embed.common.files import atomic_file, atomic_folder, load_tensors, save_tensors


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with atomic_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(path) as folder:
        (folder / "part").write_text("x")
    assert [file.name for file in path.iterdir()] == ["part"]


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("x")
    with pytest.raises(FileExistsError, match="overwrite"), atomic_folder(path):
        pass
    with pytest.raises(RuntimeError), atomic_folder(path, overwrite=True):
        raise RuntimeError
    assert (path / "old").exists()
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "new").write_text("y")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    tensors = {name: torch.arange(5.0) for name in "cab"}
    metadata = {"z": 1, "a": {"y": [1, 2], "b": None}}
    save_tensors(tmp_path / "one", tensors, metadata)
    save_tensors(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded, found = load_tensors(tmp_path / "one")
    assert found == metadata
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "ssmoe.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"ssmoe\.safetensors is truncated or corrupted"):
        load_tensors(path)


def test_a_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not written by ssmoe_embed"):
        load_tensors(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="ssmoe build"):
        load_tensors(tmp_path / "none.safetensors")
