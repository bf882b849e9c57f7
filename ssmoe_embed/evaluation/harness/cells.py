"""The cells of the grid that the paper's tables 1, 5 and 12 compare: a routing, with all experts or fewer."""

from __future__ import annotations

from dataclasses import dataclass

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.language_model.dropping import DropBy
from ssmoe_embed.language_model.routings import Routing


@dataclass(frozen=True)
class Cell:
    """One model of the grid.

    Attributes:
        routing: How its tokens find their experts.
        drop: What decided which experts it lost; None if it has them all.
    """

    routing: Routing
    drop: DropBy | None = None

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return str(self.routing) if self.drop is None else f"{self.routing}+{self.drop}-drop"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """The cell of that name.

        Raises:
            ValueError: It names none.
        """
        if name in NAMED:
            return NAMED[name]
        routing, _, drop = name.partition("+")
        if not drop:
            return cls(Routing.parse(routing, "routing"))
        if not drop.endswith("-drop"):
            raise ValueError(unknown("cell", name, [*NAMED, *(cell.name for cell in GRID)]))
        return cls(Routing.parse(routing, "routing"), DropBy.parse(drop.removesuffix("-drop"), "drop"))


NAMED = {
    "random-drop": Cell(Routing.ORIGINAL, DropBy.RANDOM),
    "router-drop": Cell(Routing.ORIGINAL, DropBy.ROUTER),
    "ssmoe-drop": Cell(Routing.SSMOE, DropBy.SSMOE),
}
"""The paper's three ways to drop; only the third also routes by SSMoE."""

GRID = (
    Cell(Routing.ORIGINAL),
    Cell(Routing.SSMOE),
    *NAMED.values(),
    Cell(Routing.HASH),
    Cell(Routing.RANDOM),
    Cell(Routing.AVERAGE_EV),
)
"""All that the paper compares."""
