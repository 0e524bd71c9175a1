"""Minimal filtering: what it accepts, how tiles cover the output, what its kernels lose, and kernels of odd sizes."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest
from convtune.schedules import filtering_estimate, minimal_filtering
from convtune.schedules.filtering_axis import tiled_axes
from convtune.schedules.filtering_parts import input_part, pieces
from convtune.schedules.filtering_plan import plan_of
from convtune.schedules.filtering_points import Exchanged
from convtune.schedules.filtering_strips import strip_shape
from filtering_kernels import Case, check_odd, dimensions_filtered

from convtune import accuracy, space, targets, variants
from convtune.cache_model import traffic
from convtune.spec import ConvSpec

FILTERING = space.get("minimal_filtering")
TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "filtered"),
    [
        ("conv,ic=64,oc=64,in=56x56,k=3x3,p=1", {"h_tile", "w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=1x7,p=0x3", {"w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,s=3x1,p=1", {"w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,s=2,p=1", {"h_tile", "w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,s=3,p=1", None),  # each part of three has one tap
        ("conv,ic=64,oc=64,in=56x56,k=1x1", None),
        ("conv,ic=64,oc=64,in=300,k=8,p=4", {"w_tile"}),  # F(2, 8) would have nine points: two parts of four taps
        ("dilated,ic=64,oc=64,in=56x56,k=5x5,d=2x1,s=2,p=1", {"w_tile"}),
        ("conv,ic=64,oc=64,in=300,k=7,p=3,layout=NWC", {"w_tile"}),
        ("dilated,ic=64,oc=64,in=65x65,k=3x3,p=2,d=2", {"h_tile", "w_tile"}),
        ("conv,ic=64,oc=64,in=8x14x14,k=3x3x3,p=1", {"d_tile", "h_tile", "w_tile"}),
        ("grouped,ic=64,oc=64,in=14x14,k=3x3,p=1,g=2", {"h_tile", "w_tile"}),
        ("grouped,ic=64,oc=64,in=14x14,k=3x3,p=1,g=8", None),  # half a vector a group
        ("transposed,ic=64,oc=64,in=14x14,k=4x4,s=2,p=1", {"h_tile", "w_tile"}),
        ("transposed,ic=64,oc=64,in=14x14,k=3x2,s=2,p=1", {"h_tile"}),  # phases of a tap in a row
        ("transposed,ic=64,oc=64,in=14x14,k=2x2,s=2", None),
        ("transposed,ic=64,oc=64,in=14x14,k=3x3,s=2,d=2", None),
        ("transposed,ic=64,oc=64,in=14x14,k=4x4,s=2,g=8", None),
    ],
)
def test_what_it_filters(text: str, filtered: set[str] | None) -> None:
    assert dimensions_filtered(FILTERING, ConvSpec.parse(text), TARGET) == filtered


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    "text",
    [
        "conv,ic=1,oc=1,in=20,k=3,p=2:-19",
        "conv,ic=1,oc=1,in=20,k=3,p=2:-13",
        "conv,ic=1,oc=1,in=2,k=7,p=3:2",  # the first taps and the last ones meet nothing
        "dilated,ic=1,oc=1,in=20,k=7,p=9:-3,d=3",
        "dilated,ic=1,oc=1,in=20,k=3,p=2:-5,d=2",
        "dilated,ic=1,oc=1,in=20,k=3,p=2:1,d=9",  # more residues than outputs
        "dilated,ic=1,oc=1,in=47,k=11,p=9,d=3",  # parts of taps
        "conv,ic=1,oc=1,in=23,k=13,p=5",
        "conv,ic=1,oc=1,in=23,k=3,s=2,p=1",  # polyphase
        "conv,ic=1,oc=1,in=31,k=8,s=3,p=4",
        "transposed,ic=1,oc=1,in=9,k=4,s=2,p=1",
        "transposed,ic=1,oc=1,in=9,k=3,s=2,p=1,op=1",
        "transposed,ic=1,oc=1,in=7,k=16,s=8,p=4,op=3",
        "transposed,ic=1,oc=1,in=7,k=23,s=2,p=9:20",
        "transposed,ic=1,oc=1,in=5,k=3,p=1:0",
        "transposed,ic=1,oc=1,in=6,k=5,s=2,p=2,op=1",
        "transposed,ic=1,oc=1,in=12,k=8,s=3,p=3,op=1",
    ],
)
def test_tiles_cover_every_output_once_with_its_inputs(m: int, text: str, apart: bool) -> None:
    """Against what the variant says that an output reads; beyond that there are taps that a part lacks."""
    spec = ConvSpec.parse(text)
    *_, axis = tiled_axes(spec, (1, 1, m), apart)
    found: Counter[int] = Counter()
    for residue, tile, i, phase in itertools.product(*map(range, (axis.residues, axis.tiles, axis.m, axis.phases))):
        output = axis.output(axis.unit(residue, tile) + i * axis.step, phase)
        if not 0 <= output < spec.out_size[0]:
            assert axis.ragged or output < 0 < axis.cut
            continue
        found[output] += 1
        read: list[int] = []
        for part in range(axis.parts):
            taps = range(axis.r - axis.lacks(part, phase))
            first = axis.input(residue, tile, part) + axis.window(phase)
            read += [first + (i + j) * axis.pitch for j in taps]
        assert min(read) >= axis.reach[0] and max(read) <= axis.reach[1]
        wanted = [*variants.get(spec.variant).reads(spec, 0, output)]
        met = wanted[axis.unmet[0] : len(wanted) - axis.unmet[1]]
        assert not [place for place in {*wanted} - {*met} if 0 <= place < axis.size]
        wanted = met
        assert not Counter(wanted) - Counter(read)
        assert len(read) < len(wanted) + axis.r - 1 or len(read) == len(wanted)
    assert found == Counter(range(spec.out_size[0]))


@pytest.mark.parametrize(
    ("text", "m", "products"),
    [
        ("conv,ic=1,oc=1,in=2,k=3,p=1", 2, 3),
        ("conv,ic=1,oc=1,in=3,k=5,p=1:4", 4, 6),
        ("dilated,ic=1,oc=1,in=13,k=3,p=7,d=7", 2, 19),  # of some residues one output, of one input
        ("dilated,ic=1,oc=1,in=11,k=5,p=13:11,d=6", 2, 18),
        ("dilated,ic=1,oc=1,in=5,k=4,p=9,d=4", 3, 14),  # the last residue meets another input than the others
        ("transposed,ic=1,oc=1,in=2,k=5,p=1", 4, 5),
    ],
)
def test_tiles_of_fewer_inputs_than_taps_read_what_their_outputs_meet(text: str, m: int, products: int) -> None:
    """Each input by its tap, and no other ones inside; against what the variant says that an output reads."""
    spec = ConvSpec.parse(text)
    *_, axis = tiled_axes(spec, (1, 1, m))
    assert axis.exchanged and axis.tiles == 1 and axis.products == products and isinstance(axis.filter, Exchanged)
    for residue, i in itertools.product(range(axis.residues), range(m)):
        output = axis.unit(residue, 0) + i * axis.step
        if output >= spec.out_size[0]:
            continue
        places = [axis.input(residue, 0, 0) + j * axis.pitch for j in range(axis.inputs)]
        met = {place: axis.filter.before + j - i for j, place in enumerate(places)}
        met = {place: tap for place, tap in met.items() if 0 <= place < axis.size and 0 <= tap < axis.taps}
        first = output - axis.before
        direct = {first + tap * axis.dilation: tap for tap in range(axis.taps)}
        assert met == {place: tap for place, tap in direct.items() if 0 <= place < axis.size}
        assert set(met) == {
            place for place in variants.get(spec.variant).reads(spec, 0, output) if 0 <= place < axis.size
        }


def test_a_dimension_of_stride_3_is_direct_beside_a_filtered_one() -> None:
    spec = ConvSpec.parse("conv,ic=8,oc=16,in=9x9,k=3x3,s=3x1,p=1,layout=NHWC")
    _, rows, columns = tiled_axes(spec, (1, 1, 4))
    assert (rows.parts, rows.tiles, rows.alpha) == (3, 3, 1)
    assert (columns.parts, columns.tiles, columns.alpha) == (1, 3, 6)
    plan = plan_of(spec, TARGET, FILTERING.default(spec, TARGET))
    assert plan.taps == 3 and plan.depth == 8


def test_phases_are_apart_where_that_saves_tiles() -> None:
    """16 outputs of a phase are four tiles of 4; 17 positions of both phases together are five, or three of 6."""
    spec = ConvSpec.parse("transposed,ic=64,oc=64,in=16x17,k=4x4,s=2,p=1,layout=NHWC")
    knobs = {**FILTERING.default(spec, TARGET), "h_tile": 4, "w_tile": 3, "order": "apart_tiles"}
    plan = plan_of(spec, TARGET, knobs)
    assert [(axis.tiles, axis.windows) for axis in plan.axes[1:]] == [(4, 2), (6, 1)]
    assert FILTERING.allows(spec, TARGET, knobs) and not FILTERING.allows(spec, TARGET, {**knobs, "h_tile": 6})
    assert not FILTERING.allows(spec, TARGET, {**knobs, "order": "tiles"})
    exact = ConvSpec.parse("transposed,ic=64,oc=64,in=16x16,k=3x3,s=2,p=1,op=1,layout=NHWC")
    assert not any(str(order).startswith("apart") for order in FILTERING.knobs(exact, TARGET)["order"])


ODD: tuple[Case, ...] = (
    # three direct columns summed as one, of two parts of the rows
    ("conv,n=2,ic=5,oc=19,in=11x9,k=3x3,s=2,p=1,layout=NHWC", {"h_tile": 2, "w_tile": 1}),
    # blocks that span images, a last block that is not full
    ("conv,n=3,ic=5,oc=19,in=7x11,k=3x3,p=1,bias,layout=NHWC", {"h_tile": 2, "w_tile": 4, "order": "channels"}),
    # tiles and padding beyond the input on all sides
    ("conv,n=2,ic=3,oc=33,in=2x3,k=3x2,p=4,act=relu,residual", {"h_tile": 4, "w_tile": 2, "order": "tiles"}),
    # residues of fewer inputs than taps, some of one output, whose register tiles leave out points
    ("dilated,n=2,ic=17,oc=16,in=17x13,k=3x3,p=11x9,d=11x9,layout=NHWC", {"h_tile": 2, "w_tile": 2, "order": "tiles"}),
    ("conv,ic=6,oc=20,in=5x6x7,k=3x2x3,p=1,act=gelu,bias", {"h_tile": 2, "w_tile": 4, "order": "channels"}),
    ("grouped,n=2,ic=20,oc=84,in=9x9,k=5x3,p=2,g=2,bias,layout=NHWC", {"h_tile": 3, "w_tile": 4}),
    ("conv,n=2,ic=16,oc=40,in=53,k=7,p=3:0,residual,layout=NWC", {"w_tile": 2, "order": "channels"}),
    # parts of taps
    ("conv,n=2,ic=7,oc=40,in=13x11,k=9x8,p=5x4,act=relu", {"h_tile": 4, "order": "tiles"}),
    ("dilated,n=3,ic=18,oc=21,in=83,k=13,p=19:2,d=3,bias,layout=NWC", {"w_tile": 4, "order": "channels"}),
    # polyphase; padding beyond the kernel
    ("conv,n=2,ic=9,oc=35,in=16x23,k=5x4,s=2x3,p=6x1,bias,layout=NHWC", {"h_tile": 4, "order": "tiles"}),
    ("grouped,ic=34,oc=34,in=7x13x8,k=3x3x3,s=2,p=1,g=2,act=relu", {"d_tile": 2, "w_tile": 2}),
    # channels first, moved by tasks: parts of a row of tiles; V of all tiles first; phases of a pass together
    ("conv,n=2,ic=21,oc=37,in=211,k=3,p=1,bias,residual,act=relu", {"w_tile": 4, "order": "tiles", "row_blocks": 1}),
    ("conv,n=2,ic=18,oc=33,in=13x37,k=3x3,p=1:2x0:3,residual", {"h_tile": 2, "w_tile": 4, "order": "channels"}),
    ("transposed,n=2,ic=17,oc=20,in=9x19,k=4x4,s=2,p=1,bias", {"h_tile": 2, "w_tile": 3, "order": "tiles"}),
    ("conv,n=2,ic=21,oc=37,in=5x11x13,k=3x1x1,p=1x0x0,residual", {"d_tile": 2, "order": "tiles", "row_blocks": 16}),
    # planes that share sets of the first caches
    ("conv,ic=21,oc=37,in=4096,k=3,p=1,bias,residual,act=relu", {"w_tile": 4, "order": "tiles", "row_blocks": 1}),
    # fewer inputs than taps: the two change places
    ("conv,n=2,ic=20,oc=33,in=2x7x5,k=3x3x3,p=1,bias,layout=NDHWC", {"d_tile": 2, "h_tile": 4, "order": "tiles"}),
    ("conv,n=3,ic=18,oc=17,in=2x2,k=5x4,p=3x2,act=relu", {"h_tile": 4, "w_tile": 3, "order": "channels"}),
    # taps that meet no input: of one frame, and of rows fewer than the dilation
    ("conv,n=2,ic=18,oc=20,in=1x7x9,k=3x3x3,p=1,bias,layout=NDHWC", {"h_tile": 2, "w_tile": 3, "order": "tiles"}),
    ("dilated,ic=17,oc=18,in=3x23,k=4x3,p=9x2,d=5x2,residual,layout=NHWC", {"w_tile": 4, "order": "tiles"}),
    # nine points, and ten
    ("conv,n=2,ic=17,oc=21,in=13x21,k=3x3,p=1,layout=NHWC", {"h_tile": 3, "w_tile": 7, "order": "tiles"}),
    ("conv,n=2,ic=17,oc=21,in=29x14,k=3x3,s=2,p=1,layout=NHWC", {"h_tile": 3, "w_tile": 7, "order": "channels"}),
    ("conv,n=3,ic=17,oc=21,in=47,k=3,p=1,layout=NWC", {"w_tile": 8, "order": "tiles"}),
    # inputs that are fetched ahead
    ("conv,ic=17,oc=19,in=131x137,k=3x3,s=2,p=1,bias,layout=NHWC", {"h_tile": 3, "w_tile": 3, "order": "tiles"}),
    # tiles that pass through registers, in two dimensions and in three, beside parts that lack a tap
    ("conv,n=2,ic=35,oc=19,in=17x23,k=3x3,p=1,bias,layout=NHWC", {"h_tile": 2, "w_tile": 3, "order": "tiles"}),
    ("conv,ic=18,oc=17,in=7x6x9,k=2x2x2,p=1,layout=NDHWC", {"d_tile": 2, "h_tile": 2, "w_tile": 2}),
    ("conv,n=2,ic=17,oc=21,in=19x14,k=3x3,s=2,p=0x1,layout=NHWC", {"h_tile": 3, "w_tile": 4, "order": "tiles"}),
    # phases of different numbers of taps, outputs cut on both sides or added
    ("transposed,n=3,ic=5,oc=19,in=7x9,k=5x3,s=2,p=3x1,op=1x0,bias,layout=NHWC", {"h_tile": 2, "order": "channels"}),
    ("transposed,n=2,ic=20,oc=42,in=13x6,k=4x4,s=2x3,p=1,g=2,act=silu,residual", {"h_tile": 3}),
    ("transposed,n=2,ic=6,oc=17,in=19,k=16,s=8,p=4,op=3,bias,layout=NWC", {"w_tile": 5, "order": "tiles"}),
    ("transposed,ic=6,oc=16,in=5x5x6,k=3x1x4,s=2,p=0x0x1,act=relu,layout=NDHWC", {"d_tile": 2, "order": "channels"}),
    ("transposed,n=2,ic=9,oc=33,in=24,k=23,s=2,p=24:9,layout=NWC", {"w_tile": 4, "order": "tiles"}),
    # phases with windows of their own: in both dimensions, some without their last tap; in one; with parts of taps
    ("transposed,n=2,ic=17,oc=19,in=4x6,k=5x4,s=2,p=2x1,op=1x0,bias,layout=NHWC", {"order": "apart_tiles"}),
    ("transposed,ic=18,oc=17,in=9x8,k=4x4,s=2,p=1,layout=NHWC", {"h_tile": 2, "w_tile": 2, "order": "apart_channels"}),
    ("transposed,n=2,ic=9,oc=18,in=3x4x6,k=4x4x3,s=2,p=1,act=relu,layout=NDHWC", {"h_tile": 4, "order": "apart_tiles"}),
    ("transposed,n=2,ic=17,oc=20,in=11,k=29,s=3,p=12,op=1,residual,layout=NWC", {"w_tile": 4, "order": "apart_tiles"}),
    ("transposed,n=2,ic=17,oc=20,in=8x16,k=4x4,s=2,p=1,bias", {"h_tile": 4, "w_tile": 4, "order": "apart_tiles"}),
    ("transposed,n=2,ic=21,oc=37,in=64,k=16,s=8,p=4,residual", {"w_tile": 4, "order": "apart_channels"}),
)  # fmt: skip


def test_the_cache_model_counts_what_is_fetched_ahead_once() -> None:
    spec = ConvSpec.parse("conv,ic=16,oc=16,in=40x40,k=3x3,p=1,layout=NHWC")
    near, far = (dataclasses.replace(TARGET, l2_bytes=size) for size in (1 << 20, 1 << 16))
    knobs = {**FILTERING.default(spec, far), "order": "tiles"}
    ahead, behind = (FILTERING.schedule(spec, target, knobs) for target in (far, near))
    assert ("prefetch" in ahead.script(), "prefetch" in behind.script()) == (True, False)
    assert traffic(ahead, far) == traffic(behind, far)
    beside = FILTERING.schedule(spec, far, {**knobs, "order": "beside"})
    assert "chunk" in beside.script()
    whole, fetched = traffic(behind, far), traffic(beside, far)
    assert fetched.l2_bytes == pytest.approx(whole.l2_bytes, rel=0.02)  # and where tiles begin


FAR: tuple[Case, ...] = (
    ("conv,n=2,ic=67,oc=83,in=13x11,k=3x3,p=1,bias,layout=NHWC", {"h_tile": 2, "w_tile": 4, "row_blocks": 1}),
    ("conv,n=3,ic=67,oc=83,in=2x7x7,k=3x3x3,p=1,act=relu", {"h_tile": 2, "w_tile": 4, "row_blocks": 2}),
    ("transposed,n=3,ic=131,oc=67,in=13,k=8,s=4,p=2,residual,layout=NWC", {"w_tile": 3, "row_blocks": 2}),
    ("transposed,n=2,ic=131,oc=67,in=12,k=8,s=4,p=2,layout=NWC", {"w_tile": 4, "order": "apart_fetched"}),
)


@pytest.mark.parametrize(("turn", "case"), list(enumerate(FAR)), ids=[text for text, _ in FAR])
def test_kernels_that_fetch_weights(turn: int, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small layers, as if their U came from memory."""
    monkeypatch.setattr("convtune.schedules.minimal_filtering.worth_fetching", lambda size, target: True)
    monkeypatch.setattr("convtune.schedules.filtering_ahead.AHEAD_BYTES", 1024)
    minimal_filtering._orders.cache_clear()
    text, wanted = case
    check_odd(FILTERING, tmp_path, turn, (text, {"order": "fetched", **wanted}))


