"""How spectral embeddings are made from expert matrices: the settings, validated once."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, TypedDict

from ssmoe_embed.common.choices import Choice


class Selection(Choice):
    """Which eigenvectors of an expert matrix are averaged."""

    ROUTER = "router"
    """The `top_c` ones most similar to the expert's router row (the paper's step 2)."""
    AVERAGE = "average"
    """All of them: the router-free variant (the paper's table 5)."""


class Sign(Choice):
    """How the arbitrary sign of an eigenvector is fixed."""

    ALIGNED = "aligned"
    """Towards the expert's router row, so that the similarity is never negative."""
    CANONICAL = "canonical"
    """The entry of largest magnitude is positive: needs no router."""
    RAW = "raw"
    """Whatever the SVD returned: depends on the LAPACK build, for comparison only."""


class Scale(Choice):
    """The length of the spectral router's rows."""

    NONE = "none"
    """As averaged: about 1/√top_c, the paper's."""
    ROUTER = "router"
    """Every row rescaled to the layer's mean router-row norm."""


class SpectralKeywords(TypedDict, total=False):
    """The fields of `SpectralSettings`, for editors and type checkers."""

    top_c: int | float
    select: str
    sign: str
    scale: str
    exclude_common: int


@dataclass(frozen=True)
class SpectralSettings:
    """The settings of a spectral router.

    Attributes:
        top_c: How many eigenvectors of each matrix are averaged: a count (`int >= 1`) or a fraction of the matrix's
            rank bound `m = min(I, H)` (`0 < float <= 1`). Ignored by `select="average"`.
        select: Which eigenvectors are kept.
        sign: How their sign is fixed.
        scale: How long the resulting rows are.
        exclude_common: Rank of what a layer's experts share that is taken off each matrix first: the leading part of their
            mean matrix; 0 for nothing. (Dominant directions of experts overlap: SD-MoE, https://arxiv.org/abs/2602.12556.)

    Raises:
        ValueError: A value is outside what its setting allows.
    """

    top_c: int | float = 50
    select: Selection = Selection.ROUTER
    sign: Sign = Sign.ALIGNED
    scale: Scale = Scale.NONE
    exclude_common: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.exclude_common, bool) or not isinstance(self.exclude_common, int) or self.exclude_common < 0:
            raise ValueError(f"exclude_common={self.exclude_common!r} is no rank; choose a count, or 0 for nothing.")
        object.__setattr__(self, "select", Selection.parse(self.select, "select"))
        object.__setattr__(self, "sign", Sign.parse(self.sign, "sign"))
        object.__setattr__(self, "scale", Scale.parse(self.scale, "scale"))
        allowed = "a count of at least 1 (such as 50) or a fraction in (0, 1] (such as 0.05)"
        given: object = self.top_c
        if isinstance(given, bool) or not isinstance(given, Real) or not math.isfinite(given):
            raise ValueError(f"top_c={given!r} is not a number; choose {allowed}.")
        top_c = int(given) if isinstance(given, Integral) else float(given)
        if isinstance(top_c, int) and top_c < 1:
            raise ValueError(f"top_c={given} keeps no eigenvector; choose {allowed}.")
        if isinstance(top_c, float) and not 0 < top_c <= 1:
            raise ValueError(f"top_c={given} is not a fraction; choose {allowed}.")
        object.__setattr__(self, "top_c", top_c)

    def count(self, m: int) -> int:
        """How many eigenvectors to keep of a matrix that has `m`; a larger `top_c` is clipped with a warning."""
        if isinstance(self.top_c, float):
            return max(1, round(self.top_c * m))
        if self.top_c > m:
            warnings.warn(
                f"top_c={self.top_c} is more than the {m} eigenvectors an expert matrix has; using {m}. "
                "Pass a fraction such as top_c=0.05 to keep the same share in every model.",
                stacklevel=2,
            )
        return min(self.top_c, m)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {key: str(value) if isinstance(value, Choice) else value for key, value in asdict(self).items()}
