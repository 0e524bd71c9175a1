"""Checks kernels that are built already against the reference, in a process that may die, or in emulation."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from convtune.emulation import machines
from convtune.emulation.image import machine_of
from convtune.errors import KernelError, MeasureError
from convtune.measure.bench import Limits, Outcome
from convtune.measure.builder import Pack
from convtune.measure.device import Device, Measure, Measurement, Prepare
from convtune.measure.emulated_cpu import EmulatedCpu, Execute
from convtune.measure.emulating import EMULATION_LIMITS
from convtune.measure.home import Home
from convtune.measure.worker import Pool, Service

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Checker:
    """One worker in which kernels run; needs no compiler. A context manager."""

    def __init__(self, threads: int, seed: int = 0) -> None:
        """threads: that kernels run on. seed: of the operands."""
        self._begin(Device, (threads, seed), Limits())

    def _begin(self, service: Service, arguments: tuple[Any, ...], limits: Limits) -> None:
        """arguments: of the service, behind its directory."""
        self._home = Home()
        self._device = Pool(service, (self._home.path, *arguments), 1, self._home.path)
        self._limits = limits

    def check(self, spec: ConvSpec, library: Path, pack: Pack, limit: float) -> Outcome:
        """Runs the library's kernel on random operands; it is ok if its error is at most `limit`.

        pack: the steps for each weight, as the kernel's manifest has them.

        Raises:
            MeasureError: the worker does not start, or the reference cannot be computed.
        """
        prepared = self._device.call(Prepare(spec), self._limits.reference(spec), self._limits.memory(spec))
        if prepared.status != "ok":
            raise MeasureError(f"no reference of {spec} ({prepared.status}): {prepared.message}")
        request = self._request(spec, library.absolute(), pack, limit)
        reply = self._device.call(request, self._limits.device(spec), self._limits.memory(spec))
        if reply.status != "ok":
            return Outcome(reply.status, f"while running: {reply.message}")
        found: Measurement = reply.value
        if found.suspect:
            self._device.stop()
        return Outcome(found.status, found.message, found.error, found.times_us)

    def _request(self, spec: ConvSpec, library: Path, pack: Pack, limit: float) -> Any:
        return Measure(spec, library, pack, limit, None, timed=False)

    def close(self) -> None:
        """Ends the worker and removes its files. May be called twice."""
        self._device.stop()
        self._home.close()

    def __enter__(self) -> Checker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EmulatedChecker(Checker):
    """Of kernels for other machines, which are emulated. It needs a C compiler for them and for this one."""

    def __init__(self, machine: str, features: Collection[str], threads: int, seed: int = 0) -> None:
        """machine: as platform.machine() prints it there. features: of its processor, as in /proc/cpuinfo.

        Raises TargetError where it cannot be emulated here.
        """
        machines.check(machine, features)
        self._machine = machine
        self._begin(EmulatedCpu, (threads, tuple(features), None, seed), EMULATION_LIMITS)

    def check(self, spec: ConvSpec, library: Path, pack: Pack, limit: float) -> Outcome:
        """As `Checker.check`. Raises KernelError where the library is for another machine."""
        found = machines.name_of(machine_of(library))
        if found != self._machine:
            raise KernelError(f"{library} is for {found}; the package says {self._machine}")
        return super().check(spec, library, pack, limit)

    def _request(self, spec: ConvSpec, library: Path, pack: Pack, limit: float) -> Execute:
        return Execute(spec, library, pack, limit, None, twice=True)
