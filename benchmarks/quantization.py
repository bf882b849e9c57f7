"""Memory, speed and accuracy of base models in 4 bits.

    python benchmarks/quantization.py tiny --output benchmarks/results/quantization.md
    python benchmarks/quantization.py make-checkpoint /tmp/olmoe-7b-shape
    python benchmarks/quantization.py large /tmp/olmoe-7b-shape --output benchmarks/results/quantization.md

`tiny` measures the bundled model; `large` a checkpoint of OLMoE-7B's shape with random weights, which needs 17 GB of free
memory for its 16-bit and float32 rows. Every system runs in a process of its own; the float32 vectors that the cosines
refer to are computed from the same checkpoint a layer at a time. Speed is by CPU time, so that other programs on the
machine do not count; with `make-checkpoint --layers 2` it is measured in minutes.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from big_checkpoint import write_checkpoint
from encode import mixed_texts
from measuring import MIB, Result, in_subprocess, machine, peak_mib
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig

import ssmoe_embed
from ssmoe_embed import EmbeddingModel, SpectralRouters, SSMoE
from ssmoe_embed.common.files import load_tensors
from ssmoe_embed.data import calibration_texts, tiny_folder
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.embedding.persistence import TENSORS
from ssmoe_embed.families import family_of
from ssmoe_embed.quantization import Component, memory_by_component
from ssmoe_embed.spectral.routers import fingerprint
from ssmoe_embed.spectral.settings import SpectralSettings

REFERENCE, BASELINE = "float32", "bfloat16"
SYSTEMS = {
    BASELINE: "bfloat16",
    "stock": "bitsandbytes NF4 alone",
    "nf4": "ours, nf4",
    "nf4-experts": "ours, nf4-experts",
    "paper-nf4": "ours, paper-nf4",
    REFERENCE: "float32",
}
PRESETS = tuple(system for system in SYSTEMS if system not in (REFERENCE, BASELINE))
OURS = tuple(system for system in PRESETS if system != "stock")
METHODS = tuple(str(method) for method in Method)
TOP_C = 50

app = typer.Typer(help="Memory, speed and accuracy of base models in 4 bits.", no_args_is_help=True)
Output = Annotated[Path | None, typer.Option(help="Write the result there: .md (a section a table) or .json.")]


@app.command("make-checkpoint")
def make_checkpoint(
    folder: Path, layers: Annotated[int, typer.Option(help="Decoder layers; 16 make 13.8 GB.")] = 16
) -> None:
    """Write a checkpoint of OLMoE-7B's shape with random weights."""
    write_checkpoint(folder, layers)


@app.command()
def tiny(texts: Annotated[int, typer.Option(help="How many texts.")] = 64, output: Output = None) -> None:
    """Measure the bundled model, with its own spectral routers and calibration."""
    note = (
        f"The bundled model with its own W_EV and calibration; {texts} texts of mixed length in batches of 32 after one "
        "round that is not measured"
    )
    _measure_all(
        "Bundled model",
        note,
        tiny_folder(),
        tiny_folder() / "base",
        texts=texts,
        batch_size=32,
        output=output,
        work=None,
        systems=PRESETS,
    )


