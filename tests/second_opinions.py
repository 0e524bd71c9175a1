"""What ONNX's reference evaluator and PyTorch make of a spec, each variant spelled out here as their operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from convtune.reference import OperandArrays
from convtune.spec import ConvSpec, Pads

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """One operator that both have: "conv", "transposed" or "deformable"."""

    operator: str
    stride: Sequence[int]
    padding: Pads
    dilation: Sequence[int]
    groups: int
    output_padding: Sequence[int]
    shuffled: bool = False


def whole(spec: ConvSpec, operator: str = "conv", **changes: Any) -> Step:
    """The operator with the spec's own window."""
    extra = spec.output_padding or (0,) * spec.rank
    step = Step(operator, spec.stride, spec.padding, spec.dilation, spec.groups, extra)
    return replace(step, **changes)


def pointwise(spec: ConvSpec) -> Step:
    ones = (1,) * spec.rank
    return Step("conv", ones, ((0, 0),) * spec.rank, ones, 1, (0,) * spec.rank)


def one_dimension_after_another(spec: ConvSpec, groups: int) -> list[Step]:
    """For each dimension the window that has its stride, padding and dilation, and is neutral in the others."""
    found = []
    for axis in range(spec.rank):
        stride, padding, dilation = [1] * spec.rank, [(0, 0)] * spec.rank, [1] * spec.rank
        stride[axis], padding[axis], dilation[axis] = spec.stride[axis], spec.padding[axis], spec.dilation[axis]
        found.append(Step("conv", stride, tuple(padding), dilation, groups, (0,) * spec.rank))
    return found


STEPS: Mapping[str, Callable[[ConvSpec], list[Step]]] = {
    "conv": lambda spec: [whole(spec)],
    "pointwise": lambda spec: [whole(spec)],
    "dilated": lambda spec: [whole(spec)],
    "grouped": lambda spec: [whole(spec)],
    "depthwise": lambda spec: [whole(spec)],
    "shuffled_grouped": lambda spec: [whole(spec, shuffled=True)],
    "transposed": lambda spec: [whole(spec, "transposed")],
    "deformable": lambda spec: [whole(spec, "deformable")],
    "depthwise_separable": lambda spec: [whole(spec, groups=spec.in_channels), pointwise(spec)],
    "spatially_separable": lambda spec: one_dimension_after_another(spec, groups=1),
    "flattened": lambda spec: [pointwise(spec), *one_dimension_after_another(spec, groups=spec.out_channels)],
}


class Opinion(Protocol):
    """How one of the two does what a spec is made of, in float64 and channels first."""

    def apply(self, step: Step, x: Array, weight: Array, inputs: Mapping[str, Array]) -> Array: ...

    def shuffle(self, x: Array, groups: int) -> Array: ...

    def activate(self, name: str, x: Array) -> Array: ...


def evaluate(opinion: Opinion, spec: ConvSpec, operands: OperandArrays) -> Array:
    """The spec's output, in its layout."""
    first = (lambda a: np.moveaxis(a, -1, 1)) if spec.layout.endswith("C") else np.asarray
    y = first(operands.x).astype(np.float64)
    inputs = {name: first(array).astype(np.float64) for name, array in operands.inputs.items()}
    has_bias = (*(spec.stage_bias or ()), spec.bias)
    activations = (*(spec.stage_activations or ()), spec.activation)
    biases, steps = list(operands.biases), STEPS[spec.variant](spec)
    for number, (step, weight) in enumerate(zip(steps, operands.weights, strict=True)):
        y = opinion.apply(step, np.ascontiguousarray(y), weight.astype(np.float64), inputs)
        y = opinion.shuffle(y, step.groups) if step.shuffled else y
        if has_bias[number]:
            y = y + biases.pop(0).reshape(-1, *[1] * spec.rank)
        if number == len(steps) - 1 and operands.residual is not None:
            y = y + first(operands.residual)
        if (name := activations[number]) is not None:
            y = opinion.activate(name, y)
    return np.moveaxis(y, 1, -1) if spec.layout.endswith("C") else y


