"""A workload: a spec with a name and the number of times its network runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from convtune.errors import SpecError, UnknownNameError
from convtune.spec import ConvSpec


@dataclass(frozen=True)
class Workload:
    """One convolution to tune.

    Args:
        name: unique in its source, such as `mobilenet_v2/dw144_56_k3s1`, or the spec's canonical string where the
            source names none. What does not print is escaped in it: names come from files, and a terminal obeys
            control characters.
        count: how often the network runs it; weighs its time in a network's total.
    """

    name: str
    spec: ConvSpec
    count: int = 1

    def __post_init__(self) -> None:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.name)
        object.__setattr__(self, "name", shown)

    @property
    def layer(self) -> str:
        """The name without its network; of a canonical string all, where a `/` stands between activations."""
        return self.name if self.name == str(self.spec) else self.name.rpartition("/")[2]

    def with_spec(self, spec: ConvSpec) -> Workload:
        """The workload with another spec, which it is also named after if it was named after its own."""
        return replace(self, name=str(spec) if self.name == str(self.spec) else self.name, spec=spec)


class LocatedNameError(UnknownNameError):
    """An UnknownNameError of a certain place, such as a line of a file."""

    def __init__(self, where: str, error: UnknownNameError) -> None:
        super().__init__(error.kind, error.name, error.known)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {super().__str__()}"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` before the message of a SpecError or an UnknownNameError that is raised inside."""
    try:
        yield
    except UnknownNameError as error:
        raise LocatedNameError(where, error) from error
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
