"""The stages of composite workloads as workloads of their own, for comparing them with the fused one."""

from __future__ import annotations

from collections.abc import Iterable

from convtune.workloads import Workload


def with_stages(workloads: Iterable[Workload]) -> list[Workload]:
    """The workloads, each composite one followed by its stages, named "NAME stage 1" and so on.

    Their count is 0: the network runs them as parts of the composite one only.
    """
    found = []
    for workload in workloads:
        found.append(workload)
        if workload.spec.stages != (workload.spec,):
            numbered = enumerate(workload.spec.stages, start=1)
            found += [Workload(f"{workload.name} stage {number}", stage, 0) for number, stage in numbered]
    return found