def cut(x: Array, padding: Pads) -> tuple[Array, Pads]:
    """The input without what a negative padding leaves unused, which ONNX has no word for, and the padding left."""
    for axis, (before, after) in enumerate(padding):
        kept = x.shape[2 + axis] + min(after, 0)
        if kept < 1:  # windows see the padding alone, of which one element stands for the input
            x, before, after = np.zeros_like(x.take([0], 2 + axis)), before + kept - 1, 0
        else:
            x, after = x.take(range(kept), 2 + axis), max(after, 0)
        padding = (*padding[:axis], (before, after), *padding[axis + 1 :])
    return x, padding


def around(
    step: Step, x: Array, weight: Array, inputs: Mapping[str, Array]
) -> tuple[Array, Mapping[str, Array], tuple[slice, ...]]:
    """A deformable convolution without padding that has this one's outputs, and more where a padding is negative.

    Neither knows such a padding, by which there are fewer outputs, but no less of the input to sample.

    Returns:
        the input with zeros around it, offset and mask for all outputs, and which of them are this one's.
    """
    x = np.pad(x, [(0, 0), (0, 0), *((before, max(after, 0)) for before, after in step.padding)])
    windows = zip(x.shape[2:], weight.shape[2:], step.stride, step.dilation)
    outputs = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in windows]
    own = inputs["offset"].shape[2:]
    more = [(0, 0), (0, 0), *((0, all_of_them - size) for all_of_them, size in zip(outputs, own))]
    return x, {name: np.pad(array, more) for name, array in inputs.items()}, (..., *map(slice, own))


