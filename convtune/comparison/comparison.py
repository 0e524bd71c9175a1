"""The comparison of specs: compiles ours, finds the winner of a peer with an engine, plays the rounds, writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune import accuracy as accuracies
from convtune.comparison import layer
from convtune.comparison.asking import at_once
from convtune.comparison.referee import Referee
from convtune.comparison.rounds import play
from convtune.comparison.side import Side
from convtune.compiler import Compiler
from convtune.errors import BuildError, ConvtuneError, MeasureError, ScheduleError, VerifyError
from convtune.measure.home import Home
from convtune.peers.compiled import CompiledPeer
from convtune.peers.process import Job
from convtune.record import winner

if TYPE_CHECKING:
    from convtune.compiler import Package
    from convtune.log import LogStack
    from convtune.peers import Peer
    from convtune.targets import CpuTarget
    from convtune.tuner import Tuner
    from convtune.tuning import Progress
    from convtune.workloads import Workload

SEED = 1
_OURS_FAILED = (BuildError, MeasureError, ScheduleError, VerifyError)


@dataclass(frozen=True)
class Settings:
    """rounds: of turns. turn_s: how long the calls of a turn take. trials: of a peer's engine, such as MetaSchedule.
    engine_log: the log of such engines."""

    rounds: int
    turn_s: float
    trials: int
    engine_log: Path


@dataclass(frozen=True)
class Entrants:
    """What is compared for a workload: our package and those of peers with an engine, by name; or why there is none."""

    ours: Package | None
    packages: Mapping[str, Package]
    refusals: Mapping[str, str]
    failure: str = ""


class Comparison:
    """Compares specs one by one; keeps every contender's process between them. A context manager."""

    def __init__(
        self,
        target: CpuTarget,
        logs: LogStack,
        peers: Sequence[Peer],
        settings: Settings,
        accuracy: str = "standard",
    ) -> None:
        """peers: all installed. Raises as Compiler does."""
        self.target, self.settings, self.accuracy = target, settings, accuracy
        self._compiler = Compiler(target, logs, accuracy)
        self._home = Home()
        self._ours = Side(CompiledPeer(), target.threads, self._home.path)
        self._peers = [Side(peer, target.threads, self._home.path) for peer in peers]
        self._referee = Referee(self._home.path)
        self._tuners: dict[str, Tuner] = {}

    def entrants(self, workload: Workload, on_progress: Callable[[Progress], None] | None = None) -> Entrants:
        """Compiles what is to be compared, and tunes where a peer's engine has to."""
        try:
            ours = self._compiler.package(workload.spec)
        except _OURS_FAILED as problem:
            return Entrants(None, {}, {}, str(problem))
        packages: dict[str, Package] = {}
        refusals: dict[str, str] = {}
        for side in self._peers:
            if side.peer.engine:
                try:
                    packages[side.name] = self._engine_package(side.peer, workload, on_progress)
                except _OURS_FAILED as problem:
                    refusals[side.name] = str(problem)
        return Entrants(ours, packages, refusals)

    def _engine_package(
        self, peer: Peer, workload: Workload, on_progress: Callable[[Progress], None] | None
    ) -> Package:
        """The kernel that the engine found: its own best, though its log has our default too, to compare with."""
        from convtune.tuner import Tuner

        spec = workload.spec
        if peer.engine not in self._tuners:
            log, engine = self.settings.engine_log, peer.engine
            self._tuners[engine] = Tuner(self.target, log, accuracy=self.accuracy, engine=engine)
        tuner = self._tuners[peer.engine]
        tuner.tune(spec, self.settings.trials, None, on_progress)
        records = [r for r in tuner.log.records(spec, self.target.fingerprint) if r.candidate.space == peer.engine]
        best = winner(records, max_error=accuracies.limit(spec, self.accuracy), origin=tuner.origin)
        if best is None:
            raise BuildError(f"{peer.name}: none of {len(records)} candidates works (spec: {spec})")
        return self._compiler.package(spec, best.candidate)

    def identity(self, entrants: Entrants) -> dict[str, Any]:
        """What a result depends on: where a file has one with the same, nothing has to be measured again."""
        assert entrants.ours is not None, "only what is compiled can be measured"
        return {
            "library_sha256": entrants.ours.manifest.library_sha256,
            "runtime_sha256": entrants.ours.manifest.runtime_sha256,
            "peers": {side.name: _peer_identity(side.peer, entrants) for side in self._peers},
            "rounds": self.settings.rounds,
            "turn_s": self.settings.turn_s,
        }

    def measure(self, workload: Workload, entrants: Entrants) -> dict[str, Any]:
        """The layer as the file has it, without what depends on the machine's peaks.

        Raises MeasureError where the reference cannot be computed.
        """
        if entrants.ours is None:
            return layer.failed(workload, entrants.failure)
        spec, loose = workload.spec, accuracies.limit(workload.spec, "loose")
        reference = self._referee.reference(spec, SEED)
        askings = [self._ours.preparing(Job(spec, SEED, reference, entrants.ours.directory), loose)]
        for side in self._peers:
            package = entrants.packages.get(side.name)
            if side.name in entrants.refusals:
                side.refuse("error", entrants.refusals[side.name])
            else:
                job = Job(spec, SEED, reference, package.directory if package else None)
                askings.append(side.preparing(job, loose))
        at_once(askings)
        repeated = 0
        if self._ours.playing:
            repeated = play(self._ours, self._peers, spec, self.settings.rounds, self.settings.turn_s)
        found = layer.data(workload, entrants.ours, self._ours, self._peers, self.identity(entrants))
        return {**found, "rounds_repeated": repeated}

    def close(self) -> None:
        """Ends all processes."""
        for side in (self._ours, *self._peers):
            side.close()
        self._referee.close()
        for tuner in self._tuners.values():
            tuner.close()
        self._compiler.close()
        self._home.close()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _peer_identity(peer: Peer, entrants: Entrants) -> str:
    if peer.name in entrants.packages:
        return entrants.packages[peer.name].manifest.library_sha256
    return ", ".join(f"{name} {version}" for name, version in peer.versions().items())


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of those names, each once; all libraries that are installed where there are none.

    Raises:
        UnknownNameError: there is no such peer.
        ConvtuneError: one that is named is not installed, or nothing is.
    """
    from convtune import peers

    if names:
        named = [peers.get(name) for name in dict.fromkeys(names)]
        for peer in named:
            if peer.absent():
                raise ConvtuneError(f"peer {peer.name!r} is not installed; to get it: {peer.remedy}")
        return named
    libraries = [peer for peer in peers.known().values() if not peer.engine]
    installed = [peer for peer in libraries if not peer.absent()]
    if not installed:
        raise ConvtuneError("no library to compare with is installed; to get them: pip install 'convtune[peers]'")
    return installed
