"""Measurement: candidates are built, verified and timed in processes that may die."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from convtune.errors import TargetError
from convtune.measure.bench import Bench, Built, Limits, Outcome, Wanted
from convtune.measure.cpu_bench import CpuBench
from convtune.targets import CpuTarget, GpuTarget

if TYPE_CHECKING:
    from convtune.remote import Remote
    from convtune.targets import Target

__all__ = ["Bench", "Built", "CpuBench", "Limits", "Outcome", "Wanted", "open_bench"]


def open_bench(target: Target, remote: Remote | None = None) -> Bench:
    """The bench for a target, whose kernels run on the machines of `remote`, if any is given.

    Raises TargetError where there is none, a tool that it needs is missing, or no such machine is to be had.
    """
    if remote is not None:
        return _open_remote(target, remote)
    if isinstance(target, CpuTarget):
        if target.machine == platform.machine():
            return CpuBench(target)
        from convtune.measure.emulating import EmulatingBench

        return EmulatingBench(target)
    if isinstance(target, GpuTarget) and target.is_host:
        from convtune.measure.gpu_bench import GpuBench

        return GpuBench(target)
    if isinstance(target, GpuTarget):
        from convtune.measure.estimating import EstimatingBench

        return EstimatingBench(target)
    raise _nothing_builds(target)


def _open_remote(target: Target, remote: Remote) -> Bench:
    from convtune.measure.rpc_bench import RpcCpuBench, RpcGpuBench

    if isinstance(target, CpuTarget):
        return RpcCpuBench(target, remote)
    if isinstance(target, GpuTarget):
        return RpcGpuBench(target, remote)
    raise _nothing_builds(target)


def _nothing_builds(target: Target) -> TargetError:
    return TargetError(f"target {target.name!r}: nothing here builds for {type(target).__name__}")
