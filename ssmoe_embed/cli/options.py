"""Options that several subcommands share, `--engine ray` of `ssmoe encode` and `ssmoe index` among them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.data import BUNDLED
from ssmoe_embed.embedding.methods import Method as MethodName
from ssmoe_embed.embedding.prompts import ENSEMBLES, TEMPLATES

if TYPE_CHECKING:
    from ssmoe_embed.data import Document
    from ssmoe_embed.distributed.engine import Encoding, ModelReference
    from ssmoe_embed.distributed.shards import ShardFolder, TextRow
    from ssmoe_embed.embedding.module import SSMoE
    from ssmoe_embed.search.index import SemanticIndex
    from ssmoe_embed.search.writing import AddCounts

_DTYPES = ("float32", "bfloat16", "float16")


def _known_dtype(value: str | None) -> str | None:
    """A dtype's name, refused before a model is loaded."""
    if value is not None and value not in _DTYPES:
        raise ValueError(unknown("dtype", value, _DTYPES))
    return value


def _known_device(value: str | None) -> str | None:
    """A device's name; whether it is there only the machine that the model is loaded on can tell."""
    if value is None:
        return None
    import torch

    try:
        torch.device(value)
    except RuntimeError:
        raise ValueError(f"device={value!r} names no device; choose one such as cpu, cuda, cuda:1 or mps.") from None
    return value


def _without_bars(quiet: bool) -> bool:
    """Hide the bars of libraries too that ask nobody before they show one; tqdm reads this when it is first imported."""
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    return quiet


def in_existing_folder(file: Path | None) -> Path | None:
    """A file to write, refused before any work is done if there is no folder for it: a typo should not make one."""
    if file is not None and not file.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {file.parent} to write {file.name} into; make it, or choose another."
        )
    return file


