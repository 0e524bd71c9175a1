"""The emulator's checks of every access: what is reported, that right programs are not, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest
from emulation_programs import aligned, emulation, in_all_orders, outputs, random, report_of, run, written

from convtune.cuda.emulation.emulator import ORDERS, Counts

WRONG = {
    "a race in shared memory": (
        "s[0] = t; __syncthreads(); y[t] = s[0];",
        "race on shared array s at element 0 between threads 0 and 1 of block (0, 0, 0): write, then write",
    ),
    "a race between warps": (
        "s[t] = 1; __syncwarp(); y[t] = s[t ^ 32];",
        "race on shared array s at element 32 between threads 32 and 0 of block (0, 0, 0): write, then read",
    ),
    "a write after a read": (
        "s[t] = 1; __syncthreads(); y[t] = s[5]; if (t == 5) s[5] = 2;",
        "race on shared array s at element 5 between threads 0 and 5 of block (0, 0, 0): read, then write",
    ),
    "a write after the reads of two warps": (
        "s[t] = 1; __syncthreads(); float v = s[0]; __syncwarp(); "
        "if (t == 0) s[0] = v; y[t] = v;",
        "race on shared array s at element 0 between threads",
    ),
    "a race in global memory": (
        "y[t / 2] = 1;",
        "race on y at element 0 between threads 0 and 1 of block (0, 0, 0): write, then write, and no barrier between",
    ),
    "a race between blocks": (
        "y[t] = 1;",
        "race on y at element 0 between thread 0 of block (0, 0, 0) and thread 0 of block (1, 0, 0): write, then write",
    ),
    "a read of what another block writes": (
        "y[blockIdx.x * 64 + t] = blockIdx.x ? y[t] : 1.0f;",
        "race on y at element 0 between thread 0 of block (0, 0, 0) and thread 0 of block (1, 0, 0): write, then read",
    ),
    "a write of what another block read": (
        "float v = y[64 + t]; if (blockIdx.x) y[64 + t] = v;",
        "race on y at element 64 between another block and thread 0 of block (1, 0, 0): read, then write",
    ),
    "shared memory of the block before": (
        "if (blockIdx.x == 0) s[t] = 1; y[blockIdx.x * 64 + t] = s[t];",
        "shared array s is read before written at element 0 by thread 0 of block (1, 0, 0)",
    ),
    "a read in front of an array": (
        "y[t] = x[(int)t - 1];",
        "read of 4 bytes out of bounds at element -1 of x, which has 128, by thread (0, 0, 0) of block (0, 0, 0)",
    ),
    "a vector that ends behind an array": (
        "*(float4*)(y + 128 - 2) = make_float4(1, 2, 3, 4);",
        "write of 16 bytes out of bounds at element 126 of y",
    ),
    "a vector at an odd address": (
        "float4 v = *(float4*)(x + 1 + 4 * t % 8); y[t] = v.x;",
        "misaligned read of 16 bytes at element 1 of x by thread (0, 0, 0)",
    ),
    "a barrier for some": (
        "if (t < 40) { __syncthreads(); } y[blockIdx.x * 64 + t] = 1;",
        "divergent barrier: 40 of 64 threads reached the one in line 3 of the source, 24 ended",
    ),
    "two barriers at once": (
        "if (t < 32) {\n __syncthreads();\n } else {\n __syncthreads();\n }",
        "divergent barriers: threads wait in line 4 and in line 6 of the source",
    ),
    "a barrier against a warp's": (
        "if (t == 0) __syncthreads(); else __syncwarp();",
        "deadlock: 31 threads wait for others of their warp, 33 at a barrier, 0 ended",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_reported(name: str) -> None:
    body, problem = WRONG[name]
    body = f"__shared__ float s[64]; int t = threadIdx.x; {body}"
    if name == "a barrier against a warp's":  # the second warp is at its own barrier, and goes on
        body += " if (threadIdx.x >= 32) __syncthreads();"
    report = report_of(written(body, {"x": 128, "y": 128}, grid=2, block=64))
    assert report.problem.startswith("kernel main_kernel") and problem in report.problem
    assert report.counts == {} and "\n" not in report.problem


def test_deadlocks_end_unchecked_runs_too() -> None:
    for name in ("a barrier for some", "two barriers at once"):
        body, problem = WRONG[name]
        body = f"int t = threadIdx.x; {body}"
        assert problem in report_of(written(body, {"x": 128, "y": 128}, 2, 64), False).problem


RIGHT = {
    "neighbours after a barrier": "s[t] = t; __syncthreads(); y[t] = s[t ^ 33]; __syncthreads(); s[t ^ 1] = 1;",
    "a warp's own words after its barrier": "s[t] = t; __syncwarp(); y[t] = s[t ^ 1]; __syncwarp(); s[t ^ 2] = 1;",
    "one value by all": "s[0] = 7; __syncthreads(); y[t] = s[0];",
    "a sum of its own": "y[t] = 0; for (int i = 0; i < 3; ++i) { y[t] = y[t] + x[i]; }",
    "one word for all": "if (t < 1) s[0] = 1; __syncthreads(); y[t] = s[0]; __syncthreads(); if (t > 62) s[0] = 1;",
    "global memory after a barrier": "y[t] = t; __syncthreads(); float v = y[t ^ 1]; __syncthreads(); y[t] = v;",
    "vectors of registers": "float4 v = *(float4*)(x + t / 4 * 4); float r[4]; *(float4*)(r + 0) = v; y[t] = r[t % 4];",
    "early end before no barrier": "if (t > 40) return; y[t] = 1;",
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not(name: str, order: str) -> None:
    body = f"__shared__ float s[64]; int t = threadIdx.x; {RIGHT[name]}"
    report = report_of(written(body, {"x": 64, "y": 64}, 1, 64), True, order)
    assert report.problem == "" and set(report.counts) == {"main_kernel"}


def test_halves_of_a_word_are_told_apart() -> None:
    body = """extern __shared__ unsigned char s[]; int t = threadIdx.x;
      ((half*)s)[t] = x[t]; __syncthreads(); y[t] = ((half*)s)[t ^ 1];"""
    x = random(64, 1, "float16")
    y = in_all_orders(written(body, {"x": 64, "y": 64}, block=64, dynamic=128, dtype="half"), [x])
    np.testing.assert_array_equal(y, x[np.arange(64) ^ 1])


SHUFFLES = {
    "__shfl_sync(0xffffffff, v, 5)": lambda v, lane: v[np.full(32, 5)],
    "__shfl_sync(0xffffffff, v, 3, 8)": lambda v, lane: v[lane // 8 * 8 + 3],
    "__shfl_xor_sync(0xffffffff, v, 6)": lambda v, lane: v[lane ^ 6],
    "__shfl_down_sync(0xffffffff, v, 4, 16)": lambda v, lane: v[np.where(lane % 16 < 12, lane + 4, lane)],
    "__shfl_up_sync(0xffffffff, v, 4)": lambda v, lane: v[np.where(lane >= 4, lane - 4, lane)],
    "__popc(__ballot_sync(0xffffffff, v > 0))": lambda v, lane: np.full(32, (v > 0).sum()),
    "__any_sync(0xffffffff, v > 100)": lambda v, lane: np.zeros(32),
    "__all_sync(0xffffffff, v < 100)": lambda v, lane: np.ones(32),
    "__popc(__activemask())": lambda v, lane: np.full(32, 32),
}


def test_threads_of_a_warp_exchange_values() -> None:
    x, lane = random(64), np.arange(32)
    lines = [f"y[{64 * i} + threadIdx.x] = {code};" for i, code in enumerate(SHUFFLES)]
    body = "float v = x[threadIdx.x];" + "\n".join(lines)
    y = in_all_orders(written(body, {"x": 64, "y": 64 * len(SHUFFLES)}, block=64), [x]).reshape(-1, 64)
    for found, expected in zip(y, SHUFFLES.values()):
        np.testing.assert_array_equal(found[:32], expected(x[:32], lane))
        np.testing.assert_array_equal(found[32:], expected(x[32:], lane))


def test_halves_of_a_warp_exchange_values() -> None:
    body = """
      unsigned mask = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
      float v = x[threadIdx.x];
      if (threadIdx.x < 16) { v = v + __shfl_xor_sync(mask, v, 1); } else { v = __shfl_xor_sync(mask, v, 2); }
      y[threadIdx.x] = v;"""
    x, lane = random(32), np.arange(32)
    expected = np.where(lane < 16, x + x[lane ^ 1], x[lane ^ 2])
    np.testing.assert_array_equal(in_all_orders(written(body, {"x": 32, "y": 32}), [x]), expected)


def test_the_value_of_an_absent_thread_is_no_number() -> None:
    program = written(
        "y[threadIdx.x] = __shfl_down_sync(__activemask(), x[threadIdx.x], 4);", {"x": 8, "y": 8}, block=8
    )
    y = outputs(program)
    x = random(8)
    emulation(program, True).run([x, y])
    np.testing.assert_array_equal(y, [*x[4:], *[np.nan] * 4])


def test_reductions_of_tvm_across_threads() -> None:
    from emulation_programs import lowered
    from tvm import te
    from tvm.s_tir import Schedule

    x, k = te.placeholder((6, 100), name="x"), te.reduce_axis((0, 100), "k")
    y = te.compute((6,), lambda i: te.sum(x[i, k], axis=k), name="y")
    sch = Schedule(te.create_prim_func([x, y]))
    i, r = sch.get_loops(sch.get_sblock("y"))
    _, inner = sch.split(r, [None, 64])
    sch.bind(i, "blockIdx.x")
    sch.bind(inner, "threadIdx.x")
    program = lowered(sch.mod)
    assert "__shfl_down_sync" in program.source
    values = random(600)
    found = in_all_orders(program, [values])
    np.testing.assert_allclose(found, values.reshape(6, 100).astype(np.float64).sum(1), rtol=1e-5)


COPY = """
  extern "C" __device__ void copy(void* to, void* from, int bytes) {
    unsigned int address = __cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(address), "l"(from), "n"(4), "r"(bytes));
  }
  extern "C" __device__ void copy_if(void* dst, int dst_off, void* src, int src_off, int predicate) {
    uint8_t* dst_p = (uint8_t*)dst + dst_off * 4;
    uint8_t* src_p = (uint8_t*)src + src_off * 4;
    unsigned int dst_addr = __cvta_generic_to_shared(dst_p);
    __asm__ __volatile__(
      "{\\n"
      " .reg .pred p;\\n"
      " setp.eq.u32 p, %3, 1;\\n"
      " @p cp.async.ca.shared.global [%0], [%1], %2;\\n"
      " @!p st.shared.u32 [%0], {%4};\\n"
      "}\\n"
      :: "r"(dst_addr), "l"(src_p), "n"(4), "r"(predicate), "r"(0)
    );
  }