def test_weights_are_fetched_where_they_lie_in_memory() -> None:
    """And sums are then in buffers that LLVM keeps in registers, one of each vector."""
    many = ConvSpec.parse("conv,ic=512,oc=921,in=2x7x7,k=1x3x3,p=0x1x1,layout=NDHWC")
    few = ConvSpec.parse("conv,ic=64,oc=64,in=2x7x7,k=1x3x3,p=0x1x1,layout=NDHWC")
    assert "fetched" not in FILTERING.knobs(few, TARGET)["order"]
    knobs = {**FILTERING.default(many, TARGET), "order": "fetched"}
    assert FILTERING.default(many, TARGET)["order"] == "fetched"
    assert FILTERING.allows(many, TARGET, knobs) and not FILTERING.allows(many, TARGET, {**knobs, "row_blocks": 4})
    estimate = FILTERING.estimate(many, TARGET, knobs)
    assert estimate < FILTERING.estimate(many, TARGET, {**knobs, "order": "channels"})
    script = FILTERING.schedule(many, TARGET, knobs).script()
    tile = int(knobs["tile_rows"]) * int(knobs["oc_vectors"])
    assert "prefetch" in script and script.count("acc") > tile


def test_a_third_cache_has_a_part_of_weights_that_it_does_not_hold() -> None:
    """No cliff at half of it: of 19 MB most still came from 32 MiB. Each channel more takes little more."""
    target = dataclasses.replace(TARGET, l3_bytes=32 << 20)
    times = []
    for channels in range(352, 768, 32):
        spec = ConvSpec.parse(f"transposed,ic={channels},oc=256,in=4x4,k=4x4,s=2,p=1,layout=NHWC")
        knobs = {"h_tile": 2, "w_tile": 2, "tile_rows": 4, "oc_vectors": 1, "row_blocks": 1, "pass_blocks": 1}
        times.append(FILTERING.estimate(spec, target, {**knobs, "order": "apart_channels"}) / channels)
    assert all(0.99 < after / before < 1.08 for before, after in itertools.pairwise(times))
    assert times[-1] > 1.2 * times[0]


