"""ONNX files: the specs of their convolutions give what ONNX's own evaluator gives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convtune import ConvSpec, workloads
from convtune.errors import ConvtuneError, SpecError
from convtune.reference import reference
from convtune.workloads import Workload, onnx_model

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

RNG = np.random.default_rng(0)


def tensor(name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(name: str, *shape: int, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(dtype), name)


def model(
    nodes: Sequence[Any], inputs: Sequence[Any], initializers: Sequence[Any] = (), functions: Sequence[Any] = ()
) -> Any:
    outputs = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output]
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("custom", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions)


def parse(directory: Path, proto: Any) -> list[Workload]:
    path = directory / "net.onnx"
    onnx.save(proto, path)
    return workloads.parse([str(path)])


CONVS = {
    "conv": ((1, 3, 11, 12), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "defaults": ((2, 3, 11, 12), (4, 3, 3, 2), {}),
    "pointwise": ((1, 3, 5, 5), (4, 3, 1, 1), {"strides": [2, 2]}),
    "dilated": ((1, 3, 11, 12), (4, 3, 3, 3), {"dilations": [2, 1], "pads": [0, 3, 2, 1]}),
    "grouped": ((1, 6, 7, 7), (4, 3, 3, 3), {"group": 2, "kernel_shape": [3, 3]}),
    "depthwise": ((1, 4, 7, 7), (8, 1, 3, 3), {"group": 4, "strides": [3, 2]}),
    "one dimension": ((1, 3, 17), (4, 3, 4), {"pads": [3, 0]}),
    "three dimensions": ((1, 2, 5, 6, 7), (4, 2, 1, 3, 2), {"pads": [0, 1, 1, 0, 1, 0], "strides": [1, 2, 1]}),
    "same upper": ((1, 3, 8, 9), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "same lower": ((1, 3, 8, 9), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "valid": ((1, 3, 8, 9), (4, 3, 3, 4), {"auto_pad": "VALID"}),
}


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONVS.values(), ids=CONVS.keys())
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_conv(
    tmp_path: Path, x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("Conv", inputs, ["y"], name="only", **attributes)
    w, b = weights("w", *w_shape), weights("b", w_shape[0])
    proto = model([node], [tensor("x", *x_shape)], [w, b] if bias else [w])
    (workload,) = parse(tmp_path, proto)
    spec = workload.spec
    assert (workload.name, workload.count, spec.bias) == ("net/only", 1, bias)
    assert (spec.in_shape, spec.weight_shapes) == (x_shape, (w_shape,))
    x = RNG.standard_normal(x_shape).astype(np.float32)
    (y,) = ReferenceEvaluator(proto).run(None, {"x": x})
    ours = reference(spec, x, numpy_helper.to_array(w), numpy_helper.to_array(b) if bias else None)
    np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-5)


def test_same_lower_pads_an_odd_total_more_before(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 1])
    (workload,) = parse(tmp_path, model([node], [tensor("x", 1, 3, 8, 9)], [weights("w", 4, 3, 3, 4)]))
    assert workload.spec.padding == ((1, 0), (2, 1))


def test_equal_nodes_are_counted_under_the_first_ones_name(tmp_path: Path) -> None:
    conv = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], **conv),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["b"], name="second", **conv),
        helper.make_node("Conv", ["b", "w3"], ["c"], name="other"),
        helper.make_node("Conv", ["b", "w1"], ["d"], name="third", dilations=[1, 1], group=1, **conv),
    ]
    initializers = [weights("w1", 4, 4, 3, 3), weights("w2", 4, 4, 3, 3), weights("w3", 4, 4, 1, 1)]
    assert parse(tmp_path, model(nodes, [tensor("x", 1, 4, 8, 8)], initializers)) == [
        Workload("net/a", ConvSpec("conv", 4, 4, (8, 8), 3, padding=1), 3),
        Workload("net/other", ConvSpec("pointwise", 4, 4, (8, 8), 1), 1),
    ]


def test_shapes_through_reshapes_and_weights_from_constants(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2, -1, 6, 6]), "shape")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Constant", [], ["w"], value=weights("value", 5, 3, 3, 3)),
        helper.make_node("Conv", ["r", "w", ""], ["y"]),
    ]
    (workload,) = parse(tmp_path, model(nodes, [tensor("x", 2, 108)], [shape]))
    assert workload == Workload("net/y", ConvSpec("conv", 3, 5, (6, 6), 3, batch=2))


def test_nodes_in_branches_see_the_tensors_around_them(tmp_path: Path) -> None:
    out = helper.make_empty_tensor_value_info("inner")
    then = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["inner"])], "then", [], [out])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "else", [], [out])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
    inputs = [tensor("flag", dtype=TensorProto.BOOL), tensor("x", 1, 3, 8, 8)]
    assert [w.spec for w in parse(tmp_path, model([node], inputs, [weights("w", 3, 3, 3, 3)]))] == [
        ConvSpec("conv", 3, 3, (8, 8), 3)
    ]


def test_nodes_in_functions(tmp_path: Path) -> None:
    body = [helper.make_node("Conv", ["a", "b"], ["c"], pads=[1, 1]), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("custom", "ConvRelu", ["a", "b"], ["d"], body, [helper.make_opsetid("", 19)])
    node = helper.make_node("ConvRelu", ["x", "w"], ["y"], domain="custom")
    proto = model([node], [tensor("x", 1, 3, 8)], [weights("w", 4, 3, 3)], [function])
    assert [w.spec for w in parse(tmp_path, proto)] == [ConvSpec("conv", 3, 4, 8, 3, padding=1)]


def test_weights_in_a_file_beside_the_model_are_not_needed(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    proto = model([node], [tensor("x", 1, 64, 8, 8)], [weights("w", 64, 64, 3, 3)])
    path = tmp_path / "big.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="big.data", size_threshold=0)
    (tmp_path / "big.data").unlink()
    (workload,) = workloads.parse([str(path)], layout="channels_last")
    assert workload.spec == ConvSpec("conv", 64, 64, (8, 8), 3, layout="NHWC")


TRANSPOSED = {
    "dcgan": ((1, 6, 4, 4), (6, 3, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "output padding": ((1, 6, 4, 5), (6, 3, 3, 3), {"strides": [3, 2], "output_padding": [2, 1], "dilations": [1, 2]}),
    "grouped": ((1, 6, 4), (6, 2, 3), {"group": 3, "pads": [1, 0]}),
    "output shape": ((1, 2, 5, 5), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [10, 9]}),
    "same upper": ((1, 2, 5, 5), (2, 3, 4, 3), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 5, 5), (2, 3, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
}


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_the_fields_of_a_transposed_convolution_give_onnx_output_shape(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    proto = model([node], [tensor("x", *x_shape)], [weights("w", *w_shape)])
    (output,) = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.output
    expected = tuple(d.dim_value for d in output.type.tensor_type.shape.dim)
    f = onnx_model.transposed_fields(onnx_model.Node(node, {"x": x_shape, "w": w_shape}, {"x": "float32"}))
    # PyTorch: (in - 1) s - pads + d (k - 1) + output_padding + 1
    axes = zip(f["in_size"], f["stride"], f["padding"], f["dilation"], f["kernel"], f["output_padding"])
    out = tuple((i - 1) * s - sum(p) + d * (k - 1) + extra + 1 for i, s, p, d, k, extra in axes)
    assert (f["batch"], f["out_channels"], *out) == expected
    assert f["in_channels"] == w_shape[0]


@pytest.mark.parametrize("case", ["dcgan", "output padding"])  # ONNX's evaluator fails on the others
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_transposed(tmp_path: Path, case: str, bias: bool) -> None:
    x_shape, w_shape, attributes = TRANSPOSED[case]
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("ConvTranspose", inputs, ["y"], **attributes)
    w, b = weights("w", *w_shape), weights("b", w_shape[1] * attributes.get("group", 1))
    proto = model([node], [tensor("x", *x_shape)], [w, b] if bias else [w])
    (workload,) = parse(tmp_path, proto)
    spec = workload.spec
    assert (spec.variant, spec.in_shape, spec.weight_shapes, spec.bias) == ("transposed", x_shape, (w_shape,), bias)
    x = RNG.standard_normal(x_shape).astype(np.float32)
    (y,) = ReferenceEvaluator(proto).run(None, {"x": x})
    ours = reference(spec, x, numpy_helper.to_array(w), numpy_helper.to_array(b) if bias else None)
    np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-5)


def test_the_paddings_of_a_transposed_convolution_with_an_odd_total() -> None:
    shapes = {"x": (1, 2, 5), "w": (2, 3, 4)}
    paddings = {}
    for auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], auto_pad=auto_pad)  # (5 - 1) + 4 - 5 = 3
        paddings[auto_pad] = onnx_model.transposed_fields(onnx_model.Node(node, shapes, {"x": "float32"}))["padding"]
    assert paddings == {"SAME_UPPER": ((1, 2),), "SAME_LOWER": ((2, 1),)}


def test_the_fields_of_a_deformable_convolution() -> None:
    shapes = {"x": (1, 8, 10, 12), "w": (16, 4, 3, 3), "offset": (1, 36, 10, 12)}
    attributes = {"pads": [1, 1, 1, 1], "group": 2, "offset_group": 2}
    for inputs, bias, modulated in (
        (["x", "w", "offset"], False, False),
        (["x", "w", "offset", "b"], True, False),
        (["x", "w", "offset", "", "mask"], False, True),
        (["x", "w", "offset", "b", "mask"], True, True),
    ):
        node = helper.make_node("DeformConv", inputs, ["y"], **attributes)
        fields = onnx_model.deformable_fields(onnx_model.Node(node, shapes, {"x": "float32"}))
        assert fields == {
            "in_channels": 8,
            "out_channels": 16,
            "in_size": (10, 12),
            "kernel": (3, 3),
            "batch": 1,
            "stride": (1, 1),
            "dilation": (1, 1),
            "padding": ((1, 1), (1, 1)),
            "groups": 2,
            "offset_groups": 2,
            "modulated": modulated,
            "bias": bias,
            "dtype": "float32",
        }


DEFORMABLE = {
    "defaults": ((1, 4, 7, 8), (3, 4, 3, 3), {}),
    "strided": ((2, 3, 9, 7), (4, 3, 3, 2), {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
    "grouped": ((1, 6, 6, 6), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
    "offset groups": ((1, 4, 6, 6), (2, 4, 1, 3), {"offset_group": 2}),
}


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), DEFORMABLE.values(), ids=DEFORMABLE.keys())
@pytest.mark.parametrize("optional", [(), ("b",), ("", "mask"), ("b", "mask")], ids="/".join)
@pytest.mark.parametrize("opset", [19, 22])
def test_deformable(
    tmp_path: Path,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    attributes: dict[str, Any],
    optional: tuple[str, ...],
    opset: int,
) -> None:
    node = helper.make_node("DeformConv", ["x", "w", "offset", *optional], ["y"], **attributes)
    fields = onnx_model.deformable_fields(onnx_model.Node(node, {"x": x_shape, "w": w_shape}, {"x": "float32"}))
    spec = ConvSpec("deformable", **fields)
    w, b = weights("w", *w_shape), weights("b", w_shape[0])
    sampling = {name: spec.input_shapes[name] for name in ("offset", "mask") if name in node.input}
    inputs = [tensor("x", *x_shape), *(tensor(name, *shape) for name, shape in sampling.items())]
    proto = model([node], inputs, [w, b] if "b" in optional else [w])
    proto.opset_import[0].version = opset
    (workload,) = parse(tmp_path, proto)
    assert workload.spec == spec
    assert (spec.in_shape, spec.weight_shapes) == (x_shape, (w_shape,))
    assert {*spec.input_shapes} == {*sampling}
    arrays = {name: RNG.uniform(-1.5, 1.5, shape).astype(np.float32) for name, shape in sampling.items()}
    x = RNG.standard_normal(x_shape).astype(np.float32)
    (y,) = ReferenceEvaluator(proto).run(None, {"x": x} | arrays)
    bias = numpy_helper.to_array(b) if "b" in optional else None
    ours = reference(spec, x, numpy_helper.to_array(w), bias, **arrays)
    np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (
            model(
                [helper.make_node("Conv", ["x", "w"], ["y"])], [tensor("x", "N", 4, 8, 8)], [weights("w", 4, 4, 3, 3)]
            ),
            r"node 'y' \(Conv\): dimension 0 of its input 'x' is N, not a number; fix .* --dim_param N --dim_value 1",
        ),
        (
            model(
                [helper.make_node("Conv", ["x", "w"], ["y"])], [tensor("x", 1, 4, None, 8)], [weights("w", 4, 4, 3, 3)]
            ),
            r"node 'y' \(Conv\): dimension 2 of its input 'x' is \?, not a number",
        ),
        (
            model(
                [
                    helper.make_node("Mystery", ["x"], ["m"], domain="custom"),
                    helper.make_node("Conv", ["m", "w"], ["y"], name="after mystery"),
                ],
                [tensor("x", 1, 4, 8, 8)],
                [weights("w", 4, 4, 3, 3)],
            ),
            "node 'after mystery' .* the shape of its input 'm' is unknown; run shape inference",
        ),
        (
            model(
                [helper.make_node("Conv", ["x", "w"], ["y"])],
                [tensor("x", 1, 4, 8, 8, dtype=TensorProto.FLOAT16)],
                [weights("w", 4, 4, 3, 3, dtype=np.float16)],
            ),
            r"node 'y' \(Conv\): dtype='float16' is not allowed; it must be float32",
        ),
        (
            model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", 1, 4)]),
            r"net\.onnx: has no Conv, ConvTranspose, DeformConv node",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_node(tmp_path: Path, proto: Any, message: str) -> None:
    with pytest.raises(ConvtuneError, match=message) as raised:
        parse(tmp_path, proto)
    assert str(raised.value).startswith(str(tmp_path / "net.onnx"))
    assert "\n" not in str(raised.value)


OFFSET = (1, 36, 8, 8)  # two offset groups of nine taps, two numbers each


@pytest.mark.parametrize(
    ("inputs", "offset", "mask", "message"),
    [
        (("x", "w"), OFFSET, None, "it has no input 2, offset"),
        (("x", "w", "", "", "mask"), OFFSET, (1, 18, 8, 8), "it has no input 2, offset"),
        (
            ("x", "w", "offset"),
            (1, 18, 8, 8),
            None,
            r"its offset has shape \(1, 18, 8, 8\); with offset_group=2 it must be \(1, 36, 8, 8\)",
        ),
        (("x", "w", "offset"), (1, 36, 10, 10), None, r".* with offset_group=2 it must be \(1, 36, 8, 8\)"),
        (
            ("x", "w", "offset", "", "mask"),
            OFFSET,
            OFFSET,
            r"its mask has shape \(1, 36, 8, 8\); with offset_group=2 it must be \(1, 18, 8, 8\)",
        ),
        (("x", "w", "offset"), (1, 36, "H", 8), None, "dimension 2 of its input 'offset' is H, not a number; fix"),
        (("x", "w", "offset", "", "mask"), OFFSET, (1, 18, 8, None), r"dimension 3 of its input 'mask' is \?, not a"),
    ],
)
def test_offsets_and_masks_of_other_shapes_are_refused(
    tmp_path: Path, inputs: Sequence[str], offset: Sequence[Any], mask: Sequence[Any] | None, message: str
) -> None:
    node = helper.make_node("DeformConv", inputs, ["y"], name="odd", offset_group=2)
    sampling = [tensor("offset", *offset), *([tensor("mask", *mask)] if mask else [])]
    proto = model([node], [tensor("x", 1, 4, 10, 10), *sampling], [weights("w", 3, 4, 3, 3)])
    with pytest.raises(SpecError, match=rf"net\.onnx, node 'odd' \(DeformConv\): {message}"):
        parse(tmp_path, proto)


@pytest.mark.parametrize("offset_group", [0, 3])
def test_offset_groups_that_do_not_divide_the_channels_are_named_as_in_the_model(
    tmp_path: Path, offset_group: int
) -> None:
    node = helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], offset_group=offset_group)
    proto = model([node], [tensor("x", 1, 4, 10, 10), tensor("offset", *OFFSET)], [weights("w", 3, 4, 3, 3)])
    with pytest.raises(SpecError, match=rf"offset_group={offset_group} is out of range; it must divide the 4 channels"):
        parse(tmp_path, proto)


def test_a_convolution_without_a_weight(tmp_path: Path) -> None:
    proto = model([helper.make_node("Conv", ["x"], ["y"])], [tensor("x", 1, 4, 10, 10)])
    with pytest.raises(SpecError, match=r"node 'y' \(Conv\): it has no input 1, W"):
        parse(tmp_path, proto)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("this is no protobuf")
    with pytest.raises(SpecError, match=r"net\.onnx: is not an ONNX model"):
        workloads.parse([str(tmp_path / "net.onnx")])


def test_without_the_onnx_package_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SpecError, match=r"ONNX files need the onnx package: pip install 'convtune\[onnx\]'"):
        workloads.parse([str(tmp_path / "net.onnx")])


@pytest.mark.parametrize(
    ("operator", "w_shape", "said"),
    [
        ("Conv", (4, 2, 3, 3), "is for 2 input channels with group=1"),
        ("ConvTranspose", (2, 4, 3, 3), "is for 2 input channels with group=1"),
        ("DeformConv", (4, 2, 3, 3), "is for 2 input channels with group=1"),
    ],
)
def test_a_weight_for_other_channels_is_refused(
    tmp_path: Path, operator: str, w_shape: tuple[int, ...], said: str
) -> None:
    inputs = ["x", "w", "x"] if operator == "DeformConv" else ["x", "w"]
    proto = model(
        [helper.make_node(operator, inputs, ["y"], name="odd")], [tensor("x", 1, 3, 8, 8)], [weights("w", *w_shape)]
    )
    with pytest.raises(SpecError, match=rf"net\.onnx, node 'odd' \({operator}\): .*{said}, but its input .* has 3"):
        parse(tmp_path, proto)


def test_capitals_in_the_suffix(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="a")], [tensor("x", 1, 3, 8, 8)], [weights("w", 4, 3, 3, 3)]
    )
    onnx.save(proto, tmp_path / "NET.ONNX", format="protobuf")
    assert len(workloads.parse([str(tmp_path / "NET.ONNX")])) == 1
