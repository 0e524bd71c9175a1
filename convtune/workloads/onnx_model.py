"""Reads the convolutions of an ONNX model: every Conv, ConvTranspose and DeformConv node, equal ones counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convtune.errors import SpecError
from convtune.spec import ConvSpec, Pads
from convtune.workloads.plain import plain_spec
from convtune.workloads.workload import Workload, located

Shape = tuple[int | str, ...]  # a string where a dimension has a name, or nothing, instead of a number
Fields = dict[str, Any]  # of ConvSpec

DTYPE = "float32"
_INPUTS = ("X", "W", "offset", "B", "mask")  # of DeformConv; the first two are those of the others, too


class Node:
    """A convolution's node, with the shapes around it.

    Args:
        shapes: of the tensors that are known, by name.
        dtypes: of the same, as NumPy names them.
    """

    def __init__(self, node: Any, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> None:
        import onnx

        self.operator: str = node.op_type
        self.name: str = node.name or node.output[0]
        self._inputs = list(node.input)
        self._shapes, self._dtypes = shapes, dtypes
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def attribute(self, name: str, default: Any) -> Any:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has_input(self, index: int) -> bool:
        """Whether an optional input is there; ONNX names an absent one ''."""
        return len(self._inputs) > index and bool(self._inputs[index])

    @property
    def dtype(self) -> str:
        return self._dtypes[self._inputs[0]]

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input. Raises SpecError that says how to make it known, or that there is no such input."""
        if not self.has_input(index):
            raise SpecError(f"it has no input {index}, {_INPUTS[index]}")
        name = self._inputs[index]
        shape = self._shapes.get(name)
        if shape is None:
            raise SpecError(
                f"the shape of its input {name!r} is unknown; run shape inference that knows this model's operators, "
                "such as `python -m onnxruntime.tools.symbolic_shape_infer --input MODEL --output FIXED`"
            )
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                raise SpecError(
                    f"dimension {axis} of its input {name!r} is {size or '?'}, not a number; fix the model's inputs, "
                    "such as with `python -m onnxruntime.tools.make_dynamic_shape_fixed "
                    f"--dim_param {size or 'NAME'} --dim_value 1 MODEL FIXED`"
                )
        return tuple(int(size) for size in shape)


def parse_onnx(path: Path) -> list[Workload]:
    """The convolutions of a model, in order; equal ones are one workload, of the first one's name, with their count.

    Weights in files beside the model are not needed. Nodes inside branches, loops and functions are found too, and
    counted once each.

    Raises:
        SpecError: the file is no model, or has no convolution, or the shape of one's input is unknown.
    """
    found: dict[ConvSpec, Workload] = {}
    for node in _nodes(_load(path), {}, {}):
        with located(f"{path}, node {node.name!r} ({node.operator})"):
            spec = _OPERATORS[node.operator](node)
        first = found.get(spec, Workload(f"{path.stem}/{node.name}", spec, count=0))
        found[spec] = replace(first, count=first.count + 1)
    if not found:
        raise SpecError(f"{path}: has no {', '.join(_OPERATORS)} node")
    return list(found.values())


def _load(path: Path) -> Any:
    """The graph of a model, functions inlined and shapes inferred."""
    try:
        import onnx
        import onnx.inliner
        import onnx.shape_inference
    except ImportError as error:
        raise SpecError(f"{path}: ONNX files need the onnx package: pip install 'convtune[onnx]'") from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise SpecError(f"{path}: is not an ONNX model: {error}") from error
    except onnx.shape_inference.InferenceError as error:
        raise SpecError(f"{path}: shape inference failed: {' '.join(str(error).split())}") from error


def _nodes(graph: Any, outer_shapes: Mapping[str, Shape], outer_dtypes: Mapping[str, str]) -> Iterator[Node]:
    """The convolutions of a graph and of the graphs inside its nodes, which see the tensors around them."""
    import onnx

    shapes, dtypes = dict(outer_shapes), dict(outer_dtypes)
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(_size(dimension) for dimension in tensor.shape.dim)
            dtypes[value.name] = _dtype(tensor.elem_type)
    for initializer in graph.initializer:
        shapes[initializer.name] = tuple(initializer.dims)
        dtypes[initializer.name] = _dtype(initializer.data_type)
    for node in graph.node:
        if node.op_type in _OPERATORS and node.domain in ("", "ai.onnx"):
            yield Node(node, shapes, dtypes)
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for subgraph in inner:
                yield from _nodes(subgraph, shapes, dtypes)


def _size(dimension: Any) -> int | str:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else str(dimension.dim_param)


def _dtype(element_type: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(element_type).name) if element_type else "undefined"