@app.command()
def large(
    folder: Path,
    texts: Annotated[int, typer.Option(help="How many texts, all in one batch.")] = 16,
    work: Annotated[
        Path | None, typer.Option(help="Keep each system's result there; what is there is not redone.")
    ] = None,
    systems: Annotated[
        list[str], typer.Option(help=f"What is measured beside {REFERENCE} and {BASELINE}: {', '.join(PRESETS)}.")
    ] = list(PRESETS),  # noqa: B006
    output: Output = None,
) -> None:
    """Measure a checkpoint that `make-checkpoint` wrote."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9
    note = (
        f"A checkpoint of OLMoE-7B's shape with random weights, {size:.1f} GB in bfloat16; {texts} short texts in one "
        "batch. W_EV is a stand-in: random rows as long as the mean of 3 × 50 directions is. Random weights route without "
        "conviction, so a rounding sends tokens elsewhere that a trained router would hold: the cosines are no forecast"
    )
    with tempfile.TemporaryDirectory() as made:
        kept = work or Path(made)
        repository = kept / "stand-in"
        if not repository.exists():
            in_subprocess(__file__, "stand-in", str(folder), str(repository))
        measured: dict[str, Any] = {
            "texts": texts,
            "batch_size": texts,
            "output": output,
            "work": kept,
            "systems": systems,
        }
        layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
        _measure_all(f"OLMoE-7B's shape, {layers} layers", note, repository, folder, **measured)


@app.command()
def sizes(
    folder: Path,
    systems: Annotated[list[str], typer.Option(help=f"Beside {BASELINE}: {', '.join(OURS)}.")] = list(OURS),  # noqa: B006
    output: Output = None,
) -> None:
    """Load a checkpoint that `make-checkpoint` wrote in every preset, and nothing more: bytes and peak memory."""
    found = {system: in_subprocess(__file__, "loaded", system, str(folder)) for system in (BASELINE, *systems)}
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    note = (
        f"{machine('torch', 'transformers', 'bitsandbytes')}; {torch.get_num_threads()} thread(s), other programs running "
        "beside. The checkpoint above, loaded without spectral routers or calibration; nothing is encoded."
    )
    _memory_table(f"OLMoE-7B's shape, {layers} layers: loading", note, found).show(output)


def _measure_all(
    title: str,
    note: str,
    repository: Path,
    base: Path,
    *,
    texts: int,
    batch_size: int,
    output: Path | None,
    work: Path | None,
    systems: Sequence[str],
) -> None:
    """Run every system in a process of its own and write the tables."""
    found: dict[str, Any] = {}
    vectors: dict[str, dict[str, torch.Tensor]] = {}
    with tempfile.TemporaryDirectory() as made:
        for system in (BASELINE, *systems, REFERENCE):
            file = (work or Path(made)) / f"{system}.safetensors"
            kept = file.with_suffix(".json")
            if not kept.exists():
                arguments = [system, str(repository), str(base), str(file), str(texts), str(batch_size)]
                kept.write_text(json.dumps(in_subprocess(__file__, "one", *arguments)), encoding="utf-8")
            found[system] = json.loads(kept.read_text(encoding="utf-8"))
            vectors[system] = load_file(file)
            typer.echo(f"{system}: {json.dumps(found[system])}", err=True)
    libraries = machine("torch", "transformers", "bitsandbytes")
    note = f"{libraries}; {torch.get_num_threads()} thread(s), other programs running beside. {note}."
    _memory_table(f"{title}: memory", note, found).show(output)
    _accuracy_table(f"{title}: vectors", note, found, vectors).show(output)


def _memory_table(title: str, note: str, found: dict[str, Any]) -> Result:
    """Bytes by component, and the peak of the process."""
    parts = [part for part in map(str, Component) if any(row["memory"][part] for row in found.values())]
    baseline = _base_bytes(found[BASELINE])
    rows = []
    for system, row in found.items():
        if system != REFERENCE:
            cells = [f"{row['memory'][part] / 1e6:.2f}" for part in parts]
            total = f"{_base_bytes(row) / 1e6:.2f}"
            ratio = f"{_base_bytes(row) / baseline:.3f}"
            peak = f"{row['peak'] * MIB / 1e6:.0f}"
            rows.append([SYSTEMS[system], *cells, total, ratio, peak, f"{row['load']:.0f}"])
    header = [
        "system",
        *(f"{part}, MB" for part in parts),
        "base model, MB",
        "of bfloat16",
        "peak of process, MB",
        "load, s",
    ]
    explained = (
        "The base model is all but spectral routers and calibration. Peak: resident memory, mapped files included."
    )
    return Result(title, f"{note} {explained}", header, rows, found)


def _base_bytes(row: dict[str, Any]) -> int:
    added = (str(Component.SPECTRAL_ROUTERS), str(Component.CALIBRATION))
    return sum(size for part, size in row["memory"].items() if part not in added)


def _accuracy_table(
    title: str, note: str, found: dict[str, Any], vectors: dict[str, dict[str, torch.Tensor]]
) -> Result:
    """Speed, and cosines to the float32 vectors."""
    rows = []
    for system in found:
        if system == REFERENCE:
            continue
        for method in METHODS:
            cosines = torch.cosine_similarity(vectors[system][method], vectors[REFERENCE][method], dim=1)
            speed, baseline = (found[name]["speed"].get(method, math.nan) for name in (system, BASELINE))
            rows.append(
                [
                    SYSTEMS[system],
                    method,
                    f"{cosines.mean():.4f}",
                    f"{cosines.min():.4f}",
                    "–" if math.isnan(speed) else f"{speed:.2f}",
                    "–" if math.isnan(speed / baseline) else f"{speed / baseline:.2f}",
                ]
            )
    header = [
        "system",
        "representation",
        "cosine to float32, mean",
        "smallest",
        "texts per CPU s",
        "speed, bfloat16 = 1",
    ]
    return Result(title, f"{note} Vectors are calibrated, all by the same factors.", header, rows, found)


# --- in a process of its own ------------------------------------------------------------------------------------------


@app.command(hidden=True)
def one(  # noqa: PLR0917 (a command)
    system: str, repository: Path, base: Path, vectors: Path, texts: int, batch_size: int
) -> None:
    """Load one system, encode with every representation, write the vectors and print the rest."""
    start = time.perf_counter()
    model = EmbeddingModel(modules=[_LOADERS[system](repository, base)], device="cpu")
    loading = time.perf_counter() - start
    short = texts <= batch_size
    sample = sorted(mixed_texts(2000), key=len)[400 : 400 + texts] if short else mixed_texts(texts)
    speed, found = {}, {}
    for number, method in enumerate(METHODS):
        model[0].settings = model[0].settings.changed(method=method, calibration="standardize")
        if number == 0 or not short:
            model.encode(sample[:batch_size], batch_size=batch_size, show_progress_bar=False)
        start = time.process_time()
        made = model.encode(sample, batch_size=batch_size, show_progress_bar=False)
        speed[method] = len(sample) / (time.process_time() - start)
        found[method] = torch.from_numpy(made)
    save_file(found, vectors)
    memory = {str(part): size for part, size in memory_by_component(model).items()}
    typer.echo(json.dumps({"load": loading, "peak": peak_mib(), "memory": memory, "speed": speed}))


@app.command(hidden=True)
def loaded(system: str, base: Path) -> None:
    """Load one system and print what it takes."""
    start = time.perf_counter()
    wish: dict[str, Any] = {} if system == BASELINE else {"quantize": system}
    model = EmbeddingModel(modules=[SSMoE.from_base(base, dtype=BASELINE, **wish, **_BARE)], device="cpu")
    loading = time.perf_counter() - start
    memory = {str(part): size for part, size in memory_by_component(model).items()}
    typer.echo(json.dumps({"load": loading, "peak": peak_mib(), "memory": memory}))


def _load(kwargs: dict[str, Any]) -> Callable[[Path, Path], SSMoE]:
    return lambda repository, base: SSMoE.load(str(repository), model_kwargs=kwargs)


def _load_preset(name: str) -> Callable[[Path, Path], SSMoE]:
    """This package, in 4 bits."""

    def load(repository: Path, base: Path) -> SSMoE:
        return _with_base(repository, SSMoE.from_base(base, quantize=name, dtype=BASELINE, **_BARE))

    return load


def _load_stock(repository: Path, base: Path) -> SSMoE:
    """What bitsandbytes does by itself: the linear layers in 4 bits, the fused experts not."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModel.from_pretrained(base, quantization_config=config, dtype=torch.bfloat16).eval()
    return _with_base(
        repository, SSMoE(model, AutoTokenizer.from_pretrained(base), ssmoe_embed.EmbeddingSettings(**_PLAIN))
    )