@pytest.mark.parametrize(("m", "buffers"), [(2, 1), (6, 1), (7, 2)])
def test_tiles_inside_go_through_registers(m: int, buffers: int) -> None:
    """Where they hold all points: the only local buffer is of the output's transform then."""
    spec = ConvSpec.parse("conv,ic=16,oc=16,in=14x14,k=3x3,layout=NHWC")
    knobs = {**FILTERING.default(spec, TARGET), "h_tile": 2, "w_tile": m}
    script = FILTERING.schedule(spec, TARGET, knobs).script()
    assert sum("half" in line and "alloc" in line for line in script.splitlines()) == buffers


@pytest.mark.parametrize(("turn", "case"), list(enumerate(ODD)), ids=[text for text, _ in ODD])
def test_kernels_of_odd_sizes(tmp_path: Path, turn: int, case: Case) -> None:
    check_odd(FILTERING, tmp_path, turn, case)


@pytest.mark.parametrize(
    ("lanes", "channels", "positions", "shape"),
    [
        (16, 64, 4096, (8, 16)),
        (16, 64, 3136, (16, 16)),
        (16, 64, 50176, (16, 16)),  # 49 pages apart: they share sets of the first cache alone
        (8, 64, 4096, (8, 8)),
        (16, 21, 13, (8, 8)),
        (16, 3, 4096, (1, 1)),
    ],
)
def test_strips_have_no_more_planes_than_a_set_has_lines(
    lanes: int, channels: int, positions: int, shape: tuple[int, int]
) -> None:
    assert strip_shape(lanes, channels, positions) == shape


