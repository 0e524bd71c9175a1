"""The dense register tile where a task splits its reduction: what small specs ask for on machines with small caches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conformance_cases import runnable_targets
from test_conformance import check

from convtune import ConvSpec, space, targets

DENSE = space.get("dense_direct")
DEEP = ConvSpec("conv", 60, 21, (7, 11), 3, batch=2, padding=1)
SPLIT = [
    DEEP.replace(layout="NHWC", bias=True, activation="gelu", residual=True),
    DEEP.replace(stride=(2, 1), padding=((3, 0), 4)),
    DEEP.replace(layout="NHWC", out_channels=64, in_size=(3, 29), padding=0),
    ConvSpec("grouped", 120, 38, (7, 5), 3, groups=2, layout="NHWC"),
    ConvSpec("dilated", 52, 32, 37, 5, dilation=3, padding=((2, 5),), layout="NWC"),
    ConvSpec("conv", 60, 7, (3, 5, 13), (3, 1, 3), padding=1, layout="NDHWC"),
]


@pytest.mark.parametrize("turn", range(len(SPLIT)), ids=[str(spec) for spec in SPLIT])
def test_a_reduction_in_parts_is_right(turn: int) -> None:
    target = runnable_targets()[turn % len(runnable_targets())]
    target = replace(target, l2_bytes=1024 * target.vector_bytes)
    spec = SPLIT[turn]
    depth = spec.in_channels // spec.groups
    split = [k for k in space.all_knobs(DENSE, spec, target) if k.get("ic_block", depth) != depth]
    orders = {(k["oc_order"], k["pad_at"]) for k in split}
    assert ("outer", "task") in orders or ("outer", "none") in orders
    for order in sorted(orders, key=str)[turn % 2 :: 2]:
        check(
            DENSE, spec, target, next(k for k in split if (k["oc_order"], k["pad_at"]) == order and k["ow_tile"] != 1)
        )


@pytest.mark.parametrize("layout", ["NCDHW", "NDHWC"])
@pytest.mark.parametrize(
    ("knob", "spec"),
    [
        ("od_block", ConvSpec("conv", 5, 7, (5, 4, 11), (3, 1, 3), batch=2, padding=(1, 0, 2))),
        ("n_block", ConvSpec("conv", 6, 19, (2, 3, 13), (1, 2, 5), batch=3, padding=(0, 1, 0), stride=(1, 1, 2))),
    ],
    ids=["od_block", "n_block"],
)
def test_planes_that_do_not_fill_the_last_task_are_right(knob: str, spec: ConvSpec, layout: str) -> None:
    spec = spec.replace(layout=layout)
    target = runnable_targets()[len(layout + knob) % len(runnable_targets())]
    planes = spec.batch if knob == "n_block" else spec.out_size[0]
    uneven = [k for k in space.all_knobs(DENSE, spec, target) if planes % int(k[knob])]
    assert uneven
    for pad_at in ("task", "root"):
        check(DENSE, spec, target, next(k for k in uneven if k["pad_at"] == pad_at))


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec("conv", 512, 27, (5, 7), 3, padding=1, stride=2, layout="NHWC"),
        ConvSpec("conv", 1024, 5, (3, 5), (1, 2), padding=(1, 0), batch=2),
        ConvSpec("grouped", 1024, 64, (3, 4), 3, padding=1, groups=2, layout="NHWC", activation="relu"),
    ],
    ids=str,
)
def test_columns_a_page_apart_are_right(spec: ConvSpec) -> None:
    for turn, pad_at in enumerate(("task", "root")):
        target = runnable_targets()[turn % len(runnable_targets())]
        check(DENSE, spec, target, next(k for k in space.all_knobs(DENSE, spec, target) if k["pad_at"] == pad_at))


def test_only_weights_too_large_for_the_cache_are_read_in_parts() -> None:
    native = replace(targets.resolve("x86-64-v3"), l2_bytes=1 << 20)
    assert "ic_block" not in DENSE.knobs(DEEP, native)
    deep = DEEP.replace(in_channels=512, out_channels=512, kernel=(3, 3))
    assert max(DENSE.knobs(deep, native)["ic_block"]) == 512
    assert DENSE.default(deep.replace(in_channels=2048, in_size=(28, 28)), native)["ic_block"] < 2048
    assert "ic_block" not in DENSE.knobs(deep.replace(in_channels=2039, kernel=(1, 1), padding=0), native)
