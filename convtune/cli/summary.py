"""What `convtune tune` prints when it ends: the table of layers, its total, and the same for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.cli import tables
from convtune.record import installed_versions

if TYPE_CHECKING:
    from pathlib import Path

    from convtune.cli.peaks import Peak
    from convtune.targets import Target
    from convtune.tuning import TuneResult
    from convtune.workloads import Workload

_NOT_MEASURED = (
    "all times are estimates of a static model, and none was measured; kernels were compiled by nvcc, and verified by "
    "emulation"
)
_COLUMNS = ("layer", "count", "default {unit}", "tuned {unit}", "speed-up", "GFLOP/s", "of peak", "error")
_ESTIMATED = ("layer", "count", "default {unit} estimated", "tuned {unit} estimated", *_COLUMNS[4:])
_RESOURCES = {"registers": "registers", "spilled B": "spill_stores_bytes", "stack B": "stack_bytes"}
"""What ptxas gave a layer's kernels, of which the one with most is shown."""


@dataclass(frozen=True)
class Layer:
    """A workload and what tuning it came to. failure: why there is no kernel for it; "" where there is one."""

    workload: Workload
    result: TuneResult | None
    failure: str = ""

    @property
    def default_us(self) -> float | None:
        return self.result.default_us if self.result else None

    @property
    def best_us(self) -> float | None:
        return self.result.best_us if self.result else None

    @property
    def speedup(self) -> float | None:
        return self.default_us / self.best_us if self.default_us and self.best_us else None

    @property
    def origin(self) -> str:
        """Of its times."""
        return self.result.origin if self.result else tables.MEASURED

    @property
    def resources(self) -> Mapping[str, Mapping[str, int]] | None:
        """Of its kernels on a GPU, by name."""
        return self.result.best.resources if self.result and self.result.best else None

    @property
    def gflops(self) -> float | None:
        return self.workload.spec.flops / self.best_us / 1e3 if self.best_us else None


@dataclass(frozen=True)
class Fusion:
    """A composite layer and its stages, all of them timed."""

    layer: Layer
    stages: Sequence[Layer]
    fused_us: float
    stages_us: float
    """Of the stages one after the other."""

    @classmethod
    def among(cls, layers: Sequence[Layer]) -> list[Fusion]:
        """Every composite layer whose stages are among the layers too."""
        by_spec = {la.workload.spec: la for la in layers}
        found = []
        for layer in layers:
            stages = [by_spec[stage] for stage in layer.workload.spec.stages if stage in by_spec]
            times = [stage.best_us for stage in stages if stage.best_us]
            if layer not in stages and layer.best_us and len(times) == len(layer.workload.spec.stages):
                found.append(cls(layer, stages, layer.best_us, sum(times)))
        return found

    @property
    def from_log(self) -> bool:
        """Whether some of the times were measured earlier."""
        return not all(la.result and not la.result.from_log for la in (self.layer, *self.stages))

    def text(self) -> str:
        origin = self.layer.origin
        fused, stages = (tables.time(time_us, origin) for time_us in (self.fused_us, self.stages_us))
        times = f"fused {fused}, stages {stages} one after the other"
        earlier = "; measured at different times" if self.from_log and origin == tables.MEASURED else ""
        return f"{self.layer.workload.name}: {times} ({self.stages_us / self.fused_us:.2f}x{earlier})"


@dataclass(frozen=True)
class Total:
    """Sums over the layers that have a default and a tuned time, each as often as it is run; not over stages."""

    layers: int
    count: int
    default_us: float
    best_us: float
    flops: int
    geometric_mean: float
    """Of the speed-ups, each layer once."""

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Total | None:
        """None where no layer has both times."""
        rows = [(la.workload, la.default_us, la.best_us) for la in layers if la.workload.count]
        timed = [(workload, default, best) for workload, default, best in rows if default and best]
        if not timed:
            return None
        return cls(
            layers=len(timed),
            count=sum(workload.count for workload, _, _ in timed),
            default_us=sum(workload.count * default for workload, default, _ in timed),
            best_us=sum(workload.count * best for workload, _, best in timed),
            flops=sum(workload.count * workload.spec.flops for workload, _, _ in timed),
            geometric_mean=math.exp(sum(math.log(default / best) for _, default, best in timed) / len(timed)),
        )

    @property
    def gflops(self) -> float:
        return self.flops / self.best_us / 1e3