def _load_float32(repository: Path, base: Path) -> SSMoE:
    """The checkpoint's own numbers, widened to float32 one layer at a time while it computes."""
    module = SSMoE.load(str(repository), model_kwargs={"dtype": "bfloat16"})
    del base
    decoder = family_of(module.model).decoder(module.model)
    for part in (decoder.embed_tokens, decoder.norm, decoder.rotary_emb):
        part.float()
    for layer in decoder.layers:
        layer.register_forward_pre_hook(_widen)
        layer.register_forward_hook(_narrow)
    return module


def _widen(layer: nn.Module, args: Any) -> None:
    layer.float()


def _narrow(layer: nn.Module, args: Any, output: Any) -> None:
    layer.bfloat16()


_PLAIN: dict[str, Any] = {"method": "smoe", "calibration": "none"}
_BARE: dict[str, Any] = _PLAIN | {"progress": False}


def _with_base(repository: Path, module: SSMoE) -> SSMoE:
    """Another base model under the repository's settings, spectral routers and calibration."""
    from ssmoe_embed.embedding.calibration import calibrations_from

    config = json.loads((repository / SSMoE.config_file_name).read_text(encoding="utf-8"))
    settings = ssmoe_embed.EmbeddingSettings.of(
        **{name: config[name] for name in ssmoe_embed.EmbeddingSettings.__dataclass_fields__ if name in config}
    )
    tensors, metadata = load_tensors(repository / TENSORS)
    routers = SpectralRouters.from_tensors(tensors, metadata)
    return SSMoE(
        module.model,
        module.tokenizer,
        settings,
        routers=routers,
        calibrations=calibrations_from(tensors),
        source=module.source,
    )


_LOADERS: dict[str, Callable[[Path, Path], SSMoE]] = {
    BASELINE: _load({"dtype": "bfloat16"}),
    "stock": _load_stock,
    "nf4": _load_preset("nf4"),
    "nf4-experts": _load_preset("nf4-experts"),
    "paper-nf4": _load_preset("paper-nf4"),
    REFERENCE: _load_float32,
}


@app.command("stand-in", hidden=True)
def stand_in(base: Path, repository: Path) -> None:
    """A small repository for a base model: spectral routers from random rows, calibration of all representations."""
    module = SSMoE.from_base(base, dtype="bfloat16", **_BARE)
    family = family_of(module.model)
    generator = torch.Generator().manual_seed(0)
    weights, fingerprints = {}, {}
    for layer in family.layers(module.model):
        router = family.router_weight(layer.router)
        rows = torch.randn(router.shape, generator=generator)
        weights[layer.index] = rows / rows.norm(dim=1, keepdim=True) / math.sqrt(3 * TOP_C)
        fingerprints[layer.index] = fingerprint(router)
    routers = SpectralRouters(weights, fingerprints, SpectralSettings(top_c=TOP_C), str(base))
    module = SSMoE(module.model, module.tokenizer, routers=routers, source=module.source)
    sample = sorted(calibration_texts(), key=len)[200:232]
    variants = [module.settings.changed(method=method) for method in METHODS]
    module.fit_calibration(sample, variants=variants, batch_size=len(sample), progress=False)
    module.save(str(repository))
    typer.echo("{}")


if __name__ == "__main__":
    app()