@pytest.mark.parametrize("row_blocks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("in_size", ["16x56x56", "3x5x41"])
def test_blocks_are_cut_where_a_row_of_tiles_ends(row_blocks: int, in_size: str) -> None:
    spec = ConvSpec.parse(f"conv,ic=45,oc=64,in={in_size},k=3x1x1,p=1x0x0")
    knobs = {**FILTERING.default(spec, TARGET), "tile_rows": 6, "row_blocks": row_blocks}
    plan = plan_of(spec, TARGET, knobs)
    size = plan.axes[2].tiles
    assert pieces(plan, size) == len({(q // plan.block, q // size) for q in range(plan.tiles)})


def test_channels_first_takes_larger_blocks_of_whole_rows() -> None:
    first = ConvSpec.parse("conv,ic=45,oc=64,in=16x56x56,k=3x1x1,p=1x0x0")
    last = first.replace(layout="NDHWC")
    blocks = [plan_of(spec, TARGET, FILTERING.default(spec, TARGET)) for spec in (first, last)]
    assert blocks[0].block % 56 == 0 and blocks[0].block > 64 > blocks[1].block
    knobs = {**FILTERING.default(last, TARGET), "tile_rows": 14, "oc_vectors": 2, "row_blocks": 8, "order": "tiles"}
    assert [FILTERING.allows(spec, TARGET, knobs) for spec in (first, last)] == [True, False]


@pytest.mark.parametrize("text", ["conv,ic=64,oc=64,in=4096,k=3,p=1", "transposed,ic=64,oc=32,in=4096,k=4,s=2,p=1"])
def test_parts_of_long_planes_fit_the_first_cache(text: str) -> None:
    spec = ConvSpec.parse(text)
    plan = plan_of(spec, TARGET, FILTERING.default(spec, TARGET))
    assert 4 * plan.lanes * input_part(plan).length < TARGET.l1d_bytes


def test_larger_tiles_are_expected_to_lose_more() -> None:
    spec = ConvSpec.parse("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC")
    errors = [
        FILTERING.expected_error(spec, TARGET, {**FILTERING.default(spec, TARGET), "h_tile": m, "w_tile": m})
        for m in (2, 4, 6)
    ]
    assert errors == sorted(errors)
    assert errors[0] < accuracy.limit(spec, "strict") and errors[2] < accuracy.limit(spec, "standard")


def test_many_channels_are_filtered_and_few_are_not() -> None:
    many = ConvSpec.parse("conv,ic=256,oc=256,in=28x28,k=3x3,p=1,layout=NHWC")
    few = ConvSpec.parse("conv,ic=1,oc=4,in=28x28,k=3x3,p=1,layout=NHWC")
    assert space.default_candidate(many, TARGET).space == FILTERING.name
    assert space.default_candidate(few, TARGET).space != FILTERING.name


def test_a_pass_has_all_phases_where_the_output_goes_to_memory() -> None:
    """Written a phase at a time, lines lie apart from each other."""
    for text in (
        "transposed,ic=64,oc=16,in=128x256,k=3x3,s=2,p=1,op=1,layout=NHWC",
        "transposed,ic=128,oc=64,in=64x128,k=3x3,s=2,p=1,op=1,layout=NHWC",
    ):
        spec = ConvSpec.parse(text)
        plan = plan_of(spec, TARGET, FILTERING.default(spec, TARGET))
        assert plan.phases == 4
        assert plan.per_pass == plan.phases * plan.blocks


@pytest.mark.parametrize(
    ("tiles", "apart", "together"),
    [
        ((7, 1), [1, 2, 1], 3),  # one sum of three columns; the second of two parts of the rows lacks a tap
        ((1, 7), [1, 3, 2], 1),  # whose last dimension lacks one
        ((2, 2), [1, 2, 2], 1),
    ],
)
def test_direct_taps_at_the_end_are_one_sum(tiles: tuple[int, int], apart: list[int], together: int) -> None:
    spec = ConvSpec.parse("conv,ic=32,oc=64,in=14x14,k=3x3,s=2,p=1")
    sizes = dict(zip(("h_tile", "w_tile"), tiles))
    plan = plan_of(spec, TARGET, {**FILTERING.default(spec, TARGET), **sizes})
    assert (plan.parts_apart, plan.together, plan.steps) == (apart, together, together * 32)


def test_of_a_large_output_long_runs_are_stored() -> None:
    spec = ConvSpec.parse("conv,ic=64,oc=144,in=16x56x56,k=1x3x3,p=0x1x1,layout=NDHWC")
    knobs = {**FILTERING.default(spec, TARGET), "tile_rows": 9, "oc_vectors": 3, "row_blocks": 1}
    short, long = ({**knobs, "pass_blocks": blocks} for blocks in (1, 3))
    written = [filtering_estimate.write_share(plan_of(spec, TARGET, k), TARGET) for k in (short, long)]
    assert written[0] > written[1]
