"""What evaluating needs beyond the package itself."""

from importlib.util import find_spec


def require_mteb() -> None:
    """Say what to install where mteb is missing.

    Raises:
        ImportError: mteb is not installed.
    """
    if find_spec("mteb") is None:
        raise ImportError("Evaluating needs mteb, which is not installed: pip install 'ssmoe-embed[mteb]'")
