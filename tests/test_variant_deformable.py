"""Deformable convolution: torchvision's loop over scalars, borders, infinities and NaN, fences around every array."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_cases import runnable_targets
from convtune.schedules.deformable_gather import deformable_gather
from hypothesis import given, settings
from numpy.typing import NDArray
from strategies import specs
from synthetic_spaces import machine
from test_conformance import check
from test_space_contract import TARGETS, check_domain, check_schedule

from convtune import codegen, space
from convtune.cache_model import traffic
from convtune.errors import SpecError
from convtune.linker import link
from convtune.paths import cache_dir
from convtune.reference import OperandArrays, random_operands
from convtune.runtime import packing
from convtune.space import Knobs, Space
from convtune.spec import ConvSpec, count
from convtune.targets import CpuTarget

SPACES = (deformable_gather, space.get("fallback"))
LAYERS = tuple(
    ConvSpec.parse("deformable," + text + layout)
    for text in (
        "ic=64,oc=64,in=64x64,k=3x3,p=1,modulated",
        "ic=128,oc=128,in=200x336,k=3x3,s=2,p=1,modulated,bias,act=relu",
        "ic=512,oc=512,in=25x42,k=3x3,p=1,modulated,og=4",
        "ic=256,oc=256,in=7x7,k=3x3,p=2,d=2,g=32,act=gelu",
        "ic=1024,oc=48,in=9x9,k=7x7,p=3",
    )
    for layout in ("", ",layout=NHWC")
)


def interpolated(image: NDArray[Any], y: float, x: float) -> float:
    """One channel of the input at a point, as torchvision does it; NaN goes to element 0, as CUDA converts it."""
    height, width = image.shape
    if y <= -1 or y >= height or x <= -1 or x >= width:
        return 0.0
    top, left = (0 if math.isnan(place) else math.floor(place) for place in (y, x))
    total = 0.0
    for row, of_row in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, of_column in ((left, 1 - (x - left)), (left + 1, x - left)):
            there = 0 <= row < height and 0 <= column < width
            total += of_row * of_column * (float(image[row, column]) if there else 0.0)
    return total


@np.errstate(invalid="ignore")
def by_scalars(spec: ConvSpec, operands: OperandArrays) -> NDArray[np.float64]:
    """The convolution alone, channels first, one product after the other."""
    x, weight, offset = operands.x, operands.weights[0].astype(np.float64), operands.inputs["offset"]
    mask, (kh, kw), y = operands.inputs.get("mask"), spec.kernel, np.zeros(spec.out_shape)
    group_in, group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    per_offset_group = spec.in_channels // (spec.offset_groups or 0)
    for n, ic, i, j, oh, ow in np.ndindex(spec.batch, spec.in_channels, kh, kw, *spec.out_size):
        channel = (ic // per_offset_group * kh + i) * kw + j
        dy, dx = (float(offset[n, 2 * channel + axis, oh, ow]) for axis in (0, 1))
        row = oh * spec.stride[0] - spec.padding[0][0] + i * spec.dilation[0] + dy
        column = ow * spec.stride[1] - spec.padding[1][0] + j * spec.dilation[1] + dx
        sampled = (1.0 if mask is None else float(mask[n, channel, oh, ow])) * interpolated(x[n, ic], row, column)
        first = ic // group_in * group_out
        y[n, first : first + group_out, oh, ow] += sampled * weight[first : first + group_out, ic % group_in, i, j]
    return y


def bare(spec: ConvSpec) -> ConvSpec:
    """The convolution alone, channels first."""
    return spec.replace(layout=None, bias=False, activation=None, residual=False)


@settings(max_examples=60, deadline=None)
@given(specs(variants=("deformable",), largest_channels=3, largest_size=3))
def test_equals_a_loop_over_scalars(spec: ConvSpec) -> None:
    spec = bare(spec)
    operands = random_operands(spec, seed=0)
    np.testing.assert_allclose(operands.reference(spec), by_scalars(spec, operands), rtol=1e-12, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(specs(variants=("deformable",)))
def test_without_offsets_is_the_plain_convolution(spec: ConvSpec) -> None:
    operands = random_operands(spec, seed=1)
    zero = {name: np.full_like(array, float(name == "mask")) for name, array in operands.inputs.items()}
    plain = "grouped" if spec.groups > 1 else "dilated" if max(spec.dilation) > 1 else "conv"
    same = spec.replace(variant=plain, offset_groups=None, modulated=None)
    deformed = dataclasses.replace(operands, inputs=zero).reference(spec)
    inputs = dataclasses.replace(operands, inputs={})
    np.testing.assert_allclose(deformed, inputs.reference(same), rtol=1e-12, atol=1e-13)


def test_integer_offsets_dilate() -> None:
    spec = ConvSpec("deformable", 3, 4, (9, 8), 3, padding=3)
    operands = random_operands(spec, seed=2)
    steps = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), axis=-1).reshape(1, 18, 1, 1)
    offset = np.broadcast_to(steps, spec.input_shapes["offset"]).astype(np.float32)
    dilated = ConvSpec("dilated", 3, 4, (9, 8), 3, padding=3, dilation=2)
    y = dataclasses.replace(operands, inputs={"offset": offset}).reference(spec)
    height, width = dilated.out_size
    expected = dataclasses.replace(operands, inputs={}).reference(dilated)
    np.testing.assert_allclose(y[:, :, :height, :width], expected, rtol=1e-12)


SIZE = 12
PLACES = (
    *(-1.0, -1 + 2.0**-20, -1 - 2.0**-10, -0.5, 0.0, 0.25, 5.0, SIZE - 1, SIZE - 0.5, SIZE - 2.0**-10, SIZE, 1e4, -1e4),
    *(1e30, -1e30, 3e9, -3e9, math.inf, -math.inf, math.nan),
)


def on_the_border(layout: str, modulated: bool) -> tuple[ConvSpec, OperandArrays]:
    """Every pair of PLACES sampled, from an input with infinities and NaN on its border and inside of it."""
    across = len(PLACES)
    spec = ConvSpec("deformable", 4, 3, (SIZE, SIZE), 1, padding=((0, across - SIZE),) * 2, offset_groups=2)
    spec = spec.replace(modulated=modulated)
    operands = random_operands(spec, seed=3)
    places, steps = np.array(PLACES), np.arange(across)
    offset = np.empty(spec.input_shapes["offset"], np.float32)
    offset[0, 0::2] = (places - steps)[:, None]
    offset[0, 1] = (places - steps)[None, :]
    offset[0, 3] = (places[::-1] - steps)[None, :]
    inputs = {"offset": offset}
    if modulated:
        mask = operands.inputs["mask"].copy()
        mask[0, :, 1::3, ::4], mask[0, :, 2::3, 1::4], mask[0, :, 0::3, 2::4] = np.inf, np.nan, 0
        inputs["mask"] = mask
    x = operands.x.copy()
    x[0, 0, 0, 0], x[0, 1, -1], x[0, 2, :, 0], x[0, 3, 4:6, 5] = np.nan, np.inf, -np.inf, np.nan
    operands = dataclasses.replace(operands, x=x, inputs=inputs)
    return spec, operands


def in_layout(spec: ConvSpec, operands: OperandArrays) -> OperandArrays:
    """Operands of a channels-first spec as another layout has them."""
    if not spec.channels_last:
        return operands
    last = lambda array: np.ascontiguousarray(np.moveaxis(array, 1, -1))  # noqa: E731
    inputs = {name: last(array) for name, array in operands.inputs.items()}
    return dataclasses.replace(operands, x=last(operands.x), inputs=inputs)


@pytest.mark.parametrize("modulated", [False, True])
def test_the_reference_at_borders_infinities_and_nan(modulated: bool) -> None:
    spec, operands = on_the_border("NCHW", modulated)
    expected = by_scalars(spec, operands)
    assert 0.1 < np.isfinite(expected).mean() < 0.9 and (expected == 0).any() and np.isinf(expected).any()
    np.testing.assert_allclose(operands.reference(spec), expected, rtol=1e-12, atol=1e-13)


CHILD = """
import sys
import numpy as np
from convtune.measure.guards import Guarded
from convtune.runtime.kernel import ALIGNMENT, Kernel
directory, shape, weight = sys.argv[1], eval(sys.argv[2]), 1
stored = np.load(directory + "/operands.npz")
for at_end in (False, True):
    alignments = [ALIGNMENT if i == weight else 4 for i in range(len(stored.files) + 1)]
    arrays = [Guarded.copy_of(stored[name], a, at_end) for name, a in zip(stored.files, alignments)]
    y = Guarded(shape, 4, at_end)
    Kernel(directory + "/kernel.so")([guarded.array for guarded in (*arrays, y)], alignments)
    assert not any(guarded.overrun() for guarded in (*arrays, y))
    np.save(f"{directory}/y{at_end:d}.npy", y.array)
