"""Builds candidates here, and verifies and times them on another machine through TVM's RPC."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from convtune import linker
from convtune.cuda import toolkit
from convtune.errors import TargetError
from convtune.measure.bench import Built, Limits, Outcome, Wanted
from convtune.measure.builder import Builder, Library
from convtune.measure.cuda_builder import GpuBuilder
from convtune.measure.device import Measure
from convtune.measure.rpc_device import RpcDevice
from convtune.measure.rpc_machines import Machines
from convtune.measure.rpc_queue import Gauge, Queue, Task
from convtune.measure.rpc_session import RUNNER_NAME
from convtune.measure.timing_bench import TimingBench
from convtune.measure.worker import MEMORY_BYTES, Batch, Service, Worker
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.remote import Remote
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget, GpuTarget, Target

_TRANSFER_S = 60.0
_ATTEMPTS = 3  # machines that may be lost over what more than one candidate depends on

_SOURCES = (Path(__file__).with_name("rpc_runner.c"), Path(__file__).with_name("rpc_guards.h"))


class RpcLimits(Limits):
    """What a request may take where arrays and results go through a network. `device_s` is a kernel's, there."""

    def kernel(self, spec: ConvSpec) -> float:
        """Seconds for a kernel, there: what other benches leave it for all."""
        return super().device(spec)

    def device(self, spec: ConvSpec) -> float:
        """Two runs and the timing, and all arrays five times over a network of 5 MB/s."""
        return 3 * self.kernel(spec) + _TRANSFER_S + spec.bytes / 1e6


class RpcBench(TimingBench):
    """A bench whose kernels run on the machines of `remote`, CPUs of the target's kind, side by side.

    A machine measures one kernel at a time. Builds go on here meanwhile.
    """

    builder: ClassVar[Service] = Builder
    device: ClassVar[Service] = RpcDevice
    usual_limits: ClassVar[Limits] = RpcLimits()

    def __init__(
        self,
        target: Target,
        remote: Remote,
        machine: str,
        threads: int,
        directory: Path | None = None,
        limits: RpcLimits | None = None,
        seed: int = 0,
    ) -> None:
        """machine: of the remote, as platform.machine() prints it there. threads: that kernels run on.

        Raises:
            TargetError: no tracker answers, it has no server with the key, or there is no C compiler for the machine.
        """
        remote.check()
        compiler, cache = linker.find_compiler(machine), cache_dir()
        libraries = (build_runner(compiler, cache), linker.build_runtime(compiler, cache).library)
        super().__init__(target, threads, directory, limits, seed)
        arguments = (self._home, threads, seed, libraries, self.limits)
        self._machines = Machines(remote, lambda: Worker(self.device, arguments, self._home), self.limits)
        self._look()
        self._gauge: Gauge | None = None

    @property
    def runs(self) -> bool:
        return True

    def _look(self) -> None:
        self._machines.look()
        self.machines = len(self._machines)

    def start(self) -> None:
        self._builders.start()

    def while_waiting(self, call: Callable[[], None]) -> None:
        super().while_waiting(call)
        self._machines.on_wait = call

    def outcomes(self, wanted: Wanted) -> Iterator[tuple[Built, Outcome]]:
        wanted.doing(f"building and measuring {wanted.how_many}")
        self._look()
        spec = wanted.spec
        if self._gauge is None or (self._gauge.spec, self._gauge.yardstick) != (spec, wanted.yardstick):
            self._gauge = Gauge(spec, wanted.yardstick)
        gauge = self._gauge
        gauge.machines = self.machines
        to_build = gauge.candidates(wanted.candidates)
        requests = self._build_requests(spec, to_build)
        with self._builders.begin(requests, self.limits.build_s, self.limits.memory_bytes) as builds:
            queue = Queue(builds, gauge)
            for done in self._work(spec, queue, builds):
                if done is not None:
                    yield self._measured(done, gauge)
                for index, reply in builds.replies().items():
                    built = self._built(requests[index], reply)
                    if built.library is None:
                        yield built, Outcome(built.status, built.message)
                    make = None if built.library is None else self._maker(wanted, built, gauge)
                    queue.arrived(built.candidate, make, built.candidate in wanted.candidates)

    def _maker(self, wanted: Wanted, built: Built, gauge: Gauge) -> Callable[[], Task]:
        """Makes tasks of a kernel that was built."""
        spec, library = wanted.spec, built.library
        assert library is not None
        attempts = _ATTEMPTS if built.candidate == gauge.yardstick else 1

        def request(address: str) -> Measure:
            return self._timing(spec, library, wanted.limit, gauge.best_us.get(address, wanted.best_us()))

        return lambda: Task(request, self.limits.device(spec), built, attempts)

    def _measured(self, task: Task, gauge: Gauge) -> tuple[Built, Outcome]:
        built = task.built
        assert built is not None and built.library is not None
        outcome = self._answer(built.library, task)
        gauge.note(task.device, outcome.times_us)
        if outcome.status != "ok" and built.candidate != gauge.yardstick:  # which another machine may be at
            self.discard(built)
        return built, outcome

    def _answer(self, library: Library, task: Task) -> Outcome:
        outcome = replace(self._answered(library, task.reply), device=task.device)
        if "NoGpuError: " in outcome.message:
            raise TargetError(f"target {self.target.name!r}: {outcome.message.rpartition('NoGpuError: ')[2]}")
        return outcome

    def verify(self, spec: ConvSpec, built: Built, limit: float) -> Outcome:
        return self._outcome(spec, built, lambda library: self._verifying(spec, library, limit), _ATTEMPTS)

    def _outcome(self, spec: ConvSpec, built: Built, request: Callable[[Library], Any], attempts: int = 1) -> Outcome:
        library = built.library
        if library is None:
            return Outcome(built.status, built.message)
        task = self._alone(spec, Task(lambda _: request(library), self.limits.device(spec), built, attempts))
        outcome = self._answer(library, task)
        if outcome.status != "ok":
            self.discard(built)
        return outcome

    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        request = self._comparing(spec, libraries, rounds)
        seconds = self._seconds_in_turn(spec, libraries)
        task = self._alone(spec, Task(lambda _: request, seconds, attempts=_ATTEMPTS))
        self.finals_device = task.device
        return self._compared(spec, task.reply)

    def _alone(self, spec: ConvSpec, task: Task) -> Task:
        """The task, done."""
        with self._builders.begin([], 0.0, 0) as builds:
            queue = Queue(builds)
            queue.add(task)
            return next(done for done in self._work(spec, queue, builds) if done is not None)

    def _work(self, spec: ConvSpec, queue: Queue, builds: Batch) -> Iterator[Task | None]:
        try:
            yield from self._machines.work(spec, queue, builds)
        except TargetError as error:
            raise TargetError(f"target {self.target.name!r}: {error}") from error

    def close(self) -> None:
        self._machines.stop()
        super().close()


