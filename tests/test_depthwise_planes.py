"""Channels-first depthwise: what vectors of positions read, loads that stay inside, kernels at the domain's corners."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tvm
from conformance_cases import corner, runnable
from convtune.schedules.axes import view_of
from convtune.schedules.depthwise_planes import depthwise_planes
from convtune.schedules.depthwise_planes_plan import ANY, ZERO, PlanesPlan, Source, plan_of, windows
from convtune.schedules.depthwise_squares import depthwise_squares
from convtune.schedules.depthwise_woven import WovenPlan, planes_of
from synthetic_spaces import machine
from test_conformance import check

from convtune import codegen, targets
from convtune.assembly import listing
from convtune.measure.builder import scheduled
from convtune.space import Candidate, Space, all_knobs
from convtune.spec import ConvSpec

TARGET = targets.resolve("x86-64-v4", threads=2)

SPECS = [
    ConvSpec.parse(text)
    for text in (
        "depthwise,n=2,ic=37,oc=37,in=7x23,k=3x3,p=1,bias,act=relu,residual,layout=NCHW",
        "depthwise,n=2,ic=21,oc=21,in=11x13,k=3x3,s=2,p=1:0x0:1,act=gelu,layout=NCHW",
        "depthwise,n=2,ic=19,oc=19,in=3x6x7,k=1x3x3,p=0x1x1,residual,bias,layout=NCDHW",
        "depthwise,ic=18,oc=18,in=5x7x9,k=3x3x3,s=2x1x2,p=1,act=silu,layout=NCDHW",
        "depthwise,n=2,ic=9,oc=9,in=7x5x6,k=5x1x1,p=2x0x0,bias,layout=NCDHW",
        "depthwise,ic=33,oc=33,in=211,k=4,p=3:0,d=2,layout=NCW",
        "depthwise,n=3,ic=5,oc=5,in=9x17,k=3x3,s=3,p=1,d=2,act=sigmoid,layout=NCHW",
        "depthwise,n=2,ic=7,oc=7,in=11x3,k=3x3,p=1,bias,residual,layout=NCHW",
        "depthwise,ic=6,oc=6,in=3x5x7,k=2x3x5,s=1x1x2,p=1x1x2,bias,layout=NCDHW",
    )
]  # fmt: skip


def plans(spec: ConvSpec) -> list[PlanesPlan]:
    target = machine()
    return [plan_of(spec, target, knobs) for knobs in all_knobs(depthwise_planes, spec, target)]


def read_at(spec: ConvSpec, axis: int, out: int, tap: int) -> int:
    """The input position that a tap of an output reads, found in the padded input; ZERO in its zeros."""
    before, _ = spec.padding[axis]
    padded = [ZERO] * before + list(range(spec.in_size[axis])) + [ZERO] * 99
    return padded[out * spec.stride[axis] + tap * spec.dilation[axis]]


@pytest.mark.parametrize("spec", [s for s in SPECS if s.rank == 2], ids=str)
def test_vectors_of_planes_read_what_their_outputs_need(spec: ConvSpec) -> None:
    (kernel_h, kernel_w), (high, wide) = spec.kernel, spec.out_size
    for plan in (plan for plan in plans(spec) if plan.flat):
        stored = [vector for tile in plan.plane_tiles() for vector in tile]
        assert stored == list(range(plan.in_plane))
        found: dict[tuple[int, int, int], int] = {}
        for tile in plan.plane_tiles():
            for source, uses in plan.plane_sources(tile).items():
                for vector, kh, kw in uses:
                    first = (tile.start + vector) * plan.side_by_side * wide
                    for lane, position in enumerate(source):
                        if position != ANY:
                            found[first + lane, kh, kw] = position
        for out in range(high * wide):
            for kh, kw in ((kh, kw) for kh in range(kernel_h) for kw in range(kernel_w)):
                row, column = read_at(spec, 0, out // wide, kh), read_at(spec, 1, out % wide, kw)
                expected = ZERO if ZERO in (row, column) else row * spec.in_size[1] + column
                assert found.get((out, kh, kw), ZERO) == expected


@pytest.mark.parametrize("spec", [s for s in SPECS if s.rank < 3], ids=str)
def test_vectors_of_rows_read_what_their_outputs_need(spec: ConvSpec) -> None:
    axis = spec.rank - 1
    for plan in (plan for plan in plans(spec) if not plan.flat):
        found: dict[tuple[int, int], int] = {}
        for tile in range(plan.tiles):
            code = plan.inner.start if tile in plan.inner else tile
            moved = (plan.start(tile) - plan.start(code)) * spec.stride[axis]
            for source, uses in plan.row_sources(code).items():
                for vector, tap in uses:
                    first = plan.start(tile) + plan.offsets[vector]
                    found |= {(first + lane, tap): p if p == ZERO else p + moved for lane, p in enumerate(source)}
        for out, tap in ((out, tap) for out in range(spec.out_size[axis]) for tap in range(spec.kernel[axis])):
            assert found.get((out, tap), ZERO) == read_at(spec, axis, out, tap)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("spec", [s for s in SPECS if s.rank == 2], ids=str)
def test_woven_vectors_hold_what_their_outputs_need(spec: ConvSpec, lanes: int) -> None:
    view = view_of(spec)
    plan = WovenPlan(view, 37, lanes, planes_of(view, 37, lanes), 1, 32)
    (high, wide), columns = spec.out_size, spec.in_size[1]
    if plan.planes == 0:
        assert max(wide, -(-columns // spec.stride[1])) > lanes
        return
    for tap in range(spec.kernel[1]):
        phase, _ = plan.phase(tap)
        base, moved = plan.base(phase, 3), plan.shifted(tap)
        for out, plane in ((out, plane) for out in range(wide) for plane in range(plan.planes)):
            source, lane = moved[out * plan.planes + plane]
            read = ZERO if source < 0 else base[lane][1] - 3
            assert read == read_at(spec, 1, out, tap)
            assert source < 0 or base[lane][0] == plane
    if high * wide >= 4:
        for plane in range(plan.planes):
            stored: dict[int, tuple[int, int]] = {}
            for first, picked in plan.stores(plane):
                stored |= dict(enumerate(picked, first))
            rows = [(h, w * plan.planes + plane) for h in range(high) for w in range(wide)]
            assert stored == dict(enumerate(rows))


@pytest.mark.parametrize("spec", [s for s in SPECS if s.rank == 2], ids=str)
def test_woven_rows_and_columns_are_each_read_once(spec: ConvSpec) -> None:
    plan = WovenPlan(view_of(spec), 37, 16, 1, 1, 16)
    found = [(row, h, kh) for row in range(spec.in_size[0]) for h, kh in plan.reads(row)]
    taps = [(read_at(spec, 0, h, kh), h, kh) for h in range(spec.out_size[0]) for kh in range(spec.kernel[0])]
    assert sorted(found) == sorted(tap for tap in taps if tap[0] != ZERO)
    used = {tap for out in range(spec.out_size[1]) for tap in range(spec.kernel[1]) if read_at(spec, 1, out, tap) >= 0}
    assert sorted(tap for held in plan.held for tap in held) == sorted(used)


@pytest.mark.parametrize(
    ("source", "have", "expected"),
    [
        ((3, 4, 5, 6), (), (3,)),
        ((ZERO, 0, 1, 2), (), (0,)),
        ((17, 18, 19, ZERO), (), (16,)),  # of 20 positions
        ((1, 3, 5, 7), (), (1, 5)),
        ((2, 4, 6, 8), (1, 5), (1, 5)),
        ((0, 4, 8, 12), (), (0, 4, 8, 12)),
        ((ANY, ANY, 14, 19), (), (14, 16)),
    ],
)
def test_loads_cover_a_source_and_stay_inside(source: Source, have: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = windows(source, 0, 16, have)
    assert found == expected
    assert all(any(start <= p < start + 4 for start in found) for p in source if p >= 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "number", "wanted"),
    [
        (depthwise_planes, 0, {"rows": 2, "row_blocks": 2}),
        (depthwise_planes, 1, {"shape": "rows", "parts": 2}),
        (depthwise_planes, 2, {"shape": "planes", "rows": 2}),
        (depthwise_planes, 3, {"parts": 2}),
        (depthwise_planes, 4, {"rows": 2, "parts": 2}),
        (depthwise_planes, 5, {"vectors": 9, "parts": 2}),
        (depthwise_planes, 6, {"parts": 1}),
        (depthwise_planes, 7, {"shape": "woven", "parts": 2}),
        (depthwise_planes, 7, {"shape": "padded", "rows": 6}),
        (depthwise_planes, 8, {"shape": "woven", "parts": 1}),
        (depthwise_squares, 0, {"rows": 2, "parts": 2}),
        (depthwise_squares, 3, {"parts": 2}),
        (depthwise_squares, 5, {"parts": 2}),
    ],
)
def test_corners_are_right(owner: Space[Any], number: int, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(owner, SPECS[number], target, corner(owner, SPECS[number], target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["k=3x3,p=1", "k=5x5,p=2", "k=3x3,p=2,d=2", "k=3x3,s=2x1,p=1,bias,residual"])
def test_rows_of_half_a_vector_are_right_on_wide_ones(kernel: str) -> None:
    target = runnable("x86-64-v4")
    size = "13x7" if "s=2" in kernel else "7x7"
    spec = ConvSpec.parse(f"depthwise,n=2,ic=19,oc=19,in={size},{kernel},act=relu,layout=NCHW")
    check(depthwise_planes, spec, target, corner(depthwise_planes, spec, target, {"shape": "padded", "rows": 7}))


@pytest.mark.parametrize("taps", [3, 5])
def test_a_vector_of_one_row_permutes_at_the_ends_of_a_plane_only(taps: int) -> None:
    spec = ConvSpec.parse(f"depthwise,ic=32,oc=32,in=7x7,k={taps}x{taps},p={taps // 2},layout=NCHW")
    knobs = {"shape": "padded", "rows": 7, "vectors": 1, "parts": 2, "row_blocks": 1}
    module, _ = scheduled(spec, TARGET, Candidate(depthwise_planes.name, knobs))
    text = str(tvm.compile(codegen.any_alignment(module), target=TARGET.to_tvm()).mod.inspect_source("asm"))
    assert len(re.findall(r"\bvfn?madd\w+ps\s.*%ymm", text)) == (7 * taps - taps // 2 * (taps // 2 + 1)) * taps
    assert not re.search(r"\bvfn?madd\w+ps\s.*%zmm", text)
    ends = 2 * taps  # a row at each end, and the plane's last store
    assert len(re.findall(r"\bvperm\w+\s", text)) <= ends


@pytest.mark.parametrize(("cpu", "shape"), [("znver4", "padded"), ("znver5", "woven")])
def test_rows_of_half_a_vector_pay_where_units_pass_vectors_in_halves(cpu: str, shape: str) -> None:
    spec, target = ConvSpec.parse("depthwise,ic=1152,oc=1152,in=7x7,k=3x3,p=1"), targets.resolve(cpu, threads=2)
    knobs = all_knobs(depthwise_planes, spec, target)
    assert min(knobs, key=lambda each: depthwise_planes.estimate(spec, target, each))["shape"] == shape


@pytest.mark.parametrize(("rows", "vectors"), [(2, 7), (3, 7)])
def test_sums_and_inputs_of_tiles_at_borders_stay_in_registers(rows: int, vectors: int) -> None:
    spec = ConvSpec.parse("depthwise,ic=16,oc=16,in=112x112,k=3x3,p=1,layout=NCHW")
    knobs = {"shape": "rows", "rows": rows, "vectors": vectors, "parts": 2, "row_blocks": 1}
    module, _ = scheduled(spec, TARGET, Candidate(depthwise_planes.name, knobs))
    text = str(tvm.compile(codegen.any_alignment(module), target=TARGET.to_tvm()).mod.inspect_source("asm"))
    loop = listing(text).loop
    assert loop
    assert loop.stack_stores <= 2
