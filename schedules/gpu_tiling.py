"""What the GPU schedules share: kernels of a thread per element, copies that a block's threads make together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convtune.targets.gpu import STATIC_SHARED_BYTES, WARP, GpuTarget

MOST_THREADS = 256  # of a block that shares nothing


def thread_each(sch: Any, target: GpuTarget, result: str, sums: str, elements: int) -> None:
    """Makes a kernel of a stage and the sums it reads: an element a thread, neighbours in memory side by side."""
    loops = sch.get_loops(sch.get_sblock(result))
    acc = sch.get_sblock(sums)
    # before the loops are fused: TVM 0.27 sees no reduction where one thread's indices are divisions
    sch.compute_at(acc, loops[-1], preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    block, thread = sch.split(sch.fuse(*loops), [None, threads_for(target, elements)])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.decompose_reduction(acc, sch.get_loops(acc)[2 + len(loops)])


def threads_for(target: GpuTarget, elements: int) -> int:
    """Threads of a block, an element each: as many as leave no SM without a block, in whole warps."""
    threads = MOST_THREADS
    while threads > WARP and elements < target.sms * threads:
        threads //= 2
    return threads


def shared_scope(size_bytes: int) -> str:
    """The scope of what a block's threads share, of that size in all."""
    return "shared" if size_bytes <= STATIC_SHARED_BYTES else "shared.dyn"


def share(
    sch: Any, block: Any, at: Any, loops: int, threads: tuple[int, int], vector: int, vectors_of: int = 1
) -> None:
    """Computes a copy at a loop, its innermost `loops` loops shared out to a block's threads (y, x).

    Neighbouring threads copy side by side. vector: elements that a thread copies at once; it divides the innermost
    loop, or the product of the innermost `vectors_of` loops.
    """
    sch.compute_at(block, at, preserve_unit_loops=True)
    *outer, last = sch.get_loops(block)[-loops:]
    if vectors_of > 1:
        outer, last = outer[: 1 - vectors_of], sch.fuse(*outer[1 - vectors_of :], last)
    # the vector comes first: TVM 0.27 does not see that what is divided by 12 is the same for all 4 of a vector
    part, lane = sch.split(last, [None, vector])
    _, y, x = sch.split(sch.fuse(*outer, part), [None, *threads])
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    if vector > 1:
        sch.vectorize(lane)


def unroll(sch: Any, loops: Sequence[Any]) -> None:
    """Unrolls all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])
