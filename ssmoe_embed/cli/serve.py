"""`ssmoe serve`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ssmoe_embed.cli.options import Alpha, BatchSize, ChosenModel, Device, Method, OwnModel, Prompt, Quiet, given
from ssmoe_embed.data import BUNDLED


def serve(
    folder: Annotated[
        Path | None, Argument(metavar="[DIR]", help="Index to search; by default the bundled corpus.")
    ] = None,
    model: OwnModel = None,
    method: Method = None,
    prompt: Prompt = None,
    alpha: Alpha = None,
    host: Annotated[str, Option(help="Address to listen on; any other lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8080,
    name: Annotated[str | None, Option(help="Name of the model for clients; by default that of --model.")] = None,
    normalize: Annotated[
        bool, Option("--normalize", help="Scale the vectors of /v1/embeddings to length 1, as OpenAI's are.")
    ] = False,
    api_key: Annotated[
        str | None,
        Option(envvar="SSMOE_API_KEY", help="Key that clients must send; by default none is asked for."),
    ] = None,
    batch_size: BatchSize = 32,
    wait: Annotated[
        float, Option(min=0, max=1000, help="Milliseconds a text waits for others to share its forward pass.")
    ] = 4.0,
    max_waiting: Annotated[
        int, Option(min=1, help="Maximum number of waiting texts; further requests are answered with 429.")
    ] = 8192,
    max_inputs: Annotated[int, Option(min=1, help="Maximum number of texts per request.")] = 2048,
    max_body: Annotated[float, Option(min=0.001, help="Maximum size of a request, in megabytes.")] = 8.0,
    map_size: Annotated[int, Option(min=0, help="Maximum number of documents on the map; 0 for no map.")] = 5000,
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
    chosen = ChosenModel(model, given(method=method, prompt=prompt, alpha=alpha), device, not quiet)
    with listen(host, port) as listener:
        from ssmoe_embed.search import SemanticIndex
        from ssmoe_embed.search.corpora import bundled_index

        if folder is not None:
            chosen = chosen.of_index(folder)
        encoder = chosen.load()
        called = name or chosen.name or BUNDLED
        corpus = bundled_index(encoder, progress=not quiet) if folder is None else SemanticIndex.open(folder, encoder)
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
