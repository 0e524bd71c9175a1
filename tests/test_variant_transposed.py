"""Transposed convolution: a loop over scalars, its sizes, and its schedule by phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_cases import runnable_targets
from convtune.schedules.transposed_phases import phases_of, transposed_phases
from hypothesis import given, settings
from strategies import specs
from synthetic_spaces import machine
from test_space_contract import check_domain, check_schedule

from convtune import space, workloads
from convtune.errors import SpecError
from convtune.reference import random_operands
from convtune.runtime import packing
from convtune.spec import ConvSpec

TRANSPOSED = ("transposed",)


def bare(spec: ConvSpec) -> ConvSpec:
    """The convolution alone, channels first."""
    return spec.replace(layout=None, bias=False, activation=None, residual=False)


@settings(max_examples=60, deadline=None)
@given(specs(variants=TRANSPOSED, largest_channels=3, largest_size=3))
def test_equals_a_loop_over_scalars(spec: ConvSpec) -> None:
    spec = bare(spec)
    operands = random_operands(spec, seed=0)
    x, weight = operands.x.astype(np.float64), operands.weights[0].astype(np.float64)
    group_in, group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    y = np.zeros(spec.out_shape)
    for n, ic, oc, *index in np.ndindex(spec.batch, spec.in_channels, group_out, *spec.in_size, *spec.kernel):
        position, tap = index[: spec.rank], index[spec.rank :]
        axes = zip(position, tap, spec.stride, spec.dilation, spec.padding)
        out = [q * s + k * d - before for q, k, s, d, (before, _) in axes]
        if all(0 <= o < size for o, size in zip(out, spec.out_size)):
            y[(n, ic // group_in * group_out + oc, *out)] += x[(n, ic, *position)] * weight[(ic, oc, *tap)]
    np.testing.assert_allclose(operands.reference(spec), y, rtol=1e-12, atol=1e-13)


def test_sizes_and_costs() -> None:
    spec = ConvSpec.parse("transposed,ic=256,oc=128,in=8x8,k=4x4,s=2,p=1")
    assert (spec.out_size, spec.weight_shapes) == ((16, 16), ((256, 128, 4, 4),))
    assert spec.macs == 8 * 8 * 256 * 128 * 16
    assert spec.replace(output_padding=1).out_size == (17, 17)
    assert spec.replace(padding=((1, -2), 0)).out_size == (19, 18)
    assert ConvSpec.parse(str(spec.replace(output_padding=(0, 1)))) == spec.replace(output_padding=(0, 1))


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 2), (2, 2), (1, 3), (5, 1), (2, 5)])
def test_same_multiplies_the_size_by_the_stride(kernel: int, stride: int) -> None:
    assert ConvSpec("transposed", 1, 1, (7,), kernel, stride=stride, padding="same").out_size == (7 * stride,)


def test_random_operands_give_results_of_about_one() -> None:
    spec = ConvSpec.parse("transposed,ic=64,oc=64,in=20x20,k=4x4,s=2,p=1,g=2")
    assert 0.8 < random_operands(spec, seed=0).reference(spec).std() < 1.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_padding": 2}, "output_padding=2 in dimension 0 is too large; it must be below 2, the larger"),
        ({"padding": 9}, r"output dimension 0 would be 0: the padding 9 \+ 9 takes away all of the 18 outputs"),
        ({"output_padding": (0, 0, 0)}, "output_padding"),
        ({"groups": 3}, "groups=3 does not divide in_channels=4"),
        ({"padding": ((-1, 0), 0)}, "padding=-1 is out of range"),
    ],
)  # fmt: skip
def test_what_is_not_allowed(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"kernel": 4, "stride": 2, **changes}
    with pytest.raises(SpecError, match=message):
        ConvSpec("transposed", 4, 6, (8, 8), **fields)


@given(specs(variants=TRANSPOSED))
@settings(max_examples=60, deadline=None)
def test_every_tap_is_in_one_phase_only_and_packed_there(spec: ConvSpec) -> None:
    """The phases, added up, visit each pair of output and tap that the definition has, and multiply nothing else."""
    owner, target = transposed_phases, machine()
    for phase, (before, _), k, s, d in zip(
        phases_of(spec)[3 - spec.rank :], spec.padding, spec.kernel, spec.stride, spec.dilation
    ):
        for a in range(s):
            held = [phase.first(a) + j * phase.step for j in range(phase.taps) if all(phase.conditions(a, j))]
            assert held == [tap for tap in range(k) if (a + before - tap * d) % s == 0]
            for j, tap in enumerate(held):  # the output 7 strides on
                assert (7 * s + a + before - tap * d) // s == 7 + phase.shift(a) - j * d // phase.gcd
    weight = random_operands(spec, seed=5).weights[0]
    packed = packing.apply(owner.pack(spec, target, owner.default(spec, target))[0], weight)
    np.testing.assert_array_equal(np.sort(packed[packed != 0]), np.sort(weight[weight != 0], axis=None))


@pytest.mark.parametrize("text", ["in=6x7,k=3x3,s=2,p=1,op=1", "in=9,k=5,s=4,d=2,layout=NWC", "in=5x4,k=1x2,s=3x2"])
def test_taps_that_a_phase_lacks_are_never_multiplied(text: str) -> None:
    """With NaN where the packed weight has zeros for them, the result is the same."""
    import tvm

    spec = ConvSpec.parse(f"transposed,ic=5,oc=64,{text}")
    operands, target = random_operands(spec, seed=6), runnable_targets()[0]
    whole = (k for k in space.all_knobs(transposed_phases, spec, target) if k["oc_vectors"] in (1, 2, 4))
    knobs = next(whole)  # channel blocks without padding, so that only missing taps are zeros
    (steps,) = transposed_phases.pack(spec, target, knobs)
    there = packing.apply(steps, np.ones_like(operands.weights[0])) == 1
    assert not there.all()
    weight = np.where(there, packing.apply(steps, operands.weights[0]), np.float32(np.nan))
    y = np.full(spec.out_shape, np.nan, np.float32)
    kernel = tvm.compile(transposed_phases.schedule(spec, target, knobs), target=target.to_tvm())["main"]
    kernel(*(tvm.runtime.tensor(array) for array in (operands.x, weight)), result := tvm.runtime.tensor(y))
    np.testing.assert_allclose(result.numpy(), operands.reference(spec), atol=1e-5)


@pytest.mark.parametrize("text", ["in=3x5,k=4x2,s=2,p=1x0", "in=2x4x5,k=3x5x1,s=1x2x1,p=1x2x0,op=0x1x0"])
def test_rows_of_padding_are_never_multiplied(text: str) -> None:
    """Or weights without bounds would be multiplied by zeros, which is NaN."""
    import tvm

    spec, target = ConvSpec.parse(f"transposed,ic=5,oc=8,{text}"), runnable_targets()[0]
    knobs = next(iter(space.all_knobs(transposed_phases, spec, target)))
    (steps,) = transposed_phases.pack(spec, target, knobs)
    weight = np.full_like(packing.apply(steps, random_operands(spec, seed=7).weights[0]), np.inf)
    kernel = tvm.compile(transposed_phases.schedule(spec, target, knobs), target=target.to_tvm())["main"]
    result = tvm.runtime.tensor(np.zeros(spec.out_shape, np.float32))
    kernel(tvm.runtime.tensor(np.ones(spec.in_shape, np.float32)), tvm.runtime.tensor(weight), result)
    assert np.isposinf(result.numpy()).all()


@given(specs(variants=TRANSPOSED, ranks=(1, 2), largest_channels=24, largest_size=24))
@settings(max_examples=15, deadline=None)
def test_domains_of_any_spec(spec: ConvSpec) -> None:
    for owner in space.accepting(spec, machine()):
        check_domain(owner, spec, machine())


@pytest.mark.parametrize("network", ["dcgan_g", "unet_572", "hifigan_v1", "istft_pytorch_120982"])
def test_the_networks_of_the_zoo_are_run_by_phases(network: str) -> None:
    for workload in workloads.zoo()[network].workloads:
        spec = workload.spec
        if spec.variant == "transposed":
            owners = space.accepting(spec, machine())
            assert {owner.name for owner in owners} >= {"transposed_lanes", "transposed_phases"}
            for owner in owners:
                check_schedule(owner, spec, machine(), owner.default(spec, machine()))


def test_onnx_models_with_transposed_convolutions_are_read(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    info, weight = onnx.helper.make_tensor_value_info, np.zeros((6, 3, 4, 4), np.float32)
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4, name="up")
    graph = onnx.helper.make_graph(
        [node],
        "net",
        [info("x", onnx.TensorProto.FLOAT, (1, 6, 5, 5))],
        [info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "net.onnx")
    (workload,) = workloads.parse([str(tmp_path / "net.onnx")])
    assert str(workload.spec.replace(layout=None)) == "transposed,ic=6,oc=3,in=5x5,k=4x4,s=2,p=1"
