"""Deformable convolution by Strassen's algorithm: what it takes, what fits, and kernels at the domain's corners."""

from __future__ import annotations

import dataclasses
import math
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.deformable_strassen import _plan, deformable_strassen
from convtune.schedules.deformable_strassen_plan import widest
from repeating import differing_calls
from synthetic_spaces import machine
from test_conformance import check
from test_space_contract import check_domain, check_schedule
from test_variant_deformable import PLACES, SIZE, between_fences, by_scalars, in_layout

from convtune.reference import random_operands
from convtune.space import all_knobs
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

LAYER = ConvSpec.parse("deformable,ic=256,oc=256,in=50x84,k=3x3,p=1,layout=NHWC,modulated")
WIDE = ConvSpec.parse("deformable,ic=512,oc=512,in=25x42,k=3x3,p=1,layout=NHWC,modulated,og=4")
LONG = ConvSpec.parse("deformable,n=2,ic=24,oc=46,in=7x9,k=3x3,p=1,og=2,bias,act=gelu,residual,layout=NHWC,modulated")
ODD = ConvSpec.parse("deformable,n=3,ic=48,oc=31,in=7x5,k=3x2,s=1x2,p=1,og=3,bias,act=relu,layout=NHWC")
NARROW = ConvSpec.parse("deformable,ic=40,oc=160,in=5x11,k=1x3,d=1x2,p=0x2,og=4,residual,layout=NHWC,modulated")

TWICE = ConvSpec.parse("deformable,n=3,ic=96,oc=64,in=7x5,k=3x3,p=1,og=2,bias,act=gelu,residual,layout=NHWC,modulated")
TWICE_ONE = ConvSpec.parse("deformable,n=2,ic=256,oc=96,in=5x9,k=1x2,d=1x2,p=0x1,bias,act=relu,layout=NHWC")
TWICE_LONG = TWICE_ONE.replace(activation="gelu", residual=True, offset_groups=4, modulated=True)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("ic=32,oc=32,in=9x9,k=3x3,p=1,layout=NHWC", True),
        ("ic=32,oc=32,in=9x9,k=3x3,p=1,layout=NCHW", False),
        ("ic=32,oc=32,in=9x9,k=3x3,p=1,g=2,layout=NHWC", False),
        ("ic=32,oc=8,in=9x9,k=3x3,p=1,layout=NHWC", False),  # a half of a vector
        ("ic=32,oc=20,in=9x9,k=3x3,p=1,layout=NHWC", False),  # the second half would be four of 16
        ("ic=33,oc=32,in=9x9,k=3x3,p=1,layout=NHWC", False),
        ("ic=32,oc=32,in=9x9,k=3x3,p=1,og=8,layout=NHWC", False),  # vectors of four channels
        ("ic=48,oc=32,in=9x9,k=3x3,p=1,og=3,layout=NHWC", True),
        ("ic=4,oc=32,in=9x9,k=3x3,p=1,layout=NHWC", False),
        ("ic=32,oc=32,in=1x1,k=1x1,layout=NHWC", False),
    ],
)
def test_takes_products_that_halve(text: str, taken: bool) -> None:
    assert machine().lanes == 8
    assert deformable_strassen.takes(ConvSpec.parse("deformable," + text), machine()) is taken


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("ic=128,oc=64,in=9x9,k=3x3,p=1,layout=NHWC", True),
        ("ic=130,oc=64,in=9x9,k=3x3,p=1,layout=NHWC", False),  # quarters are not alike
        ("ic=80,oc=64,in=9x9,k=3x3,p=1,layout=NHWC", False),  # 60 products in a row of a quarter
        ("ic=128,oc=48,in=9x9,k=3x3,p=1,layout=NHWC", False),  # quarters of 12 channels
        ("ic=128,oc=64,in=9x9,k=3x3,p=1,og=32,layout=NHWC", False),  # vectors of four channels
        ("ic=128,oc=64,in=3x1,k=3x3,p=1,layout=NHWC", False),
    ],
)
def test_halves_are_halved_where_quarters_are_large(text: str, twice: bool) -> None:
    spec = ConvSpec.parse("deformable," + text)
    domain = deformable_strassen.knobs(spec, machine())["taps"] if deformable_strassen.takes(spec, machine()) else ()
    assert ("row_twice" in domain) is twice


def test_a_second_level_is_expected_to_round_more() -> None:
    errors: dict[bool, float] = {}
    for knobs in all_knobs(deformable_strassen, LAYER, machine()):
        error = deformable_strassen.expected_error(LAYER, machine(), knobs)
        errors[str(knobs["taps"]).endswith("_twice")] = error
    assert errors[True] == 2 * errors[False]


@pytest.mark.parametrize(("piece", "lanes", "wide"), [(64, 16, 16), (8, 16, 8), (20, 16, 10), (7, 4, 1), (24, 16, 12)])
def test_vectors_of_samples_divide_what_has_the_same_offsets(piece: int, lanes: int, wide: int) -> None:
    assert widest(piece, lanes) == wide


