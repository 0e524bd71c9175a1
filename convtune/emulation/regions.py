"""The parallel regions of an emulated kernel: which task is next, and how many instructions each took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class _Region:
    pending: list[int]
    instructions: dict[int, int] = field(default_factory=dict)
    running: int = -1
    since: int = 0


class Regions:
    """Runs the tasks of each region in turn, in their order or its reverse.

    threads: how many tasks a region has that leaves it to the runtime. executed: says how many instructions have been
    executed so far.
    """

    def __init__(self, threads: int, executed: Callable[[], int]) -> None:
        self._threads, self._executed = threads, executed
        self.start(reverse=False)

    def start(self, reverse: bool) -> None:
        """Forgets all regions."""
        self._reverse = reverse
        self._open: list[_Region] = []  # one in another
        self._launched: list[_Region] = []

    def begin(self, tasks: int) -> int:
        """A region of so many tasks begins, or, of 0, of as many as suit. Returns how many they are.

        One in another runs as the runtime has it: on the thread that launches it, so of one task if any number suits.
        """
        count = tasks & 0xFFFFFFFF or (1 if self._open else self._threads)
        order = range(count) if self._reverse else range(count - 1, -1, -1)
        region = _Region(list(order))
        if not self._open:
            self._launched.append(region)
        self._open.append(region)
        return count

    def next(self, _argument: int) -> int:
        """The task that runs now; -1 where the region ends."""
        region, executed = self._open[-1], self._executed()
        if region.running >= 0:
            region.instructions[region.running] = executed - region.since
        if not region.pending:
            self._open.pop()
            return -1
        region.running, region.since = region.pending.pop(), executed
        return region.running

    def instructions(self) -> tuple[tuple[int, ...], ...]:
        """Of each task of each region that was not in another."""
        return tuple(
            tuple(region.instructions[task] for task in sorted(region.instructions)) for region in self._launched
        )
