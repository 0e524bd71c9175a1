"""What convtune is compared with: one file per peer, discovered, which imports its library in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping

from convtune.discovery import discover
from convtune.errors import UnknownNameError
from convtune.peers.base import Configuration, Peer, Prepared, Problem, Unsupported

__all__ = ["Configuration", "Peer", "Prepared", "Problem", "Unsupported", "get", "known"]


def known() -> Mapping[str, Peer]:
    """All peers by name, installed or not, the libraries first. Imports none of them."""
    found = discover("convtune.peers", Peer)
    return dict(sorted(found.items(), key=lambda item: (bool(item[1].engine), item[1].order)))


def get(name: str) -> Peer:
    """The peer of that name; raises UnknownNameError with the near ones."""
    if name not in known():
        raise UnknownNameError("peer", name, known())
    return known()[name]
