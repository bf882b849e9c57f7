"""Imports that wait until they are needed, and extras that are not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, public: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are imported when they are first used (PEP 562).

    Args:
        package: The package's `__name__`.
        public: The names that each of its modules gives.
    """
    places = {name: module for module, names in public.items() for name in names}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(places[name]), name)
        setattr(sys.modules[package], name, value)  # so that the next use does not come here
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, listed


def after_import(name: str, call: Callable[[ModuleType], None]) -> None:
    """Call a function with a module as soon as it is imported, which is now if it is imported already.

    Args:
        name: The module's full name.
        call: What to do. Called again if the module is executed again, so it must be idempotent.
    """
    if name in sys.modules:
        call(sys.modules[name])
    else:
        sys.meta_path.insert(0, _ImportHook(name, call))


class _ImportHook(MetaPathFinder):
    """Finds one module as the other finders do, and has a function called when it has been executed."""

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.call = call

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own specification, whose loader is followed by the call; None for every other module."""
        if fullname != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.call(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


def require_mteb() -> None:
    """See `require_package`."""
    require_package("mteb", "ssmoe-embed[mteb]")


def require_package(module: str, requirement: str) -> None:
    """Say what to install where a module is missing.

    Raises:
        ImportError: It is not installed.
    """
    if find_spec(module) is None:
        raise ImportError(f"This needs {module}, which is not installed: pip install '{requirement}'")
