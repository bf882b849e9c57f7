"""What evaluating needs beyond the package itself."""

from importlib.util import find_spec


def require_mteb() -> None:
    """Say what to install where mteb is missing.

    Raises:
        ImportError: mteb is not installed.
    """
    require_package("mteb", "ssmoe-embed[mteb]")


def require_package(module: str, requirement: str) -> None:
    """Say what to install where a module is missing.

    Raises:
        ImportError: It is not installed.
    """
    if find_spec(module) is None:
        raise ImportError(f"This needs {module}, which is not installed: pip install '{requirement}'")
