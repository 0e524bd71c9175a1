"""Tests which spec's winner is taken over, and that its knobs end up where the new spec allows them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_spaces import RegisterTile, Small, machine, record

from convtune.record import Record
from convtune.search import nearest, nearest_winner
from convtune.search.domain import Domain
from convtune.search.transfer import distance
from convtune.space import Candidate
from convtune.spec import ConvSpec

TARGET, OTHER = machine(), machine(model="Other")
SMALL, TILE = Small(), RegisterTile()


def conv(ic: int = 64, oc: int = 64, size: int = 56, kernel: int = 3, **more: Any) -> ConvSpec:
    return ConvSpec("conv", ic, oc, (size, size), (kernel, kernel), padding=kernel // 2, **more)


SPEC = conv()


def small(spec: ConvSpec, ow_tile: int, time_us: float | None = 10.0, target: Any = TARGET, **fields: Any) -> Record:
    return record(spec, target, Candidate("small", {"ow_tile": ow_tile, "pad_at": "none"}), time_us, **fields)


def taken(records: list[Record], **more: Any) -> int | None:
    found = nearest(SPEC, TARGET, records, SMALL, **more)
    return None if found is None else int(found.knobs["ow_tile"])


@pytest.mark.parametrize(
    ("near", "far"),
    [
        (conv(ic=128), conv(ic=256)),
        (conv(size=28), conv(size=14)),
        (conv(ic=128), conv(kernel=5)),
        (conv(bias=True, activation="relu"), conv(oc=96)),
        (conv(ic=128, oc=128, size=28), conv(layout="NHWC", ic=128)),
        (conv(oc=128), conv(stride=2)),
    ],
)
def test_the_nearer_spec_wins_whichever_is_first_or_faster(near: ConvSpec, far: ConvSpec) -> None:
    records = [small(near, 1, 50.0), small(far, 2, 5.0)]
    assert taken(records) == taken(records[::-1]) == 1
    assert distance(near, SPEC) < distance(far, SPEC)


def test_distance_is_symmetric_and_none_from_itself() -> None:
    a, b = conv(ic=3, stride=2), conv(oc=512, size=7)
    assert distance(a, b) == distance(b, a) > 0
    assert distance(a, a) == 0
    assert distance(conv(oc=128), SPEC) == 1


def test_the_fastest_on_the_nearest_spec_is_taken() -> None:
    near = conv(ic=128)
    assert taken([small(near, 1, 30.0), small(near, 2, 10.0), small(near, 4, 20.0)]) == 2


def test_finals_decide_as_everywhere() -> None:
    near = conv(ic=128)
    finals = [small(near, w, t, round="final", batch="2026-01-02T00:00:00.000000Z") for w, t in ((1, 12.0), (2, 11.0))]
    assert taken([small(near, 1, 8.0), small(near, 2, 9.0), *finals]) == 2


@pytest.mark.parametrize(
    "useless",
    [
        small(conv(ic=128), 2, None),
        small(conv(ic=128), 2, origin="estimated"),
        small(conv(ic=128), 2, error=1e-3),
        small(conv(ic=128), 2, target=machine(family="arm")),
        small(conv(ic=2048, oc=2048, size=7), 2),
        small(SPEC, 2),
        record(conv(ic=128), TARGET, Candidate("elsewhere", {"ow_tile": 2}), 10.0),
    ],
    ids=["failed", "estimated", "inaccurate", "other family", "far", "own", "other space"],
)
def test_what_does_not_count(useless: Record) -> None:
    assert taken([useless], max_error=2e-5) is None
    # the next one is taken instead
    assert taken([useless, small(conv(ic=256), 4)], max_error=2e-5) == 4


def test_the_same_spec_on_a_like_machine_counts_but_this_machine_comes_first() -> None:
    there, here = small(SPEC, 1, target=OTHER), small(conv(bias=True), 2)
    assert taken([there]) == 1
    assert taken([there, here]) == 2
    assert taken([there, small(conv(ic=512), 4)]) == 1


def test_the_winner_may_come_from_any_of_several_spaces() -> None:
    tile = record(conv(ic=128), TARGET, Candidate("register_tile", TILE.default(SPEC, TARGET)), 5.0)
    slower = small(conv(ic=128), 2, 6.0)
    found = nearest(SPEC, TARGET, [slower, tile], SMALL, TILE)
    assert found is not None
    assert found.space == "register_tile"
    assert nearest_winner(SPEC, TARGET, [slower, tile], SMALL, TILE) == tile
    assert nearest_winner(SPEC, TARGET, [slower, tile], SMALL) == slower


def test_knobs_snap_by_their_ratio() -> None:
    domain = Domain(TILE, SPEC, TARGET)  # ow_tile 1-8, 10, 12, 14; oh_block 1, 2, 4, 7, 14, 28
    snapped = domain.snap({"ow_tile": 11, "oc_tile": 9, "oh_block": 300, "pad_at": "once", "gone": 5, "order": "new"})
    default = TILE.default(SPEC, TARGET)
    assert snapped.knobs["ow_tile"] in (10, 12, default["ow_tile"])
    assert snapped.knobs["oh_block"] == 28
    assert snapped.knobs["pad_at"] == "once"
    assert snapped.knobs["order"] == default["order"]
    assert snapped.knobs["unroll"] == default["unroll"]


def test_only_what_is_not_allowed_goes_back_to_the_default() -> None:
    domain = Domain(TILE, SPEC, TARGET)
    wanted = {**TILE.default(SPEC, TARGET), "ow_tile": 14, "oc_tile": 4, "ic_block": 128, "order": "oc_oh"}
    assert not TILE.allows(SPEC, TARGET, wanted)
    snapped = domain.snap(wanted).knobs
    assert snapped["ic_block"] == 128
    assert snapped["order"] == "oc_oh"
    assert (snapped["ow_tile"], snapped["oc_tile"]) in ((4, 4), (14, 2))


@given(
    st.dictionaries(st.sampled_from([*TILE.knobs(SPEC, TARGET), "gone"]), st.integers(-5, 500) | st.text(max_size=5))
)
def test_whatever_is_snapped_is_a_candidate(knobs: dict[str, int | str]) -> None:
    domain = Domain(TILE, SPEC, TARGET)
    assert domain.snap(knobs) in domain
    assert domain.snap(domain.snap(knobs).knobs) == domain.snap(knobs)
