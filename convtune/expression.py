"""The tensor expression around a variant's formula: arguments, zero padding and epilogue, for any arrangement.

Schedules see every convolution with three spatial dimensions; a missing one has size 1. Stages are named `pad`,
`acc` and `y`, so a schedule finds them by these names; of a composite's stages before the last `pad0`, `acc0`, `mid0`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from convtune import activations, variants
from convtune.variants import Operands

if TYPE_CHECKING:
    from convtune.space import PackStep
    from convtune.spec import ConvSpec

Expr = Any
Dims = tuple[int, ...]

SUMS = "float32"
"""The dtype of sums, and of all between them and the output, whatever the spec's."""


def widened(value: Expr) -> Expr:
    """A value read from an argument, as sums take it."""
    from tvm import tirx

    return value if str(value.ty) == SUMS else tirx.Cast(SUMS, value)


def cube(dims: Sequence[Any], fill: Any = 1) -> tuple[Any, Any, Any]:
    """Dimensions right-aligned to three: (7, 9) is (1, 7, 9)."""
    missing = (fill,) * (3 - len(dims))
    return (*missing, *dims)


@dataclass(frozen=True)
class Geometry:
    """A convolution's sizes with three spatial dimensions each."""

    out: Dims
    kernel: Dims
    stride: Dims
    dilation: Dims
    before: Dims  # zeros that outputs read before the first input element
    padded: Dims  # input elements that the outputs reach, these zeros included

    @classmethod
    @lru_cache(maxsize=1 << 10)  # choosing a default asks for it once per candidate
    def of(cls, spec: ConvSpec, out: Dims | None = None) -> Geometry:
        """The geometry; `out` replaces the output size where a schedule rounds it up."""
        size = cube(spec.out_size) if out is None else out
        reach = cube(variants.primitive(spec).reach(spec, size[3 - spec.rank :]), (0, 0))
        return cls(
            out=size,
            kernel=cube(spec.kernel),
            stride=cube(spec.stride),
            dilation=cube(spec.dilation),
            before=tuple(max(0, -first) for first, _ in reach),
            padded=tuple(max(0, -first) + last + 1 for first, last in reach),
        )

    def inside(self, spec: ConvSpec) -> bool:
        """Whether every position reached lies in the input, so that no padded copy is needed."""
        sizes = cube(spec.in_size)
        return not any(self.before) and all(reach <= size for reach, size in zip(self.padded, sizes))


class Arguments:
    """The placeholders of a kernel, in the order it takes them: x, weights, biases, offset, mask, residual; y is last.

    biases: of each stage, None where it has none; `bias` is the last stage's.
    """

    def __init__(self, spec: ConvSpec, weight_shapes: Sequence[Sequence[int]]) -> None:
        from tvm import te

        def several(name: str, shapes: Sequence[Sequence[int]]) -> list[Any]:
            names = [name] if len(shapes) == 1 else [f"{name}{i}" for i in range(len(shapes))]
            return [te.placeholder(shape, spec.dtype, name=n) for n, shape in zip(names, shapes)]

        self.spec = spec
        self.x = te.placeholder(spec.in_shape, spec.dtype, name="x")
        self.weights = several("weight", weight_shapes)
        biases = iter(several("bias", spec.bias_shapes))
        self.biases = [next(biases) if stage.bias else None for stage in spec.stages]
        self.bias = self.biases[-1]
        self.inputs = {name: te.placeholder(shape, spec.dtype, name=name) for name, shape in spec.input_shapes.items()}
        self.residual = te.placeholder(spec.out_shape, spec.dtype, name="residual") if spec.residual else None

    def read_x(self, n: Expr, ic: Expr, position: Sequence[Expr]) -> Expr:
        """x at a position inside the input; `position` has three entries."""
        return self._read(self.x, n, ic, position)

    def read_input(self, name: str, n: Expr, channel: Expr, position: Sequence[Expr]) -> Expr:
        """An input besides the usual ones at an output position of three entries."""
        return self._read(self.inputs[name], n, channel, position)

    def _read(self, tensor: Any, n: Expr, channel: Expr, position: Sequence[Expr]) -> Expr:
        place = tuple(position)[3 - self.spec.rank :]
        return tensor(n, *place, channel) if self.spec.channels_last else tensor(n, channel, *place)

    def primfunc(self, y: Any) -> Any:
        """The function of all arguments, to be scheduled."""
        from tvm import te

        inputs = [self.x, *self.weights, *self.biases, *self.inputs.values(), self.residual]
        return te.create_prim_func([a for a in inputs if a is not None] + [y])


