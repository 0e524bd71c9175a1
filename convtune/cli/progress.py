"""Shows how tuning goes, on standard error: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from convtune.cli import tables
from convtune.ranks import MEASURED

if TYPE_CHECKING:
    from rich.live import Live

    from convtune.tuning import Progress

HEARTBEAT_S = 10.0


class Display(Protocol):
    def begin(self, number: int, name: str) -> None:
        """Another layer is being tuned. number: counted from 1."""

    def update(self, progress: Progress) -> None:
        """A candidate of it was tried, or is taking long."""

    def finish(self, line: str) -> None:
        """It is done; the line says how."""


@contextmanager
def display(layers: int, deadline: float | None) -> Iterator[Display]:
    """The display for this standard error. deadline: when the budget ends, by time.monotonic()."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield PlainLines(layers, deadline)
        return
    from rich.console import Console
    from rich.live import Live

    # Drawn between candidates only: a thread that draws would disturb what is being timed.
    with Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True) as live:
        yield Screen(live, layers, deadline)


class _Layers:
    """Which layer is being tuned, and what is worth knowing of it."""

    def __init__(self, layers: int, deadline: float | None, clock: Callable[[], float]) -> None:
        self._layers, self._deadline, self._clock = layers, deadline, clock
        self._label = ""

    def begin(self, number: int, name: str) -> None:
        self._label = f"[{number}/{self._layers}] {name}"

    def _facts(self, progress: Progress) -> list[str]:
        best, default = (tables.rank(value, progress.origin) for value in (progress.best_rank, progress.default_rank))
        done = f"{progress.done}/{progress.trials} trials"
        if progress.done > progress.trials:  # of earlier runs, in the log
            done = f"{tables.plural(progress.done, 'trial')}, {progress.trials} asked for"
        told = [done, f"best {best}", f"default {default}"]
        if progress.tried and progress.done < progress.trials:
            told.append(_rate(progress.tried / progress.elapsed_s))
        if self._deadline is not None:
            told.append(f"{tables.duration(self._deadline - self._clock())} left")
        if progress.failures:
            told.append(f"failed: {tables.counts(progress.failures)}")
        if progress.waiting_for:
            told.append(progress.waiting_for)
        return told


def _rate(per_second: float) -> str:
    return f"{1 / per_second:.0f} s a candidate" if per_second < 0.2 else f"{per_second:.1f} candidates/s"


class PlainLines(_Layers):
    """A line per layer, and one now and then while a layer takes long."""

    def __init__(self, layers: int, deadline: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(layers, deadline, clock)
        self._last = clock()

    def update(self, progress: Progress) -> None:
        facts = self._facts(progress)
        if self._clock() - self._last >= HEARTBEAT_S:
            self._say(", ".join(facts))

    def finish(self, line: str) -> None:
        self._say(line)

    def _say(self, text: str) -> None:
        click.echo(f"{self._label}: {text}", err=True)
        self._last = self._clock()


class Screen(_Layers):
    """Finished layers scroll by; below them stands the one being tuned."""

    def __init__(self, live: Live, layers: int, deadline: float | None) -> None:
        super().__init__(layers, deadline, time.monotonic)
        self._live = live

    def begin(self, number: int, name: str) -> None:
        super().begin(number, name)
        self._live.update(self._label, refresh=True)

    def update(self, progress: Progress) -> None:
        # a line now and then disturbs nothing; drawing would, where a kernel may be timed meanwhile
        if not progress.waiting_for or progress.origin != MEASURED:
            self._live.update(self._picture(progress), refresh=True)

    def finish(self, line: str) -> None:
        self._live.console.print(f"{self._label}: {line}", markup=False, soft_wrap=True)

    def _picture(self, progress: Progress) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        heading = Table.grid(padding=(0, 1))
        heading.add_column(no_wrap=True, overflow="ellipsis")
        heading.add_column()
        bar = ProgressBar(progress.trials, min(progress.done, progress.trials), width=20)
        heading.add_row(Text(self._label, "bold"), bar)
        return Group(heading, Text("   ".join(self._facts(progress)), no_wrap=True, overflow="ellipsis"))
