"""The contract of a variant: what a convolution means, as index arithmetic, a NumPy reference and a cost."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from convtune.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]

Expr = Any  # a TVM expression, or a Python number where an index is constant
Dims = tuple[int, ...]

DENSE = ("conv", "dilated", "pointwise")
EXTENTS: Mapping[int, tuple[str, ...]] = {1: ("k",), 2: ("kh", "kw"), 3: ("kd", "kh", "kw")}  # as `ratio` names them
TAPS: Mapping[int, str] = {1: "k", 2: "k²", 3: "k³"}  # the number of a kernel's taps, also where it is not square


@dataclass(frozen=True)
class Operands:
    """How a schedule reads the operands: by logical index, whatever their physical arrangement.

    x(n, ic, *position) is the input; a position outside the input, by at most the padding, reads zero.
    weight(oc, ic_in_group, *taps) is the weight of an output channel, whatever PyTorch's order of the weight is.
    offset(n, channel, *out_position) and mask(...), where the variant has them, are read as they are.
    """

    x: Callable[..., Expr]
    weight: Callable[..., Expr]
    offset: Callable[..., Expr] | None = None
    mask: Callable[..., Expr] | None = None


@dataclass(frozen=True)
class Term:
    """The summand at one output element, and the named extents it is summed over."""

    extents: tuple[tuple[str, int], ...]
    at: Callable[..., Expr]  # at(n, oc, out_position, reduction_indices)


class Variant(ABC):
    """One variant: a `Primitive` or a `Composite`. An instance is stateless; its module is its registration."""

    name: str
    summary: str
    ranks: tuple[int, ...] = (1, 2, 3)
    extras: frozenset[str] = frozenset()  # ConvSpec fields that only some variants have
    uncounted: str = ""  # work that is in none of the multiply-accumulates

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

    def ratio(self, rank: int) -> str:
        """The formula of `macs` over those of `standard`, exact for every spec; `convtune.cost` has its letters."""
        return "1/g"

    def standard(self, spec: ConvSpec) -> ConvSpec:
        """The dense convolution that this one replaces: same input, output, kernel and epilogue, but one group.

        Raises SpecError where that is too large to be a spec.
        """
        return dense(spec, spec.in_size, spec.stride, spec.padding)

    def same(self, size: int, stride: int, span: int) -> tuple[int, int]:
        """A dimension's padding that "same" means: here the output is ceil(size / stride), an odd total more after."""
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        return total // 2, total - total // 2

    @abstractmethod
    def fan_in(self, spec: ConvSpec) -> tuple[int, ...]:
        """For each weight, how many products an output away from the border is the sum of."""

    @abstractmethod
    def stages(self, spec: ConvSpec) -> tuple[ConvSpec, ...]:
        """The convolutions of primitive variants that this is the chain of, each with its epilogue."""

    def joints(self, rank: int) -> int:
        """How many places between two stages there are."""
        return 0

    def inputs(self, spec: ConvSpec) -> Mapping[str, int]:
        """Inputs besides x, weights, biases and residual, of the output's size: how many channels each has."""
        return {}


