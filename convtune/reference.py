"""The answer every kernel is compared with: a spec's convolution and epilogue in NumPy, all of it in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convtune import activations, variants
from convtune.errors import SpecError

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def reference(
    spec: ConvSpec,
    x: ArrayLike,
    weight: ArrayLike | tuple[ArrayLike, ...],
    bias: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
) -> Float64:
    """activation(convolution(x, weight) + bias + residual), float64 inside and out.

    Args:
        x: of shape `spec.in_shape`, in the spec's layout.
        weight: of shape `spec.weight_shapes[0]`, in PyTorch's layout; a tuple of them for a composite variant.
        bias: (out_channels,), where the spec has one.
        offset, mask: for deformable variants only.
        residual: of shape `spec.out_shape`, where the spec has one.

    Returns:
        y, of shape `spec.out_shape`, in the spec's layout.

    Raises:
        SpecError: an operand is missing, or not in the spec, or of another shape, or no real numbers.
    """
    for name, given in (("offset", offset), ("mask", mask)):
        if given is not None:
            raise SpecError(f"{name} is given, but {spec.variant} takes none: {spec}")
    xs = _channels_first(spec, _operand(spec, "x", x, spec.in_shape))
    y = variants.get(spec.variant).reference(spec, xs, _weights(spec, weight))
    if (per_channel := _optional(spec, "bias", spec.bias, bias, (spec.out_channels,))) is not None:
        y += per_channel.reshape(-1, *(1 for _ in spec.out_size))
    if (added := _optional(spec, "residual", spec.residual, residual, spec.out_shape)) is not None:
        y += _channels_first(spec, added)
    if spec.activation is not None:
        y = activations.get(spec.activation).numpy(y)
    return np.ascontiguousarray(np.moveaxis(y, 1, -1) if spec.channels_last else y)


@dataclass(frozen=True)
class OperandArrays:
    """A spec's operands as C-contiguous float32 arrays; None where the spec has none."""

    x: Float32
    weights: tuple[Float32, ...]
    bias: Float32 | None
    residual: Float32 | None

    def reference(self, spec: ConvSpec) -> Float64:
        """The reference of these operands; see `reference`."""
        return reference(spec, self.x, self.weights, bias=self.bias, residual=self.residual)


def random_operands(spec: ConvSpec, seed: int) -> OperandArrays:
    """Operands for verifying, the same for the same spec, seed and NumPy.

    All are normally distributed with mean 0: x, bias and residual with variance 1, weights with variance 1 / fan-in,
    so that the convolution's variance is about 1 and the activations are tried on both of their sides.
    """
    # SFC64 draws a hundred million of these in 1.1 s, PCG64 in 2.7 s
    generator = np.random.Generator(np.random.SFC64(seed))

    def normal(shape: Sequence[int], variance: float = 1.0) -> Float32:
        array = generator.standard_normal(shape, dtype=np.float32)
        return array if variance == 1.0 else np.multiply(array, np.float32(math.sqrt(variance)), out=array)

    fan_ins = variants.get(spec.variant).fan_in(spec)
    return OperandArrays(
        x=normal(spec.in_shape),
        weights=tuple(normal(shape, 1.0 / fan_in) for shape, fan_in in zip(spec.weight_shapes, fan_ins)),
        bias=normal((spec.out_channels,)) if spec.bias else None,
        residual=normal(spec.out_shape) if spec.residual else None,
    )


def _weights(spec: ConvSpec, weight: Any) -> list[Float64]:
    given = weight if isinstance(weight, tuple) else (weight,)
    if len(given) != len(spec.weight_shapes):
        raise SpecError(f"{len(given)} weights are given; {spec.variant} takes {len(spec.weight_shapes)}: {spec}")
    names = ["weight"] if len(given) == 1 else [f"weight[{i}]" for i in range(len(given))]
    return [_operand(spec, *operand) for operand in zip(names, given, spec.weight_shapes)]


def _optional(spec: ConvSpec, name: str, expected: bool, given: Any, shape: Sequence[int]) -> Float64 | None:
    if expected and given is None:
        raise SpecError(f"{name} is missing; the spec has one, of shape {tuple(shape)}: {spec}")
    if given is not None and not expected:
        raise SpecError(f"{name} is given, but the spec has none; make the spec with {name}=True: {spec}")
    return _operand(spec, name, given, shape) if expected else None


def _operand(spec: ConvSpec, name: str, given: Any, shape: Sequence[int]) -> Float64:
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise SpecError(f"{name} has dtype {array.dtype}; it must be floats or integers: {spec}")
    if array.shape != tuple(shape):
        raise SpecError(f"{name} has shape {array.shape}; it must be {tuple(shape)}: {spec}")
    return array.astype(np.float64)


def _channels_first(spec: ConvSpec, array: Float64) -> Float64:
    return np.moveaxis(array, -1, 1) if spec.channels_last else array


class _ReferenceModule(ModuleType):
    """This module, made callable: importing it binds it to `convtune.reference`, the name of the public function."""

    __call__ = staticmethod(reference)


sys.modules[__name__].__class__ = _ReferenceModule