def padded_input(arguments: Arguments, geometry: Geometry) -> Any:
    """The stage `pad`: (n, d, h, w, ic), the input with zeros around it, channels last whatever the layout."""
    from tvm import te

    shape = (arguments.spec.batch, *geometry.padded, arguments.spec.in_channels)
    return te.compute(shape, lambda n, d, h, w, c: read_padded(arguments, geometry, n, c, (d, h, w)), name="pad")


def read_padded(arguments: Arguments, geometry: Geometry, n: Expr, ic: Expr, position: Sequence[Expr]) -> Expr:
    """x at a position of the padded input, zero outside of x; conditions only where they can fail."""
    return zero_padded(arguments.spec, geometry, arguments.read_x, n, ic, position)


def zero_padded(
    spec: ConvSpec, geometry: Geometry, read: Callable[..., Expr], n: Expr, ic: Expr, position: Sequence[Expr]
) -> Expr:
    """read(n, ic, position) at a position of the padded input of `spec`, zero outside of the input."""
    place = [p - before for p, before in zip(position, geometry.before)]
    edges = zip(place, geometry.before, cube(spec.in_size), geometry.padded)
    inside = [condition for edge in edges for condition in _bounds(*edge)]
    return or_zero(inside, read(n, ic, place))


def or_zero(conditions: Sequence[Expr], value: Expr) -> Expr:
    """The value where all conditions hold, else zero; nothing is read there."""
    from tvm import te, tirx

    zero = tirx.const(0.0, str(value.ty))
    return te.if_then_else(tirx.all(*conditions), value, zero) if conditions else value


def _bounds(position: Expr, before: int, size: int, reach: int) -> list[Expr]:
    lower = [position >= 0] if before else []
    return lower + ([position < size] if reach - before > size else [])


def operands(
    geometry: Geometry,
    x: Any,
    weight: Any,
    arguments: Arguments | None = None,
    widen: Callable[[Expr], Expr] = widened,
) -> Operands:
    """A variant's operands: x(n, ic, position) and weight(oc, ic, taps) in terms of three-dimensional accessors.

    arguments: where the inputs besides these are, if the variant has any. widen: of all that is read.
    """

    def read(n: Expr, ic: Expr, *position: Expr) -> Expr:
        place = cube(position, 0)
        return widen(x(n, ic, [p + before for p, before in zip(place, geometry.before)]))

    def reader(name: str) -> Callable[..., Expr] | None:
        if arguments is None or name not in arguments.inputs:
            return None
        return lambda n, channel, *out: widen(arguments.read_input(name, n, channel, cube(out, 0)))

    of_weight = lambda oc, ic, *taps: widen(weight(oc, ic, cube(taps, 0)))  # noqa: E731
    return Operands(read, of_weight, offset=reader("offset"), mask=reader("mask"))


def epilogue(
    arguments: Arguments, value: Expr, n: Expr, oc: Expr, out: Sequence[Expr], stage: int = -1, bias: Any = None
) -> Expr:
    """activation(value + bias + residual) at one element of a stage's output; `out` has the spec's rank.

    Of the last stage it has the spec's dtype, between stages that of sums.

    bias: to read instead of the argument.
    """
    from tvm import tirx

    spec = arguments.spec.stages[stage]
    bias = arguments.biases[stage] if bias is None else bias
    if bias is not None:
        value = value + widened(bias(oc))
    if spec.residual:
        assert arguments.residual is not None
        value = value + widened(arguments.residual(*((n, *out, oc) if spec.channels_last else (n, oc, *out))))
    if spec.activation is not None:
        value = activations.get(spec.activation).expression(value)
    last = stage in (-1, len(arguments.spec.stages) - 1)
    return tirx.Cast(spec.dtype, value) if last and spec.dtype != SUMS else value


def epilogue_at(arguments: Arguments, value: Expr, index: Sequence[Expr], bias: Any = None) -> Expr:
    """The epilogue of the last stage, at an index of its output."""
    last = arguments.spec.channels_last
    channel, place = (index[-1], index[1:-1]) if last else (index[1], index[2:])
    return epilogue(arguments, value, index[0], channel, place, bias=bias)


