"""Stores past the caches: which outputs have them, and that they are right wherever an output lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from conformance_cases import corner, runnable
from convtune.schedules.depthwise_rows import depthwise_rows
from convtune.schedules.filtering_plan import plan_of
from convtune.schedules.minimal_filtering import minimal_filtering
from convtune.schedules.past_caches import can_pass, is_past
from convtune.schedules.pointwise_gemm import pointwise_gemm
from convtune.schedules.strassen import strassen
from synthetic_spaces import machine
from test_conformance import check

from convtune.codegen import any_alignment
from convtune.space import Estimating, Knobs, KnobValue, all_knobs
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget, resolve

PAST = "outer_past"  # of oc_order
LARGE = "depthwise,n=2048,ic=64,oc=64,in=201,k=3,layout=NWC"
PRODUCT = "pointwise,n=2048,ic=24,oc=64,in=201,k=1,layout=NWC"
DEEP_PRODUCT = "pointwise,n=2048,ic=512,oc=512,in=201,k=1,layout=NWC"
FILTERED = "conv,n=2048,ic=32,oc=64,in=201,k=3,layout=NWC"


def cpu(name: str) -> CpuTarget:
    target = resolve(name, threads=2)
    assert isinstance(target, CpuTarget)
    return target


def small_caches(target: CpuTarget) -> CpuTarget:
    """The target as if its caches could hold nothing."""
    return replace(target, l2_bytes=64, l3_bytes=64)


@pytest.mark.parametrize(
    ("text", "large"),
    [
        (LARGE, True),
        (LARGE.replace("64,oc=64", "72,oc=72"), False),  # positions of 4.5 lines
        (LARGE.replace("n=2048", "n=512"), False),
        (LARGE.replace("NWC", "NCW"), False),
    ],
)
def test_only_outputs_that_no_cache_holds_pass_them(text: str, large: bool) -> None:
    spec = ConvSpec.parse(text)
    assert can_pass(spec, machine()) == large
    if depthwise_rows.takes(spec, machine()):
        orders = {knobs["oc_order"] for knobs in all_knobs(depthwise_rows, spec, machine())}
        assert (PAST in orders) == large


def test_they_pass_caches_by_default() -> None:
    knobs = depthwise_rows.default(ConvSpec.parse(LARGE), machine())
    assert (knobs["oc_order"], knobs["columns"]) == (PAST, 1)


def test_positions_that_the_first_cache_loses_are_read_by_several_outputs_at_once() -> None:
    wide = ConvSpec.parse("depthwise,ic=12288,oc=12288,in=1023,k=4,p=3:0,layout=NWC")
    for target in (machine(), cpu("x86-64-v4")):
        knobs = depthwise_rows.default(wide, target)
        assert knobs["oc_order"] == PAST and int(knobs["columns"]) >= 4


def past_candidates(space: Estimating[CpuTarget], spec: ConvSpec, target: CpuTarget, knob: str) -> list[Knobs]:
    """Those whose outputs pass the caches, as the knob says."""
    return [knobs for knobs in all_knobs(space, spec, target) if is_past(knobs[knob])]


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize(
    ("space", "text", "knob", "values"),
    [
        (pointwise_gemm, PRODUCT, "order", {"outer_past", "inner_past"}),
        (strassen, DEEP_PRODUCT, "left", {"sums_past", "copies_past", "twice_past"}),
    ],
    ids=["pointwise_gemm", "strassen"],
)
def test_tiles_of_products_pass_them_by_whole_lines_by_default(
    name: str, space: Estimating[CpuTarget], text: str, knob: str, values: set[str]
) -> None:
    spec, target = ConvSpec.parse(text), cpu(name)
    assert is_past(space.default(spec, target)[knob])
    past = past_candidates(space, spec, target, knob)
    assert {knobs[knob] for knobs in past} == values
    assert all(int(knobs["oc_vectors"]) * target.vector_bytes % 64 == 0 for knobs in past)
    assert not past_candidates(space, replace(spec, batch=2), target, knob)


def test_past_or_not_is_no_reason_to_choose_other_tiles() -> None:
    """What reading lines first costs is the same for all kernels, so that defaults are those there were, but past."""
    spec, target = ConvSpec.parse(PRODUCT), machine()
    estimates = {
        tuple(k.values()): pointwise_gemm.estimate(spec, target, k) for k in all_knobs(pointwise_gemm, spec, target)
    }
    differences = {
        round(estimates[(*sizes, order.removesuffix("_past"))] - cycles)
        for (*sizes, order), cycles in estimates.items()
        if is_past(order)
    }
    assert len(differences) == 1 and min(differences) > 0


def assembly(
    spec: ConvSpec, target: CpuTarget, knobs: Mapping[str, KnobValue], space: Estimating[CpuTarget] = depthwise_rows
) -> str:
    import tvm

    module = any_alignment(space.schedule(spec, target, knobs))
    return str(tvm.compile(module, target=target.to_tvm()).mod.inspect_source("asm"))


def passes(text: str, register: str = "zmm") -> bool:
    """Whether whole vectors go past the caches in an assembly, before its tasks end."""
    return bool(re.search(rf"movntps\s+%{register}", text)) and "sfence" in text and "convtune_store" not in text


@pytest.mark.parametrize(("name", "register"), [("x86-64-v4", "zmm"), ("x86-64-v3", "ymm"), ("x86-64-v2", "xmm")])
def test_whole_vectors_go_past_caches_before_a_task_ends(name: str, register: str) -> None:
    spec, target = ConvSpec.parse(LARGE), cpu(name)
    text = assembly(spec, target, corner(depthwise_rows, spec, target, {"oc_order": PAST}))
    assert passes(text, register)
    text = assembly(spec, target, corner(depthwise_rows, spec, target, {"oc_order": "outer"}))
    assert "movnt" not in text


@pytest.mark.parametrize("order", ["outer_past", "inner_past"])
def test_products_go_past_caches_before_a_task_ends(order: str) -> None:
    spec, target = ConvSpec.parse(PRODUCT), cpu("x86-64-v4")
    knobs = corner(pointwise_gemm, spec, target, {"order": order, "columns": 6})
    text = assembly(spec, target, knobs, pointwise_gemm)
    assert passes(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("depthwise,n=3,ic=64,oc=64,in=23,k=3,layout=NWC", {"columns": 1}),
        ("depthwise,ic=112,oc=112,in=37,k=4,p=3:0,d=2,bias,act=relu,residual,layout=NWC", {"columns": 1}),
        ("depthwise,n=2,ic=16,oc=16,in=7x11,k=3x3,p=1,act=gelu,layout=NHWC", {}),
        ("depthwise,ic=32,oc=32,in=3x5x7,k=3x3x3,s=1x2x1,p=1,act=silu,layout=NDHWC", {"columns": 2}),
    ],
)
def test_they_are_right_wherever_the_output_lies(name: str, text: str, wanted: Mapping[str, KnobValue]) -> None:
    """The check has y begin 4 bytes after a fence, and then end at one, where whole lines are aligned."""
    spec, target = ConvSpec.parse(text), small_caches(runnable(name))
    check(depthwise_rows, spec, target, corner(depthwise_rows, spec, target, {"oc_order": PAST, **wanted}))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["outer_past", "inner_past"])
@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize(
    "text",
    [
        "pointwise,n=3,ic=7,oc=112,in=23,k=1,layout=NWC",
        "pointwise,ic=37,oc=80,in=11x13,k=1x1,bias,act=relu,residual,layout=NHWC",
        "pointwise,ic=5,oc=96,in=3x5x7,k=1x1x1,act=gelu,layout=NDHWC",
    ],
)
def test_products_are_right_wherever_the_output_lies(name: str, text: str, order: str) -> None:
    spec, target = ConvSpec.parse(text), small_caches(runnable(name))
    check(pointwise_gemm, spec, target, corner(pointwise_gemm, spec, target, {"order": order}))


def test_filtered_outputs_pass_caches_in_vectors_that_are_lines() -> None:
    spec, target = ConvSpec.parse(FILTERED), cpu("x86-64-v4")
    orders = {knobs["order"] for knobs in all_knobs(minimal_filtering, spec, target)}
    assert orders == {"tiles", "beside", "tiles_past", "beside_past"}
    assert is_past(minimal_filtering.default(spec, target)["order"])
    halves = cpu("x86-64-v3")
    for other, on in ((replace(spec, batch=2), target), (replace(spec, out_channels=72), target), (spec, halves)):
        assert not past_candidates(minimal_filtering, other, on, "order")
        assert not is_past(minimal_filtering.default(other, on)["order"])


def test_what_passes_caches_is_not_fetched() -> None:
    spec, target = ConvSpec.parse(FILTERED), cpu("x86-64-v4")
    past, beside = (corner(minimal_filtering, spec, target, {"order": order}) for order in ("beside_past", "beside"))
    plan = plan_of(spec, target, past)
    assert plan.inputs_beside and not plan.outputs_beside and plan_of(spec, target, beside).outputs_beside
    text = assembly(spec, target, past, minimal_filtering)
    assert passes(text)
    assert "movnt" not in assembly(spec, target, beside, minimal_filtering)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["tiles_past", "beside_past"])
@pytest.mark.parametrize(
    "text",
    [
        "conv,n=3,ic=7,oc=112,in=1023,k=3,p=1,layout=NWC",
        "conv,ic=17,oc=48,in=67x71,k=3x3,p=1,bias,act=relu,residual,layout=NHWC",
        "dilated,ic=5,oc=16,in=129x71,k=3x3,d=2,act=gelu,layout=NHWC",
        "transposed,ic=19,oc=32,in=37x41,k=4x4,s=2,p=1,bias,layout=NHWC",
        "conv,ic=9,oc=32,in=9x25x27,k=3x3x3,p=1,layout=NDHWC",
    ],
)
def test_filtered_outputs_are_right_wherever_they_lie(text: str, order: str) -> None:
    """In caches that x and y exceed, and a block of tiles does not."""
    spec, target = ConvSpec.parse(text), replace(runnable("x86-64-v4"), l2_bytes=1 << 14, l3_bytes=64)
    check(minimal_filtering, spec, target, corner(minimal_filtering, spec, target, {"order": order}))


@pytest.mark.parametrize("left", ["sums", "twice"])
def test_strassens_outputs_that_pass_caches_are_not_fetched(left: str) -> None:
    spec, target = ConvSpec.parse(DEEP_PRODUCT), cpu("x86-64-v4")
    sizes = {"columns": 14, "oc_vectors": 2, "parts": 1}
    past = assembly(spec, target, corner(strassen, spec, target, {**sizes, "left": f"{left}_past"}), strassen)
    through = assembly(spec, target, corner(strassen, spec, target, {**sizes, "left": left}), strassen)
    assert passes(past)
    assert "movnt" not in through and through.count("prefetch") > past.count("prefetch")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("pointwise,ic=66,oc=128,in=23x29,k=1x1,bias,act=relu,residual,layout=NHWC", "sums_past"),
        ("conv,ic=35,oc=64,in=63x46,k=2x2,s=2,act=gelu,layout=NHWC", "copies_past"),
        ("transposed,ic=129,oc=32,in=17x19,k=2x2,s=2,bias,layout=NHWC", "copies_past"),
        ("pointwise,n=3,ic=259,oc=128,in=223,k=1,act=relu,layout=NWC", "twice_past"),
    ],
)
def test_strassens_outputs_are_right_wherever_they_lie(name: str, text: str, left: str) -> None:
    spec, target = ConvSpec.parse(text), replace(runnable(name), l2_bytes=1 << 15, l3_bytes=64)
    check(strassen, spec, target, corner(strassen, spec, target, {"left": left}))