class RpcCpuBench(RpcBench):
    """Of CPUs, for which another machine's C compiler links."""

    def __init__(
        self,
        target: CpuTarget,
        remote: Remote,
        directory: Path | None = None,
        limits: RpcLimits | None = None,
        seed: int = 0,
    ) -> None:
        """Raises TargetError as RpcBench does."""
        super().__init__(target, remote, target.machine, target.threads, directory, limits, seed)


class RpcGpuBench(RpcBench):
    """Of GPUs, in machines whose CPU is of this one's kind: launchers are compiled for that."""

    builder: ClassVar[Service] = GpuBuilder
    usual_limits: ClassVar[Limits] = RpcLimits(build_s=90.0, memory_bytes=2 * MEMORY_BYTES)

    def __init__(
        self,
        target: GpuTarget,
        remote: Remote,
        directory: Path | None = None,
        limits: RpcLimits | None = None,
        seed: int = 0,
    ) -> None:
        """Raises TargetError as RpcBench does, and where there is no nvcc that knows the target's arch."""
        toolkit.find().check(target.arch)
        super().__init__(target, remote, platform.machine(), 1, directory, limits, seed)


def build_runner(compiler: linker.Compiler, cache: Path) -> Path:
    """rpc_runner.c as a library, compiled once. Raises TargetError where the compiler fails."""
    key = hashlib.sha256(repr((compiler, linker.FLAGS)).encode())
    for source in _SOURCES:
        key.update(source.read_bytes())
    home = cache / f"rpc-runner-{compiler.machine}-{key.hexdigest()[:16]}"

    def compile_into(work: Path) -> None:
        arguments = [*linker.FLAGS, "-shared", "-o", str(work / RUNNER_NAME), str(_SOURCES[0]), "-ldl"]
        if failure := compiler.run(arguments):
            raise TargetError(f"cannot compile convtune's RPC runner: {failure}")

    linker.make_once(home, compile_into)
    return home / RUNNER_NAME
