"""The benchmark that waits for a GPU, on the CPU: what it counts, what it prints, and what it refuses."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel
from typer.testing import CliRunner


@pytest.fixture
def gpu(monkeypatch):
    """The script, whose systems run in this process."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    module = importlib.import_module("gpu")

    def here(script, command, *arguments):
        return json.loads(CliRunner().invoke(module.app, [command, *arguments]).stdout.splitlines()[-1])

    monkeypatch.setattr(module, "in_subprocess", here)
    return module


@pytest.mark.parametrize("length", [1, 6])
def test_operations_are_those_that_the_model_carries_out(gpu, olmoe, length):
    model = AutoModel.from_pretrained(olmoe, attn_implementation="eager", experts_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, length, dtype=torch.long), use_cache=False)
    config = model.config
    unseen = (
        4 * config.num_hidden_layers * config.hidden_size * (length - 1) / 2
    )  # eager attention computes and masks it
    assert gpu.flops_a_token(olmoe, length) == counter.get_total_flops() / length - unseen


def test_every_system_has_its_row_and_the_share_is_of_the_given_peak(gpu, olmoe, tmp_path):
    output = tmp_path / "gpu.md"
    shape = ["--batch-size", "2", "--length", "8", "--rounds", "1"]
    command = ["measure", str(olmoe), "--device", "cpu", "--peak", "1e-6", *shape, "--output", str(output)]
    result = CliRunner().invoke(gpu.app, command)
    assert result.exit_code == 0, result.output
    rows = [
        line.strip("| ").split(" | ")
        for line in output.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ][2:]
    assert [tuple(row[:2]) for row in rows] == gpu.SYSTEMS
    for _, experts, speed, rate, share, size, _ in rows:
        if experts == "sonicmoe":
            assert "kernels" in speed
            assert (rate, share, size) == ("–", "–", "–")
        else:
            speed = float(speed.replace(",", ""))
            assert speed > 0
            assert float(share) == pytest.approx(speed * gpu.flops_a_token(olmoe, 8) / 1e6, rel=0.01)
    assert f"{gpu.flops_a_token(olmoe, 8) / 1e9:.3f} GFLOP a token" in output.read_text(encoding="utf-8")


def test_without_a_gpu_it_says_so_before_anything_is_written(gpu, tmp_path):
    result = CliRunner().invoke(gpu.app, ["measure", str(tmp_path / "checkpoint")])
    assert result.exit_code == 1
    assert re.search(r"sees no CUDA device here.*GPU", result.output)
    assert not (tmp_path / "checkpoint").exists()


def test_a_chip_whose_peak_is_not_known_needs_the_users(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40")
    result = CliRunner().invoke(gpu.app, ["measure", str(tmp_path / "checkpoint")])
    assert result.exit_code == 1
    assert re.search(r"'NVIDIA L40' is not known.*--peak", result.output)
    assert gpu.peak_of("NVIDIA L40", 181.0) == 181.0
    assert gpu.peak_of("NVIDIA L40S", None) == 362.0
