"""`ssmoe`, the command."""

from ssmoe_embed.cli.app import main

__all__ = ["main"]
