"""What the GPU schedules share: binding loops to blocks and threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.targets import Target


def gpu(target: Target) -> GpuTarget:
    """The target of a space that accepts GPUs only."""
    assert isinstance(target, GpuTarget), f"{target.name} is no GPU; accepts() says so"
    return target


def bind_elements(sch: Any, loops: list[Any], threads: int) -> None:
    """Binds the loops of a stage to blocks of `threads`, one element a thread, the last loop's side by side."""
    block, thread = sch.split(sch.fuse(*loops), [None, threads])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
