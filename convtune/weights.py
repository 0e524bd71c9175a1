"""Weights that are known when a convolution is compiled: checked, and factored where that is allowed and pays."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from convtune.errors import SpecError
from convtune.runtime.arrays import to_numpy
from convtune.separable import factorable, separable

if TYPE_CHECKING:
    from convtune.runtime import CompiledConv
    from convtune.spec import ConvSpec


@dataclass(frozen=True)
class KnownWeights:
    """What to compile, and the weights it then has of its own.

    weight, bias: as `CompiledConv.fix` takes them; None where each call brings them.
    error: ‖W - W'‖ / ‖W‖ in the Frobenius norm where W' is the product of factors; None where nothing was factored.
    reason: why there are factors, or none; "" where none were asked for.
    """

    spec: ConvSpec
    weight: Any = None
    bias: Any = None
    error: float | None = None
    reason: str = ""

    def give(self, conv: CompiledConv) -> None:
        """Makes them the compiled convolution's own, and says in its resolution what was done."""
        if self.reason:
            why = conv.resolution
            told = replace(why, reason=f"{self.reason}; {why.reason}")
            conv.manifest = replace(conv.manifest, resolution=told)
        if self.weight is not None:
            conv.fix(self.weight, self.bias, self.error)


def known_weights(
    spec: ConvSpec, weight: Any = None, bias: Any = None, allow_separable: float | None = None
) -> KnownWeights:
    """The weights as they are given, or their factors with the `spatially_separable` spec.

    Args:
        weight, bias: as a compiled convolution takes them, in PyTorch's layout: a tuple where there are several.
        allow_separable: the largest `error` of factors; None: the weights stay as they are.

    Raises:
        SpecError: an array is missing, superfluous or of another shape or dtype, or allow_separable is out of range.
        KernelError: one of them is no array in the CPU's memory.
    """
    if weight is None:
        for name, given in (("bias", bias), ("allow_separable", allow_separable)):
            if given is not None:
                raise SpecError(f"{name} is given without weight; it is for constant weights: {spec}")
        return KnownWeights(spec)
    weights = _several(spec, "weight", weight, spec.weight_shapes)
    _several(spec, "bias", bias, spec.bias_shapes)
    if allow_separable is None:
        return KnownWeights(spec, weight, bias)
    _check_tolerance(allow_separable)
    if not factorable(spec):
        reason = "as it is: only conv and dilated with a kernel above 1 in two dimensions or more are factored"
        return KnownWeights(spec, weight, bias, reason=reason)
    found = separable(spec, weights[0], allow_separable)
    if found is None:
        reason = f"dense, as no factors with weight error up to {allow_separable:g} need fewer multiply-accumulates"
        return KnownWeights(spec, weight, bias, reason=reason)
    factored, separated = found
    mid = "x".join(map(str, factored.mid_channels or ()))
    reason = f"separable with mid_channels={mid}, weight error {separated.error:.2g}"
    return KnownWeights(factored, separated.factors, bias, separated.error, reason)


def _several(spec: ConvSpec, name: str, given: Any, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[Any]]:
    if (given is None) == bool(shapes):
        problem = f"{name} is missing" if given is None else f"{name} is given"
        wanted = f"takes one of shape {' and '.join(map(str, shapes))}" if shapes else f"has {name}=False"
        raise SpecError(f"{problem}; the spec {wanted}: {spec}")
    alone = len(shapes) == 1 and not (isinstance(given, tuple) and len(given) == 1)  # it may be in a tuple, too
    arrays = (given,) if alone else given if shapes else ()
    if not isinstance(arrays, Sequence) or len(arrays) != len(shapes):
        found = f"{len(arrays)} arrays" if isinstance(arrays, Sequence) else f"a {type(arrays).__name__}"
        raise SpecError(f"{name} is {found}; the spec takes a tuple of {len(shapes)}: {spec}")
    labels = [name] if len(shapes) == 1 else [f"{name}[{i}]" for i in range(len(shapes))]
    return [_checked(spec, *labelled) for labelled in zip(labels, arrays, shapes)]


def _checked(spec: ConvSpec, label: str, given: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    array = to_numpy(label, given)
    if array.shape != shape:
        raise SpecError(f"{label} has shape {array.shape}; it must be {shape}: {spec}")
    if array.dtype != spec.dtype:
        raise SpecError(f"{label} has dtype {array.dtype}; it must be {spec.dtype}: {spec}")
    return array


def _check_tolerance(tolerance: object) -> None:
    number = isinstance(tolerance, numbers.Real) and not isinstance(tolerance, bool)
    if not (number and 0 <= tolerance < 1):  # type: ignore[operator]
        raise SpecError(f"allow_separable={tolerance!r} is not allowed; it must be a number of at least 0, below 1")
