"""What the page remembers of each visitor while the visit lasts: the last race and the rows of their sweeps."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..report.race import RaceRecord

_MOST = 64  # visits: of more, the one heard of longest ago is forgotten


@dataclass
class Visit:
    """``race`` is the last one that finished or was stopped; ``rows`` are tidy fields of ``SweepRow``."""

    race: RaceRecord | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


class Visits:
    """Visits by session; nothing of one is left once it is forgotten."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, Visit] = OrderedDict()

    def of(self, owner: str) -> Visit:
        visit = self._by_owner.setdefault(owner, Visit())
        self._by_owner.move_to_end(owner)
        while len(self._by_owner) > _MOST:
            self._by_owner.popitem(last=False)
        return visit

    def forget(self, owner: str) -> None:
        self._by_owner.pop(owner, None)
