"""Nothing half-written, nothing pickled, the same bytes twice."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

from ssmoe_embed.common.files import atomic_file, atomic_folder, load_tensors, save_tensors, workplace


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


KILLED_WRITING = """
import os, signal, sys
from ssmoe_embed.common.files import atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["file.bin", "[all]*.json"])
def test_what_a_killed_write_left_is_removed_by_the_next_one_and_a_living_ones_is_not(tmp_path, name):
    path, others = tmp_path / name, [f".{name}.backup", f".{name}x.unfinished-1"]
    for other in others:
        (tmp_path / other).write_bytes(b"mine")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITING, path], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert {file.name for file in tmp_path.iterdir()} == {name, *others}


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        (folder / "part").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(path) as folder:
        (folder / "part").write_text("x", encoding="utf-8")
    assert [file.name for file in path.iterdir()] == ["part"]


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("x", encoding="utf-8")
    with pytest.raises(FileExistsError, match="overwrite"), atomic_folder(path):
        pass
    with pytest.raises(RuntimeError), atomic_folder(path, overwrite=True):
        raise RuntimeError
    assert (path / "old").exists()
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "new").write_text("y", encoding="utf-8")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ssmoe_embed.common.files import workplace
with workplace(sys.argv[1], overwrite=True, task="a task") as work:
    (work.notes / "half").write_text("done")
    (work.new / "part").write_text("x")
    if sys.argv[2] == "renamed":
        Path(sys.argv[1]).replace(work.new.parent / "old")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path, when="filling"):
    """Leave what a killed run leaves."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), when], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL


def test_the_same_task_goes_on_with_the_notes_of_a_killed_one(tmp_path):
    path = tmp_path / "model"
    killed(path)
    with workplace(path, task="a task") as work:
        assert (work.notes / "half").read_text(encoding="utf-8") == "done"
        assert list(work.new.iterdir()) == []
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("task", ["another", None])
def test_another_task_begins_from_nothing_and_clears_up(task, tmp_path):
    path = tmp_path / "model"
    killed(path)
    with workplace(path, task=task) as work:
        assert list(work.notes.iterdir()) == []
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("x", encoding="utf-8")
    killed(path, "renamed")
    assert not path.exists()
    with pytest.raises(FileExistsError), atomic_folder(path):
        pass
    assert (path / "old").read_text(encoding="utf-8") == "x"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_the_work_of_a_living_process_is_left_alone(tmp_path):
    path = tmp_path / "model"
    with workplace(path, task="a task") as first:
        (first.notes / "mine").write_text("x", encoding="utf-8")
        with workplace(path, task="a task") as second:
            assert second.new != first.new
            assert list(second.notes.iterdir()) == []
        assert (first.notes / "mine").exists()
        path.rename(tmp_path / "seconds")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "seconds"]


def test_folders_that_only_look_alike_are_left_alone(tmp_path):
    for name in (".model.backup", ".models.unfinished-12345678", "model.unfinished-12345678"):
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "model"):
        pass
    assert len(list(tmp_path.iterdir())) == 4


def test_errors_name_the_final_place(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError) as error, atomic_folder(path) as folder:
        (folder / "none" / "file").write_text("x", encoding="utf-8")
    assert error.value.filename == str(path / "none" / "file")
    with pytest.raises(OSError, match=r"No space left.*model") as error, atomic_folder(path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (error.value.errno, error.value.filename) == (28, str(path))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OSError, match=r"/file"), atomic_folder(tmp_path / "file" / "model"):
        pass


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))
    with pytest.raises(OSError, match=r"1,008 MB are needed and 50 MB are free on its disk.*/model"):
        atomic_folder(tmp_path / "model", room=1_000_000_000).__enter__()
    assert list(tmp_path.iterdir()) == []


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
