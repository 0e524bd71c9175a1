"""One side of the comparison: a peer's process, as seen from outside, and the times of its configurations."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convtune.comparison.asking import Asking, at_once
from convtune.errors import MeasureError
from convtune.measure.bench import Limits
from convtune.measure.worker import Pool, Reply
from convtune.peers.base import Unsupported
from convtune.peers.process import UNSET, Checked, Contender, Job, Prepare, Taken, Turn

if TYPE_CHECKING:
    from convtune.peers import Configuration, Peer
    from convtune.spec import ConvSpec

LIMITS = Limits()
FEWEST_CALLS = 3
_DIED = ("crash", "timeout", "out_of_memory")
_COPIES = 6  # of a peer's arrays: several configurations are held at a time, with packed weights and intermediates


@dataclass
class Entry:
    """A configuration of a side, and what came of it.

    status: "ok", or as a peer's in the file. error: of its result. turns_us: the median of each turn that it took;
    fewer than there were rounds where it was `dropped` as hopeless. others: of each turn, the share of the CPUs' time
    that other processes had.
    """

    configuration: Configuration
    status: str = "ok"
    message: str = ""
    error: float | None = None
    turns_us: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    dropped: bool = False

    @property
    def us(self) -> float | None:
        """The median of its turns; None where it has no right result, or did not last."""
        return statistics.median(self.turns_us) if self.status == "ok" and self.turns_us else None

    def take_back(self) -> None:
        """Forgets the last turn."""
        self.turns_us.pop()
        self.others.pop()

    def fail(self, reply: Reply) -> None:
        self.status, self.message = reply.status, reply.message


class Side:
    """A peer in its process, which starts when it is needed and again when it died. A context manager's resource:
    close it."""

    def __init__(self, peer: Peer, threads: int, directory: Path, limits: Limits = LIMITS) -> None:
        self.peer, self._limits = peer, limits
        self.entries: list[Entry] = []
        self.refusal: tuple[str, str] | None = None
        self._pool = Pool(Contender, (peer, threads), 1, directory, UNSET)
        self._broken = ""

    @property
    def name(self) -> str:
        return self.peer.name

    def refuse(self, status: str, message: str) -> None:
        """Takes no part in this spec's rounds."""
        self.entries, self.refusal = [], (status, message)

    def prepare(self, job: Job, loose: float) -> None:
        """Prepares and checks all configurations. One whose process dies is left out, and the others made again."""
        at_once([self.preparing(job, loose)])

    def preparing(self, job: Job, loose: float) -> Asking:
        """`prepare`, for several sides at once."""
        self.entries, self.refusal = [], None
        if self._broken:
            self.refuse("error", self._broken)
            return
        try:
            waiting = [Entry(configuration) for configuration in self.peer.configurations(job.spec)]
        except Unsupported as reason:
            self.refuse("unsupported", str(reason))
            return
        self.entries, ready = list(waiting), list[Entry]()
        try:
            while waiting:
                entry = waiting.pop(0)
                reply = yield self._pool.begin([Prepare(job, entry.configuration)], *self._limits_of(job.spec))
                if reply.status == "ok":
                    _judge(entry, reply.value, loose)
                    ready += [entry] if entry.status == "ok" else []
                    continue
                entry.fail(reply)
                if reply.status in _DIED:
                    waiting, ready = ready + waiting, []
        except MeasureError as problem:  # its process does not start: it will not for the next spec either
            self._broken = str(problem)
            self.refuse("error", self._broken)

    def turn(self, entry: Entry, seconds: float, spec: ConvSpec) -> None:
        """One turn of an entry. Where the process dies, the side is out of the rest of the rounds."""
        try:
            reply = self._pool.call(Turn(entry.configuration, seconds, FEWEST_CALLS), *self._limits_of(spec))
        except MeasureError as problem:  # it ended between two turns, and does not start again
            reply = Reply("crash", message=str(problem))
        if reply.status == "ok":
            taken: Taken = reply.value
            entry.turns_us.append(taken.seconds * 1e6)
            entry.others.append(taken.others)
            return
        entry.fail(reply)
        for other in self.entries if reply.status in _DIED else ():
            if other.status == "ok":
                what = f"a turn of {entry.configuration.name} ended its process: {reply.message}"
                other.fail(replace(reply, message=what))

    def _limits_of(self, spec: ConvSpec) -> tuple[float, int]:
        """Seconds and bytes for a request."""
        limits = self._limits
        return max(limits.device(spec), limits.reference(spec)), _COPIES * limits.memory(spec)

    @property
    def playing(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == "ok" and not entry.dropped]

    def close(self) -> None:
        self._pool.stop()


def _judge(entry: Entry, checked: Checked, loose: float) -> None:
    entry.error = checked.error
    if checked.unsupported:
        entry.status, entry.message = "unsupported", checked.unsupported
    elif checked.error is None:
        entry.status, entry.message = "wrong", "its result is not finite"
    elif checked.error > loose:
        entry.status, entry.message = "wrong", f"its error is {checked.error:.1e}, allowed {loose:.0e}"