class OnnxEvaluator:
    """The reference evaluator of ONNX, one node at a time."""

    def apply(self, step: Step, x: Array, weight: Array, inputs: Mapping[str, Array]) -> Array:
        if step.operator == "transposed":
            return self.transposed(step, x, weight)
        if step.operator == "deformable":
            return self.deformable(step, x, weight, inputs)
        x, padding = cut(x, step.padding)
        return self.run("Conv", x, weight, group=step.groups, pads=pads(padding), **window(step))

    def transposed(self, step: Step, x: Array, weight: Array) -> Array:
        # onnx 1.23's evaluator is wrong of several groups, and fails where output_padding reaches the stride
        extra = [more if more < stride else 0 for more, stride in zip(step.output_padding, step.stride)]
        padding = tuple(
            (before, after - more + taken)
            for (before, after), more, taken in zip(step.padding, step.output_padding, extra)
        )
        fields = {**window(step), "pads": pads(padding), "output_padding": extra, "kernel_shape": weight.shape[2:]}
        groups = zip(np.split(x, step.groups, axis=1), np.split(weight, step.groups))
        return np.concatenate([self.run("ConvTranspose", *group, **fields) for group in groups], axis=1)

    def deformable(self, step: Step, x: Array, weight: Array, inputs: Mapping[str, Array]) -> Array:
        x, inputs, kept = around(step, x, weight, inputs)
        stride = list(step.stride)
        for axis in (2, 3):
            if x.shape[axis] == 1:  # onnx 1.23's evaluator divides by the size - 1
                x, stride[axis - 2] = np.pad(x, [(0, int(axis == a)) for a in range(4)]), 2
        mask = inputs.get("mask", np.ones_like(inputs["offset"][:, ::2]))
        fields = {**window(replace(step, stride=stride)), "pads": [0] * 4, "group": step.groups}
        offset_groups = inputs["offset"].shape[1] // (2 * math.prod(weight.shape[2:]))
        operands = (x, weight, inputs["offset"], np.zeros(len(weight)), mask)
        return self.run("DeformConv", *operands, offset_group=offset_groups, **fields)[kept]

    def shuffle(self, x: Array, groups: int) -> Array:
        n, channels, *size = x.shape
        split = self.run("Reshape", x, np.array([n, groups, channels // groups, *size]))
        swapped = self.run("Transpose", split, perm=[0, 2, 1, *range(3, 3 + len(size))])
        return self.run("Reshape", swapped, np.array(x.shape))

    def activate(self, name: str, x: Array) -> Array:
        zero, three, six = map(np.float64, (0, 3, 6))
        return {
            "relu": lambda: self.run("Relu", x),
            "relu6": lambda: self.run("Clip", x, zero, six),
            "leaky_relu": lambda: self.run("PRelu", x, np.array([0.01])),
            "silu": lambda: self.run("Mul", x, self.run("Sigmoid", x)),
            # as an operator it has a constant that is rounded to float32
            "hardswish": lambda: self.run("Mul", x, self.run("Clip", self.run("Add", x, three), zero, six)) / 6,
            "gelu": lambda: x / 2 * (1 + self.run("Erf", x / math.sqrt(2))),
            "sigmoid": lambda: self.run("Sigmoid", x),
            "tanh": lambda: self.run("Tanh", x),
        }[name]()

    @staticmethod
    def run(operator: str, *operands: Array, **attributes: Any) -> Array:
        from onnx.helper import make_node
        from onnx.reference import ReferenceEvaluator

        names = [f"operand{i}" for i in range(len(operands))]
        (y,) = ReferenceEvaluator(make_node(operator, names, ["y"], **attributes)).run(None, dict(zip(names, operands)))
        return y


def window(step: Step) -> dict[str, Any]:
    return {"strides": list(step.stride), "dilations": list(step.dilation)}


def pads(padding: Pads) -> list[int]:
    """As ONNX orders it: all befores, then all afters."""
    return [before for before, _ in padding] + [after for _, after in padding]


class PyTorch:
    """PyTorch, and of deformable convolutions torchvision."""

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")
        self.torch.set_num_threads(1)  # its threads wait for each other longer than such small sums take

    def apply(self, step: Step, x: Array, weight: Array, inputs: Mapping[str, Array]) -> Array:
        functional, rank = self.torch.nn.functional, len(step.stride)
        if step.operator == "transposed":
            transpose = getattr(functional, f"conv_transpose{rank}d")
            fields = {"stride": step.stride, "dilation": step.dilation, "groups": step.groups}
            y = transpose(self.tensor(x), self.tensor(weight), **fields)
            taken = zip(step.padding, step.output_padding)
            return self.padded(y, [(-before, extra - after) for (before, after), extra in taken]).numpy()
        if step.operator == "deformable":
            return self.deformable(step, x, weight, inputs)
        padded = self.padded(self.tensor(x), step.padding)
        convolve = getattr(functional, f"conv{rank}d")
        fields = {"stride": list(step.stride), "dilation": list(step.dilation), "groups": step.groups}
        return convolve(padded, self.tensor(weight), **fields).numpy()

    def deformable(self, step: Step, x: Array, weight: Array, inputs: Mapping[str, Array]) -> Array:
        from torchvision_on_cpu import torchvision

        x, inputs, kept = around(step, x, weight, inputs)
        tensors = {"weight": weight, **inputs}
        fields = {"stride": tuple(step.stride), "dilation": tuple(step.dilation)}
        operands = {name: self.tensor(array) for name, array in tensors.items()}
        return torchvision().ops.deform_conv2d(self.tensor(x), **operands, **fields).numpy()[kept]

    def shuffle(self, x: Array, groups: int) -> Array:
        return self.torch.nn.functional.channel_shuffle(self.tensor(x), groups).numpy()

    def activate(self, name: str, x: Array) -> Array:
        functional = self.torch.nn.functional
        return getattr(functional, name)(self.tensor(x)).numpy()

    def tensor(self, array: Array) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array))

    def padded(self, tensor: Any, padding: Sequence[tuple[int, int]]) -> Any:
        """Zeros around it; then, where a padding is negative, less of it."""
        last_first = [size for before_after in reversed(padding) for size in before_after]
        pad = self.torch.nn.functional.pad
        return pad(pad(tensor, [max(size, 0) for size in last_first]), [min(size, 0) for size in last_first])
