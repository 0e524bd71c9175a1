"""The contract of a variant: what a convolution means, as index arithmetic, a NumPy reference and a cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]

Expr = Any  # a TVM expression, or a Python number where an index is constant
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Operands:
    """How a schedule reads the operands: by logical index, whatever their physical arrangement.

    x(n, ic, *position) is the input; a position outside the input, by at most the padding, reads zero.
    weight(oc, ic_in_group, *taps) is the weight of an output channel, whatever PyTorch's order of the weight is.
    """

    x: Callable[..., Expr]
    weight: Callable[..., Expr]


@dataclass(frozen=True)
class Term:
    """The summand at one output element, and the named extents it is summed over."""

    extents: tuple[tuple[str, int], ...]
    at: Callable[..., Expr]  # at(n, oc, out_position, reduction_indices)


class Variant(ABC):
    """One variant. An instance is stateless; its module is its registration."""

    name: str
    summary: str
    ranks: tuple[int, ...] = (1, 2, 3)
    extras: frozenset[str] = frozenset()  # ConvSpec fields that only some variants have
    interleaved: bool = False  # whether groups take turns in the output's channels, instead of one following the other

    @abstractmethod
    def check(self, spec: ConvSpec) -> None:
        """Raises SpecError where the fields, each valid by itself, are not this variant."""

    @abstractmethod
    def out_size(self, spec: ConvSpec) -> Dims:
        """Spatial size of the output; below 1 where the kernel does not fit."""

    @abstractmethod
    def weight_shapes(self, spec: ConvSpec) -> tuple[Dims, ...]:
        """Shapes of the weights in PyTorch's layout, in stage order."""

    @abstractmethod
    def macs(self, spec: ConvSpec) -> int:
        """Multiply-accumulates of one call."""

    def same(self, size: int, stride: int, span: int) -> tuple[int, int]:
        """A dimension's padding that "same" means: here the output is ceil(size / stride), an odd total more after."""
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        return total // 2, total - total // 2

    def reach(self, spec: ConvSpec, out: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The first and last input position, per dimension, that outputs 0 to out - 1 read; padding counts below 0."""
        windows = zip(out, spec.stride, spec.span, spec.padding)
        return tuple((-before, (o - 1) * s + span - 1 - before) for o, s, span, (before, _) in windows)

    def fan_in(self, spec: ConvSpec) -> tuple[int, ...]:
        """For each weight, how many products an output away from the border is the sum of."""
        from convtune.spec import count

        return tuple(count(shape[1:]) for shape in self.weight_shapes(spec))

    def channel(self, spec: ConvSpec, group: Expr, within: Expr) -> Expr:
        """The output channel of a group's channel `within`."""
        return within * spec.groups + group if self.interleaved else group * (spec.out_channels // spec.groups) + within

    def group(self, spec: ConvSpec, oc: Expr) -> Expr:
        """The group of an output channel."""
        return oc % spec.groups if self.interleaved else oc // (spec.out_channels // spec.groups)

    def filters(self, spec: ConvSpec) -> tuple[Mapping[str, Any], ...]:
        """Packing steps that make the weight (oc, ic in a group, *taps), with oc the channel of the output."""
        return ()

    def extra_elements(self, spec: ConvSpec) -> int:
        """Elements read or written besides x, y, residual and parameters."""
        return 0

    @abstractmethod
    def reference(
        self, spec: ConvSpec, x: NDArray[np.float64], weights: Sequence[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """The convolution alone. x: (n, ic, *in_size), weights as `weight_shapes`; returns (n, oc, *out_size)."""

    @abstractmethod
    def term(self, spec: ConvSpec, operands: Operands) -> Term:
        """The tensor expression: y(n, oc, o) = sum over `extents` of `at(n, oc, o, r)`."""
