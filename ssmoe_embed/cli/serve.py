"""`ssmoe serve`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmoe_embed.cli.index import OwnModel, open_with_model
from ssmoe_embed.cli.options import DEFAULT_MODEL, Alpha, BatchSize, Device, Method, Prompt, Quiet, given

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ssmoe_embed.search.index import SemanticIndex


def serve(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Index to search; by default the bundled corpus.")
    ] = None,
    model: OwnModel = None,
    method: Method = None,
    prompt: Prompt = None,
    alpha: Alpha = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8080,
    name: Annotated[str | None, typer.Option(help="Name of the model for clients; by default that of --model.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale the vectors of /v1/embeddings to length 1, as OpenAI's are.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SSMOE_API_KEY", help="Key that clients must send; by default none is asked for."),
    ] = None,
    batch_size: BatchSize = 32,
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds a text waits for others to share its forward pass.")
    ] = 4.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Maximum number of waiting texts; further requests are answered with 429.")
    ] = 8192,
    max_inputs: Annotated[int, typer.Option(min=1, help="Maximum number of texts per request.")] = 2048,
    max_body: Annotated[float, typer.Option(min=0.001, help="Maximum size of a request, in megabytes.")] = 8.0,
    map_size: Annotated[int, typer.Option(min=0, help="Maximum number of documents on the map; 0 for no map.")] = 5000,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Serve embeddings in OpenAI's format (POST /v1/embeddings), and search on a web page.

    Example: ssmoe serve my_index --model ssmoe/tiny
    """
    try:
        from ssmoe_embed.serving.app import create_app
        from ssmoe_embed.serving.refusals import LOOPBACK, ServerLimits, is_loopback
        from ssmoe_embed.serving.server import Server, address_of, listen
    except ModuleNotFoundError as error:
        raise ImportError(f"Serving needs {error.name}: pip install 'ssmoe-embed[serve]'.") from None
    limits = ServerLimits(
        batch_size=batch_size,
        wait=wait / 1000,
        max_waiting=max_waiting,
        max_inputs=min(max_inputs, max_waiting),
        max_body=int(max_body * 1e6),
    )
    with listen(host, port) as listener:
        settings = given(method=method, prompt=prompt, alpha=alpha)
        called, encoder, corpus = _served(folder, model, settings, device, quiet=quiet)
        called = name or called
        app = create_app(
            encoder,
            name=called,
            corpus=corpus,
            limits=limits,
            normalize=normalize,
            hosts=(*LOOPBACK, host) if is_loopback(host) else None,
            api_key=api_key or None,
            map_size=map_size,
        )
        address = address_of(listener)
        server = Server(app, ready=lambda: typer.echo(f"Serving {called} on {address}", err=True))
        with suppress(KeyboardInterrupt):  # how a server is told to stop
            server.run(sockets=[listener])


def _served(
    folder: Path | None, model: str | None, settings: dict[str, Any], device: str | None, *, quiet: bool
) -> tuple[str, SentenceTransformer, SemanticIndex]:
    """The model's name, the model, and what to search."""
    if folder is not None:
        from ssmoe_embed.search.manifest import Manifest

        index = open_with_model(folder, model, settings, device, quiet)
        encoder = index.model
        if encoder is None:
            raise ValueError(f"The index in {folder} was opened without a model.")
        return model or Manifest.read(folder).reference.get("name", DEFAULT_MODEL), encoder, index
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.search.corpora import bundled_index

    encoder = load(model or DEFAULT_MODEL, device=device, progress=not quiet, **settings)
    return model or DEFAULT_MODEL, encoder, bundled_index(encoder, progress=not quiet)
