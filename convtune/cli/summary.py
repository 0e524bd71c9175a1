"""What `convtune tune` prints when it ends: the table of layers, its total, and the same for machines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from convtune.cli import tables
from convtune.ranks import MEASURED, as_cost, as_time, gain_word, gains_words, has_times
from convtune.record import installed_versions

if TYPE_CHECKING:
    from pathlib import Path

    from convtune.cli.peaks import Peak
    from convtune.targets import Target
    from convtune.tuning import TuneResult
    from convtune.workloads import Workload

_NOT_MEASURED = {
    "emulated": "instr.: instructions executed in emulation, weighted by kind, and what an analytic model of the "
    "caches adds; no time is known, and none was measured; kernels were verified in emulation",
    "estimated": "all times are estimates of a static model, and none was measured; kernels were compiled by nvcc, and "
    "verified by emulation",
}
T = TypeVar("T")
_RATES = ("GFLOP/s", "of peak")
"""Columns that only times have."""
_RESOURCES = {"registers": "registers", "spilled B": "spill_stores_bytes", "stack B": "stack_bytes"}
"""What ptxas gave a layer's kernels, of which the one with most is shown."""


@dataclass(frozen=True)
class Layer:
    """A workload and what tuning it came to. failure: why there is no kernel for it; "" where there is one."""

    workload: Workload
    result: TuneResult | None
    failure: str = ""

    @property
    def default_rank(self) -> float | None:
        return self.result.default_rank if self.result else None

    @property
    def best_rank(self) -> float | None:
        return self.result.best_rank if self.result else None

    @property
    def best_us(self) -> float | None:
        return self.result.best_us if self.result else None

    @property
    def speedup(self) -> float | None:
        return self.default_rank / self.best_rank if self.default_rank and self.best_rank else None

    @property
    def origin(self) -> str:
        """Of its ranks."""
        return self.result.origin if self.result else MEASURED

    @property
    def resources(self) -> Mapping[str, Mapping[str, int]] | None:
        """Of its kernels on a GPU, by name."""
        return self.result.best.resources if self.result and self.result.best else None

    @property
    def gflops(self) -> float | None:
        return self.workload.spec.flops / self.best_us / 1e3 if self.best_us else None


@dataclass(frozen=True)
class Fusion:
    """A composite layer and its stages, all of them with a rank of one origin."""

    layer: Layer
    stages: Sequence[Layer]
    fused_rank: float
    stages_rank: float
    """Of the stages one after the other."""

    @classmethod
    def among(cls, layers: Sequence[Layer]) -> list[Fusion]:
        """Every composite layer whose stages are among the layers too."""
        by_spec = {la.workload.spec: la for la in layers}
        found = []
        for layer in layers:
            stages = [by_spec[stage] for stage in layer.workload.spec.stages if stage in by_spec]
            ranks = [stage.best_rank for stage in stages if stage.best_rank and stage.origin == layer.origin]
            if layer not in stages and layer.best_rank and len(ranks) == len(layer.workload.spec.stages):
                found.append(cls(layer, stages, layer.best_rank, sum(ranks)))
        return found

    @property
    def from_log(self) -> bool:
        """Whether some of the ranks were found earlier."""
        return not all(la.result and not la.result.from_log for la in (self.layer, *self.stages))

    def text(self) -> str:
        origin = self.layer.origin
        fused, stages = (tables.rank(value, origin) for value in (self.fused_rank, self.stages_rank))
        both = f"fused {fused}, stages {stages} one after the other"
        earlier = "; measured at different times" if self.from_log and origin == MEASURED else ""
        return f"{self.layer.workload.name}: {both} ({self.stages_rank / self.fused_rank:.2f}x{earlier})"

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        ranks, origin = {"fused": self.fused_rank, "stages": self.stages_rank}, self.layer.origin
        return {"name": self.layer.workload.name, **_by_kind(ranks, origin), "from_log": self.from_log}


@dataclass(frozen=True)
class Total:
    """Sums over the layers that have a default and a tuned rank, each as often as it is run; not over stages."""

    layers: int
    count: int
    default_rank: float
    best_rank: float
    flops: int
    geometric_mean: float
    """Of the speed-ups, each layer once."""

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Total | None:
        """None where no layer has both ranks."""
        rows = [(la.workload, la.default_rank, la.best_rank) for la in layers if la.workload.count]
        ranked = [(workload, default, best) for workload, default, best in rows if default and best]
        if not ranked:
            return None
        return cls(
            layers=len(ranked),
            count=sum(workload.count for workload, _, _ in ranked),
            default_rank=sum(workload.count * default for workload, default, _ in ranked),
            best_rank=sum(workload.count * best for workload, _, best in ranked),
            flops=sum(workload.count * workload.spec.flops for workload, _, _ in ranked),
            geometric_mean=math.exp(sum(math.log(default / best) for _, default, best in ranked) / len(ranked)),
        )

    def data(self, origin: str) -> dict[str, Any]:
        """For `--json`."""
        ranks = {"default": self.default_rank, "best": self.best_rank}
        mean = {"speedup_geometric_mean": self.geometric_mean}
        return {"layers": self.layers, "count": self.count, **_by_kind(ranks, origin), **mean}


