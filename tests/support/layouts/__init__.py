"""One description a family, one small file each; a file put into this folder is found by itself.

A description is written from the family's paper and from its published checkpoints. It shares no code with the package, so
that the tests of `test_family_layouts.py`, which run over all descriptions, compare two independent accounts.
"""

from importlib import import_module
from pkgutil import iter_modules

import pytest

from layouts.base import Layout
from ssmoe_embed.families import families

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def _described(kind):
    for described in kind.__subclasses__():
        if hasattr(described, "model_type"):
            yield described
        yield from _described(described)


LAYOUTS = {described.model_type: described() for described in sorted(_described(Layout), key=lambda d: d.model_type)}

TWINS = {twin for family in families() for twin in [name for name in family.models if name in LAYOUTS][1:]}
"""Those that share an adapter with an earlier one."""
EACH = [pytest.param(name, marks=pytest.mark.slow if name in TWINS else ()) for name in LAYOUTS]
"""All of them; the tests of twins are slow ones, as another family's check what the adapter promises."""


def _stored(layout):
    """How a family keeps its experts and computes with them."""
    return layout.projections, layout.fused, type(layout).expert, type(layout).matrices


_WELL_KNOWN = ("mixtral", "olmoe")
_CHOSEN = {_stored(LAYOUTS[name]): name for name in (*reversed(LAYOUTS), *_WELL_KNOWN) if name not in TWINS}
STORED = [pytest.param(name, marks=() if name in _CHOSEN.values() else pytest.mark.slow) for name in LAYOUTS]
"""All of them, for tests of the experts' weights: slow but for one family of each way to keep them."""
