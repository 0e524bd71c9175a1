"""Builds candidates here, and verifies and times them on another machine through TVM's RPC."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from convtune import linker
from convtune.cuda import toolkit
from convtune.errors import MeasureError, TargetError
from convtune.measure.bench import Built, Limits, Outcome
from convtune.measure.builder import Builder, Library
from convtune.measure.cuda_builder import GpuBuilder
from convtune.measure.rpc_device import Connect, IsConnected, RpcDevice
from convtune.measure.rpc_session import RUNNER_NAME
from convtune.measure.timing_bench import TimingBench
from convtune.measure.worker import MEMORY_BYTES, Pool, Service
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.remote import Remote
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget, GpuTarget, Target

FREE_S = 60.0
"""Seconds to wait for a server: so long it may take to be started again, or to be done with another program."""
_ANSWER_S = 20.0  # for what a session begins with: a server whose serving thread died accepts it, and is silent
_TRANSFER_S = 60.0
_ATTEMPTS = 3

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
    """A bench whose kernels run on the machines of `remote`, CPUs of the target's kind."""

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
        self._remote = remote
        compiler, cache = linker.find_compiler(machine), cache_dir()
        libraries = (build_runner(compiler, cache), linker.build_runtime(compiler, cache).library)
        super().__init__(target, threads, directory, limits, seed)
        arguments = (self._home, threads, seed, libraries, self.limits)
        self._device = Pool(self.device, arguments, 1, self._home)

    @property
    def runs(self) -> bool:
        return True

    def _outcome(self, spec: ConvSpec, built: Built, request: Callable[[Library], Any]) -> Outcome:
        if built.library is not None:
            self._connect()
        outcome = super()._outcome(spec, built, request)
        if "NoGpuError: " in outcome.message:
            raise TargetError(f"target {self.target.name!r}: {outcome.message.rpartition('NoGpuError: ')[2]}")
        return outcome

    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        self._connect()
        try:
            return super()._in_turn(spec, libraries, rounds)
        except MeasureError:
            self._device.stop()  # its session may have ended
            raise

    def _connect(self) -> None:
        """Makes sure of a session that answers.

        A server that takes it and is silent is not tried again: the tracker has given it away.
        """
        if self._device.call(IsConnected(), _ANSWER_S, MEMORY_BYTES).value:
            return
        for _ in range(_ATTEMPTS):
            server = self._remote.request(FREE_S)
            reply = self._device.call(Connect(*server), _ANSWER_S, MEMORY_BYTES)
            if reply.status == "ok":
                return
            self._device.stop()
            if reply.message.startswith("TargetError: "):
                raise TargetError(f"target {self.target.name!r}: {reply.message.removeprefix('TargetError: ')}")
        host, port, _ = server
        raise MeasureError(f"no RPC session with {host}:{port} ({reply.status}): {reply.message}")


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