def _by_kind(ranks: Mapping[str, float | None], origin: str) -> dict[str, float | None]:
    """Each rank as a time and as a cost, of which it is one: the other is None."""
    times = {f"{name}_us": as_time(rank, origin) for name, rank in ranks.items()}
    return times | {f"{name}_cost": as_cost(rank, origin) for name, rank in ranks.items()}


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
        ranks = (rank for la in self.layers for rank in (la.default_rank, la.best_rank))
        column = tables.RankColumn.of(ranks, self.origin)
        rows = [self._row(name, layer, column) for name, layer in zip(names, self.layers)]
        total = Total.of(self.layers)
        if total and self.counted > 1:
            rows += [self._total_row(total, column)]
        headers = [
            "count",
            column.head("default"),
            column.head("tuned"),
            gain_word(self.origin),
            *self._rates(_RATES),
            "error",
        ]
        columns = {"layer": "left"} | dict.fromkeys(headers, "right")
        columns |= dict.fromkeys(_RESOURCES if self._compiled_for_gpu else (), "right")
        lines = [f"{network}\n"] if network else []
        lines += [tables.render(columns, rows), ""]
        lines += [f"failed: {la.workload.name}: {la.failure}" for la in self.layers if la.failure]
        if total and self.counted > 1:
            lines.append(f"geometric mean of {gains_words(self.origin)}, each layer once: {total.geometric_mean:.2f}x")
        lines += [fusion.text() for fusion in Fusion.among(self.layers)]
        return "\n".join([*lines, *self._conditions()])

    def _rates(self, cells: Iterable[T]) -> list[T]:
        """The cells of _RATES, where there are such columns."""
        return list(cells) if has_times(self.origin) else []

    def _row(self, name: str, layer: Layer, column: tables.RankColumn) -> list[str | None]:
        best = layer.result.best if layer.result else None
        return [
            name,
            str(layer.workload.count),
            column.text(layer.default_rank),
            "failed" if layer.failure else column.text(layer.best_rank),
            tables.speedup(layer.speedup),
            *self._rates([tables.number(layer.gflops), tables.share(self._peak_share([layer]))]),
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

    def _total_row(self, total: Total, column: tables.RankColumn) -> list[str | None]:
        summed = [la for la in self.layers if la.default_rank and la.best_rank and la.workload.count]
        gflops = total.flops / total.best_rank / 1e3
        some = "" if total.layers == self.counted else f"{total.layers} of "
        these = f"these {self.counted} layers" if some else "these layers"
        return [
            f"{some}{these}, by count",
            str(total.count),
            column.text(total.default_rank),
            column.text(total.best_rank),
            tables.speedup(total.default_rank / total.best_rank),
            *self._rates([tables.number(gflops), tables.share(self._peak_share(summed))]),
            None,
            *((None,) * len(_RESOURCES) if self._compiled_for_gpu else ()),
        ]

    def _conditions(self) -> list[str]:
        earlier = sum(la.result.from_log for la in self.layers if la.result and la.best_rank)
        what = "times" if has_times(self.origin) else "counts"
        told = [f"{what} of {tables.plural(earlier, 'layer')}: from the log, {self.origin} earlier"] if earlier else []
        told += [_NOT_MEASURED[self.origin]] if self.origin != MEASURED else []
        return [
            *told,
            "; ".join([self.target.description, *self._rates([str(self.peak)])]),
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
            "total": total.data(self.origin) if total else None,
            "fused": [fusion.data() for fusion in Fusion.among(self.layers)],
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
            **_by_kind({"default": layer.default_rank, "best": layer.best_rank}, layer.origin),
            "speedup": layer.speedup,
            "gflops": layer.gflops,
            "peak_share": self._peak_share([layer]),
            "error": best.error if best else None,
            "candidate": {"space": best.candidate.space, "knobs": dict(best.candidate.knobs)} if best else None,
            "resources": layer.resources,
            "counts": dict(best.counts) if best and best.counts else None,
            "trials": result.trials if result else 0,
            "from_log": bool(result and result.from_log),
            "stopped": result.stopped if result else None,
            "failures": dict(result.failures) if result else {},
            "elapsed_s": result.elapsed_s if result else None,
        }
