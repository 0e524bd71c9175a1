"""What the GPU schedules share: kernels of a thread per element, splits of axes, copies that a block makes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from convtune.schedules.tiling import ceil_div, round_up

from convtune.spec import count
from convtune.targets.gpu import STATIC_SHARED_BYTES, WARP, GpuTarget

Dims = tuple[int, ...]
Split = tuple[int, int, int]

WIDE = 4  # float32 elements in the widest load and store of a thread
MOST_THREADS = 256  # of a block that shares nothing


@dataclass(frozen=True)
class ThreadTile:
    """Outputs of a block. threads: of a block along each axis. outputs: of a thread along each."""

    threads: Dims
    outputs: Dims

    @property
    def size(self) -> int:
        """Threads of a block."""
        return count(self.threads)

    @property
    def sums(self) -> int:
        return count(self.outputs)

    @property
    def block(self) -> Dims:
        """Outputs of a block."""
        return tuple(threads * outputs for threads, outputs in zip(self.threads, self.outputs))


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
    """Threads of a block, an element each: as many as fit an SM and leave none without a block, in whole warps."""
    threads = MOST_THREADS
    while threads > WARP and (elements < target.sms * threads or threads > target.threads_per_sm):
        threads //= 2
    return threads


def up_to(sizes: Sequence[int], size: int) -> tuple[int, ...]:
    """The sizes up to the first that holds all."""
    return tuple(s for i, s in enumerate(sizes) if i == 0 or sizes[i - 1] < size)


def largest_divisor(size: int, most: int) -> int:
    """The largest divisor of a size up to `most`."""
    return max(d for d in range(1, min(size, most) + 1) if size % d == 0)


def even_chunk(run: int, most: int) -> int:
    """Channels of a chunk, at most that many: the most that divide the run, else all but the last alike."""
    if run <= most:
        return run
    divisor = largest_divisor(run, most)
    return divisor if 2 * divisor > most else round_up(ceil_div(run, ceil_div(run, most)), gcd(run, WIDE))


def axis_split(block: int, thread: int, aligned: int = WIDE) -> Split:
    """What a block has along an axis as (part of a thread, thread, side by side in a thread)."""
    inner = gcd(thread, aligned)
    return thread // inner, block // thread, inner


def shared_scope(size_bytes: int) -> str:
    """The scope of what a block's threads share, of that size in all."""
    return "shared" if size_bytes <= STATIC_SHARED_BYTES else "shared.dyn"


def share(sch: Any, block: Any, at: Any, loops: int, threads: Sequence[int], vector: int, vectors_of: int = 1) -> None:
    """Computes a copy at a loop, its innermost `loops` loops shared out to a block's threads ([z,] y, x).

    Neighbouring threads copy side by side. vector: elements that a thread copies at once, or as many of them as
    divide the innermost loop, or the product of the innermost `vectors_of` loops.
    """
    sch.compute_at(block, at, preserve_unit_loops=True)
    *outer, last = sch.get_loops(block)[-loops:]
    if vectors_of > 1:
        outer, last = outer[: 1 - vectors_of], sch.fuse(*outer[1 - vectors_of :], last)
    # the vector comes first: TVM 0.27 does not see that what is divided by 12 is the same for all 4 of a vector
    vector = gcd(vector, int(sch.get(last).extent))
    part, lane = sch.split(last, [None, vector])
    bind_turns(sch, [*outer, part], threads)
    if vector > 1:
        sch.vectorize(lane)


def bind_turns(sch: Any, loops: Sequence[Any], threads: Sequence[int]) -> Any:
    """Binds the turns of loops to a block's threads ([z,] y, x), neighbours side by side; returns the loop of x."""
    _, *bound = sch.split(sch.fuse(*loops), [None, *threads])
    for loop, axis in zip(reversed(bound), "xyz"):
        sch.bind(loop, f"threadIdx.{axis}")
    return bound[-1]


def unroll(sch: Any, loops: Sequence[Any]) -> None:
    """Unrolls all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])
