"""Numbers and tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from convtune.ranks import MEASURED, unit_of
from convtune.record import installed_versions

if TYPE_CHECKING:
    from convtune.workloads import Workload

NOTHING = "-"


def render(columns: Mapping[str, str], rows: Iterable[Sequence[str | None]]) -> str:
    """A table of texts. columns: each header with its alignment, "left" or "right"; None in a row means nothing."""
    from tabulate import tabulate

    texts = [[NOTHING if cell is None else cell for cell in row] for row in rows]
    aligned = list(columns.values())
    # as texts: tabulate would write 1.0e-07 and 12.50 in its own way
    return tabulate(texts, list(columns), "simple", colalign=aligned, disable_numparse=True) if texts else ""


def print_json(data: Any) -> None:
    """Writes the result for machines to standard output."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


@dataclass(frozen=True)
class RankColumn:
    """How the ranks of a column, all of one origin, are written: in one unit, with as many decimals as the least needs.

    unit: its name in the head. size: how much of a rank it is.
    """

    origin: str
    unit: str
    size: float
    decimals: int

    @classmethod
    def of(cls, ranks: Iterable[float | None], origin: str = MEASURED) -> RankColumn:
        known = [rank for rank in ranks if rank is not None]
        unit = unit_of(known, origin)
        return cls(origin, unit.short, unit.size, _decimals(min(known, default=math.inf) / unit.size))

    def head(self, title: str) -> str:
        """The title with the unit, and where the numbers come from unless they were measured."""
        return " ".join([title, self.unit, *([] if self.origin == MEASURED else [self.origin])])

    def text(self, rank: float | None) -> str | None:
        return number(None if rank is None else rank / self.size, self.decimals)


def _decimals(value: float) -> int:
    return 2 if value < 10 else 1


def number(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def rank(value: float | None, origin: str = MEASURED) -> str:
    """A time or cost with its unit, and where it comes from unless it was measured."""
    if value is None:
        return NOTHING
    column = RankColumn.of([value], origin)
    return column.head(f"{column.text(value)}")


def speedup(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}x"


def share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.0f} %"


def error(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


def counts(by_kind: Mapping[str, int]) -> str:
    """Such as "2 wrong, 1 timeout"; "" where there are none."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in by_kind.items())


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Such as 3:20 or 1:02:03."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bytes_text(count: int) -> str:
    """Such as 512 B, 12.5 KiB or 3.0 MiB."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def short_names(workloads: Sequence[Workload]) -> tuple[str, list[str]]:
    """The network that all names begin with, or "", and the names without it."""
    names = [workload.name for workload in workloads]
    networks = {name.rpartition("/")[0] for name in names}
    if len(networks) != 1 or "," in names[0]:
        return "", names
    return networks.pop(), [name.rpartition("/")[2] for name in names]


def versions() -> str:
    named = installed_versions()
    return f"convtune {named['convtune']}, TVM {named['tvm']}"
