"""The cache model: nests worked out by hand, and small kernels of every space against a traced cache."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import traced_caches
from conformance_cases import specs
from tvm import ir
from tvm.script import tirx as T  # noqa: N812

from convtune import space, targets
from convtune.cache_model import traffic
from convtune.errors import ScheduleError
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

LINE = 64


def machine(l1: int, l2: int = 1 << 20, l3: int = 0, threads: int = 1) -> CpuTarget:
    """A CPU whose caches have so many lines."""
    target = targets.resolve("x86-64-v2", threads)
    assert isinstance(target, CpuTarget)
    return dataclasses.replace(target, l1d_bytes=l1 * LINE, l2_bytes=l2 * LINE, l3_bytes=l3 * LINE)


def module(function: Any) -> Any:
    return ir.IRModule({"main": function})


def trace_of(scheduled: Any) -> list[int]:
    return [line for region in traced_caches.lines_of(scheduled) for task in region for line in task]


@T.prim_func(s_tir=True)
def product(a: T.Buffer((8, 48), "float32"), b: T.Buffer((48, 48), "float32"), c: T.Buffer((8, 48), "float32")):
    for i, j, k in T.grid(8, 48, 48):
        c[i, j] = c[i, j] + a[i, k] * b[k, j]


@pytest.mark.parametrize(
    ("lines", "misses"),
    [
        (16, 8 * 48 * (3 + 48 + 1)),  # only the innermost loop's body stays: a row of a, a column of b, for each of c
        (64, 8 * (3 + 3 * 48 + 3)),  # a row of a, a column of b: b is read again for each row
        (160, 3 * 8 + 3 * 48 + 3 * 8),  # b too: all of it once
        (1000, 3 * 8 + 3 * 48 + 3 * 8),
    ],
)
def test_matrix_product_by_hand(lines: int, misses: int) -> None:
    found = traffic(module(product), machine(lines))
    assert found.l1_bytes == misses * LINE
    assert found.l2_bytes == found.distinct_bytes == 192 * LINE
    traced = traced_caches.misses(trace_of(module(product)), lines)
    # the last element of c and the next one are touched in a row, which only the trace knows
    assert traced == misses if lines > 16 else misses - 8 * 48 <= traced <= misses


@T.prim_func(s_tir=True)
def window(x: T.Buffer((997,), "float32"), y: T.Buffer((993,), "float32")):
    for i in range(993):
        for k in range(5):
            y[i] = y[i] + x[i + k]


def test_a_sliding_window_is_read_once() -> None:
    assert traffic(module(window), machine(4)).l1_bytes == (math.ceil(997 / 16) + math.ceil(993 / 16)) * LINE


@T.prim_func(s_tir=True)
def columns(x: T.Buffer((37, 16), "float32"), y: T.Buffer((16, 37), "float32")):
    for i, j in T.grid(16, 37):
        y[i, j] = x[j, i]


def test_a_line_is_fetched_for_every_element_where_it_does_not_stay() -> None:
    """37 lines of x for each column; y's rows of 148 bytes start at every fourth byte, and touch 3.25 lines."""
    assert traffic(module(columns), machine(20)).l1_bytes == 16 * (37 + 3.25) * LINE
    assert traffic(module(columns), machine(45)).l1_bytes == (37 + 37) * LINE


@T.prim_func(s_tir=True)
def rows(w: T.Buffer((160,), "float32"), x: T.Buffer((12, 160), "float32"), y: T.Buffer((12, 160), "float32")):
    for i in T.parallel(12):
        for j in range(160):
            y[i, j] = x[i, j] * w[j]


def test_each_thread_fetches_what_it_shares_with_others() -> None:
    """w is 10 lines; one thread's L1 keeps it, each thread's has to fetch it, the L3 that they share does so once."""
    alone, four = traffic(module(rows), machine(64, l3=999)), traffic(module(rows), machine(64, 64, 999, threads=4))
    assert alone.l1_bytes == (10 + 240) * LINE
    assert four.l1_bytes == four.l2_bytes == (4 * 10 + 240) * LINE
    assert four.l3_bytes == alone.l3_bytes == (10 + 240) * LINE


