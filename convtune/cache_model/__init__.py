"""An analytic model of a CPU's caches: the bytes that each level must fetch, told from the loop nest of a kernel.

Addresses are sums of loop variables and strides, read from lowered TIR (`nest`). For each loop L of the nest and each
buffer B

    F(L, B)  lines that all iterations of L touch in B while the loops around L stand still (`footprints`)
    F(body)  the same of one iteration; W = sum of F over the buffers is the working set

A cache of C lines that replaces the least recently used one keeps from one iteration of L to the next what it needs
if W(body of L) <= C. Then each line that L touches is fetched once while L runs; else every iteration starts anew
(`misses`):

    misses(L) = sum over B of F(L, B)        if W(L) <= C or W(body of L) <= C
                trips(L) * misses(body of L) otherwise

and those of statements in a row are added up, without what the one before left in the cache. So the outermost loop
whose working set fits decides, and the first use of every line counts. Each level is taken by itself, as if it held
what is in the level before; L3 is shared: there the threads of a parallel loop run at the same time, and their
footprints are united.

Source: the footprints and the rule are those of K. S. McKinley, S. Carr, C.-W. Tseng, "Improving Data Locality with
Loop Transformations" (TOPLAS 18, 1996) and of A. Porterfield's overflow iteration (1989), for tiles as T. M. Low and
others use them in "Analytical Modeling Is Enough for High-Performance BLIS" (TOMS 43, 2016).

What it does not see: prefetching, associativity, what is written back, how far apart in time threads are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .footprints import LINE_BYTES, Footprints
from .misses import Cache
from .nest import build
from .statements import read

if TYPE_CHECKING:
    from convtune.targets.cpu import CpuTarget


@dataclass(frozen=True)
class Traffic:
    """Bytes that one call moves, whole lines, of all threads together. Not measured.

    l1_bytes: into the L1 caches. l2_bytes: into the L2 caches. l3_bytes: from memory, into L3 where there is one.
    distinct_bytes: of all lines that a call touches, each once.
    """

    l1_bytes: float
    l2_bytes: float
    l3_bytes: float
    distinct_bytes: float


def traffic(module: Any, target: CpuTarget) -> Traffic:
    """The traffic of a scheduled tvm.IRModule on a target's caches, whose arrays start at cache lines.

    Raises:
        ScheduleError: the module has something that the model cannot follow.
    """
    statements = read(module)
    own = build(statements, target.threads, shared=False)
    footprints = Footprints(own.arithmetic)
    private = [
        Cache(own, footprints, size / LINE_BYTES, private=True).misses() for size in (target.l1d_bytes, target.l2_bytes)
    ]
    if target.threads > 1:
        own = build(statements, target.threads, shared=True)
        footprints = Footprints(own.arithmetic)
    last = max(target.l3_bytes, target.l2_bytes)
    shared = Cache(own, footprints, last / LINE_BYTES, private=False)
    l1, l2, l3, distinct = (lines * LINE_BYTES for lines in (*private, shared.misses(), shared.distinct()))
    l2 = min(l1, l2)
    return Traffic(l1, l2, min(l2, l3), distinct)
