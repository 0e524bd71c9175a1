"""Peers for the tests of the comparison: each does what its name says, in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

from convtune.peers import Configuration, Peer, Prepared, Problem, Unsupported
from convtune.peers.base import arranged, in_own_layout
from convtune.spec import ConvSpec


class Puppet(Peer):
    """Computes the reference once, and gives it again and again; what goes wrong is in the methods' names."""

    def __init__(self, name: str, *methods: str) -> None:
        self.name, self.methods = name, methods

    def versions(self) -> dict[str, str]:
        return {self.name: "1.0"}

    def configurations(self, spec: ConvSpec) -> tuple[Configuration, ...]:
        if self.methods == ("no operator",):
            raise Unsupported("it has no such operator")
        return in_own_layout(spec, dict.fromkeys(self.methods, 0))

    def prepare(self, problem: Problem, configuration: Configuration) -> Prepared:
        method = configuration.method
        if method == "unsupported":
            raise Unsupported("not this one")
        if method == "raises":
            raise ValueError("first line\nthe reason")
        if method == "crashes":
            os.abort()
        if method == "meets":
            self._meet()
        y = arranged(problem.operands.reference(problem.spec), problem.spec, configuration.layout)
        y = {"wrong": y * 1.01, "not finite": y * float("nan"), "misshapen": y[..., 1:]}.get(method, y)
        calls = [0]

        def call() -> None:
            calls[0] += 1
            if method == "hangs" or (method == "dies late" and calls[0] > 20):
                time.sleep(60 if method == "hangs" else 0)
                os.abort()
            time.sleep(2e-2 if method == "slow" else 5e-4)

        return Prepared(call, lambda: y)

    def _meet(self) -> None:
        """Waits for another one, which is to be prepared at the same time."""
        Path(f"here-{self.name}").touch()  # in the directory of the processes
        end = time.monotonic() + 30
        while len(list(Path().glob("here-*"))) < 2:
            if time.monotonic() > end:
                raise TimeoutError("nobody came")
            time.sleep(1e-3)


class NeverStarts(Puppet):
    def start(self, threads: int) -> None:
        raise ImportError("its library is broken")


class Environment(Puppet):
    """Right where the process has been set up as it must be before NumPy is loaded."""

    def start(self, threads: int) -> None:
        assert "OPENBLAS_CORETYPE" not in os.environ
        assert threads == 3
