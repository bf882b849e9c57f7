"""`ssmoe encode`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.data import BUNDLED

if TYPE_CHECKING:
    from ssmoe_embed.distributed.engine import Encoding


def encode(
    source: Annotated[
        Path | None,
        Argument(
            metavar="[FILE]",
            help="Texts, one per line, or one per record of .jsonl, .csv, .tsv and .parquet; by default standard input.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", callback=opts.in_existing_folder, help="File to write; by default standard output."),
    ] = None,
    kind: Annotated[
        str | None,
        Option("--format", help="npy, jsonl or parquet; by default by the output's extension, else npy."),
    ] = None,
    field: opts.TextField = "text",
    encoding: opts.TextEncoding = "utf-8",
    on_error: opts.OnBroken = "stop",
    model: opts.Model = BUNDLED,
    method: opts.Method = None,
    prompt: opts.Prompt = None,
    alpha: opts.Alpha = None,
    prompt_name: Annotated[
        str | None, Option(help="A sentence-transformers prompt saved with the model, such as query.")
    ] = None,
    normalize: Annotated[bool, Option("--normalize", help="Scale every vector to length 1.")] = False,
    precision: Annotated[str, Option(help="float32, binary or ubinary.")] = "float32",
    truncate_dim: Annotated[int | None, Option(min=1, help="Keep the first N dimensions of each vector.")] = None,
    engine: opts.Engine = "local",
    workers: opts.Workers = None,
    batch_size: opts.BatchSize = 32,
    device: opts.Device = None,
    quiet: opts.Quiet = False,
) -> None:
    """Encode a stream of texts into vectors, in order.

    With --engine ray, an --output without an extension is a folder of Parquet shards, which `ssmoe index` reads.

    Example: ssmoe encode --model ssmoe/tiny < texts.txt > vectors.npy
    """
    texts = _texts(source, field, encoding, on_error)
    chosen = opts.ChosenModel(model, opts.given(method=method, prompt=prompt, alpha=alpha), device, not quiet)
    if opts.on_ray(engine, workers):
        from ssmoe_embed.distributed.engine import Encoding

        if source is None or output is None:
            raise ValueError(
                "--engine ray reads a FILE and writes to --output, so that it can go on after an interruption."
            )
        arguments = opts.given(
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize or None,
            precision=None if precision == "float32" else precision,
        )
        _encode_on_ray(texts, output, kind, chosen, Encoding(batch_size, arguments=arguments), workers)
        return
    from ssmoe_embed.embedding.streaming import VectorFormat, encode_stream

    by_ending = output.suffix[1:] if output is not None else ""
    form = VectorFormat.parse(kind or by_ending or "npy", "format")
    if output is None and sys.stdout.isatty():
        raise ValueError("The vectors are binary; redirect them (> vectors.npy) or pass --output FILE.")
    if source is None and sys.stdin.isatty():
        raise ValueError("There is no input; name a FILE of texts or redirect one (< texts.txt).")
    total = None if source is None else sum(1 for _ in _texts(source, field, encoding, on_error, quiet=True))
    encoder = chosen.load()
    target = nullcontext(sys.stdout.buffer) if output is None else atomic_file(output)
    with _interruption_told(kept=output is None and form is VectorFormat.JSONL), target as stream:
        count = encode_stream(
            encoder,
            texts,
            stream,
            form,
            batch_size=batch_size,
            total=total,
            progress=not quiet,
            prompt_name=prompt_name,
            normalize_embeddings=normalize,
            precision=precision,
            truncate_dim=truncate_dim,
        )
        stream.flush()
    if not quiet:
        typer.echo(f"{count} vectors of {truncate_dim or encoder.get_embedding_dimension()} dimensions", err=True)


@contextmanager
def _interruption_told(*, kept: bool) -> Iterator[None]:
    """Say what is left when the block is interrupted: whole lines on standard output are `kept`, other formats are not."""
    try:
        yield
    except KeyboardInterrupt:
        left = "every line written so far is whole" if kept else "nothing was written, since this output is made whole"
        hint = "" if kept else "; --format jsonl on standard output keeps what is done"
        typer.echo(f"Interrupted: {left}{hint}.", err=True)
        raise typer.Exit(130) from None


def _encode_on_ray(
    texts: Iterator[str],
    output: Path,
    kind: str | None,
    model: opts.ChosenModel,
    encoding: Encoding,
    workers: int | None,
) -> None:
    """Encode on a Ray cluster, into a folder of shards or, by way of one, into one file."""
    from ssmoe_embed.distributed.engine import encode_on_ray
    from ssmoe_embed.distributed.shards import TextRow, write_shards
    from ssmoe_embed.embedding.streaming import VectorFormat

    whole = None if kind is None and not output.suffix else VectorFormat.parse(kind or output.suffix[1:], "format")
    folder = output if whole is None else output.with_name(f"{output.name}.shards")
    rows = (TextRow(str(number), text) for number, text in enumerate(texts, start=1))
    shards = encode_on_ray(rows, folder, model.reference(), workers=workers, encoding=encoding, progress=model.progress)
    count = sum(shard.documents for shard in shards.shards())
    if whole is not None:
        with atomic_file(output) as stream:
            write_shards(shards, stream, whole)
        shutil.rmtree(folder)
    if model.progress:
        typer.echo(f"{count} vectors in {output}", err=True)


def _texts(source: Path | None, field: str, encoding: str, on_error: str, *, quiet: bool = False) -> Iterator[str]:
    """The texts to encode; lines that are left out are told of, unless `quiet`."""
    from ssmoe_embed.search.reading.records import OnError, ReadOptions, known_encoding
    from ssmoe_embed.search.reading.tables import read_texts

    if source is not None and not source.is_file():
        raise FileNotFoundError(f"There is no input file {source}.")
    options, chosen = ReadOptions(field, known_encoding(encoding)), OnError.parse(on_error, "on_error")
    told = lambda line: None if quiet else typer.echo(f"Skipped: {line}", err=True)  # noqa: E731
    return read_texts(source or sys.stdin.buffer, options, chosen, told)