"""


def between_fences(owner: Space, spec: ConvSpec, operands: OperandArrays, directory: Path) -> list[NDArray[Any]]:
    """What the default kernel makes of the operands right behind a fence, and right before one, in a child."""
    target = runnable_targets()[0]
    knobs = owner.default(spec, target)
    codegen.write_object(owner.schedule(spec, target, knobs), target.to_tvm(), directory / "kernel.o")
    link(directory / "kernel.o", directory / "kernel.so", cache_dir())
    packed = packing.apply(owner.pack(spec, target, knobs)[0], operands.weights[0])
    np.savez(directory / "operands.npz", operands.x, packed, *operands.inputs.values())
    command = [sys.executable, "-c", CHILD, str(directory), str(spec.out_shape)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"returned {result.returncode}: {result.stderr}"
    return [np.load(directory / f"y{at_end}.npy") for at_end in (0, 1)]


@pytest.mark.parametrize("owner", SPACES, ids=lambda owner: owner.name)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("modulated", [False, True])
def test_kernels_at_borders_infinities_and_nan(owner: Space, layout: str, modulated: bool, tmp_path: Path) -> None:
    """The right values, and no read leaves a buffer, wherever an offset points: that would be a fault."""
    spec, operands = on_the_border(layout, modulated)
    expected = by_scalars(spec, operands)
    spec = spec.replace(layout=layout)
    for y in between_fences(owner, spec, in_layout(spec, operands), tmp_path):
        y = np.moveaxis(y, -1, 1) if spec.channels_last else y
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("owner", SPACES, ids=lambda owner: owner.name)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_large_images_lose_no_precision(owner: Space, layout: str) -> None:
    """A float32 of 3999 has steps of 2.4e-4: fractions taken of positions would miss the tolerance 50 times over."""
    spec = ConvSpec("deformable", 1, 1, (3, 4000), (1, 3), padding=(0, 1), layout=layout, modulated=True)
    check(owner, spec, runnable_targets()[0], owner.default(spec, runnable_targets()[0]))


def grouped(ic: int, oc: int, groups: int, offset_groups: int) -> ConvSpec:
    fields: dict[str, Any] = {"groups": groups, "offset_groups": offset_groups, "modulated": offset_groups % 2 == 0}
    return ConvSpec("deformable", ic, oc, (5, 7), (3, 2), batch=2, padding=1, **fields)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "spec",
    [
        grouped(12, 9, 3, 2),  # neither group holds a whole number of the other
        grouped(96, 48, 3, 2),
        grouped(40, 20, 2, 5),
        grouped(33, 17, 1, 3),
        grouped(64, 64, 2, 4),
        grouped(6, 12, 6, 6),
    ],
    ids=str,
)
def test_groups_and_offset_groups(spec: ConvSpec, layout: str) -> None:
    spec = spec.replace(layout=layout)
    target = runnable_targets()[spec.in_channels % len(runnable_targets())]
    candidates = list(space.all_knobs(deformable_gather, spec, target))
    random.Random(spec.in_channels).shuffle(candidates)
    for order in ("parallel", "outer"):  # one group of channels at a time, and all of them
        check(deformable_gather, spec, target, next(knobs for knobs in candidates if knobs["oc_order"] == order))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("rows", ["all", "one"])
@pytest.mark.parametrize(("ic", "offset_groups"), [(16, 2), (34, 1), (3, 1), (9, 3)])
def test_samples_fetched_ahead(ic: int, offset_groups: int, rows: str, layout: str) -> None:
    """Of an image that is larger than L2; the last column of a tile has no next one."""
    spec = ConvSpec("deformable", ic, 5, (7, 11), 3, batch=2, padding=1, layout=layout, offset_groups=offset_groups)
    target = dataclasses.replace(runnable_targets()[ic % len(runnable_targets())], l2_bytes=512)
    candidates = [k for k in space.all_knobs(deformable_gather, spec, target) if k["rows"] == rows]
    knobs = random.Random(ic).choice(candidates)
    assert "prefetch" in deformable_gather.schedule(spec, target, knobs).script()
    check(deformable_gather, spec, target, knobs)
    large = dataclasses.replace(target, l2_bytes=1 << 20)
    assert "prefetch" not in deformable_gather.schedule(spec, large, knobs).script()


def test_the_cache_model_counts_what_is_prefetched_once() -> None:
    spec = ConvSpec.parse("deformable,ic=16,oc=8,in=9x11,k=3x3,p=1,og=2,layout=NHWC,modulated")
    target = machine(l2_bytes=4096)
    knobs = deformable_gather.default(spec, target)
    ahead, behind = (deformable_gather.schedule(spec, machine(l2_bytes=size), knobs) for size in (4096, 1 << 20))
    assert ("prefetch" in ahead.script(), "prefetch" in behind.script()) == (True, False)
    assert traffic(ahead, target) == traffic(behind, target)


@pytest.mark.parametrize("spec", LAYERS, ids=str)
def test_domains_and_schedules_of_real_layers(spec: ConvSpec) -> None:
    for target in TARGETS:
        assert deformable_gather in space.accepting(spec, target)
        check_domain(deformable_gather, spec, target)
        check_schedule(deformable_gather, spec, target, deformable_gather.default(spec, target))


@given(specs(variants=("deformable",), largest_channels=40, largest_size=60))
@settings(max_examples=15, deadline=None)
def test_domains_of_any_spec(spec: ConvSpec) -> None:
    for target in (machine(), machine(l2_bytes=1 << 14)):
        check_domain(deformable_gather, spec, target)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["parallel", "outer", "inner"])
def test_what_is_sampled_stays_in_l2(layout: str, order: str) -> None:
    spec, target = ConvSpec.parse(f"deformable,ic=256,oc=256,in=50x84,k=3x3,p=1,layout={layout}"), machine()
    candidates = [k for k in space.all_knobs(deformable_gather, spec, target) if k["oc_order"] == order]
    sizes = allocated(spec, target, candidates[-1])
    assert {"col", "table", "offsets"} <= sizes.keys()
    assert sum(size for name, size in sizes.items() if name != "pad") <= target.l2_bytes


@pytest.mark.parametrize("order", ["parallel", "outer", "inner"])
def test_the_table_of_a_tile_stays_in_l1(order: str) -> None:
    spec, target = ConvSpec.parse("deformable,ic=64,oc=64,in=50x84,k=3x3,p=1,og=8,layout=NHWC,modulated"), machine()
    knobs = {"tile": 6, "oc_vectors": 2, "block": 4, "oc_order": order, "rows": "all"}
    sizes = allocated(spec, target, knobs)
    assert 0 < sizes["table"] + sizes["offsets"] + sizes["masks"] <= target.l1d_bytes


def allocated(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> dict[str, int]:
    """Bytes of what the schedule allocates, by name."""
    from tvm import ir
    from tvm.s_tir import transform

    lowering = [transform.PlanAndUpdateBufferAllocationLocation(), transform.ConvertBlocksToOpaque()]
    lowered = ir.transform.Sequential([*lowering, transform.CompactBufferAllocation()])
    module = lowered(deformable_gather.schedule(spec, target, knobs))
    return {buffer.name: count(tuple(map(int, buffer.shape))) * 4 for buffer in buffers(module["main"].body)}


def buffers(body: Any) -> list[Any]:
    """Those that blocks of the statement allocate."""
    from tvm import s_tir
    from tvm_ffi import structural_map

    found: list[Any] = []

    def visit(block: Any) -> Any:
        found.extend(block.alloc_buffers)
        return block

    structural_map(body, (s_tir.SBlock, visit))
    return found


def test_sizes_and_costs() -> None:
    spec = ConvSpec.parse("deformable,n=2,ic=16,oc=8,in=20x30,k=3x3,s=2,p=1,og=4,modulated")
    assert spec.out_size == (10, 15)
    assert spec.weight_shapes == ((8, 16, 3, 3),)
    assert spec.input_shapes == {"offset": (2, 72, 10, 15), "mask": (2, 36, 10, 15)}
    assert spec.replace(layout="NHWC", modulated=False).input_shapes == {"offset": (2, 10, 15, 72)}
    assert spec.macs == spec.replace(variant="conv", offset_groups=None, modulated=None).macs
    elements = 2 * (16 * 600 + (8 + 72 + 36) * 150) + spec.parameters
    assert spec.bytes == elements * 4
    assert ConvSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset_groups": 3}, "offset_groups=3 does not divide in_channels=4"),
        ({"offset_groups": 0}, "offset_groups=0 is out of range"),
        ({"modulated": 2}, "modulated=2 is not allowed"),
        ({"groups": 3}, "groups=3 does not divide in_channels=4"),
        ({"in_size": (8,)}, "in_size 8 has 1 dimension; deformable takes 2"),
        ({"output_padding": 1}, "deformable has no output_padding"),
        ({"in_size": (2, 8)}, "output dimension 0 would be 0"),
    ],
)  # fmt: skip
def test_what_is_not_allowed(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"in_size": (8, 8), **changes}
    with pytest.raises(SpecError, match=message):
        ConvSpec("deformable", 4, 6, kernel=3, **fields)