@dataclass(frozen=True)
class Summary:
    layers: Sequence[Layer]
    target: Target
    peak: Peak
    origin: str
    log: Path
    command: str

    @property
    def counted(self) -> int:
        """How many of the layers the network runs; stages, listed beside their composite layer, have count 0."""
        return sum(bool(layer.workload.count) for layer in self.layers)

    def text(self) -> str:
        """The table, what failed, and what it was measured with."""
        network, names = tables.short_names([layer.workload for layer in self.layers])
        times = tables.TimeColumn.of(time for la in self.layers for time in (la.default_us, la.best_us))
        rows = [self._row(name, layer, times) for name, layer in zip(names, self.layers)]
        total = Total.of(self.layers)
        if total and self.counted > 1:
            rows += [self._total_row(total, times)]
        headers = _COLUMNS if self.origin == tables.MEASURED else _ESTIMATED
        columns = {header.format(unit=times.unit): "right" for header in headers} | {"layer": "left"}
        columns |= dict.fromkeys(_RESOURCES if self._compiled_for_gpu else (), "right")
        lines = [f"{network}\n"] if network else []
        lines += [tables.render(columns, rows), ""]
        lines += [f"failed: {la.workload.name}: {la.failure}" for la in self.layers if la.failure]
        if total and self.counted > 1:
            lines.append(f"geometric mean of the speed-ups, each layer once: {total.geometric_mean:.2f}x")
        lines += [fusion.text() for fusion in Fusion.among(self.layers)]
        return "\n".join([*lines, *self._conditions()])

    def _row(self, name: str, layer: Layer, times: tables.TimeColumn) -> list[str | None]:
        best = layer.result.best if layer.result else None
        return [
            name,
            str(layer.workload.count),
            times.text(layer.default_us),
            "failed" if layer.failure else times.text(layer.best_us),
            tables.speedup(layer.speedup),
            tables.number(layer.gflops),
            tables.share(self._peak_share([layer])),
            tables.error(best.error if best else None),
            *(self._resources(layer) if self._compiled_for_gpu else []),
        ]

    def _peak_share(self, layers: Sequence[Layer]) -> float | None:
        """The time that the layers would take at the peak of their dtype, by that which they take."""
        ideal_us = taken_us = 0.0
        for layer in layers:
            spec, runs = layer.workload.spec, max(layer.workload.count, 1)
            peak = self.peak.gflops(spec.dtype)
            if peak and layer.best_us:
                ideal_us += runs * spec.flops / peak / 1e3
                taken_us += runs * layer.best_us
        return ideal_us / taken_us if taken_us else None

    @property
    def _compiled_for_gpu(self) -> bool:
        return any(layer.resources for layer in self.layers)

    def _resources(self, layer: Layer) -> list[str | None]:
        used = (layer.resources or {}).values()
        return [str(max(kernel[name] for kernel in used)) if used else None for name in _RESOURCES.values()]

    def _total_row(self, total: Total, times: tables.TimeColumn) -> list[str | None]:
        some = "" if total.layers == self.counted else f"{total.layers} of "
        these = f"these {self.counted} layers" if some else "these layers"
        return [
            f"{some}{these}, by count",
            str(total.count),
            times.text(total.default_us),
            times.text(total.best_us),
            tables.speedup(total.default_us / total.best_us),
            tables.number(total.gflops),
            tables.share(self._peak_share([la for la in self.layers if la.default_us and la.workload.count])),
            None,
            *((None,) * len(_RESOURCES) if self._compiled_for_gpu else ()),
        ]

    def _conditions(self) -> list[str]:
        earlier = sum(la.result.from_log for la in self.layers if la.result and la.best_us)
        told = [f"times of {tables.plural(earlier, 'layer')}: from the log, {self.origin} earlier"] if earlier else []
        if self.origin != tables.MEASURED:
            told.append(_NOT_MEASURED)
        return [
            *told,
            f"{self.target.description}; {self.peak}",
            f"{tables.versions()}; log {self.log}",
            self.command,
        ]

    def data(self) -> dict[str, Any]:
        """The same for `--json`."""
        total = Total.of(self.layers)
        return {
            "command": self.command,
            "versions": dict(installed_versions()),
            "target": self.target.facts(),
            "log": str(self.log),
            "origin": self.origin,
            **self.peak.data(),
            "layers": [self._layer_data(layer) for layer in self.layers],
            "total": None
            if total is None
            else {
                "layers": total.layers,
                "count": total.count,
                "default_us": total.default_us,
                "best_us": total.best_us,
                "speedup_geometric_mean": total.geometric_mean,
            },
            "fused": [
                {"name": fusion.layer.workload.name, "fused_us": fusion.fused_us, "stages_us": fusion.stages_us}
                | {"from_log": fusion.from_log}
                for fusion in Fusion.among(self.layers)
            ],
            "failed": sum(bool(layer.failure) for layer in self.layers),
        }

    def _layer_data(self, layer: Layer) -> dict[str, Any]:
        result = layer.result
        best = result.best if result else None
        return {
            "name": layer.workload.name,
            "spec": str(layer.workload.spec),
            "count": layer.workload.count,
            "failure": layer.failure or None,
            "default_us": layer.default_us,
            "best_us": layer.best_us,
            "speedup": layer.speedup,
            "gflops": layer.gflops,
            "peak_share": self._peak_share([layer]),
            "error": best.error if best else None,
            "candidate": {"space": best.candidate.space, "knobs": dict(best.candidate.knobs)} if best else None,
            "resources": layer.resources,
            "trials": result.trials if result else 0,
            "from_log": bool(result and result.from_log),
            "stopped": result.stopped if result else None,
            "failures": dict(result.failures) if result else {},
            "elapsed_s": result.elapsed_s if result else None,
        }
