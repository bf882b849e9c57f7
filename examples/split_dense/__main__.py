"""Divides a dense Qwen2 model into experts: ``python -m split_dense --help`` in the folder ``examples``.

Every step leaves files in ``--work``, and the same command goes on from them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen2ForCausalLM

from split_dense.activations import readings, record
from split_dense.checkpoint import write
from split_dense.distil import distil
from split_dense.gates import Material, Measured, ladder, measure
from split_dense.layers import Dense, Division, Layer, load_layer, save_layer, split_layer
from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.tables import MISSING, Table
from ssmoe_embed.data import read_records


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="checkpoint of a dense Qwen2 model")
    parser.add_argument(
        "--texts", type=Path, nargs="*", default=[], help='JSON lines with "text", read beside the package\'s own'
    )
    parser.add_argument("--heldout", type=Path, required=True, help="text file for the perplexity")
    parser.add_argument(
        "--pairs", type=Path, required=True, help="JSON lines of sentence1, sentence2, score (development data)"
    )
    parser.add_argument("--every", type=int, default=1, help="use each n-th pair")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is kept between steps")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--whole", type=Path, help="folder for the same with all experts and equal weights, the dense model"
    )
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens whose activations are learned from")
    parser.add_argument("--shared", type=int, default=3584, help="neurons of the shared expert")
    parser.add_argument("--experts", type=int, default=16, help="routed experts; their width should be a multiple of 8")
    parser.add_argument("--k", type=int, default=8, help="active experts per token")
    parser.add_argument("--sharpness", type=float, default=0.5, help="deviation of a token's router logits")
    parser.add_argument("--steps", type=int, default=60, help="steps of distillation, 0 for none")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate of the distillation")
    parser.add_argument("--ladder", type=int, nargs="*", default=[], help="other numbers of active experts to measure")
    parser.add_argument("--threads", type=int, default=1, help="threads")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def recorded(options: argparse.Namespace, dense: Qwen2ForCausalLM) -> list[Path]:
    """The activations, recorded where they are not there."""
    texts = [json.loads(line)["text"] for path in options.texts for line in path.open(encoding="utf-8")]
    texts += [one["text"] for name in ("calibration.jsonl", "search/corpus.jsonl") for one in read_records(name)]
    rows = readings(texts, AutoTokenizer.from_pretrained(options.dense), options.tokens, seed=options.seed)
    return record(dense.model, rows, options.work / "activations")


def divided_layers(dense: Qwen2ForCausalLM, files: Sequence[Path], division: Division, folder: Path) -> list[Layer]:
    """Every layer's division, made where it is not there."""
    found = []
    for at, block in enumerate(tqdm(dense.model.layers, desc="dividing layers")):
        path = folder / f"layer-{at:02d}.safetensors"
        if not path.is_file():
            mlp = block.mlp
            weights = Dense(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
            save_layer(path, split_layer(weights, files, at, division))
        found.append(load_layer(path))
    return found


def distilled(
    dense: Qwen2ForCausalLM, layers: list[Layer], files: Sequence[Path], options: argparse.Namespace, folder: Path
) -> list[Layer]:
    """The layers with routers that were trained together."""
    paths = [folder / f"layer-{at:02d}.safetensors" for at in range(len(layers))]
    if not all(path.is_file() for path in paths):
        made = distil(dense.model, layers, files, options.k, steps=options.steps, seed=options.seed, rate=options.rate)
        for path, layer in zip(paths, made, strict=True):
            save_layer(path, layer)
    return [load_layer(path) for path in paths]


def table(rows: Sequence[Measured], dense: Measured) -> Table:
    """What was measured, as a table."""
    columns = (
        "active experts",
        "perplexity",
        "× dense",
        "STSBenchmark dev",
        "cosine to dense",
        "least load entropy",
        "dead",
    )
    return Table(
        columns,
        tuple(
            (
                row.name,
                f"{row.perplexity:.2f}",
                f"{row.perplexity / dense.perplexity:.3f}",
                f"{row.similarity:.1f}",
                f"{row.cosine:.5f}",
                f"{min(row.entropy):.3f}" if row.entropy else MISSING,
                row.dead,
            )
            for row in rows
        ),
    )


def _equal(layer: Layer) -> Layer:
    """A layer whose router gives all experts the same weight."""
    router = layer.router
    return replace(layer, router=replace(router, weight=router.weight * 0, scale=torch.ones_like(router.scale)))


def main() -> None:
    """Divide, train, write, measure."""
    options = arguments()
    torch.set_num_threads(options.threads)
    dense = Qwen2ForCausalLM.from_pretrained(options.dense, dtype=torch.bfloat16).eval().requires_grad_(False)
    files = recorded(options, dense)
    division = Division(options.shared, options.experts, options.k, options.sharpness, options.seed)
    name = "-".join(f"{key}={value}" for key, value in asdict(division).items())
    layers = divided_layers(dense, files, division, options.work / name)
    print(f"energy missing per layer: {' '.join(f'{layer.router.error:.3f}' for layer in layers)}")
    if options.steps:
        layers = distilled(
            dense, layers, files, options, options.work / f"{name}-steps={options.steps}-rate={options.rate}"
        )
    if not options.output.exists():
        write(options.dense, layers, options.k, options.output)
    if options.whole is not None and not options.whole.exists():
        write(options.dense, layers, options.experts, options.whole, flat=True)
    material = Material.read(
        AutoTokenizer.from_pretrained(options.dense), options.heldout, options.pairs, options.every
    )
    whole, states = measure(dense, material, "dense")
    everyone = ladder(dense, [_equal(layer) for layer in layers], [options.experts], material, states)
    rows = [whole, *(replace(row, name=f"{row.name}, equal weights") for row in everyone)]
    rows += ladder(dense, layers, [*options.ladder, options.k], material, states)
    print(table(rows, whole).markdown())
    write_files(
        options.work, {f"{name}-steps={options.steps}.json": json.dumps([row.as_dict() for row in rows], indent=2)}
    )


if __name__ == "__main__":
    main()
