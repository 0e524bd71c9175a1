"""Composites stage by stage in one function: each stage's own space and weights, and what lies between two stages."""

from __future__ import annotations

import pytest
from conformance_cases import runnable
from convtune.schedules.stages_in_turn import stages_in_turn
from synthetic_spaces import machine
from test_conformance import check

from convtune import space
from convtune.accuracy import STANDARD
from convtune.space import all_knobs
from convtune.spec import ConvSpec

FLATTENED = ConvSpec.parse("flattened,n=2,ic=5,oc=19,in=5x7x9,k=3x3x3,p=1,bias,layout=NCDHW")
SEPARABLE = ConvSpec.parse(
    "spatially_separable,ic=16,oc=17,in=9x23,k=3x3,p=2,d=2,sbias=1,sact=relu,bias,act=silu,residual,layout=NHWC"
)


@pytest.mark.parametrize("spec", [FLATTENED, SEPARABLE], ids=str)
def test_each_stage_has_a_space_and_weights_of_its_own(spec: ConvSpec) -> None:
    target = machine()
    for knobs in all_knobs(stages_in_turn, spec, target):
        assert len(stages_in_turn.pack(spec, target, knobs)) == len(spec.stages)
        for stage, name in zip(spec.stages, knobs.values()):
            assert space.get(str(name)).takes(stage, target)
        assert stages_in_turn.expected_error(spec, target, knobs) <= STANDARD["float32"]


def test_the_default_takes_what_is_fast_for_each_stage() -> None:
    spec, target = ConvSpec.parse("spatially_separable,ic=64,oc=64,in=64x64,k=3x3,p=1,layout=NHWC"), machine()
    alone = [space.default_candidate(stage, target).space for stage in spec.stages]
    assert list(stages_in_turn.default(spec, target).values()) == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "names"),
    [
        # rows read as one, from what a stage before has written
        (FLATTENED, ["row_lanes", "depthwise_planes", "depthwise_planes", "depthwise_planes"]),
        (FLATTENED, ["row_lanes", "depthwise_squares", "row_lanes", "channel_lanes"]),
        (SEPARABLE, ["minimal_filtering", "dense_direct"]),
        (SEPARABLE, ["dense_direct", "minimal_filtering"]),
    ],
)
def test_stages_hand_on_what_they_computed(spec: ConvSpec, names: list[str]) -> None:
    target = runnable("x86-64-v3")
    check(stages_in_turn, spec, target, {f"stage{number}": name for number, name in enumerate(names)})
