"""Tokens a second on a GPU, and the fraction of the chip's dense bfloat16 peak that they are.

    python benchmarks/gpu.py measure /tmp/olmoe-7b-shape --output benchmarks/results/gpu.md

A checkpoint of OLMoE-7B's shape with random weights, written there first if nothing is there (13.8 GB), in bfloat16 and
in 4 bits, with every implementation of the experts that the machine has. Texts of one length, no padding; what is timed is
the embedding of a batch, read-out included. Every system runs in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from big_checkpoint import write_checkpoint
from measuring import Result, in_subprocess, machine
from transformers import AutoModel

from ssmoe_embed import SSMoE
from ssmoe_embed.families import family_of, load_config
from ssmoe_embed.quantization import memory_by_component

PLAIN = "bfloat16"
SYSTEMS = [(PLAIN, experts) for experts in ("eager", "grouped_mm", "sonicmoe")]
SYSTEMS += [(preset, "eager") for preset in ("nf4", "nf4-experts", "paper-nf4")]
"""Weights and the implementation of the experts; packed ones have only the one that asks for an expert at a time."""
PEAKS = {
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
}
"""TFLOP/s in dense bfloat16 by NVIDIA's data sheets, under the names that torch gives the devices."""

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def measure(  # noqa: PLR0917 (a command)
    folder: Annotated[Path, typer.Argument(help="The checkpoint; written if nothing is there.")],
    batch_size: Annotated[int, typer.Option(help="Texts a batch.", min=1)] = 32,
    length: Annotated[int, typer.Option(help="Tokens a text.", min=1)] = 512,
    rounds: Annotated[int, typer.Option(help="Batches that are timed; the median holds.", min=1)] = 10,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cuda",
    peak: Annotated[float | None, typer.Option(help="The chip's dense bfloat16 peak in TFLOP/s.")] = None,
    layers: Annotated[int, typer.Option(help="Decoder layers of a checkpoint that is written.", min=1)] = 16,
    output: Annotated[Path | None, typer.Option(help="Write the result there: .md or .json.")] = None,
) -> None:
    """Measure every system on one device and print the table."""
    name = device_name(device)
    peak = peak_of(name, peak)
    if not any(folder.glob("model.safetensors*")):  # the index is written last
        write_checkpoint(folder, layers)
    flops = flops_a_token(folder, length)
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for weights, experts in SYSTEMS:
        arguments = (weights, experts, str(folder), device, str(batch_size), str(length), str(rounds))
        try:
            one = in_subprocess(__file__, "one", *arguments)
        except subprocess.CalledProcessError as error:
            one = {"failed": f"exit status {error.returncode}, see above"}
        found[f"{weights}, {experts}"] = one
        rows.append([weights, experts, *_cells(one, flops, peak)])
        typer.echo(f"{weights}, {experts}: {json.dumps(one)}", err=True)
    note = (
        f"{name}; {machine('torch', 'transformers', 'bitsandbytes')}. Checkpoint {folder.name}; {batch_size} texts of "
        f"{length} tokens a batch, median of {rounds} batches after two that are not timed. {flops / 1e9:.3f} GFLOP a "
        f"token: twice the weights that it meets, and causal attention. Peak: {peak:g} TFLOP/s, dense bfloat16."
    )
    header = ["weights", "experts", "tokens/s", "TFLOP/s", "of the peak", "base model, GB", "peak memory, GB"]
    Result("Embedding on a GPU", note, header, rows, found).show(output)


@app.command(hidden=True)
def one(  # noqa: PLR0917 (a command)
    weights: str, experts: str, folder: Path, device: str, batch_size: int, length: int, rounds: int
) -> None:
    """Load one system, time it and print the numbers, or why it cannot run here."""
    try:
        found = timed(weights, experts, folder, torch.device(device), shape=(batch_size, length), rounds=rounds)
    except (ImportError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        found = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    typer.echo(json.dumps(found))


def timed(
    weights: str, experts: str, folder: Path, device: torch.device, *, shape: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """Tokens a second and bytes of one system.

    Args:
        weights: `"bfloat16"` or a name of `Quantization`.
        experts: transformers' implementation of the experts.
        folder: The checkpoint.
        device: Where to run.
        shape: Texts a batch and tokens a text, `(B, T)`.
        rounds: Batches that are timed.
    """
    places = {"device_map": {"": str(device)}, "experts_implementation": experts}
    packed = None if weights == PLAIN else weights
    module = SSMoE.from_base(
        folder, dtype=PLAIN, quantize=packed, model_kwargs=places, method="smoe", calibration="none", progress=False
    )
    vocabulary = module.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0)).to(device)  # [B,T]
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seconds = []
    with torch.inference_mode():
        for number in range(rounds + 2):
            _wait(device)
            start = time.perf_counter()
            module.forward(features)
            _wait(device)
            if number >= 2:
                seconds.append(time.perf_counter() - start)
    return {
        "tokens_per_second": ids.numel() / statistics.median(seconds),
        "slowest": ids.numel() / max(seconds),
        "fastest": ids.numel() / min(seconds),
        "base_model": sum(memory_by_component(module.model).values()),
        "peak_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def flops_a_token(folder: Path, length: int) -> float:
    """Floating-point operations of one forward pass without head, a token, by the model's shapes.

    Twice the weights of linear layers that a token meets (of the experts, the share that is chosen), and twice the
    products of attention with the tokens before it and itself, `(T+1)/2` of them on average. Norms, softmax, rotation and
    top-k are not counted.
    """
    config = load_config(folder)
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    family = family_of(config)
    inside = {id(weight) for layer in family.layers(model) for weight in layer.experts.parameters()}
    share = text.num_experts_per_tok / text.num_experts
    met = 0.0
    for weight in family.decoder(model).layers.parameters():
        if weight.ndim >= 2:
            met += weight.numel() * (share if id(weight) in inside else 1.0)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * text.num_hidden_layers * text.num_attention_heads * size * (length + 1) / 2  # scores, and their sum
    return 2 * (met + attention)


def device_name(device: str) -> str:
    """The chip's name, or an end with the reason."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise _refusal(
            f"--device {device}: torch {torch.__version__} sees no CUDA device here. Run this on a machine with a GPU and a "
            "CUDA build of torch (nvidia-smi lists the GPUs)."
        )
    return torch.cuda.get_device_name(device) if kind == "cuda" else kind


def peak_of(name: str, peak: float | None) -> float:
    """The chip's dense bfloat16 peak in TFLOP/s, or an end with the reason."""
    if peak is not None:
        return peak
    known = PEAKS.get(name)
    if known is None:
        raise _refusal(
            f"The dense bfloat16 peak of {name!r} is not known here ({', '.join(PEAKS)} are); pass --peak with the TFLOP/s "
            "of its data sheet, without sparsity."
        )
    return known


def _refusal(message: str) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(1)


def _cells(one: dict[str, Any], flops: float, peak: float) -> list[str]:
    """The measured columns of a row."""
    if "failed" in one:
        return [one["failed"], "–", "–", "–", "–"]
    speed = one["tokens_per_second"]
    memory = "–" if one["peak_memory"] is None else f"{one['peak_memory'] / 1e9:.2f}"
    rate = speed * flops / 1e12
    return [f"{speed:,.0f}", f"{rate:.2f}", f"{rate / peak:.3f}", f"{one['base_model'] / 1e9:.2f}", memory]


def _wait(device: torch.device) -> None:
    """For what a GPU is still doing."""
    wait: Callable[..., None] = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)


if __name__ == "__main__":
    app()
