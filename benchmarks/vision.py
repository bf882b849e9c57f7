"""A CLIP-MoE of ViT-L/14's size with random weights, in the published layout, through the product from end to end.

    python benchmarks/vision.py checkpoint build/clip-moe-random.safetensors
    python benchmarks/vision.py load build/clip-moe-random.safetensors build/clip-moe --output benchmarks/results/vision.md
    python benchmarks/vision.py evaluate build/clip-moe --output benchmarks/results/vision.md

`load` reads the 915 tensors, encodes some images and texts by the learned routers, and saves the model. `evaluate` runs the
commands of the paper's tables 3 and 7 on it, under the learned routers and the release's spectral ones, on random pictures
in the layouts of Flickr30k and CIFAR-10: what it shows is that they run, how long they take, and in how much memory.
`checkpoint --blocks 2` makes a smaller one, to try it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Result, machine, peak_mib
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from ssmoe_embed import EmbeddingModel, SSMoEVision
from ssmoe_embed.vision import ClipMoeConfig, load_published
from ssmoe_embed.vision.checkpoint import published_shapes

SEED = 20261127
START, END = 49406, 49407
"""CLIP's token ids of a text's start and end."""
SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
METHODS = ("smoe", "paper")


def config(blocks: int | None) -> ClipMoeConfig:
    """The published sizes: ViT-L/14, 248 tokens of text, 4 experts per block, 2 per token."""
    moe = {"num_experts": 4, "num_experts_per_tok": 2}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text |= {"max_position_embeddings": 248, "vocab_size": 49408}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": 224, "patch_size": 14}
    if blocks is not None:
        text["num_hidden_layers"] = vision["num_hidden_layers"] = blocks
    return ClipMoeConfig(text_config=text | moe, vision_config=vision | moe, projection_dim=768)


def write_checkpoint(path: Path, blocks: int | None) -> None:
    """Random weights in 16 bits as the published state dict names them."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in published_shapes(config(blocks)).items():
        noise = torch.randn(shape, generator=generator)
        is_norm = ".ln_" in f".{name}" and name.endswith("weight")
        is_matrix = len(shape) > 1 and "embedding" not in name
        made = 1 + 0.1 * noise if is_norm else noise * (shape[-1] ** -0.5 if is_matrix else 0.02)
        tensors[name] = made.to(torch.bfloat16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    print(f"{len(tensors)} tensors, {sum(one.numel() for one in tensors.values()):,} numbers: {path}")


def processor() -> CLIPProcessor:
    """CLIP's image processor, and a tokenizer that knows single letters."""
    letters = {f"{letter}</w>": place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    images = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    return CLIPProcessor(images, CLIPTokenizer(vocab=letters | SPECIAL, merges=[], model_max_length=248))


def pictures(count: int, side: int) -> Iterator[Image.Image]:
    """Random pictures."""
    rng = np.random.default_rng(SEED)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def load(path: Path, folder: Path, dtype: str, count: int) -> Result:
    """Read the published layout, encode by the learned routers, save."""
    rows, data = [], {}

    def note(what: str, began: tuple[float, float]) -> None:
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        data[what] = {"wall": wall, "cpu": cpu, "peak": peak_mib()}
        rows.append([what, f"{wall:.1f}", f"{cpu:.1f}", f"{peak_mib() / 1024:.2f}"])

    began = time.perf_counter(), time.process_time()
    clip = load_published(path, dtype=getattr(torch, dtype))
    model = EmbeddingModel(modules=[SSMoEVision(clip, processor())], device="cpu")
    note("load the 915 tensors" if len(published_shapes(clip.config)) == 915 else "load", began)
    for what, inputs in (
        (f"{count} images", list(pictures(count, 224))),
        (f"{count} texts", ["a b c d e"] * count),
    ):
        began = time.perf_counter(), time.process_time()
        vectors = np.asarray(model.encode(inputs, batch_size=4, show_progress_bar=False))
        assert np.isfinite(vectors).all()
        note(f"encode {what}", began)
    began = time.perf_counter(), time.process_time()
    model.save(str(folder))
    note("save", began)
    size = sum(weight.numel() for weight in clip.parameters())
    about = (
        f"{size:,} random parameters in {dtype}; {torch.get_num_threads()} thread(s), a machine shared with other work."
    )
    return _result("From the published layout", about, rows, data)


def evaluate(folder: Path, count: int, dtype: str) -> Result:
    """The commands of tables 3 and 7 on random pictures, each in a process of its own."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    rows, data = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        features = Features({"img": ImageFeature(), "label": ClassLabel(names=["a b", "c", "d"])})
        shown = {"img": list(pictures(count, 32)), "label": [place % 3 for place in range(count)]}
        DatasetDict({"test": Dataset.from_dict(shown, features=features)}).save_to_disk(
            root / "data" / "CIFAR10ZeroShot"
        )
        flickr = root / "data" / "flickr30k"
        (flickr / "flickr30k-images").mkdir(parents=True)
        lines = []
        for place, picture in enumerate(pictures(count, 240)):
            picture.save(flickr / "flickr30k-images" / f"{place}.png")
            lines += [f"{place}.png#{i}\ta {'bcdef'[i]}" for i in range(5)]
        (flickr / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
        measured = ["CIFAR10ZeroShot", "Flickr30kI2TRetrievalPaper", "Flickr30kT2IRetrievalPaper"]
        local = ["--dataset-dir", str(root / "data")]
        for what, command in {
            "ssmoe evaluate": ["evaluate", str(folder), "--tasks", *measured, "--methods", *METHODS, *local, "--predictions",
                               "--output", str(root / "results"), "--dtype", dtype, "--batch-size", "4", "--quiet"],
            "ssmoe compare --with paper": ["compare", str(root / "results"), "--with", "paper", "--as", "CLIP-MoE", *local],
        }.items():  # fmt: skip
            used = _run(command)
            data[what] = used
            rows.append([what, *(f"{used[kind]:.1f}" for kind in ("wall", "cpu")), f"{used['peak'] / 1024:.2f}"])
    about = (
        f"{count} random pictures in the layout of CIFAR-10 and {count} with 5 captions each in that of Flickr30k, methods "
        f"{' and '.join(METHODS)}, {dtype}; the spectral routers of all blocks are made on the way. Scores of random "
        "weights say nothing."
    )
    return _result("The commands of tables 3 and 7", about, rows, data)


def _run(command: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command of the product."""
    program = (
        "import json, resource, sys, time; began = time.perf_counter()\n"
        "from ssmoe_embed.cli.app import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code or 0\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "found = {'wall': time.perf_counter() - began, 'cpu': used.ru_utime + used.ru_stime}\n"
        "found['peak'] = used.ru_maxrss / 1024\n"
        "print('\\n' + json.dumps(found)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    print(done.stdout)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _result(title: str, about: str, rows: list[list[str]], data: dict[str, Any]) -> Result:
    note = f"{machine('torch', 'transformers')}. {about}"
    return Result(title, note, ["", "seconds", "CPU seconds", "peak memory, GiB"], rows, data)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="A CLIP-MoE of ViT-L/14's size with random weights, from end to end.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("checkpoint", help="write random weights in the published layout")
    made.add_argument("path", type=Path)
    made.add_argument("--blocks", type=int, help="blocks of each tower; by default the published 12 and 24")
    loaded = commands.add_parser("load", help="load it, encode, save it as a model")
    loaded.add_argument("path", type=Path)
    measured = commands.add_parser("evaluate", help="measure the saved model on small data in the tasks' layouts")
    for one in (loaded, measured):
        one.add_argument("folder", type=Path, help="the saved model")
        one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        one.add_argument("--count", type=int, default=6, help="pictures")
        one.add_argument("--threads", type=int, default=1)
        one.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.command == "checkpoint":
        write_checkpoint(options.path, options.blocks)
        return
    torch.set_num_threads(options.threads)
    if options.command == "load":
        result = load(options.path, options.folder, options.dtype, options.count)
    else:
        result = evaluate(options.folder, options.count, options.dtype)
    result.show(options.output)


if __name__ == "__main__":
    main()
