"""The built-in zoo: convolution layers of real networks, from zoo.csv.

Layers are channels last, which is the faster layout on CPUs; their biases and activations are not part of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from convtune.errors import UnknownNameError
from convtune.workloads.tables import Row, read_rows
from convtune.workloads.workload import Workload

ALL = "zoo"
"""The workload that stands for all networks."""


@dataclass(frozen=True)
class Network:
    """A network of the zoo: its convolutions, equal ones once."""

    name: str
    workloads: tuple[Workload, ...]


def zoo() -> Mapping[str, Network]:
    """All networks by name."""
    return {name: Network(name, tuple(map(_workload, rows))) for name, rows in _rows().items()}


def matches(text: str) -> bool:
    """Whether the text names the whole zoo, a network of it, or a layer of one."""
    return text == ALL or text.partition("/")[0] in _rows()


def parse(text: str) -> list[Workload]:
    """All layers of `NETWORK`, those of `NETWORK/PREFIX` whose names begin so, or with `zoo` those of all networks.

    Raises:
        UnknownNameError: there is no such network or layer.
    """
    if text == ALL:
        return [workload for network in zoo().values() for workload in network.workloads]
    network, _, prefix = text.partition("/")
    if network not in _rows():
        raise UnknownNameError("workload", text, _rows())
    rows = [row for row in _rows()[network] if (row.layer or "").startswith(prefix)]
    if not rows:
        raise UnknownNameError("workload", text, (f"{network}/{row.layer}" for row in _rows()[network]))
    return [_workload(row) for row in rows]


def _workload(row: Row) -> Workload:
    return row.workload(channels_last=True)


@functools.cache
def _rows() -> Mapping[str, list[Row]]:
    text = resources.files(__package__).joinpath("zoo.csv").read_text(encoding="utf-8")
    rows: dict[str, list[Row]] = {}
    for row in read_rows(text, "zoo.csv"):
        rows.setdefault(row.network or "", []).append(row)
    return rows
