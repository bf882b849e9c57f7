"""`ssmoe encode`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ssmoe_embed.cli import options as opts
from ssmoe_embed.cli.options import encode_file, on_ray
from ssmoe_embed.common.files import atomic_file


def encode(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Texts, one per line, or one per record of .jsonl, .csv, .tsv and .parquet; by default standard input.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", callback=opts.in_existing_folder, help="File to write; by default standard output."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--format", help="npy, jsonl or parquet; by default by the output's extension, else npy."),
    ] = None,
    field: opts.TextField = "text",
    encoding: opts.TextEncoding = "utf-8",
    on_error: opts.OnBroken = "stop",
    model: opts.Model = opts.DEFAULT_MODEL,
    method: opts.Method = None,
    prompt: opts.Prompt = None,
    alpha: opts.Alpha = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="A sentence-transformers prompt saved with the model, such as query.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale every vector to length 1.")] = False,
    precision: Annotated[str, typer.Option(help="float32, binary or ubinary.")] = "float32",
    truncate_dim: Annotated[int | None, typer.Option(min=1, help="Keep the first N dimensions of each vector.")] = None,
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
    if on_ray(engine, workers):
        from ssmoe_embed.distributed.engine import Encoding, ModelReference

        reference = ModelReference(model, opts.given(method=method, prompt=prompt, alpha=alpha), device)
        arguments = opts.given(
            prompt_name=prompt_name, truncate_dim=truncate_dim, normalize_embeddings=normalize or None
        )
        arguments |= {} if precision == "float32" else {"precision": precision}
        job = {"kind": kind, "reference": reference, "encoding": Encoding(batch_size, arguments=arguments)}
        _encode_on_ray(texts if source else None, output, quiet, workers=workers, **job)
        return
    from ssmoe_embed.embedding.streaming import VectorFormat, encode_stream
    from ssmoe_embed.hub.models import load

    chosen = VectorFormat.parse(kind or _kind_of(output), "format")
    if output is None and sys.stdout.isatty():
        raise ValueError("The vectors are binary; redirect them (> vectors.npy) or pass --output FILE.")
    if source is None and sys.stdin.isatty():
        raise ValueError("There is no input; name a FILE of texts or redirect one (< texts.txt).")
    total = None if source is None else sum(1 for _ in _texts(source, field, encoding, on_error, quiet=True))
    encoder = load(model, device=device, progress=not quiet, **opts.given(method=method, prompt=prompt, alpha=alpha))
    target = nullcontext(sys.stdout.buffer) if output is None else atomic_file(output)
    with _interruption_told(kept=output is None and chosen is VectorFormat.JSONL), target as stream:
        count = encode_stream(
            encoder,
            texts,
            stream,
            chosen,
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


def _encode_on_ray(texts: Iterator[str] | None, output: Path | None, quiet: bool, **job: Any) -> None:
    """Encode on a Ray cluster, into a folder of shards or, by way of one, into one file."""
    from ssmoe_embed.distributed.shards import TextRow

    if texts is None or output is None:
        raise ValueError(
            "--engine ray reads a FILE and writes to --output, so that it can go on after an interruption."
        )
    rows = (TextRow(str(number), text) for number, text in enumerate(texts, start=1))
    count = encode_file(rows, output, progress=not quiet, **job)
    if not quiet:
        typer.echo(f"{count} vectors in {output}", err=True)


def _kind_of(output: Path | None) -> str:
    """The format that the output's ending names, else npy."""
    return output.suffix.lstrip(".") if output is not None and output.suffix else "npy"


def _texts(source: Path | None, field: str, encoding: str, on_error: str, *, quiet: bool = False) -> Iterator[str]:
    """The texts to encode; lines that are left out are told of, unless `quiet`."""
    from ssmoe_embed.search.reading.records import OnError, ReadOptions, known_encoding
    from ssmoe_embed.search.reading.tables import read_texts

    if source is not None and not source.is_file():
        raise FileNotFoundError(f"There is no input file {source}.")
    options, chosen = ReadOptions(field, known_encoding(encoding)), OnError.parse(on_error, "on_error")
    told = lambda line: None if quiet else typer.echo(f"Skipped: {line}", err=True)  # noqa: E731
    return read_texts(source or sys.stdin.buffer, options, chosen, told)