class Primitive(Variant):
    """One sum of products for each output element."""

    interleaved: bool = False  # whether groups take turns in the output's channels, instead of one following the other

    def stages(self, spec: ConvSpec) -> tuple[ConvSpec, ...]:
        return (spec,)

    def reach(self, spec: ConvSpec, out: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The first and last input position, per dimension, that outputs 0 to out - 1 read; padding counts below 0."""
        windows = zip(out, spec.stride, spec.span, spec.padding)
        return tuple((-before, (o - 1) * s + span - 1 - before) for o, s, span, (before, _) in windows)

    def jump(self, spec: ConvSpec) -> tuple[Fraction, ...]:
        """How far apart, per dimension and in input elements, the windows of neighbouring outputs are."""
        return tuple(map(Fraction, spec.stride))

    def reads(self, spec: ConvSpec, axis: int, out: int) -> range:
        """The input positions in one dimension that an output there is made of, at any position if need be."""
        first = out * spec.stride[axis] - spec.padding[axis][0]
        return range(first, first + spec.span[axis], spec.dilation[axis])

    def fan_in(self, spec: ConvSpec) -> tuple[int, ...]:
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

    @abstractmethod
    def reference(self, spec: ConvSpec, x: Array, weights: Sequence[Array], **inputs: Array) -> Array:
        """The convolution alone. x: (n, ic, *in_size), weights as `weight_shapes`; returns (n, oc, *out_size).

        inputs: those of `inputs`, each (n, its channels, *out_size).
        """

    @abstractmethod
    def term(self, spec: ConvSpec, operands: Operands) -> Term:
        """The tensor expression: y(n, oc, o) = sum over `extents` of `at(n, oc, o, r)`."""


class Composite(Variant):
    """A chain of convolutions, each of which reads zeros around the whole result of the one before."""

    extras = frozenset({"stage_bias", "stage_activations"})

    @abstractmethod
    def chain(self, spec: ConvSpec) -> Sequence[Mapping[str, Any]]:
        """For each stage the fields of its spec, but for its input, which the stage before makes, and its epilogue."""

    def check(self, spec: ConvSpec) -> None:
        if spec.groups != 1:
            raise SpecError(f"groups={spec.groups}: the channels of {self.name} mix; it must be 1, or left out")
        self.stages(spec)

    def stages(self, spec: ConvSpec) -> tuple[ConvSpec, ...]:
        return _stages(self, spec)

    def out_size(self, spec: ConvSpec) -> Dims:
        return self.stages(spec)[-1].out_size

    def weight_shapes(self, spec: ConvSpec) -> tuple[Dims, ...]:
        return tuple(shape for stage in self.stages(spec) for shape in stage.weight_shapes)

    def macs(self, spec: ConvSpec) -> int:
        return sum(stage.macs for stage in self.stages(spec))

    def fan_in(self, spec: ConvSpec) -> tuple[int, ...]:
        from convtune import variants

        return tuple(number for stage in self.stages(spec) for number in variants.primitive(stage).fan_in(stage))


@functools.lru_cache(maxsize=4096)  # sizes are asked for with every candidate
def _stages(variant: Composite, spec: ConvSpec) -> tuple[ConvSpec, ...]:
    from convtune.spec import ConvSpec

    assert spec.stage_bias is not None and spec.stage_activations is not None, "the constructor fills them in"
    biases, activations = (*spec.stage_bias, spec.bias), (*spec.stage_activations, spec.activation)
    chain, found = variant.chain(spec), []
    before: dict[str, Any] = {"in_channels": spec.in_channels, "in_size": spec.in_size}
    for number, (fields, bias, activation) in enumerate(zip(chain, biases, activations), start=1):
        residual = spec.residual and number == len(chain)
        epilogue: dict[str, Any] = {"bias": bias, "activation": activation, "residual": residual}
        try:
            stage = ConvSpec(**before, **fields, **epilogue, batch=spec.batch, layout=spec.layout, dtype=spec.dtype)
        except SpecError as error:
            raise SpecError(f"stage {number}, {fields['variant']}: {error}") from error
        before = {"in_channels": stage.out_channels, "in_size": stage.out_size}
        found.append(stage)
    return tuple(found)


def dense(spec: ConvSpec, in_size: Sequence[int], stride: Sequence[int], padding: Sequence[Any]) -> ConvSpec:
    """The dense convolution over an input of that size, with a spec's channels, kernel, dilation and epilogue."""
    from convtune.spec import ConvSpec

    dilated, alone = any(d > 1 for d in spec.dilation), all(k == 1 for k in spec.kernel)
    plain = "dilated" if dilated else "pointwise" if alone else "conv"
    same = ("in_channels", "out_channels", "kernel", "dilation", "batch", "layout", "dtype")
    epilogue = ("bias", "activation", "residual")
    return ConvSpec(
        spec.variant if spec.variant in DENSE else plain,
        in_size=tuple(in_size),
        stride=tuple(stride),
        padding=tuple(padding),
        **{field: getattr(spec, field) for field in (*same, *epilogue)},
    )


def quotient(over: Sequence[str], under: Sequence[str]) -> str:
    """Such as p1·mid/(out·oc·kw), of two lists of factors; 1 over nothing is left out."""
    below = "·".join(under)
    above = "·".join(over) or "1"
    return f"{above}/({below})" if len(under) > 1 else f"{above}/{below}" if under else above


def along(spec: ConvSpec, axis: int) -> Mapping[str, Any]:
    """The fields of a stage that does one dimension of a spec's kernel, stride, dilation and padding."""
    alone: dict[str, tuple[Sequence[Any], Any]] = {
        "kernel": (spec.kernel, 1),
        "stride": (spec.stride, 1),
        "dilation": (spec.dilation, 1),
        "padding": (spec.padding, (0, 0)),
    }
    return {
        field: tuple(values[i] if i == axis else neutral for i in range(spec.rank))
        for field, (values, neutral) in alone.items()
    }
