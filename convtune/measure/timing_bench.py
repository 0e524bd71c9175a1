"""A bench whose times are measured, on whatever device its kernels' libraries run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from convtune.errors import MeasureError
from convtune.measure.bench import Bench
from convtune.measure.builder import Library
from convtune.measure.device import Compare, Device, Measure, Measurement
from convtune.measure.worker import Reply, Service

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class TimingBench(Bench):
    """A bench whose device worker loads a candidate's library, verifies it and times it."""

    origin: ClassVar[str] = "measured"
    device: ClassVar[Service] = Device

    def _timing(self, spec: ConvSpec, library: Library, limit: float, best_us: float | None) -> Measure:
        return Measure(spec, library.path, library.pack, limit, best_us, timed=True)

    def _verifying(self, spec: ConvSpec, library: Library, limit: float) -> Measure:
        return Measure(spec, library.path, library.pack, limit, None, timed=False)

    def _times(self, found: Measurement, library: Library) -> tuple[float, ...]:
        return found.times_us

    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        self._prepare(spec)
        seconds = self._seconds_in_turn(spec, libraries)
        request = self._comparing(spec, libraries, rounds)
        return self._compared(spec, self._device.call(request, seconds, self.limits.memory(spec)))

    def _seconds_in_turn(self, spec: ConvSpec, libraries: Sequence[Library]) -> float:
        return self.limits.device(spec) * (1 + len(libraries))

    def _comparing(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> Compare:
        return Compare(spec, tuple((library.path, library.pack) for library in libraries), rounds)

    def _compared(self, spec: ConvSpec, reply: Reply) -> list[tuple[float, ...]]:
        if reply.status != "ok":
            raise MeasureError(f"finals of {spec} failed ({reply.status}): {reply.message}")
        times: list[tuple[float, ...]] = reply.value
        return times
