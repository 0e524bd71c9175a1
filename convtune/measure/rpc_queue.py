"""Which kernel a machine measures next: where there are several, first of all the one that tells their speeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convtune.measure.worker import Reply

if TYPE_CHECKING:
    from convtune.measure.bench import Built
    from convtune.measure.worker import Batch
    from convtune.space import Candidate
    from convtune.spec import ConvSpec


@dataclass(eq=False)
class Task:
    """A kernel to be measured, or finalists in turn.

    request: to a machine's worker, given its address. seconds: that it may take. built: the kernel, if it is one.
    attempts: how many machines may be lost over it; then that is its reply. device: the machine that has it, or had it.
    """

    request: Callable[[str], Any]
    seconds: float
    built: Built | None = None
    attempts: int = 1
    device: str = ""
    reply: Reply = field(default_factory=lambda: Reply(""))


@dataclass
class Gauge:
    """How far a spec's machines are known. Each measures the yardstick first, where there are several.

    make: the yardstick's tasks, once it is built. given: the machines that had one. best_us: of each machine.
    """

    spec: ConvSpec
    yardstick: Candidate
    machines: int = 1
    make: Callable[[], Task] | None = None
    given: set[str] = field(default_factory=set)
    best_us: dict[str, float] = field(default_factory=dict)

    def candidates(self, asked: Sequence[Candidate]) -> list[Candidate]:
        """What is to be built: the yardstick first, where it is needed."""
        if self.machines < 2 or self.make is not None:
            return list(asked)
        return [self.yardstick, *(candidate for candidate in asked if candidate != self.yardstick)]

    def note(self, address: str, times_us: tuple[float, ...]) -> None:
        """Times of a kernel that was right there."""
        if times_us:
            self.best_us[address] = min(min(times_us), self.best_us.get(address, times_us[0]))


class Queue:
    """The tasks of a batch, while it is built."""

    def __init__(self, builds: Batch, gauge: Gauge | None = None) -> None:
        """gauge: None: the machines need not be known."""
        self._builds, self._gauge = builds, gauge
        self._coming = gauge is not None and gauge.machines > 1 and gauge.make is None
        self._tasks: deque[Task] = deque()

    def add(self, task: Task) -> None:
        self._tasks.append(task)

    def arrived(self, candidate: Candidate, make: Callable[[], Task] | None, asked: bool) -> None:
        """It was built. make: its tasks, None where it does not build. asked: it is to be measured in any case."""
        if self._gauge is not None and candidate == self._gauge.yardstick:
            self._gauge.make, self._coming = make, False
        if make is not None and asked:
            self.add(make())

    @property
    def open(self) -> bool:
        """Whether there are tasks, or will be."""
        return bool(self._tasks or self._builds.open)

    def next(self, address: str) -> Task | None:
        """One for the machine, if there is one for it now."""
        if not self._tasks:
            return None
        gauge = self._gauge
        if gauge is None or gauge.machines < 2 or address in gauge.given:
            return self._tasks.popleft()
        if self._coming:
            return None
        if gauge.make is None:  # it does not build
            return self._tasks.popleft()
        gauge.given.add(address)
        own = next((task for task in self._tasks if task.built and task.built.candidate == gauge.yardstick), None)
        if own is None:
            return gauge.make()
        self._tasks.remove(own)
        return own

    def give_back(self, task: Task) -> None:
        """Its machine was lost."""
        if self._gauge is not None:
            self._gauge.given.discard(task.device)
        self._tasks.appendleft(task)
