"""Machines on which kernels are measured through TVM's RPC: asks their tracker which there are, and for one of them."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from convtune.errors import MeasureError, TargetError

_MAGIC = 0x2F271  # RPC_TRACKER_MAGIC of tvm/rpc/base.py, as are the codes
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_ANSWER_S = 5.0
_LARGEST_ANSWER_BYTES = 1 << 24
_NO_ANSWER = (OSError, ValueError, LookupError, TypeError)  # the connection, the bytes, what the JSON holds


@dataclass(frozen=True)
class Remote:
    """All servers that are registered under `key` with the tracker at host:port. It asks nobody who they are."""

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, address: str, key: str) -> Remote:
        """From HOST:PORT, such as 127.0.0.1:9190 or [::1]:9190. Raises TargetError for anything else."""
        found = re.fullmatch(r"(?:\[([^\[\]\s]+)\]|([^:\[\]\s]+)):(\d{1,5})", address, re.ASCII)
        if not found or not 1 <= int(found[3]) <= 65535:
            raise TargetError(f"RPC tracker is {address!r}; allowed: HOST:PORT, such as 127.0.0.1:9190")
        if not re.fullmatch(r"[^\s:]+", key):
            raise TargetError(f"RPC key is {key!r}; allowed: a word without colons, as its servers were given it")
        return cls(found[1] or found[2], int(found[3]), key)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def servers(self) -> int:
        """How many servers have the key, in use or not. Raises TargetError, in seconds, where there is no tracker."""
        return self._keys().count(self.key)

    def check(self) -> None:
        """Raises TargetError, in seconds, where there is no tracker or no server has the key."""
        keys = self._keys()
        if self.key not in keys:
            known = f"it has {', '.join(sorted(set(keys)))}" if keys else "it has no servers at all"
            raise TargetError(f"RPC tracker {self.address} has no server with key {self.key!r}; {known}")

    def _keys(self) -> list[str]:
        """Of all servers."""
        try:
            with self._tracker(_ANSWER_S) as tracker:
                servers = _ask(tracker, [_SUMMARY])["server_info"]
                return [str(server["key"]).removeprefix("server:") for server in servers]
        except _NO_ANSWER as error:
            raise TargetError(f"no RPC tracker answers at {self.address}: {reason(error)}") from error

    def request(self, seconds: float) -> tuple[str, int, str]:
        """A free server: its host, its port, and the key with which to connect to it.

        Raises:
            MeasureError: there was none in so many seconds, or the tracker is gone.
        """
        try:
            with self._tracker(seconds) as tracker:
                host, port, key = _ask(tracker, [_REQUEST, self.key, "", 1])
        except TimeoutError as error:
            none = f"no server with key {self.key!r} was free for {seconds:g} s"
            raise MeasureError(f"{none}, by RPC tracker {self.address}; they are in use, or dead") from error
        except _NO_ANSWER as error:
            raise MeasureError(f"RPC tracker {self.address} does not answer any more: {reason(error)}") from error
        return str(host), int(port), str(key)

    @contextmanager
    def _tracker(self, answer_s: float) -> Iterator[socket.socket]:
        """A connection that waits so long for an answer, once the tracker has said that it is one."""
        with socket.create_connection((self.host, self.port), timeout=_ANSWER_S) as connection:
            connection.sendall(struct.pack("<i", _MAGIC))
            if struct.unpack("<i", _receive(connection, 4))[0] != _MAGIC:
                raise ValueError("another magic number")
            connection.settimeout(answer_s)
            yield connection


def remote_of(address: str | None, key: str | None) -> Remote | None:
    """The remote that both name, None where neither is given; raises TargetError where one is missing or malformed."""
    if address is None and key is None:
        return None
    if address is None:
        raise TargetError(f"RPC key {key!r} is given without the tracker's HOST:PORT; both are needed")
    if key is None:
        raise TargetError(f"RPC tracker {address!r} is given without its servers' key; both are needed")
    return Remote.parse(address, key)


def _ask(tracker: socket.socket, question: list[Any]) -> Any:
    text = json.dumps(question).encode()
    tracker.sendall(struct.pack("<i", len(text)) + text)
    (size,) = struct.unpack("<i", _receive(tracker, 4))
    if not 0 < size <= _LARGEST_ANSWER_BYTES:
        raise ValueError(f"an answer of {size} bytes")
    status, value = json.loads(_receive(tracker, size))
    if status != _SUCCESS:
        raise ValueError(f"status {status}")
    return value


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        if not (piece := connection.recv(size - len(received))):
            raise ValueError("an answer cut short")
        received += piece
    return received


def reason(error: Exception) -> str:
    """Why a tracker does not answer, in a few words."""
    if isinstance(error, TimeoutError):
        return f"no answer in {_ANSWER_S:g} s"
    return (error.strerror or str(error)) if isinstance(error, OSError) else "what answers there is no tracker"