def check_results(folder: Path) -> None:
    """Refuse a result folder that does not exist."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no result folder {folder}; make it with `ssmoe evaluate … --output {folder}`."
        )


def _count_or_fraction(value: str) -> Any:
    """`top_c` as an int or a float; anything else is left for the settings to refuse."""
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value


def _method_names() -> list[str]:
    return [*map(str, MethodName), "paper"]


def _prompt_names() -> list[str]:
    return [*TEMPLATES, *ENSEMBLES]


METHODS = f"{', '.join(MethodName)} or paper"
Model = Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or recipe name of the embedding model.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where to run: cpu, cuda, cuda:1, mps; by default the fastest.", callback=_known_device),
]
Method = Annotated[
    str | None,
    typer.Option(help=f"{METHODS}; by default the model's own.", metavar="NAME", autocompletion=_method_names),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Dtype of the base model: float32, bfloat16 or float16; by default the model's own.",
        callback=_known_dtype,
    ),
]
DeviceMap = Annotated[str | None, typer.Option(help="Where to put the base model, such as cuda or auto.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision of the base model.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code that comes with a model.")]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="Template by name (none, prompteol, …) or one of your own with {text}; by default the model's own.",
        autocompletion=_prompt_names,
    ),
]
Alpha = Annotated[float | None, typer.Option(help="Share of the spectral router, 0 to 1; by default the model's own.")]
TopC = Annotated[
    float | None,
    typer.Option(
        parser=_count_or_fraction,
        metavar="NUMBER",
        help="Eigenvectors averaged per matrix: a count such as 50, or a fraction such as 0.05.  [default: 50]",
    ),
]
Share = Annotated[float | None, typer.Option(help="Share of the spectral router, 0 to 1.  [default: 0.5]")]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")]
ResultFolderTo = Annotated[Path, typer.Option("--output", "-o", help="Result folder; what it holds is kept.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
MeasureAgain = Annotated[bool, typer.Option("--overwrite", help="Measure again what the folder holds.")]
ExpertCalibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Text file that experts are scored on; by default the sample in the package."),
]
DatasetDir = Annotated[
    Path | None, typer.Option(help="Folder with the tasks' data, for a machine without a network: see docs/offline.md.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size: texts per forward pass.")]
TextField = Annotated[str, typer.Option("--field", help="Where a record (.jsonl, .csv, .parquet) holds its text.")]
TextEncoding = Annotated[
    str, typer.Option("--encoding", help="Encoding of text files without a byte order mark, such as latin-1 or utf-16.")
]
OnBroken = Annotated[
    str, typer.Option("--on-error", help="Whether a broken line ends the command (stop) or is left out (skip).")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress bars.", callback=_without_bars, is_eager=True)
]
Engine = Annotated[
    str, typer.Option("--engine", help="local, or ray: many workers on a Ray cluster, on this machine or others.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Number of workers with --engine ray; by default one per GPU, or one per CPU core."),
]

DEFAULT_MODEL = BUNDLED


def memory_lines(module: SSMoE) -> str:
    """What each part of a model takes in memory, one line per part."""
    from ssmoe_embed.quantization import memory_by_component

    sizes = {str(part): size for part, size in memory_by_component(module).items() if size}
    return "\n".join(f"{name}: {size / 1e6:,.2f} MB" for name, size in (sizes | {"all": sum(sizes.values())}).items())


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


class EngineKind(Choice):
    """Where texts are encoded."""

    LOCAL = "local"
    """In this process."""
    RAY = "ray"
    """On the workers of a Ray cluster."""


def on_ray(engine: str, workers: int | None) -> bool:
    """Whether to encode on a cluster.

    Raises:
        ValueError: There is no such engine, or workers were asked for without a cluster.
    """
    if EngineKind.parse(engine, "engine") is EngineKind.RAY:
        return True
    if workers is not None:
        raise ValueError("--workers goes with --engine ray; in one process there is one model.")
    return False


def encode_file(
    rows: Iterable[TextRow],
    output: Path,
    kind: str | None,
    reference: ModelReference,
    encoding: Encoding,
    *,
    workers: int | None,
    progress: bool,
) -> int:
    """Encode rows into a folder of shards, or by way of one into one file; returns how many vectors there are."""
    from ssmoe_embed.distributed.engine import encode_on_ray
    from ssmoe_embed.distributed.shards import write_shards
    from ssmoe_embed.embedding.streaming import VectorFormat

    whole = None if kind is None and not output.suffix else VectorFormat.parse(kind or output.suffix[1:], "format")
    folder = output if whole is None else output.with_name(f"{output.name}.shards")
    shards = encode_on_ray(rows, folder, reference, workers=workers, encoding=encoding, progress=progress)
    count = sum(shard.documents for shard in shards.shards())
    if whole is not None:
        with atomic_file(output) as stream:
            write_shards(shards, stream, whole)
        shutil.rmtree(folder)
    return count


@dataclass(frozen=True)
class ClusterJob:
    """Encoding the documents of an index on a cluster.

    Attributes:
        reference: How every worker loads the model.
        workers: How many models run at once.
    """

    reference: ModelReference
    workers: int | None

    def add(
        self, index: SemanticIndex, documents: Iterable[Document], batch_size: int, recall: float, *, progress: bool
    ) -> AddCounts:
        """Encode the documents that an index does not have yet, and add them with their vectors.

        The shards lie in the index's folder until they are part of it, so that an interrupted job goes on.
        """
        from ssmoe_embed.distributed.engine import Encoding, encode_on_ray
        from ssmoe_embed.distributed.shards import TextRow, add_shards
        from ssmoe_embed.search.writing import AddCounts

        new = (one for one in documents if one.id not in index or index[one.id] != one)
        first = next(new, None)
        if first is None:
            return AddCounts()
        shards = encode_on_ray(
            (TextRow.of(one) for one in chain([first], new)),
            index.folder / "shards",
            self.reference,
            workers=self.workers,
            encoding=Encoding(batch_size, as_documents=True),
            fingerprint=index.fingerprint,
            progress=progress,
        )
        counts = add_shards(index, shards, recall=recall)
        shutil.rmtree(shards.path)
        return counts


def shards_at(path: Path | None) -> ShardFolder | None:
    """The finished shards at a path, if that is what is there."""
    from ssmoe_embed.distributed.shards import ShardFolder

    folder = None if path is None else ShardFolder(path)
    return folder if folder is not None and folder.is_complete else None
