"""Names that are imported when they are used, and calls that follow an import."""

import importlib
import sys

import pytest

from ssmoe_embed.common.lazy import after_import, lazy_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `lazily` of two modules, of which `broken` cannot be imported."""
    (tmp_path / "lazily").mkdir()
    (tmp_path / "lazily" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "lazily" / "numbers.py").write_text("one, two = 1, 2", encoding="utf-8")
    (tmp_path / "lazily" / "broken.py").write_text("import there_is_no_such_module", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield importlib.import_module("lazily")
    for name in [name for name in sys.modules if name.split(".")[0] == "lazily"]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_used_and_then_kept(package):
    package.__getattr__, package.__dir__ = lazy_names("lazily", {"lazily.numbers": ["one", "two"]})
    assert "lazily.numbers" not in sys.modules
    assert {"one", "two"} <= {*dir(package)}
    assert package.one == 1
    assert vars(package)["one"] == 1
    assert "two" not in vars(package)
    with pytest.raises(AttributeError, match="'lazily' has no attribute 'three'"):
        package.__getattr__("three")


def test_a_call_follows_an_import_that_is_past_or_to_come(package):
    seen = []
    after_import("lazily", lambda module: seen.append(module.__name__))
    assert seen == ["lazily"]
    after_import("lazily.numbers", lambda module: seen.append(module.two))
    assert seen == ["lazily"]
    importlib.import_module("lazily.numbers")
    assert seen == ["lazily", 2]


def test_a_call_does_not_follow_an_import_that_fails(package):
    seen = []
    after_import("lazily.broken", seen.append)
    after_import("lazily.missing", seen.append)
    for name in ("broken", "missing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"lazily.{name}")
    assert seen == []
