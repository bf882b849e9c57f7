"""Time, memory and accuracy of making spectral routers.

    python benchmarks/spectral.py layer --output benchmarks/results/spectral.md
    python benchmarks/spectral.py checkpoint --output benchmarks/results/spectral.md

`layer` takes expert matrices of OLMoE-7B's shape (64 experts of 1024x2048, three each) and compares ssmoe_embed with
what can be written in a line: the SVD of every matrix, as the paper's release does, or `eigh` of the Gram matrix.
`checkpoint` streams a checkpoint of OLMoE-7B's layout from disk.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import Result, bare_memory, in_subprocess, machine, memory_now, peak_mib, resident_mib, sampled_peak
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ssmoe_embed.spectral.eigenvectors import spectral_embeddings
from ssmoe_embed.spectral.settings import SpectralSettings

EXPERTS, INTERMEDIATE, HIDDEN, TOP_C = 64, 1024, 2048, 50
OURS, REFERENCE = "ssmoe_embed", "torch.linalg.svd, float32"
SPECTRA = {"Gaussian": 0.0, "singular values decaying to 1e-6": -6.0}

app = typer.Typer(help="Time, memory and accuracy of making spectral routers.", no_args_is_help=True)
Output = Annotated[Path | None, typer.Option(help="Write the result there: .md (one section a command) or .json.")]


# --- the methods: matrices [n,3,I,H] and router rows [n,H] to spectral embeddings [n,H] --------------------------------


def ours(matrices: torch.Tensor, rows: torch.Tensor, workers: int) -> torch.Tensor:
    """The package."""
    return spectral_embeddings(
        lambda expert: list(matrices[expert]), rows, SpectralSettings(top_c=TOP_C), workers=workers
    )


def by_svd(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]:
    """All right singular vectors of every matrix."""
    return _by_vectors(lambda W: torch.linalg.svd(W.to(dtype), full_matrices=False)[2])


def by_eigh(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]:
    """All eigenvectors of the smaller Gram matrix, turned into right singular vectors."""

    def vectors(W: torch.Tensor) -> torch.Tensor:
        W = W.to(dtype)
        V = torch.linalg.eigh(W @ W.T)[1].T @ W  # [I,H]
        return V / V.norm(dim=1, keepdim=True)

    return _by_vectors(vectors)


def _by_vectors(
    vectors: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]:
    """Steps 2 and 3 of https://arxiv.org/abs/2605.30992 written out, with aligned signs."""

    def embed_one(expert: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        means = []
        for W in expert:
            V = vectors(W)  # [m,H]
            similarities = V @ row.to(V)  # [m]
            top = similarities.abs().topk(TOP_C).indices
            means.append((similarities[top].sign()[:, None] * V[top]).mean(0))
        return torch.stack(means).mean(0)

    def embed(matrices: torch.Tensor, rows: torch.Tensor, workers: int) -> torch.Tensor:
        with ThreadPoolExecutor(workers) as pool:
            return torch.stack(list(pool.map(embed_one, matrices, rows)))

    return embed


METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    OURS: ours,
    REFERENCE: by_svd(torch.float32),
    "torch.linalg.eigh of the Gram matrix, float64": by_eigh(torch.float64),
    "torch.linalg.eigh of the Gram matrix, float32": by_eigh(torch.float32),
}


# --- layer ------------------------------------------------------------------------------------------------------------


@app.command()
def layer(
    experts: Annotated[int, typer.Option(help="Experts measured, an even number; times are scaled to 64.")] = 4,
    workers: Annotated[list[int], typer.Option(help="Experts computed at a time, each by one thread.")] = [1, 2],  # noqa: B006
    kernels: Annotated[
        str, typer.Option(help="native: OpenBLAS chooses for the processor; environment: as OPENBLAS_CORETYPE says.")
    ] = "native",
    output: Output = None,
) -> None:
    """Compare ssmoe_embed with SVD and eigh on one layer of OLMoE-7B's shape, side by side in one process."""
    environment = os.environ | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    if kernels == "native":
        environment.pop("OPENBLAS_CORETYPE", None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), experts)
        memory = {count: _memory_of_each(environment, count) for count in workers}
        load = os.getloadavg()[0]
        for count in workers:
            found = in_subprocess(__file__, "times", folder, str(count), environment=environment)
            rows += [row | {"workers": count, "peak_mib": memory[count][row["method"]]} for row in found["rows"]]
    note = (
        f"{machine('torch', 'scipy', 'numpy')}, OpenBLAS kernels {found['kernels']} ({kernels}). {experts} experts of "
        f"3 matrices {INTERMEDIATE}x{HIDDEN} in float32, top_c={TOP_C}; times are medians over pairs of experts, "
        f"scaled to {EXPERTS} experts; one BLAS thread a worker. CPU time is the one to read where other programs run "
        f"beside (load average before the timing: {load:.1f}). Memory: the peak above inputs and libraries. Cosine: the "
        "smallest over all rows, against the float64 SVD."
    )
    title = f"One layer, {kernels} kernels"
    header = [
        "Spectrum",
        "Workers",
        "Method",
        "s per layer",
        "Speed-up",
        "CPU s per layer",
        "CPU speed-up",
        "Peak MiB",
        "1 - cosine",
    ]
    Result(title, note, header, [_layer_cells(row) for row in rows], {"rows": rows}).show(output)


