"""Stores past the caches, of outputs that none of them can hold.

A store to a line that no cache holds reads it first: of what a kernel bound by memory moves, a third. One that goes
past the caches does not, where the line is written whole and soon. On two cores of a Zen 4 a depthwise kernel of 0.6 GB
in C, a position at a time, took 18.4 ms with plain stores and 9.5 with these; a copy took 15.5 and 9.9.

TVM 0.27 has no such store, but links LLVM's IR that a statement names. These functions are inlined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import MEMORY_BYTES_PER_CYCLE
from convtune.schedules.statements import Expr, Stmt, allocated, loop, sequence
from convtune.schedules.tiling import LINE, LINE_BYTES

from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import KnobValue
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

FUNCTION = "convtune_store_past_caches"
_TEXT = """
define void @{name}(ptr %place, <{lanes} x float> %value) alwaysinline nounwind {{
  %address = ptrtoint ptr %place to i64
  %offset = and i64 %address, {mask}
  %aligned = icmp eq i64 %offset, 0
  br i1 %aligned, label %past, label %through
past:
  store <{lanes} x float> %value, ptr %place, align {size}, !nontemporal !0
  ret void
through:
  store <{lanes} x float> %value, ptr %place, align 4
  ret void
}}
!0 = !{{i32 1}}
"""


PAST = "_past"  # ends the values of a knob whose kernels store past the caches


def is_past(value: KnobValue) -> bool:
    """Whether it is the value of a knob whose kernels store past the caches."""
    return str(value).endswith(PAST)


def without_past(value: KnobValue) -> str:
    """The value of a knob that says the same of all but where outputs are stored."""
    return str(value).removesuffix(PAST)


def with_past(spec: ConvSpec, target: CpuTarget, values: Sequence[str]) -> tuple[str, ...]:
    """The values of a knob, and of each the one that stores past the caches, where `can_pass`."""
    return (*values, *(f"{value}{PAST}" for value in values)) if can_pass(spec, target) else tuple(values)


def read_first_cycles(spec: ConvSpec, target: CpuTarget, past: bool) -> float:
    """Of a core that reads the lines of its share of the output before it stores them, though it need not.

    Nothing past the caches, nor where no kernel is: then it is the same for all, and no estimate of a space has it.
    """
    if past or not can_pass(spec, target):
        return 0.0
    return 4 * count(spec.out_shape) / target.threads / MEMORY_BYTES_PER_CYCLE


def exceeds_caches(target: CpuTarget, size_bytes: float) -> bool:
    """Whether no cache can hold a tensor until it is read."""
    return size_bytes > max(target.l3_bytes, target.l2_bytes * target.threads)


def can_pass(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether there is an output, channels last, to be stored past the caches: too large for them, of whole lines.

    x86 alone: what such stores do on others is not measured.
    """
    if target.family != "x86" or not spec.channels_last or target.vector_bytes > LINE_BYTES:
        return False
    return spec.out_channels % LINE == 0 and exceeds_caches(target, 4 * count(spec.out_shape))


def stored(buffer: Any, place: Sequence[Expr], value: Expr, lanes: int) -> Stmt:
    """buffer[place:place + lanes] = value, past the caches where that address is a multiple of the vector's size."""
    from tvm import tirx

    address = tirx.address_of(tirx.BufferLoad(buffer, list(place)))
    return tirx.Evaluate(tirx.call_extern("void", f"{FUNCTION}_{lanes}", address, value))


def passed(buffer: Any, element: Callable[[Expr], tuple[Sequence[Expr], Expr]], lanes: int) -> Stmt:
    """buffer[place] = value, of element(lane), for all lanes, which are neighbours in memory, past the caches."""
    from tvm import tirx

    def through(vector: Any) -> Stmt:
        keep = loop(lanes, lambda lane: tirx.BufferStore(vector, element(lane)[1], [lane]), "VECTORIZED", "lane")
        first, _value = element(0)
        return sequence([keep, stored(buffer, first, tirx.BufferLoad(vector, [tirx.Ramp(0, 1, lanes)]), lanes)])

    return allocated((lanes,), "vector", "global", through)


def tasks_past(extent: int, body: Callable[[Expr], Stmt], lanes: int, past: bool, name: str = "i") -> Stmt:
    """The parallel loop of body(task); past: whether they have `stored` in them, of vectors of so many lanes.

    Each task then has its stores done before what tells others that it is.
    """
    from tvm import tirx

    if not past:
        return loop(extent, body, "PARALLEL", name)
    fence = tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.x86.sse.sfence"))
    text = _TEXT.format(name=f"{FUNCTION}_{lanes}", lanes=lanes, size=lanes * 4, mask=lanes * 4 - 1)
    tasks = loop(extent, lambda task: sequence([body(task), fence]), "PARALLEL", name)
    return tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", text, tasks)