@T.prim_func(s_tir=True)
def fused(w: T.Buffer((5, 96), "float32"), y: T.Buffer((7, 5, 96), "float32")):
    for i in T.parallel(35):
        for j in range(96):
            y[i // 5, i % 5, j] = w[i % 5, j]


def test_a_loop_of_quotients_and_remainders_is_two() -> None:
    assert traffic(module(fused), machine(20)).l1_bytes == (35 * 6 + 7 * 30) * LINE
    assert traffic(module(fused), machine(40)).l1_bytes == (35 * 6 + 7 * 30) * LINE
    assert traffic(module(fused), machine(64)).l1_bytes == (35 * 6 + 30) * LINE


@T.prim_func(s_tir=True)
def guarded(x: T.Buffer((100, 16), "float32"), y: T.Buffer((100, 16), "float32")):
    for i, j in T.grid(15, 7):
        if i * 7 + j < 100:
            for k in T.vectorized(16):
                y[i * 7 + j, k] = T.if_then_else(i * 7 + j < 50, x[i * 7 + j, k], T.float32(0))


def test_what_a_condition_keeps_away_is_not_fetched() -> None:
    assert traffic(module(guarded), machine(4)).l1_bytes == pytest.approx(150 * LINE, rel=0.05)


@T.prim_func(s_tir=True)
def gathered(x: T.Buffer((64, 16), "float32"), y: T.Buffer((40, 16), "float32")):
    index = T.alloc_buffer((40,), "int32")
    for i in range(40):
        index[i] = T.max(T.min(i * 3 - 5, 63), 0)
    for i, j in T.grid(40, 16):
        y[i, j] = x[index[i], j]


def test_indices_that_the_kernel_stores_are_followed() -> None:
    """i * 3 - 5 is 1, 4 … 61 for i from 2 to 22, 0 before and 63 after: 23 lines of x."""
    assert traffic(module(gathered), machine(1000)).distinct_bytes == (23 + 40 + math.ceil(40 / 16)) * LINE


@T.prim_func(s_tir=True)
def unknown_index(index: T.Buffer((9,), "int32"), x: T.Buffer((99,), "float32"), y: T.Buffer((9,), "float32")):
    for i in range(9):
        y[i] = x[index[i]]


@T.prim_func(s_tir=True)
def endless(x: T.Buffer((9,), "float32")):
    while x[0] < T.float32(3):
        x[0] = x[0] + T.float32(1)


@T.prim_func(s_tir=True)
def elsewhere(x: T.Buffer((9,), "float32")):
    T.evaluate(T.call_extern("int32", "touch", x.data))


@pytest.mark.parametrize(
    ("function", "message"),
    [(unknown_index, "argument"), (endless, "statement While"), (elsewhere, "address")],
)
def test_what_cannot_be_followed_is_an_error(function: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        traffic(module(function), machine(64))


SMALL = (
    "conv,ic=13,oc=24,in=7x11,k=3x3,p=1",
    "conv,ic=5,oc=8,in=101,k=5,p=2",
    "conv,ic=4,oc=8,in=3x7x9,k=3x3x3,p=1",
    "pointwise,n=2,ic=37,oc=40,in=9x11,k=1x1,layout=NHWC",
    "depthwise,ic=12,oc=12,in=23x29,k=3x3,p=1,g=12",
    "grouped,ic=24,oc=24,in=13x13,k=3x3,s=2,p=1,g=3",
    "transposed,ic=7,oc=8,in=9x9,k=4x4,s=2,p=1",
    "deformable,ic=8,oc=8,in=9x9,k=3x3,p=1",
    "depthwise_separable,ic=12,oc=10,in=13x11,k=3x3,p=1",
)


@pytest.mark.parametrize("text", SMALL)
def test_like_a_traced_cache(text: str) -> None:
    """Caches of a sixteenth, a quarter and twice what is touched, for one random schedule of every space.

    A cache keeps a part of what does not quite fit, of which the model knows nothing: so any one may be off by much.
    """
    spec, ratios = ConvSpec.parse(text), []
    for owner in space.accepting(spec, machine(64)):
        knobs = random.Random(text).choice(list(space.all_knobs(owner, spec, machine(64))))
        scheduled = owner.schedule(spec, machine(64), knobs)
        trace = trace_of(scheduled)
        touched = len(set(trace))
        for lines in (touched // 16, touched // 4, 2 * touched):
            found = traffic(scheduled, machine(max(16, lines))).l1_bytes / LINE
            ratios.append(found / traced_caches.misses(trace, max(16, lines)))
            assert 1 / 3 < ratios[-1] < 4, f"{owner.name} {dict(knobs)}: {lines} lines"
        assert ratios[-1] == pytest.approx(1, abs=0.05), f"{owner.name} {dict(knobs)}: each line once"
    assert 0.8 < math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.4


def test_threads_like_traced_caches() -> None:
    spec, target = ConvSpec.parse("conv,ic=13,oc=24,in=15x17,k=3x3,p=1"), machine(100, threads=3)
    for owner in space.accepting(spec, target):
        scheduled = owner.schedule(spec, target, owner.default(spec, target))
        traced = traced_caches.private_misses(traced_caches.lines_of(scheduled), 100, 3)
        assert 0.6 < traffic(scheduled, target).l1_bytes / LINE / traced < 1.7, owner.name


def cpu_schedules() -> list[Any]:
    """A default schedule of each space for some awkward specs."""
    found = []
    for turn, spec in enumerate(specs()):
        for owner in space.known().values() if turn % 29 == 0 else ():
            target = machine(512, 8192, 1 << 19, threads=1 + turn % 3)
            if owner.takes(spec, target):
                found.append(pytest.param(owner, spec, target, id=f"{owner.name}-{spec}"))
    return found


@pytest.mark.parametrize(("owner", "spec", "target"), cpu_schedules())
def test_every_space_has_its_traffic(owner: Any, spec: ConvSpec, target: CpuTarget) -> None:
    """At least the output goes through every level, and a cache that holds all fetches each line once a thread."""
    found = traffic(owner.schedule(spec, target, owner.default(spec, target)), target)
    least = math.prod(spec.out_shape) * 4
    assert least <= found.distinct_bytes <= found.l3_bytes * 1.001
    assert found.l3_bytes <= found.l2_bytes <= found.l1_bytes < math.inf
