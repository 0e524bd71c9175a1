"""The shuffled grouped convolution: an index in the store, and on a real network's layers."""

from __future__ import annotations

from typing import Any

import pytest
from synthetic_spaces import machine

from convtune import space, workloads
from convtune.errors import SpecError
from convtune.spec import ConvSpec


def test_one_group_shuffles_nothing() -> None:
    with pytest.raises(SpecError, match="groups=1 shuffles nothing; it must be above 1"):
        ConvSpec("shuffled_grouped", 6, 6, (5, 5), 1)
    assert ConvSpec.parse("shuffled_grouped,ic=6,oc=9,in=5x5,k=1x1,g=3").weight_shapes == ((9, 2, 1, 1),)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_shuffle_is_no_stage_of_its_own(layout: str) -> None:
    """The same stages as the grouped convolution has, of which only `y` has the output's size."""
    spec = ConvSpec("shuffled_grouped", 48, 96, (14, 14), 1, groups=3, layout=layout, activation="silu")
    for owner in space.accepting(spec, machine()):
        knobs = owner.default(spec, machine())
        shuffled, grouped = (
            stages(owner.schedule(s, machine(), knobs)) for s in (spec, spec.replace(variant="grouped"))
        )
        assert shuffled == grouped


def stages(module: Any) -> set[str]:
    from tvm.s_tir import SBlock
    from tvm_ffi import structural_walk

    names: set[str] = set()
    structural_walk(module["main"].body, (SBlock, lambda block: names.add(str(block.name_hint))))
    return names


def test_shufflenet_is_whole() -> None:
    network = workloads.zoo()["shufflenet_v1_g3"]
    shuffled = {w.spec: w.count for w in network.workloads if w.spec.variant == "shuffled_grouped"}
    # a stage's first unit has half the channels, at twice the size; the second stage's is not grouped
    assert {(s.in_channels, s.out_channels, s.groups, s.in_size[0]): n for s, n in shuffled.items()} == {
        (240, 60, 3, 28): 3,
        (240, 120, 3, 28): 1,
        (480, 120, 3, 14): 7,
        (480, 240, 3, 14): 1,
        (960, 240, 3, 7): 3,
    }