@pytest.mark.parametrize("spec", [LAYER, WIDE, LONG, ODD, NARROW, TWICE], ids=str)
@pytest.mark.parametrize("l2_bytes", [1 << 20, 1 << 15])
def test_factors_stay_in_the_second_cache(spec: ConvSpec, l2_bytes: int) -> None:
    target = machine(l2_bytes=l2_bytes)
    for knobs in all_knobs(deformable_strassen, spec, target):
        plan = _plan(spec, target, knobs)
        assert plan.cuts * plan.taps == prod(spec.kernel)
        assert plan.tiles <= plan.tasks * plan.tile_block  # so that no task has more
        alone = plan.tile_block == plan.taps == 1
        held = prod(plan.v_shape) + (plan.levels > 1) * (prod(plan.samples_shape) + prod(plan.outer_shape))
        assert alone or 4 * held <= l2_bytes


@pytest.mark.parametrize("spec", [LAYER, WIDE, LONG, ODD, TWICE], ids=str)
def test_domains_and_schedules(spec: ConvSpec) -> None:
    for target in (machine(), machine(threads=3)):
        check_domain(deformable_strassen, spec, target)
        check_schedule(deformable_strassen, spec, target, deformable_strassen.default(spec, target))


@pytest.mark.parametrize(("l3_bytes", "ahead"), [(1 << 20, True), (1 << 30, False)])
def test_weights_are_prefetched_that_the_third_cache_does_not_hold(l3_bytes: int, ahead: bool) -> None:
    target = machine(l3_bytes=l3_bytes)
    script = deformable_strassen.schedule(LAYER, target, deformable_strassen.default(LAYER, target)).script()
    assert ("prefetch" in script) is ahead


@pytest.mark.slow
@pytest.mark.parametrize("offset_groups", [1, 2])
def test_no_read_leaves_a_buffer_wherever_an_offset_points(offset_groups: int, tmp_path: Path) -> None:
    places = np.array([place for place in PLACES if not math.isnan(place)])
    across = len(places)
    spec = ConvSpec("deformable", 64, 32, (SIZE, SIZE), 1, padding=((0, across - SIZE),) * 2, modulated=True)
    spec = spec.replace(offset_groups=offset_groups)
    operands, offset = random_operands(spec, seed=3), np.empty(spec.input_shapes["offset"], np.float32)
    offset[0, 0::2], offset[0, 1::2] = (places - np.arange(across))[:, None], (places - np.arange(across))[None, :]
    operands = dataclasses.replace(operands, inputs=operands.inputs | {"offset": offset})
    expected, spec = by_scalars(spec, operands), spec.replace(layout="NHWC")
    for y in between_fences(deformable_strassen, spec, in_layout(spec, operands), tmp_path):
        np.testing.assert_allclose(np.moveaxis(y, -1, 1), expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (LONG, {"taps": "row", "tile_block": 2}),
        (LONG, {"taps": "row", "tile_block": 1}),
        (ODD, {"taps": "one", "oc_vectors": 2}),
        (ODD, {"taps": "row"}),
        (NARROW, {"taps": "row", "oc_vectors": 3}),
        (NARROW, {"taps": "one", "tile_block": 2}),
        (TWICE, {"taps": "row_twice"}),
        (TWICE, {"taps": "one_twice", "tile_block": 2}),
        (TWICE_ONE, {"taps": "row_twice", "tile_block": 2, "oc_vectors": 3}),
        (TWICE_LONG, {"taps": "row_twice", "tile_block": 2}),
        (TWICE_LONG, {"taps": "one_twice", "tile_block": 1}),
    ],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(deformable_strassen, spec, target, corner(deformable_strassen, spec, target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets(), ids=lambda target: target.name)
def test_the_default_of_each_vector_width_is_right(target: CpuTarget) -> None:
    spec = NARROW.replace(offset_groups=2)
    small = dataclasses.replace(target, l3_bytes=1 << 12)
    for each in (target, small):
        check(deformable_strassen, spec, each, deformable_strassen.default(spec, each))


@pytest.mark.slow
@pytest.mark.parametrize("taps", ["one", "one_twice"])
def test_tasks_do_not_write_the_same_outputs(taps: str) -> None:
    """The last tile begins before the one before it ends, and rounds differently: here they are two tasks."""
    spec = ConvSpec.parse("deformable,ic=96,oc=96,in=3x7,k=3x3,p=1,layout=NHWC,modulated")
    target = runnable("x86-64-v3")
    wanted = {"tile_block": 1, "taps": taps}
    several = (k for k in all_knobs(deformable_strassen, spec, target) if wanted.items() <= k.items())
    plans = ((k, _plan(spec, target, k)) for k in several)
    knobs = next(k for k, plan in plans if plan.tiles > 1 and plan.positions % plan.tile)
    assert differing_calls(deformable_strassen, spec, target, knobs) == 0
