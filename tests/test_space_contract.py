"""What every schedule space promises, whatever the spec: domains, defaults, estimates, packing, bounded code."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from conformance_cases import specs as awkward_specs
from convtune.schedules.gpu_tiling import threads_for
from hypothesis import example, given, settings
from strategies import specs
from synthetic_spaces import machine

from convtune import space, targets
from convtune.errors import TargetError
from convtune.runtime import packing
from convtune.space import Estimating, Knobs, Space
from convtune.spec import ConvSpec
from convtune.targets import Target

MOST_CANDIDATES = 2500
MOST_STATEMENTS = 1100  # of unrolled code of a stage; TVM and LLVM take 2 s for the most there is, Strassen's twice

TARGETS = (
    machine(),
    machine(name="wide", mcpu="x86-64-v4", vector_bytes=64, vector_registers=32, l1d_bytes=49152),
    machine(name="narrow", mcpu="x86-64", vector_bytes=16, l2_bytes=2**18, l3_bytes=0, threads=4),
    machine(name="arm", family="arm", mcpu="neoverse-n1", vector_bytes=16, vector_registers=32, l1d_bytes=65536),
)

GPUS = (targets.resolve("sm_75"), targets.resolve("sm_90"))

LAYERS = tuple(
    ConvSpec.parse(text + layout)
    for text in (
        "conv,ic=3,oc=64,in=224x224,k=7x7,s=2,p=3",
        "conv,ic=64,oc=64,in=56x56,k=3x3,p=1",
        "conv,ic=512,oc=512,in=7x7,k=3x3,p=1,bias,act=gelu",
        "pointwise,ic=256,oc=1024,in=28x28,k=1x1",
        "dilated,ic=256,oc=256,in=65x65,k=3x3,p=2,d=2,bias,act=relu",
        "grouped,ic=128,oc=128,in=56x56,k=3x3,p=1,g=32",
        "grouped,ic=512,oc=512,in=14x14,k=3x3,s=2,p=1,g=32",
        "depthwise,ic=144,oc=144,in=56x56,k=3x3,p=1,bias,act=silu",
        "depthwise,ic=96,oc=96,in=112x112,k=3x3,s=2,p=1",
        "depthwise,ic=672,oc=672,in=14x14,k=5x5,p=2",
        "depthwise,ic=96,oc=96,in=56x56,k=7x7,p=3",
        "depthwise,ic=64,oc=64,in=56x56,k=31x31,p=15",
        "transposed,ic=256,oc=128,in=28x28,k=3x3,s=2,p=1,op=1,bias,act=gelu",
        "shuffled_grouped,ic=240,oc=60,in=28x28,k=1x1,g=3",
        "depthwise_separable,ic=32,oc=64,in=112x112,k=3x3,p=1,sact=relu6,act=relu6",
        "depthwise_separable,ic=120,oc=40,in=28x28,k=5x5,p=2,m=2,sact=hardswish",
        "spatially_separable,ic=128,oc=128,in=64x128,k=3x3,d=4,p=4,sact=relu",
        "flattened,ic=64,oc=128,in=112x112,k=3x3,p=1,sact=relu",
    )
    for layout in ("", ",layout=NHWC")
) + tuple(
    ConvSpec.parse(text)
    for text in (
        "depthwise,ic=768,oc=768,in=1500,k=31,p=15",
        "depthwise,ic=768,oc=768,in=1500,k=31,p=15,layout=NWC",
        "conv,ic=32,oc=32,in=16384,k=2",
        "dilated,ic=32,oc=64,in=16384,k=2,d=512,p=512:0,layout=NWC",
        "conv,ic=128,oc=256,in=8x28x28,k=3x3x3,p=1",
        "depthwise,ic=108,oc=108,in=8x28x28,k=3x3x3,p=1",
        "depthwise,ic=108,oc=108,in=8x28x28,k=3x3x3,p=1,layout=NDHWC",
        "depthwise_separable,ic=256,oc=256,in=16000,k=31,p=15,layout=NWC",
        "spatially_separable,ic=64,oc=64,in=8x56x56,k=3,p=1,mid=144x83,layout=NDHWC",
        "flattened,ic=64,oc=96,in=8x28x28,k=3,p=1",
        "conv,ic=64,oc=3,in=56x56,k=3x3,p=1,layout=NHWC",
        "pointwise,ic=144,oc=20,in=56x56,k=1x1,layout=NHWC",
        "transposed,ic=64,oc=3,in=32x32,k=4x4,s=2,p=1,layout=NHWC",
    )
)  # fmt: skip


LAYERS_AND_MORE = (
    *LAYERS,
    ConvSpec.parse("deformable,ic=16,oc=16,in=9x9,k=3x3,p=1"),
    ConvSpec.parse("deformable,ic=64,oc=64,in=5x7,k=3x3,p=1,layout=NHWC"),
    ConvSpec.parse("conv,ic=16,oc=16,in=9x5x9,k=3x1x1,layout=NCDHW"),
    ConvSpec.parse("conv,ic=3,oc=16,in=75x75,k=3x3,s=2"),
)


def pairs(chosen: tuple[ConvSpec, ...]) -> list[Any]:
    """Each spec with two of the targets, in turn, whatever its layout, in which two in a row differ."""
    found = []
    for turn, spec in enumerate(chosen):
        for target in (TARGETS[(turn + turn // 2 + more) % len(TARGETS)] for more in (0, 2)):
            found.append(pytest.param(spec, target, id=f"{spec}-{target.name}"))
    return found


@settings(max_examples=150, deadline=None)
@given(specs())
def test_some_space_accepts_any_spec(spec: ConvSpec) -> None:
    for target in (*TARGETS, *GPUS):
        found = space.accepting(spec, target)
        assert found and (len(found) == 1 or not any(each.last_resort for each in found))


@pytest.mark.parametrize("owner", space.known().values(), ids=list(space.known()))
def test_a_space_is_for_cpus_or_for_gpus(owner: Space[Any]) -> None:
    accepted = [[owner.accepts(spec, target) for spec in LAYERS_AND_MORE] for target in (*TARGETS, *GPUS)]
    cpus, gpus = accepted[: len(TARGETS)], accepted[len(TARGETS) :]
    assert any(map(any, cpus)) != any(map(any, gpus))


def test_a_target_that_no_space_is_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fallback = space.get("fallback")
    monkeypatch.setattr(space, "known", lambda: {"fallback": fallback})
    assert space.accepting(LAYERS[0], TARGETS[0]) == [fallback]
    with pytest.raises(
        TargetError, match=r"target 'sm_75': no schedule space of this version accepts it \(spec: conv,"
    ):
        space.accepting(LAYERS[0], GPUS[0])


@pytest.mark.parametrize(
    "facts",
    [
        '"shared_per_block": 10',
        '"shared_per_sm": 2048, "shared_per_block": 1024, "model": "m"',
        '"registers_per_sm": 32768',
        '"threads_per_sm": 32, "registers_per_sm": 32768, "shared_per_block": 1',
        '"threads_per_sm": 64',
        '"blocks_per_sm": 1, "sms": 1, "threads_per_sm": 96',
    ],
)
def test_a_tiny_gpu_gets_a_space_with_schedules_that_fit_it(facts: str) -> None:
    target = targets.resolve(f'{{"arch": "sm_86", {facts}}}')
    assert isinstance(target, targets.GpuTarget)
    for spec in LAYERS_AND_MORE:
        for owner in space.accepting(spec, target):
            assert space.contains(owner, spec, target, owner.default(spec, target))
        space.default_candidate(spec, target)
    assert threads_for(target, 1 << 24) <= target.threads_per_sm


def test_a_space_without_a_schedule_does_not_take_a_spec() -> None:
    tiny, spec = targets.resolve('{"arch": "sm_86", "shared_per_block": 10}'), LAYERS[0]
    assert not space.get("gpu_tiles").takes(spec, tiny)
    assert [owner.name for owner in space.accepting(spec, tiny)] == ["gpu_threads"]
    assert space.get("gpu_tiles").takes(spec, targets.resolve("sm_86"))


@settings(max_examples=25, deadline=None)
@given(
    specs(ranks=(1, 2), largest_channels=40, largest_size=60) | specs(ranks=(3,), largest_channels=12, largest_size=20)
)
@example(ConvSpec("depthwise", 3, 3, 9, 1, layout="NWC"))  # 9 columns: tiles of 9 are too large, of 5 few
def test_domains_of_any_spec(spec: ConvSpec) -> None:
    for target in TARGETS:
        for owner in space.accepting(spec, target):
            check_domain(owner, spec, target)


@pytest.mark.parametrize(("spec", "target"), pairs(LAYERS))
def test_domains_of_real_layers(spec: ConvSpec, target: Target) -> None:
    for owner in space.accepting(spec, target):
        check_domain(owner, spec, target)


@pytest.mark.parametrize(("turn", "spec"), list(enumerate(LAYERS[::4])), ids=map(str, LAYERS[::4]))
def test_domains_of_real_layers_on_gpus(turn: int, spec: ConvSpec) -> None:
    target = GPUS[turn % len(GPUS)]
    for owner in space.accepting(spec, target):
        check_domain(owner, spec, target)


def check_domain(owner: Space, spec: ConvSpec, target: Target) -> None:
    """The domain is finite, small and orderly; the default lies in it, and estimates are numbers."""
    domain = owner.knobs(spec, target)
    for knob, values in domain.items():
        assert values, f"{knob} has no values"
        assert len(set(values)) == len(values), f"{knob} has a value twice: {values}"
        assert all(type(value) in (int, str) for value in values), f"{knob}: {values} do not survive JSON"
    default = dict(owner.default(spec, target))
    assert list(default) == list(domain)
    candidates = list(space.all_knobs(owner, spec, target))
    assert default in candidates, "the default is outside the domain"
    assert len(candidates) < MOST_CANDIDATES
    features = [owner.features(spec, target, knobs) for knobs in candidates]
    names = set(map(tuple, features))
    assert len(names) == 1, f"features differ by candidate: {names}"
    for knobs, found in zip(candidates, features):
        assert all(map(math.isfinite, found.values())), f"{knobs}: {found}"
        if isinstance(owner, Estimating) and "log_estimate" not in found:  # whose logarithm is a number is above 0
            cycles = owner.estimate(spec, target, knobs)
            assert math.isfinite(cycles) and cycles > 0, f"{knobs}: {cycles} cycles"


@pytest.mark.parametrize("spec", LAYERS, ids=str)
def test_candidates_of_real_layers_schedule(spec: ConvSpec) -> None:
    """The default and another one are scheduled: not refused, the weights as `pack` gives them, and of bounded size."""
    for target in TARGETS[:2]:
        for owner in space.accepting(spec, target):
            candidates = list(space.all_knobs(owner, spec, target))
            for knobs in (owner.default(spec, target), random.Random(f"{spec} {target.name}").choice(candidates)):
                check_schedule(owner, spec, target, knobs)


@pytest.mark.parametrize(("turn", "spec"), list(enumerate(awkward_specs()[::3])), ids=str)
def test_weights_are_packed_as_the_kernel_reads_them(turn: int, spec: ConvSpec) -> None:
    target = TARGETS[turn % len(TARGETS)]
    for owner in space.accepting(spec, target):
        candidates = list(space.all_knobs(owner, spec, target))
        check_schedule(owner, spec, target, random.Random(turn).choice(candidates))


def check_schedule(owner: Space, spec: ConvSpec, target: Target, knobs: Knobs) -> None:
    main = owner.schedule(spec, target, knobs)["main"]
    shapes = [tuple(map(int, parameter.shape)) for parameter in main.params]
    steps = owner.pack(spec, target, knobs)
    assert len(steps) == len(spec.weight_shapes)
    packed = [packing.packed_shape(list(s), shape) for s, shape in zip(steps, spec.weight_shapes)]
    assert shapes[1 : 1 + len(packed)] == packed, f"{knobs}"
    assert shapes[0] == spec.in_shape
    assert math.prod(shapes[-1]) == math.prod(spec.out_shape)
    assert statements(main.body) <= MOST_STATEMENTS * len(spec.stages), f"{knobs}: {statements(main.body)} statements"


def statements(node: Any) -> int:
    """Stores, and calls that are statements, in the code, each as often as the loops around it are unrolled."""
    from tvm import tirx

    if isinstance(node, tirx.For):
        unrolled = node.kind == tirx.ForKind.UNROLLED
        return statements(node.body) * (int(node.extent) if unrolled else 1)
    if isinstance(node, tirx.SeqStmt):
        return sum(map(statements, node.seq))
    if isinstance(node, tirx.IfThenElse):
        return statements(node.then_case) + (statements(node.else_case) if node.else_case else 0)
    if isinstance(node, (tirx.BufferStore, tirx.Evaluate)):
        return 1
    if isinstance(node, (tirx.Bind, tirx.AllocBuffer, tirx.DeclBuffer)):
        return 0
    inner = [getattr(node, field) for field in ("block", "init", "body") if getattr(node, field, None) is not None]
    assert inner, f"unknown statement {type(node)}"
    return sum(map(statements, inner))