def output(arguments: Arguments, groups: int, value: Any) -> Any:
    """The stage `y`; value(n, group, channel in group, position) reads the sum, with `position` of three entries.

    Channels are two dimensions where there is more than one group, (groups, channels in a group), or the other way
    around where the variant interleaves groups: TVM 0.27 cannot see through the divisions that one dimension would
    need. The memory is that of the spec's layout all the same.
    """
    from tvm import te

    spec = arguments.spec.stages[-1]
    variant, run = variants.primitive(spec), spec.out_channels // groups
    channels = (run,) if groups == 1 else (run, groups) if variant.interleaved else (groups, run)
    last = spec.channels_last
    shape = (*spec.out_size, *channels) if last else (*channels, *spec.out_size)

    def at(n: Expr, *index: Expr) -> Expr:
        cut = spec.rank if last else len(channels)
        channel, position = (index[cut:], index[:cut]) if last else (index[:cut], index[cut:])
        group, within = reversed(channel) if groups > 1 and variant.interleaved else cube(channel, 0)[1:]
        oc = within if groups == 1 else variant.channel(spec, group, within)
        return epilogue(arguments, value(n, group, within, cube(position, 0)), n, oc, position)

    return te.compute((spec.batch, *shape), at, name="y")


def plain(spec: ConvSpec) -> Any:
    """The convolution as a function that is not scheduled yet: `pad` where zeros are read, `acc`, `y`.

    A composite's stages before the last are `pad0`, `acc0` and `mid0`, then `pad1` and so on. All have the spec's rank
    and layout. A weight is (*taps, ic in a group, oc), as `plain_pack` makes it.
    """
    stages = spec.stages
    shapes = [(*stage.kernel, stage.in_channels // stage.groups, stage.out_channels) for stage in stages]
    arguments = Arguments(spec, shapes)
    read = arguments.read_x
    for number, stage in enumerate(stages[:-1]):
        read = _between(arguments, number, _sums(arguments, stage, number, read, str(number)))
    acc = _sums(arguments, stages[-1], -1, read, "")
    return arguments.primfunc(output(arguments, 1, lambda n, _group, oc, position: acc(n, oc, position)))


def _sums(
    arguments: Arguments, spec: ConvSpec, number: int, read: Callable[..., Expr], suffix: str
) -> Callable[..., Expr]:
    """The stages `pad` and `acc` of the convolution with that number, which reads its input by `read`."""
    from tvm import te

    geometry, missing = Geometry.of(spec), 3 - spec.rank
    weight = arguments.weights[number]

    def padded(n: Expr, ic: Expr, position: Sequence[Expr]) -> Expr:
        return zero_padded(spec, geometry, read, n, ic, position)

    inside = geometry.inside(spec)
    read_x = read if inside else _stage(f"pad{suffix}", spec, spec.in_channels, geometry.padded, padded)
    read_weight = lambda oc, ic, taps: weight(*taps[missing:], ic, oc)  # noqa: E731
    term = variants.primitive(spec).term(spec, operands(geometry, read_x, read_weight, arguments))
    axes = [te.reduce_axis((0, extent), name) for name, extent in term.extents]

    def total(n: Expr, oc: Expr, position: Sequence[Expr]) -> Expr:
        return te.sum(term.at(n, oc, position[missing:], axes), axis=axes)

    return _stage(f"acc{suffix}", spec, spec.out_channels, cube(spec.out_size), total)


def _between(arguments: Arguments, number: int, acc: Callable[..., Expr]) -> Callable[..., Expr]:
    """The stage `mid`: the result of a composite's stage that is not the last."""
    spec = arguments.spec.stages[number]

    def value(n: Expr, oc: Expr, position: Sequence[Expr]) -> Expr:
        return epilogue(arguments, acc(n, oc, position), n, oc, position[3 - spec.rank :], number)

    return _stage(f"mid{number}", spec, spec.out_channels, cube(spec.out_size), value)


def plain_pack(spec: ConvSpec) -> tuple[tuple[PackStep, ...], ...]:
    """How `plain` takes its weights: output channels last, which a channels-last output reads side by side."""
    last: PackStep = {"op": "transpose", "axes": [*range(2, 2 + spec.rank), 1, 0]}
    return tuple((*variants.primitive(stage).filters(stage), last) for stage in spec.stages)


def _stage(
    name: str, spec: ConvSpec, channels: int, sizes: Sequence[int], value: Callable[..., Expr]
) -> Callable[..., Expr]:
    """Computes value(n, channel, position) in the spec's layout; what it returns reads that, with equal arguments.

    `sizes` and positions have three entries, whatever the rank.
    """
    from tvm import te

    def place(n: Expr, channel: Expr, position: Sequence[Expr]) -> tuple[Expr, ...]:
        inner = tuple(position)[3 - spec.rank :]
        return (n, *inner, channel) if spec.channels_last else (n, channel, *inner)

    def at(n: Expr, *index: Expr) -> Expr:
        channel, position = (index[-1], index[:-1]) if spec.channels_last else (index[0], index[1:])
        return value(n, channel, cube(position, 0))

    stage = te.compute(place(spec.batch, channels, sizes), at, name=name)
    return lambda n, channel, position: stage(*place(n, channel, position))