"""


@pytest.mark.parametrize("call", ["copy(s + t, x + t, t < 20 ? 4 : 0)", "copy_if(s, t, x, t, t < 20)"])
def test_predicated_copies_fill_with_zeros(call: str) -> None:
    """And do not read what is not there."""
    body = f"""__shared__ float s[32]; int t = threadIdx.x; {call};
      asm volatile("cp.async.wait_all;"); y[t] = s[t];"""
    x = random(20)
    y = in_all_orders(written(body, {"x": 20, "y": 32}, before=COPY), [x])
    np.testing.assert_array_equal(y, [*x, *[0] * 12])


COUNTED = {
    # a warp's 128 bytes
    "y[t] = x[t];": {"global_load_sectors": 4, "global_store_sectors": 4},
    "y[t] = x[t * 32];": {"global_load_sectors": 32},
    "y[t] = x[t * 2];": {"global_load_sectors": 8},
    "y[t] = x[t + 1];": {"global_load_sectors": 5},
    "y[t] = x[0];": {"global_load_sectors": 1},
    "float4 v = *(float4*)(x + 4 * t); y[t] = v.x;": {"global_load_requests": 1, "global_load_sectors": 16},
    "y[t] = x[t] + x[t + 32];": {"global_load_requests": 2, "global_load_sectors": 8},
    "float v = 0; for (int i = 0; i < 5; ++i) { v += x[t + 32 * i]; } y[t] = v;": {
        "global_load_requests": 5,
        "global_load_sectors": 20,
    },
    # half a warp goes one way
    "if (t < 16) { y[t] = x[t]; } else { y[t] = 1; }": {
        "global_load_sectors": 2,
        "global_store_requests": 2,
        "global_store_sectors": 4,
    },
    "s[t] = 1;": {"shared_store_requests": 1, "shared_store_wavefronts": 1},
    "s[t * 2] = 1;": {"shared_store_wavefronts": 2},
    "s[t * 32] = 1;": {"shared_store_wavefronts": 32},
    "s[t * 33] = 1;": {"shared_store_wavefronts": 1},
    "s[t] = 1; __syncthreads(); y[t] = s[0];": {"shared_load_requests": 1, "shared_load_wavefronts": 1, "barriers": 1},
    "s[t] = 1; __syncthreads(); y[t] = s[t / 2];": {"shared_load_wavefronts": 1},
    "*(float2*)(s + 2 * t) = make_float2(1, 2);": {"shared_store_requests": 1, "shared_store_wavefronts": 2},
    "*(float4*)(s + 4 * t) = make_float4(1, 2, 3, 4);": {"shared_store_requests": 1, "shared_store_wavefronts": 4},
    "*(float4*)(s + 32 * t) = make_float4(1, 2, 3, 4);": {"shared_store_wavefronts": 32},
}


@pytest.mark.parametrize("body", COUNTED)
def test_counts_of_a_warp(body: str) -> None:
    program = written(f"__shared__ float s[1100]; int t = threadIdx.x; {body}", {"x": 1024, "y": 32})
    counts = report_of(program).counts["main_kernel"]
    assert {name: getattr(counts, name) for name in COUNTED[body]} == COUNTED[body]


def test_counts_are_those_of_a_block_on_average() -> None:
    body = "if (blockIdx.x < 2) { y[blockIdx.x * 64 + threadIdx.x] = 1; } __syncthreads();"
    counts = report_of(written(body, {"y": 128}, grid=8, block=64)).counts["main_kernel"]
    assert counts == Counts(0, 2 * 2 / 8, 0, 2 * 2 * 4 / 8, 0, 0, 0, 0, 1)


def test_counts_of_long_loops_are_whole() -> None:
    """Longer than what is kept of a thread's accesses at a time."""
    body = "float v = 0; for (int i = 0; i < 5000; ++i) { v += x[(i % 16) * 64 + threadIdx.x]; } y[threadIdx.x] = v;"
    counts = report_of(written(body, {"x": 1024, "y": 64}, block=64)).counts["main_kernel"]
    assert (counts.global_load_requests, counts.global_load_sectors) == (2 * 5000, 2 * 5000 * 4)


def test_runs_of_a_checked_library_do_not_disturb_each_other() -> None:
    program = written("y[threadIdx.x] = x[threadIdx.x];", {"x": 32, "y": 32})
    x = random(32)
    for _ in range(3):
        np.testing.assert_array_equal(run(program, [x], True), x)
    assert emulation(program, True).run([x, aligned(32)]).problem == ""