def _common(node: Node) -> Fields:
    """What the three operators have in common."""
    if node.dtype != DTYPE:
        raise SpecError(f"dtype={node.dtype!r} is not allowed; it must be {DTYPE}")
    x, weight = node.shape(0), node.shape(1)
    _check_weight(node, x, weight)
    ones = [1] * (len(x) - 2)
    return {
        "in_channels": x[1],
        "in_size": x[2:],
        "kernel": tuple(node.attribute("kernel_shape", weight[2:])),
        "batch": x[0],
        "stride": tuple(node.attribute("strides", ones)),
        "dilation": tuple(node.attribute("dilations", ones)),
        "groups": node.attribute("group", 1),
        "dtype": node.dtype,
    }


def _check_weight(node: Node, x: Sequence[int], weight: Sequence[int]) -> None:
    if len(weight) != len(x):
        raise SpecError(f"its weight has shape {weight}, its input {x}; they must have equally many dimensions")
    groups = node.attribute("group", 1)
    channels = weight[0] if node.operator == "ConvTranspose" else weight[1] * groups
    if channels != x[1]:
        raise SpecError(
            f"its weight of shape {weight} is for {channels} input channels with group={groups}, but its input of "
            f"shape {x} has {x[1]}"
        )


def _conv(node: Node) -> ConvSpec:
    auto_pad = node.attribute("auto_pad", "NOTSET")
    padding: Any = "same" if auto_pad.startswith("SAME") else _pads(node)
    spec = plain_spec(**_common(node), out_channels=node.shape(1)[0], padding=padding, bias=node.has_input(2))
    if auto_pad == "SAME_LOWER":  # an odd total pads more before, not after
        spec = spec.replace(padding=tuple((after, before) for before, after in spec.padding))
    return spec


def transposed_fields(node: Node) -> Fields:
    """ConvTranspose, as fields of ConvSpec but the variant; padding shrinks the output, as in PyTorch."""
    fields = _common(node)
    output_padding = tuple(node.attribute("output_padding", [0] * len(fields["in_size"])))
    return fields | {
        "out_channels": node.shape(1)[1] * fields["groups"],
        "padding": _transposed_pads(node, fields, output_padding),
        "output_padding": output_padding,
        "bias": node.has_input(2),
    }


def _transposed_pads(node: Node, fields: Fields, output_padding: Sequence[int]) -> Pads:
    """The paddings given, or those that give the output size asked for (ONNX operators, ConvTranspose)."""
    auto_pad = node.attribute("auto_pad", "NOTSET")
    out_size = node.attribute("output_shape", None)
    if auto_pad.startswith("SAME") and out_size is None:
        out_size = [size * stride for size, stride in zip(fields["in_size"], fields["stride"])]
    if out_size is None:
        return _pads(node)
    sizes = zip(out_size, fields["in_size"], fields["kernel"], fields["stride"], fields["dilation"], output_padding)
    totals = [(size - 1) * s + extra + (k - 1) * d + 1 - out for out, size, k, s, d, extra in sizes]
    if auto_pad == "SAME_UPPER":
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((total - total // 2, total // 2) for total in totals)


def _deformable(node: Node) -> ConvSpec:
    fields = deformable_fields(node)
    channels, offset_group = fields["in_channels"], fields["offset_groups"]
    if offset_group < 1 or channels % offset_group:
        raise SpecError(f"offset_group={offset_group} is out of range; it must divide the {channels} channels")
    spec = ConvSpec("deformable", **fields)
    for name, shape in spec.input_shapes.items():
        found = node.shape(_INPUTS.index(name))
        if found != shape:
            raise SpecError(f"its {name} has shape {found}; with offset_group={offset_group} it must be {shape}")
    return spec


def deformable_fields(node: Node) -> Fields:
    """DeformConv, as fields of ConvSpec but the variant."""
    return _common(node) | {
        "out_channels": node.shape(1)[0],
        "padding": _pads(node),
        "offset_groups": node.attribute("offset_group", 1),
        "bias": node.has_input(3),
        "modulated": node.has_input(4),
    }


def _pads(node: Node) -> Pads:
    """The attribute `pads`, whose first half is before and second half after each dimension."""
    rank = len(node.shape(0)) - 2
    pads = node.attribute("pads", [0] * (2 * rank))
    return tuple(zip(pads[:rank], pads[rank:]))


_OPERATORS: Mapping[str, Callable[[Node], ConvSpec]] = {
    "Conv": _conv,
    "ConvTranspose": lambda node: ConvSpec("transposed", **transposed_fields(node)),
    "DeformConv": _deformable,
}
