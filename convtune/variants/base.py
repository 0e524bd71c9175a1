"""The contract of a variant: what a convolution means, as index arithmetic, a NumPy reference and a cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
    weight(oc, ic_in_group, *taps) is the weight in PyTorch's index order.
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