def _layer_cells(row: dict[str, Any]) -> list[str]:
    times = [
        f"{row['seconds']:.1f}",
        f"{row['speed_up']:.2f}x",
        f"{row['cpu_seconds']:.1f}",
        f"{row['cpu_speed_up']:.2f}x",
    ]
    return [
        row["spectrum"],
        str(row["workers"]),
        row["method"],
        *times,
        f"{row['peak_mib']:.0f}",
        f"{row['error']:.0e}",
    ]


def _memory_of_each(environment: dict[str, str], workers: int) -> dict[str, float]:
    """Peak memory in MiB by method."""
    bar = tqdm(METHODS, desc=f"Memory, {workers} worker(s)")
    return {method: in_subprocess(__file__, "memory", method, str(workers), environment=environment) for method in bar}


def _prepare(folder: Path, experts: int) -> None:
    """Write matrices, router rows and the float64 answer of every spectrum."""
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    for number, (name, exponent) in enumerate(SPECTRA.items()):
        matrices = torch.stack(
            [_matrix(exponent, generator) for _ in tqdm(range(3 * experts), desc=f"Matrices, {name}")]
        ).view(experts, 3, INTERMEDIATE, HIDDEN)
        rows = torch.randn(experts, HIDDEN, generator=generator)
        exact = torch.stack(
            [by_svd(torch.float64)(matrices[[e]], rows[[e]], 1)[0] for e in tqdm(range(experts), desc="Float64 SVD")]
        )
        tensors = {"matrices": matrices.contiguous(), "rows": rows, "exact": exact}
        save_file(tensors, folder / f"{number}.safetensors")


def _matrix(exponent: float, generator: torch.Generator) -> torch.Tensor:
    """A random `[I,H]`; with an exponent, its singular values are `1 … 10^exponent`, geometrically."""
    W = torch.randn(INTERMEDIATE, HIDDEN, generator=generator)
    if exponent == 0.0:
        return W
    U, values, V = torch.linalg.svd(W, full_matrices=False)
    values = torch.logspace(0, exponent, len(values), dtype=torch.float64)
    return ((U.double() * values) @ V.double()).float()


@app.command(hidden=True)
def times(folder: Path, workers: int) -> None:
    """Print the time and accuracy of every method, in turns on the same experts."""
    rows = []
    for number, spectrum in enumerate(SPECTRA):
        inputs = load_file(folder / f"{number}.safetensors")
        spent: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
        errors = dict.fromkeys(METHODS, 0.0)
        for start in tqdm(range(0, len(inputs["rows"]), 2), desc=f"{spectrum}, {workers} worker(s)"):
            pair = slice(start, start + 2)
            for method, embed in METHODS.items():
                wall, cpu = time.perf_counter(), time.process_time()
                result = embed(inputs["matrices"][pair], inputs["rows"][pair], workers)
                spent[method].append((time.perf_counter() - wall, time.process_time() - cpu))
                cosines = torch.cosine_similarity(result.double(), inputs["exact"][pair], dim=1)
                errors[method] = max(errors[method], float(1 - cosines.min()))
        for method in METHODS:
            wall, cpu = (statistics.median(each) for each in zip(*spent[method], strict=True))
            base_wall, base_cpu = (statistics.median(each) for each in zip(*spent[REFERENCE], strict=True))
            rows.append(
                {"spectrum": spectrum, "method": method, "error": errors[method]}
                | {"seconds": wall / 2 * EXPERTS, "speed_up": base_wall / wall}
                | {"cpu_seconds": cpu / 2 * EXPERTS, "cpu_speed_up": base_cpu / cpu}
            )
    typer.echo(json.dumps({"rows": rows, "kernels": _kernels()}))


