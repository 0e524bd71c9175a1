"""Measurement: candidates are built, verified and timed in processes that may die."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.errors import TargetError
from convtune.measure.bench import Bench, Built, Limits, Outcome
from convtune.measure.cpu_bench import CpuBench
from convtune.targets import CpuTarget, GpuTarget

if TYPE_CHECKING:
    from convtune.targets import Target

__all__ = ["Bench", "Built", "CpuBench", "Limits", "Outcome", "open_bench"]


def open_bench(target: Target) -> Bench:
    """The bench for a target; raises TargetError where there is none, or a tool that it needs is missing."""
    if isinstance(target, CpuTarget):
        return CpuBench(target)
    if isinstance(target, GpuTarget) and target.is_host:
        from convtune.measure.gpu_bench import GpuBench

        return GpuBench(target)
    if isinstance(target, GpuTarget):
        from convtune.measure.estimating import EstimatingBench

        return EstimatingBench(target)
    raise TargetError(f"target {target.name!r}: nothing here builds for {type(target).__name__}")
