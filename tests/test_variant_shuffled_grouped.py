"""The shuffled grouped convolution against its definition, as an index in the store, and on a real network's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs
from synthetic_spaces import machine

from convtune import space, workloads
from convtune.errors import SpecError
from convtune.reference import random_operands, reference
from convtune.spec import ConvSpec


@settings(max_examples=40, deadline=None)
@given(specs(variants=("shuffled_grouped",)))
def test_channel_c_of_the_grouped_convolution_goes_where_the_paper_sends_it(spec: ConvSpec) -> None:
    spec = spec.replace(layout=None, bias=False, activation=None, residual=False)
    operands = random_operands(spec, seed=0)
    y, grouped = operands.reference(spec), operands.reference(spec.replace(variant="grouped"))
    run = spec.out_channels // spec.groups
    for group in range(spec.groups):
        for j in range(run):
            np.testing.assert_array_equal(y[:, j * spec.groups + group], grouped[:, group * run + j])


def shuffle(x: np.ndarray, groups: int) -> np.ndarray:
    """The shuffle alone: each group's convolution is the identity."""
    channels = x.shape[1]
    spec = ConvSpec("shuffled_grouped", channels, channels, x.shape[2:], 1, batch=len(x), groups=groups)
    return reference(spec, x, np.tile(np.eye(channels // groups), (groups, 1))[..., np.newaxis])


@given(st.integers(2, 9), st.integers(2, 9))
def test_shuffling_with_g_and_then_with_c_over_g_is_the_identity(groups: int, run: int) -> None:
    x = np.arange(2.0 * groups * run * 3).reshape(2, groups * run, 3)
    once = shuffle(x, groups)
    assert not np.array_equal(once, x)
    np.testing.assert_array_equal(shuffle(once, run), x)


def test_the_shuffle_equals_onnx_reshape_and_transpose() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(0).standard_normal((2, 12, 5))
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    cut = node("Reshape", ["x", "cut"], ["a"])
    swap = node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3])
    flatten = node("Reshape", ["b", "whole"], ["y"])
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, x.shape) for name in "xy"]
    shapes = [tensor(np.array([2, 3, 4, 5]), "cut"), tensor(np.array(x.shape), "whole")]
    graph = onnx.helper.make_graph([cut, swap, flatten], "shuffle", infos[:1], infos[1:], shapes)
    (y,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, {"x": x})
    np.testing.assert_array_equal(shuffle(x, 3), y)


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
    assert network.unavailable == 0
    shuffled = {w.spec: w.count for w in network.workloads if w.spec.variant == "shuffled_grouped"}
    # a stage's first unit has half the channels, at twice the size; the second stage's is not grouped
    assert {(s.in_channels, s.out_channels, s.groups, s.in_size[0]): n for s, n in shuffled.items()} == {
        (240, 60, 3, 28): 3,
        (240, 120, 3, 28): 1,
        (480, 120, 3, 14): 7,
        (480, 240, 3, 14): 1,
        (960, 240, 3, 7): 3,
    }
