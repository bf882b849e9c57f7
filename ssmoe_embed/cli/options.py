"""Options that several subcommands share, and what they name: models, and where texts are encoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.data import BUNDLED
from ssmoe_embed.embedding.methods import Method as MethodName
from ssmoe_embed.embedding.prompts import ENSEMBLES, TEMPLATES

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ssmoe_embed.distributed.engine import ModelReference
    from ssmoe_embed.embedding.module import SSMoE


def one_of(option: str, allowed: Sequence[str]) -> Callable[[str | None], str | None]:
    """A callback that refuses any other value of an option, before a model is loaded."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise ValueError(unknown(option, value, allowed))
        return value

    return check


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
        with suppress(ValueError):
            return convert(value)
    return value


METHODS = f"{', '.join(MethodName)} or paper"
Model = Annotated[str, Option("--model", "-m", help="Folder, hub id or recipe name of the embedding model.")]
OwnModel = Annotated[
    str | None,
    Option(
        "--model",
        "-m",
        help=f"Folder, hub id or recipe name; by default the index's own, or {BUNDLED} for a new index.",
    ),
]
MeasuredModel = Annotated[str, Argument(help="Folder, hub id or recipe name.")]
LanguageModel = Annotated[str, Argument(help="Folder, hub id or recipe name of the language model.")]
Device = Annotated[
    str | None,
    Option(help="Where to run: cpu, cuda, cuda:1, mps; by default the fastest.", callback=_known_device),
]
Method = Annotated[
    str | None,
    Option(
        help=f"{METHODS}; by default the model's own.",
        metavar="NAME",
        autocompletion=lambda: [*map(str, MethodName), "paper"],
    ),
]
Dtype = Annotated[
    str | None,
    Option(
        help="Dtype of the base model: float32, bfloat16 or float16; by default the model's own.",
        callback=one_of("dtype", ["float32", "bfloat16", "float16"]),
    ),
]
DeviceMap = Annotated[str | None, Option(help="Where to put the base model, such as cuda or auto.")]
Revision = Annotated[str | None, Option(help="Hub revision of the base model.")]
TrustRemoteCode = Annotated[bool, Option("--trust-remote-code", help="Allow code that comes with a model.")]
Prompt = Annotated[
    str | None,
    Option(
        help="Template by name (none, prompteol, …) or one of your own with {text}; by default the model's own.",
        autocompletion=lambda: [*TEMPLATES, *ENSEMBLES],
    ),
]
Alpha = Annotated[float | None, Option(help="Share of the spectral router, 0 to 1; by default the model's own.")]
TopC = Annotated[
    float | None,
    Option(
        parser=_count_or_fraction,
        metavar="NUMBER",
        help="Eigenvectors averaged per matrix: a count such as 50, or a fraction such as 0.05.  [default: 50]",
    ),
]
Share = Annotated[float | None, Option(help="Share of the spectral router, 0 to 1.  [default: 0.5]")]
NewFolder = Annotated[Path, Option("--output", "-o", help="Folder to create.")]
ResultFolderTo = Annotated[Path, Option("--output", "-o", help="Result folder; what it holds is kept.")]
Replace = Annotated[bool, Option("--overwrite", help="Replace the output folder.")]
MeasureAgain = Annotated[bool, Option("--overwrite", help="Measure again what the folder holds.")]
ExpertCalibration = Annotated[
    Path | None,
    Option("--calibration", help="Text file that experts are scored on; by default the sample in the package."),
]
DatasetDir = Annotated[
    Path | None, Option(help="Folder with the tasks' data, for a machine without a network: see docs/offline.md.")
]
BatchSize = Annotated[int, Option(min=1, help="Batch size: texts per forward pass.")]
TextField = Annotated[str, Option("--field", help="Where a record (.jsonl, .csv, .parquet) holds its text.")]
TextEncoding = Annotated[
    str, Option("--encoding", help="Encoding of text files without a byte order mark, such as latin-1 or utf-16.")
]
OnBroken = Annotated[
    str, Option("--on-error", help="Whether a broken line ends the command (stop) or is left out (skip).")
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Show no progress bars.", callback=_without_bars, is_eager=True)]
Engine = Annotated[
    str, Option("--engine", help="local, or ray: many workers on a Ray cluster, on this machine or others.")
]
Workers = Annotated[
    int | None,
    Option(min=1, help="Number of workers with --engine ray; by default one per GPU, or one per CPU core."),
]


def memory_lines(module: SSMoE) -> str:
    """What each part of a model takes in memory, one line per part."""
    from ssmoe_embed.quantization import memory_by_component

    sizes = {str(part): size for part, size in memory_by_component(module).items() if size}
    return "\n".join(f"{name}: {size / 1e6:,.2f} MB" for name, size in (sizes | {"all": sum(sizes.values())}).items())


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


def embedding_loading(device: str | None, dtype: str | None, device_map: str | None = None) -> dict[str, Any]:
    """Keywords of `ssmoe_embed.load`, as far as they were given."""
    return given(device=device, model_kwargs=given(dtype=dtype, device_map=device_map) or None)


def hub_loading(device_map: str | None, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Keywords with which a language model is loaded, as far as they were given."""
    return given(device_map=device_map, revision=revision, trust_remote_code=trust_remote_code or None)


@dataclass(frozen=True)
class ChosenModel:
    """An embedding model as the command line names it: by name or by default, with settings, on a device."""

    name: str | None
    settings: Mapping[str, Any]
    device: str | None
    progress: bool

    def of_index(self, folder: Path) -> ChosenModel:
        """The same for an index, which must be there, and has a model and settings of its own where none is named."""
        from ssmoe_embed.search.manifest import Manifest

        own = Manifest.read(folder).reference
        if self.name:
            return self
        return replace(self, name=own.get("name"), settings={**own.get("settings", {}), **self.settings})

    def load(self) -> SentenceTransformer:
        """The model."""
        from ssmoe_embed.hub.models import load

        return load(self.name or BUNDLED, device=self.device, progress=self.progress, **self.settings)

    def reference(self) -> ModelReference:
        """How the workers of a cluster load it."""
        from ssmoe_embed.distributed.engine import ModelReference

        return ModelReference(self.name or BUNDLED, self.settings, self.device)


class EngineKind(Choice):
    """Where texts are encoded."""

    LOCAL = "local"
    """In this process."""
    RAY = "ray"
    """On the workers of a Ray cluster."""


def on_ray(engine: str, workers: int | None) -> bool:
    """Whether to encode on a cluster; an engine that is not known is refused, and workers without a cluster."""
    if EngineKind.parse(engine, "engine") is EngineKind.RAY:
        return True
    if workers is not None:
        raise ValueError("--workers goes with --engine ray; in one process there is one model.")
    return False