def _kernels() -> str:
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    found = {info["architecture"] for info in threadpool_info() if "scipy" in info["filepath"]}
    return ", ".join(sorted(found)) or "not OpenBLAS"


@app.command(hidden=True)
def memory(method: str, workers: int) -> None:
    """Print by how many MiB a method raises the peak of resident memory above its inputs."""
    matrices, rows = torch.randn(2, 3, INTERMEDIATE, HIDDEN), torch.randn(2, HIDDEN)
    METHODS[method](matrices[:1, :1, :64, :64].contiguous(), rows[:1, :64], workers)  # load what is loaded lazily
    before = resident_mib() or peak_mib()
    METHODS[method](matrices, rows, workers)
    typer.echo(json.dumps(peak_mib() - before))


# --- checkpoint -------------------------------------------------------------------------------------------------------


@app.command()
def checkpoint(
    layers: Annotated[int, typer.Option(help="MoE layers; OLMoE-7B has 16 (12.9 GB on disk).")] = 16,
    workers: Annotated[int | None, typer.Option(help="Experts computed at a time; by default one a core.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoint is written, then deleted.")] = None,
    output: Output = None,
) -> None:
    """Make the spectral routers of a whole checkpoint, streamed from disk, and look at the memory."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        _write_checkpoint(Path(made), layers)
        size = sum(file.stat().st_size for file in Path(made).iterdir()) / 1e9
        found = in_subprocess(__file__, "stream", made, str(workers or 0))
    bare = bare_memory("torch")
    note = (
        f"{machine('torch', 'scipy', 'safetensors')}. A checkpoint of OLMoE-7B's layout, {layers} layers, {size:.1f} GB "
        f"in bfloat16, {LAYERS_A_SHARD} layers a shard; `SpectralRouters.from_checkpoint` in a process of its "
        "own. Above the bare interpreter with torch imported, in MiB; mapped pages of the files count as resident."
    )
    cells = [
        str(layers),
        f"{found['seconds']:.0f}",
        *(f"{found[key] - bare[key]:.0f}" for key in bare),
    ]
    header = ["Layers", "s", "Peak resident", "Peak anonymous", "Peak file-backed"]
    Result(f"Checkpoint of {layers} layers", note, header, [cells], found).show(output)


LAYERS_A_SHARD = 4


def _write_checkpoint(folder: Path, layers: int) -> None:
    """Routers and experts of an OLMoE checkpoint, as the hub has them, with random weights."""
    from transformers import OlmoeConfig

    OlmoeConfig(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=layers, num_experts=EXPERTS
    ).save_pretrained(folder)
    where: dict[str, str] = {}
    for first in tqdm(range(0, layers, LAYERS_A_SHARD), desc="Writing shards"):
        shard = f"model-{first // LAYERS_A_SHARD + 1:05d}.safetensors"
        tensors = dict(_tensors(range(first, min(first + LAYERS_A_SHARD, layers))))
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, shard)
    index = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _tensors(layers: range) -> Iterator[tuple[str, torch.Tensor]]:
    for index in layers:
        prefix = f"model.layers.{index}.mlp"
        yield f"{prefix}.gate.weight", torch.randn(EXPERTS, HIDDEN).bfloat16()
        for expert in range(EXPERTS):
            for name, shape in (("gate", (0, 1)), ("up", (0, 1)), ("down", (1, 0))):
                sides = (INTERMEDIATE, HIDDEN)
                weight = torch.randn(sides[shape[0]], sides[shape[1]]).bfloat16()
                yield f"{prefix}.experts.{expert}.{name}_proj.weight", weight


@app.command(hidden=True)
def stream(folder: Path, workers: int) -> None:
    """Print time and peak memory of `from_checkpoint`."""
    from ssmoe_embed import SpectralRouters

    before = time.perf_counter()
    with sampled_peak("RssAnon") as anonymous, sampled_peak("RssFile") as mapped:
        SpectralRouters.from_checkpoint(folder, top_c=TOP_C, workers=workers or None)
    peaks = memory_now() | {"anonymous": anonymous["peak"], "mapped": mapped["peak"]}
    typer.echo(json.dumps({"seconds": time.perf_counter() - before} | peaks))


if __name__ == "__main__":
    app()
