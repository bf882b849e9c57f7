"""What searching has to do with images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmoe_embed.data import BUNDLED, BUNDLED_CLIP

if TYPE_CHECKING:
    from ssmoe_embed.search import SemanticIndex

EMOJI = Path("emoji")
"""The name of the bundled corpus of images, unless there is a file or folder of that name."""
Images = Annotated[list[Path] | None, typer.Option(help="Image, or folder of images, to search; may be repeated.")]
Like = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Find what looks like this image; takes the place of QUERY.")
]


def means_images(corpus: list[Path] | None, images: list[Path] | None, like: Path | None) -> bool:
    """Whether images are searched without an index of one's own: those of a folder, or the bundled emoji."""
    return bool(images) or _means_emoji(corpus) or (like is not None and not corpus)


def _means_emoji(corpus: list[Path] | None) -> bool:
    return corpus == [EMOJI] and not EMOJI.exists()


def open_images(
    images: list[Path] | None,
    like: Path | None,
    model: str | None,
    settings: dict[str, Any],
    device: str | None,
    batch_size: int,
    quiet: bool,
) -> SemanticIndex:
    """An index in the cache of images, or of the bundled emoji: for words by their names and tags, which says more."""
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.search import read_documents
    from ssmoe_embed.search.corpora import corpus_index, emoji_index

    source = read_documents(*images, images="only") if images else None
    own = BUNDLED if source is None and like is None else BUNDLED_CLIP
    encoder = load(model or own, device=device, progress=not quiet, **settings)
    if source is None:
        return emoji_index(encoder, batch_size=batch_size, progress=not quiet)
    made = corpus_index(encoder, source, batch_size=batch_size, progress=not quiet)
    if source.skipped_files:
        typer.echo(source.skipped_summary(), err=True)
    return made


def images_of(corpus: list[Path], too: bool, model: str | None, there: bool) -> tuple[str, str | None]:
    """Whether a corpus's images are indexed, as `read_documents` takes it, and by which model.

    Args:
        corpus: Files and folders.
        too: Whether images were asked for.
        model: The model that was named.
        there: Whether there is an index already, which has a model.
    """
    from ssmoe_embed.search.reading.corpus import only_images

    only = only_images(*corpus)
    if not only and not too:
        return "no", model
    return "only" if only else "too", model or (None if there else BUNDLED_CLIP)


def check_like(like: Path | None, query: str | None, interactive: bool, mode: str, explain: bool) -> None:
    """Make sure that there is one thing to look for.

    Raises:
        ValueError: There is none, two, or one that cannot be looked for so.
    """
    if like is None:
        if query is None and not interactive:
            raise ValueError("There is no query; say what you are looking for, or pass --interactive or --like.")
        return
    if query is not None or interactive:
        raise ValueError("--like takes the place of a query; pass one of the two.")
    if mode == "words" or explain:
        raise ValueError("An image has no words; leave out --words-only and --explain beside --like.")
