"""A spec as an ONNX model with constant weights, for the peers that read one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convtune.activations import LEAKY_SLOPE
from convtune.peers.base import Configuration, Problem, Unsupported, arranged

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

OPSET, IR_VERSION = 20, 9  # DeformConv is from 19 on, Gelu from 20
_ONE_NODE = {"relu": "Relu", "hardswish": "HardSwish", "gelu": "Gelu", "sigmoid": "Sigmoid", "tanh": "Tanh"}


def methods(spec: ConvSpec) -> dict[str, int]:
    """ONNX is channels first only."""
    return {"channels_first": 0}


def inputs(problem: Problem, configuration: Configuration) -> dict[str, Any]:
    """The model's inputs by name, in the configuration's layout."""
    operands = problem.operands
    given = {"x": operands.x, **operands.inputs}
    if operands.residual is not None:
        given["residual"] = operands.residual
    return {name: arranged(array, problem.spec, configuration.layout) for name, array in given.items()}


def out_shape(spec: ConvSpec, layout: str) -> tuple[int, ...]:
    return spec.replace(layout=layout).out_shape


def model(problem: Problem, configuration: Configuration) -> bytes:
    """The model, whose output is "y". Its weights are constants, and the conversion, where there is one, transposes.

    Raises Unsupported where ONNX has no such operator.
    """
    return _Graph(problem, configuration).serialized()


class _Graph:
    def __init__(self, problem: Problem, configuration: Configuration) -> None:
        self._problem, self._configuration = problem, configuration
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def serialized(self) -> bytes:
        from onnx import TensorProto, helper

        spec, operands = self._problem.spec, self._problem.operands
        arrays = inputs(self._problem, self._configuration)
        entered = {name: self._entered(name) for name in arrays}
        current, biases = entered["x"], iter(operands.biases)
        for stage, weight in zip(spec.stages, operands.weights):
            current = self._stage(stage, current, weight, next(biases) if stage.bias else None, entered)
        y = self._transposed(current, [0, *range(2, spec.rank + 2), 1], forward=self._last_given)
        self._nodes.append(helper.make_node("Identity", [y], ["y"]))
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in arrays.items()]
        shape = out_shape(spec, self._configuration.layout)
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "convolution", given, [out], self._constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(  # type: ignore[no-any-return]
            graph, opset_imports=[opset], ir_version=IR_VERSION
        ).SerializeToString()

    @property
    def _last_given(self) -> bool:
        """Whether a conversion makes channels first of channels last; else there is none, as ONNX is channels first."""
        return self._configuration.converts

    def _entered(self, name: str) -> str:
        rank = self._problem.spec.rank
        return self._transposed(name, [0, rank + 1, *range(1, rank + 1)], forward=self._last_given)

    def _transposed(self, name: str, permutation: Sequence[int], forward: bool) -> str:
        return self._node("Transpose", [name], perm=list(permutation)) if forward else name

    def _node(self, operator: str, given: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(given), [name], **attributes))
        return name

    def _constant(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _stage(self, stage: ConvSpec, x: str, weight: Any, bias: Any, entered: dict[str, str]) -> str:
        if bias is not None and stage.variant == "shuffled_grouped":  # it comes after the shuffle
            bias = bias.reshape(-1, stage.groups).T.reshape(-1)
        operands = [x, self._constant(weight)]
        y = self._convolution(stage, operands, "" if bias is None else self._constant(bias), entered)
        if stage.variant == "shuffled_grouped":
            y = self._shuffled(stage, y)
        if stage.residual:
            y = self._node("Add", [y, entered["residual"]])
        return self._activated(stage.activation, y) if stage.activation else y

    def _convolution(self, stage: ConvSpec, operands: list[str], bias: str, entered: dict[str, str]) -> str:
        pads = [before for before, _ in stage.padding] + [after for _, after in stage.padding]
        geometry: dict[str, Any] = {"kernel_shape": list(stage.kernel), "strides": list(stage.stride)}
        geometry |= {"dilations": list(stage.dilation), "group": stage.groups}
        if stage.variant == "deformable":
            _no_negative(stage)
            mask = [entered["mask"]] if "mask" in entered else []
            given = [*operands, entered["offset"], bias, *mask]
            while not given[-1]:
                given.pop()
            return self._node("DeformConv", given, pads=pads, offset_group=stage.offset_groups, **geometry)
        given = [*operands, *([bias] if bias else [])]
        if stage.variant == "transposed":
            _no_negative(stage)
            extra = list(stage.output_padding or ())
            return self._node("ConvTranspose", given, pads=pads, output_padding=extra, **geometry)
        if min(pads) < 0:  # Conv takes none; Pad crops
            given[0] = self._padded(stage, given[0])
            pads = [0] * len(pads)
        return self._node("Conv", given, pads=pads, **geometry)

    def _padded(self, stage: ConvSpec, x: str) -> str:
        import numpy as np

        befores, afters = zip(*stage.padding)
        return self._node("Pad", [x, self._constant(np.array([0, 0, *befores, 0, 0, *afters], np.int64))])

    def _shuffled(self, stage: ConvSpec, y: str) -> str:
        import numpy as np

        grouped = [stage.batch, stage.groups, stage.out_channels // stage.groups, *stage.out_size]
        whole = [stage.batch, stage.out_channels, *stage.out_size]
        y = self._node("Reshape", [y, self._constant(np.array(grouped, np.int64))])
        y = self._node("Transpose", [y], perm=[0, 2, 1, *range(3, 3 + stage.rank)])
        return self._node("Reshape", [y, self._constant(np.array(whole, np.int64))])

    def _activated(self, activation: str, y: str) -> str:
        import numpy as np

        if activation == "relu6":
            return self._node("Clip", [y, *(self._constant(np.array(bound, np.float32)) for bound in (0, 6))])
        if activation == "leaky_relu":
            return self._node("LeakyRelu", [y], alpha=LEAKY_SLOPE)
        if activation == "silu":
            return self._node("Mul", [y, self._node("Sigmoid", [y])])
        return self._node(_ONE_NODE[activation], [y])


def _no_negative(spec: ConvSpec) -> None:
    if any(after < 0 for _, after in spec.padding):
        raise Unsupported(f"ONNX's {spec.variant} convolution with padding {spec.padding}: none may be negative")
