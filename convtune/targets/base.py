"""Target: the machine compiled for, as what every part of convtune may ask of a CPU and of a GPU alike."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from convtune.errors import TargetError

if TYPE_CHECKING:
    from convtune.targets.host import Host


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A machine. What schedules need to know of it is in the subclass for its kind.

    name: as given to --target. family: "x86", "arm" or "cuda". model: the processor's name, for people.
    is_host: kernels can be run and timed on this machine. notice: what a user should be told of how it was chosen.

    Raises:
        TargetError: a field's value is impossible.
    """

    name: str
    family: str
    model: str
    is_host: bool
    notice: str = ""

    origins: ClassVar[tuple[str, ...]] = ("measured",)
    """Of the records by which schedules are chosen for such a machine, those to believe first."""

    def __post_init__(self) -> None:
        for field in ("name", "family", "model"):
            if not getattr(self, field):
                raise TargetError(f"target {self.name!r}: {field} is empty")
            if len(getattr(self, field).splitlines()) > 1:
                raise TargetError(f"target {self.name!r}: {field} is {getattr(self, field)!r}; allowed: one line")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for machines on which one kernel's time means the same."""
        return hashlib.sha256(json.dumps(self._identity()).encode()).hexdigest()[:16]

    @property
    @abstractmethod
    def description(self) -> str:
        """The machine in a few words, for the end of a table."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a record keeps of the target."""

    @abstractmethod
    def to_tvm(self) -> Any:
        """The tvm.target.Target that generates code for this machine; raises TargetError where TVM cannot."""

    @abstractmethod
    def why_not_here(self) -> str:
        """Why kernels of a target that is not this machine do not run, or are not timed, here."""

    @abstractmethod
    def distance(self, facts: Mapping[str, Any]) -> float:
        """How unlike the machine of a record's facts this one is; infinite where its winners do not suit this one."""

    @abstractmethod
    def _identity(self) -> Sequence[object]:
        """What the fingerprint is made of."""


class Family(ABC):
    """Processors that one set of facts describes. A family is one file with one instance, found by discovery."""

    name: str
    aliases: tuple[str, ...] = ()
    """What its name may be written as, too."""

    def refusal(self, text: str) -> str:
        """Why `text`, which is none of the names, cannot be a target where it means one of this family; else ""."""
        return ""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """The processors that can be named for cross-compiling."""

    @abstractmethod
    def native(self, host: Host, threads: int | None) -> Target:
        """The machine at hand.

        Raises:
            TargetError: the host is of another family, or does not say what it is.
        """

    @abstractmethod
    def named(self, name: str, host: Host, threads: int | None) -> Target:
        """The processor of that name, one of `names()`; runnable here if the host has all it needs."""
