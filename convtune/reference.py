"""The answer every kernel is compared with: a spec's convolution and epilogue in NumPy, all of it in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convtune import activations, variants
from convtune.errors import SpecError
from convtune.spec import checked

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Array = NDArray[np.float32] | NDArray[np.float16]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def reference(
    spec: ConvSpec,
    x: ArrayLike,
    weight: ArrayLike | tuple[ArrayLike, ...],
    bias: ArrayLike | tuple[ArrayLike, ...] | None = None,
    offset: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
) -> Float64:
    """activation(convolution(x, weight) + bias + residual), float64 inside and out.

    Args:
        x: of shape `spec.in_shape`, in the spec's layout.
        weight: of shape `spec.weight_shapes[0]`, in PyTorch's layout; a tuple of them for a composite variant.
        bias: (out_channels,), where the spec has one; a tuple where several stages have one.
        offset, mask: of the shapes in `spec.input_shapes`, in the spec's layout, for deformable variants only.
        residual: of shape `spec.out_shape`, where the spec has one.

    Returns:
        y, of shape `spec.out_shape`, in the spec's layout.

    Raises:
        SpecError: spec is no ConvSpec; or an operand is missing, or not in the spec, or of another shape, or no real
            numbers.
    """
    spec = checked(spec)
    y = _channels_first(spec, _operand(spec, "x", x, spec.in_shape))
    weights = _several(spec, "weight", weight, spec.weight_shapes)
    biases = iter(_several(spec, "bias", bias, spec.bias_shapes))
    inputs = _inputs(spec, {"offset": offset, "mask": mask})
    added = _several(spec, "residual", residual, (spec.out_shape,) if spec.residual else ())
    for stage, of_stage in zip(spec.stages, weights):
        y = variants.primitive(stage).reference(stage, y, [of_stage], **inputs)
        if stage.bias:
            y += next(biases).reshape(-1, *(1 for _ in stage.out_size))
        if stage.residual:
            y += _channels_first(spec, added[0])
        if stage.activation is not None:
            y = activations.get(stage.activation).numpy(y)
    return np.ascontiguousarray(np.moveaxis(y, 1, -1) if spec.channels_last else y)


@dataclass(frozen=True)
class OperandArrays:
    """A spec's operands as C-contiguous arrays of its dtype, as the spec has them."""

    x: Array
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    inputs: Mapping[str, Array]
    residual: Array | None

    @property
    def bias(self) -> Array | tuple[Array, ...] | None:
        """The biases as a convolution takes them: none, one, or several in a tuple."""
        return self.biases if len(self.biases) > 1 else self.biases[0] if self.biases else None

    def reference(self, spec: ConvSpec) -> Float64:
        """The reference of these operands; see `reference`."""
        return reference(spec, self.x, self.weights, self.bias, **self.inputs, residual=self.residual)


def random_operands(spec: ConvSpec, seed: int) -> OperandArrays:
    """Operands for verifying, the same for the same spec, seed and NumPy.

    All but the mask are normally distributed with mean 0: x, biases and residual with variance 1, weights with variance
    1 / fan-in, so that the convolution's variance is about 1 and the activations are tried on both of their sides;
    offsets with variance 4, pixels squared. The mask is uniform in [0, 1). All are drawn as float32, then rounded to
    the spec's dtype: the reference is exact for what a kernel reads.
    """
    # SFC64 draws a hundred million of these in 1.1 s, PCG64 in 2.7 s
    generator = np.random.Generator(np.random.SFC64(seed))

    def rounded(array: Float32) -> Array:
        return array.astype(spec.dtype, copy=False)

    def normal(shape: Sequence[int], variance: float = 1.0) -> Array:
        array = generator.standard_normal(shape, dtype=np.float32)
        return rounded(array if variance == 1.0 else np.multiply(array, np.float32(math.sqrt(variance)), out=array))

    def drawn(name: str, shape: Sequence[int]) -> Array:
        return rounded(generator.random(shape, dtype=np.float32)) if name == "mask" else normal(shape, variance=4.0)

    fan_ins = variants.get(spec.variant).fan_in(spec)
    return OperandArrays(
        x=normal(spec.in_shape),
        weights=tuple(normal(shape, 1.0 / fan_in) for shape, fan_in in zip(spec.weight_shapes, fan_ins)),
        biases=tuple(map(normal, spec.bias_shapes)),
        inputs={name: drawn(name, shape) for name, shape in spec.input_shapes.items()},
        residual=normal(spec.out_shape) if spec.residual else None,
    )


def _several(spec: ConvSpec, name: str, given: Any, shapes: Sequence[Sequence[int]]) -> list[Float64]:
    """The arrays of those shapes: given alone where there is one, in a tuple where there are more."""
    if given is None and shapes:
        wanted = " and ".join(str(tuple(shape)) for shape in shapes)
        raise SpecError(f"{name} is missing; the spec has one, of shape {wanted}: {spec}")
    if given is not None and not shapes:
        raise SpecError(f"{name} is given, but the spec has none; make the spec with {name}=True: {spec}")
    arrays = given if isinstance(given, tuple) else () if given is None else (given,)
    if len(arrays) != len(shapes):
        several = {"bias": "biases"}.get(name, f"{name}s")
        raise SpecError(f"{len(arrays)} {several} are given; {spec.variant} takes {len(shapes)}: {spec}")
    names = [name] if len(shapes) == 1 else [f"{name}[{i}]" for i in range(len(shapes))]
    return [_operand(spec, *operand) for operand in zip(names, arrays, shapes)]


def _inputs(spec: ConvSpec, given: Mapping[str, Any]) -> dict[str, Float64]:
    """The inputs besides the usual ones, channels first."""
    shapes = spec.input_shapes
    for name, array in given.items():
        if array is not None and name not in shapes:
            raise SpecError(f"{name} is given, but {spec.variant} takes none: {spec}")
        if array is None and name in shapes:
            raise SpecError(f"{name} is missing; the spec has one, of shape {shapes[name]}: {spec}")
    return {name: _channels_first(spec, _operand(spec, name, given[name], shape)) for name, shape in shapes.items()}


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
