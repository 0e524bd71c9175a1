"""ConvSpec: one concrete convolution, validated when it is made and equal only to itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.errors import SpecError

if TYPE_CHECKING:
    from convtune.variants import Variant

Dims = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

LAYOUTS: Mapping[int, tuple[str, str]] = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
DTYPES: Mapping[str, int] = {"float32": 4, "float16": 2}
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh")
LARGEST_DIMENSION = 2**31 - 1  # kernels index with 32-bit integers


@dataclass(frozen=True)
class ConvSpec:
    """What is computed: variant, sizes, layout, dtype, epilogue.

    Args:
        variant: a name from `convtune show variants`.
        in_channels, out_channels: ic and oc.
        in_size: spatial input size, 1 to 3 integers (an int means one dimension).
        kernel, stride, dilation: an int for all dimensions or one per dimension.
        padding: an int, one entry per dimension where an entry is an int or a pair (before, after), or
            "same" (output is ceil(in / stride), of `transposed` in * stride; an odd total pads more after) or
            "valid". `after` may be negative: outputs that would read beyond that many elements before the end are
            left out; of `transposed`, whose padding takes outputs away, there are that many more at the end.
        batch: n.
        groups: None means in_channels for depthwise, else 1.
        layout: of input and output; None means channels first.
        dtype: "float32" or "float16", of all tensors; sums, and all between them and the output, are float32.
        bias, activation, residual: y = activation(conv + bias + residual).
        output_padding: `transposed` only. offset_groups, modulated: `deformable` only.
        channel_multiplier: `depthwise_separable` only: filters of each input channel.
        mid_channels: `spatially_separable` only: channels between its stages, one number or one for each place
            between two stages; None means out_channels.
        stage_bias, stage_activations: of a composite variant's stages before the last, whose own are `bias` and
            `activation`; one value for all, or one per stage. A stage reads zeros around the activated result.

    Raises:
        SpecError: a field is malformed or they contradict each other.
        UnknownNameError: there is no such variant.
    """

    variant: str
    in_channels: int
    out_channels: int
    in_size: Dims
    kernel: Dims
    batch: int = 1
    stride: Dims = 1  # type: ignore[assignment]
    padding: Pads = 0  # type: ignore[assignment]
    dilation: Dims = 1  # type: ignore[assignment]
    groups: int = None  # type: ignore[assignment]
    layout: str = None  # type: ignore[assignment]
    dtype: str = "float32"
    bias: bool = False
    activation: str | None = None
    residual: bool = False
    output_padding: Dims | None = None
    offset_groups: int | None = None
    modulated: bool | None = None
    channel_multiplier: int | None = None
    mid_channels: Dims | None = None
    stage_bias: tuple[bool, ...] | None = None
    stage_activations: tuple[str | None, ...] | None = None

    def __post_init__(self) -> None:
        variant = self._variant
        self._set("in_size", _dims("in_size", self.in_size, None, least=1))
        rank = self.rank
        if rank not in variant.ranks:
            several = "s" * (rank > 1)
            raise SpecError(
                f"in_size {_x(self.in_size)} has {rank} dimension{several}; {self.variant} takes "
                + " or ".join(map(str, variant.ranks))
            )
        for field in ("in_channels", "out_channels", "batch"):
            self._set(field, _integer(field, getattr(self, field), least=1))
        for field in ("kernel", "stride", "dilation"):
            self._set(field, _dims(field, getattr(self, field), rank, least=1))
        self._set("padding", _pads(self))
        groups = self.in_channels if self.variant == "depthwise" else 1
        self._set("groups", _integer("groups", groups if self.groups is None else self.groups, least=1))
        self._set("layout", LAYOUTS[rank][0] if self.layout is None else self.layout)
        for field, allowed in (
            ("layout", LAYOUTS[rank]),
            ("dtype", tuple(DTYPES)),
            ("activation", (None, *ACTIVATIONS)),
        ):
            _choice(field, getattr(self, field), allowed)
        for field in ("bias", "residual"):
            _choice(field, getattr(self, field), (False, True))
        self._extras(variant)
        _divides("groups", self.groups, "in_channels", self.in_channels)
        _divides("groups", self.groups, "out_channels", self.out_channels)
        variant.check(self)
        self._check_sizes()

    def _extras(self, variant: Variant) -> None:
        for field, (default, read) in self._extra_fields(variant.joints(self.rank)).items():
            value = getattr(self, field)
            if field in variant.extras:
                self._set(field, read(field, default if value is None else value))
            elif value is not None:
                raise SpecError(f"{field}={value!r}: {self.variant} has no {field}; leave it out")

    def _extra_fields(self, joints: int) -> Mapping[str, tuple[Any, Callable[[str, Any], Any]]]:
        """Of each field that only some variants have: its default, and what checks it."""

        def integer(field: str, value: Any) -> int:
            return _integer(field, value, least=1)

        def flag(field: str, value: Any) -> bool:
            return bool(_choice(field, value, (False, True)))

        def activation(field: str, value: Any) -> Any:
            return _choice(field, value, (None, *ACTIVATIONS))

        def at_joints(read: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
            return lambda field, value: tuple(read(field, each) for each in self._at_joints(field, value, joints))

        return {
            "output_padding": (0, lambda field, value: _dims(field, value, self.rank, least=0)),
            "offset_groups": (1, integer),
            "modulated": (False, flag),
            "channel_multiplier": (1, integer),
            "mid_channels": ((self.out_channels,) * joints, at_joints(integer)),
            "stage_bias": ((False,) * joints, at_joints(flag)),
            "stage_activations": ((None,) * joints, at_joints(activation)),
        }

    def _at_joints(self, field: str, value: Any, joints: int) -> tuple[Any, ...]:
        entries = tuple(value) if _is_sequence(field, value) else (value,) * max(joints, 1)
        if entries and not joints:
            raise SpecError(f"{field}={value!r}: {self.rank}-D {self.variant} has one stage; leave it out")
        if len(entries) != joints:
            raise SpecError(
                f"{field}={entries!r} has {len(entries)} entries; it must have {joints}, or be one value for all"
            )
        return entries

    def _check_sizes(self) -> None:
        for axis, out in enumerate(self.out_size):
            if out < 1:
                before, after = self.padding[axis]
                padded = self.in_size[axis] + before + after
                raise SpecError(
                    f"output dimension {axis} would be {out}: kernel {self.kernel[axis]} with dilation "
                    f"{self.dilation[axis]} spans {self.span[axis]}, the padded input is {padded}; "
                    "the span may be at most the padded input"
                )
        shapes = (self.in_shape, *(stage.out_shape for stage in self.stages), *self.weight_shapes)
        shapes += tuple(self.input_shapes.values())
        if max(count(shape) for shape in shapes) > LARGEST_DIMENSION:
            raise SpecError(f"a tensor of {self.variant} has more than {LARGEST_DIMENSION} elements; shapes {shapes}")

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    @property
    def _variant(self) -> Variant:
        from convtune import variants

        return variants.get(self.variant)

    @property
    def rank(self) -> int:
        """Number of spatial dimensions, 1 to 3."""
        return len(self.in_size)

    @property
    def channels_last(self) -> bool:
        return self.layout.endswith("C")

    @property
    def span(self) -> Dims:
        """Input elements from a window's first tap to its last, per dimension: d (k - 1) + 1."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation))

    @property
    def out_size(self) -> Dims:
        """Spatial size of the output, as the variant defines it."""
        return self._variant.out_size(self)

    @property
    def in_shape(self) -> Dims:
        """Shape of x in the spec's layout."""
        return self.shape_in_layout(self.in_channels, self.in_size)

    @property
    def out_shape(self) -> Dims:
        """Shape of y in the spec's layout."""
        return self.shape_in_layout(self.out_channels, self.out_size)

    @property
    def weight_shapes(self) -> tuple[Dims, ...]:
        """Shapes of the weights, in PyTorch's layout and stage order."""
        return self._variant.weight_shapes(self)

    @property
    def stages(self) -> tuple[ConvSpec, ...]:
        """The plain convolutions, one after the other, that a composite variant stands for; else the spec alone."""
        return self._variant.stages(self)

    @property
    def bias_shapes(self) -> tuple[Dims, ...]:
        """Shapes of the biases, in stage order: (out_channels,) of every stage that has one."""
        return tuple((stage.out_channels,) for stage in self.stages if stage.bias)

    @property
    def input_shapes(self) -> Mapping[str, Dims]:
        """Shapes of the inputs besides x, weights, biases and residual, in the spec's layout."""
        channels = self._variant.inputs(self)
        return {name: self.shape_in_layout(number, self.out_size) for name, number in channels.items()}

    @property
    def parameters(self) -> int:
        """Number of weights, and of biases where there are any."""
        return sum(map(count, (*self.weight_shapes, *self.bias_shapes)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates, taps on the zero padding included, as is usual."""
        return self._variant.macs(self)

    @property
    def flops(self) -> int:
        """Two per multiply-accumulate. The epilogue is not counted."""
        return 2 * self.macs

    @property
    def bytes(self) -> int:
        """Bytes moved if every tensor crosses the memory bus once."""
        elements = count(self.in_shape) + count(self.out_shape) * (2 if self.residual else 1) + self.parameters
        return (elements + sum(map(count, self.input_shapes.values()))) * DTYPES[self.dtype]

    def shape_in_layout(self, channels: int, size: Dims) -> Dims:
        """(n, *size, channels) or (n, channels, *size), as the layout says."""
        return (self.batch, *size, channels) if self.channels_last else (self.batch, channels, *size)

    def replace(self, **changes: Any) -> ConvSpec:
        """A copy with some fields changed; raises SpecError as the constructor does."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def parse(cls, text: str) -> ConvSpec:
        """The spec of a canonical string, such as `conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC`."""
        from convtune.canonical import parse

        return parse(text)

    def __str__(self) -> str:
        from convtune.canonical import render

        return render(self)


def checked(spec: object) -> ConvSpec:
    """The spec itself. Raises SpecError where it is something else, such as a canonical string."""
    if isinstance(spec, ConvSpec):
        return spec
    hint = "; make one of a canonical string with ConvSpec.parse" if isinstance(spec, str) else ""
    raise SpecError(f"spec is {spec!r}, a {type(spec).__name__}; it must be a ConvSpec{hint}")


def count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of this shape."""
    return functools.reduce(lambda a, b: a * b, shape, 1)


def _x(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims))


def _integer(field: str, value: object, least: int) -> int:
    # bool is an int to Python; numpy integers are not, yet mean one
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise SpecError(f"{field}={value!r} is not an integer; it must be an integer of at least {least}")
    number = int(value.__index__())
    if not least <= number <= LARGEST_DIMENSION:
        raise SpecError(f"{field}={number} is out of range; it must be between {least} and {LARGEST_DIMENSION}")
    return number


def _is_sequence(field: str, value: Any) -> bool:
    """Whether there is a value for each place, not one for all. Raises SpecError where they are in no sequence."""
    if isinstance(value, (Mapping, Set)):
        kind = type(value).__name__
        raise SpecError(f"{field}={value!r} is a {kind}; it must be one value for all, or a list or tuple of them")
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes))


def _dims(field: str, value: Any, rank: int | None, least: int) -> Dims:
    if not _is_sequence(field, value):
        return (_integer(field, value, least),) * (rank or 1)
    dims = tuple(_integer(field, v, least) for v in value)
    if rank is None and not 1 <= len(dims) <= 3:
        raise SpecError(f"{field}={dims} has {len(dims)} dimensions; 1 to 3 are allowed")
    if rank is not None and len(dims) != rank:
        raise SpecError(
            f"{field}={dims} has {len(dims)} entries; in_size has {rank} dimensions: give {rank}, or one int"
        )
    return dims


def _pads(spec: ConvSpec) -> Pads:
    value: Any = spec.padding
    if value == "valid":
        value = 0
    if value == "same":
        return tuple(map(spec._variant.same, spec.in_size, spec.stride, spec.span))
    if isinstance(value, str):
        raise SpecError(
            f"padding={value!r} is not known; it must be an int, one entry per dimension, 'same' or 'valid'"
        )
    entries = tuple(value) if _is_sequence("padding", value) else (value,) * spec.rank
    if len(entries) != spec.rank:
        raise SpecError(
            f"padding={value!r} has {len(entries)} entries; in_size has {spec.rank} dimensions: "
            f"give {spec.rank}, or one int"
        )
    return tuple(_pad(entry) for entry in entries)


def _pad(entry: Any) -> tuple[int, int]:
    if not _is_sequence("padding", entry):
        both = _integer("padding", entry, least=0)
        return both, both
    pair = tuple(entry)
    if len(pair) != 2:
        raise SpecError(f"padding entry {entry!r} is not a pair; it must be an int or (before, after)")
    return _integer("padding", pair[0], least=0), _integer("padding", pair[1], least=-LARGEST_DIMENSION)


def _choice(field: str, value: Any, allowed: Sequence[object]) -> Any:
    if not any(value is option or (isinstance(value, str) and value == option) for option in allowed):
        names = ("None (in text: none)" if option is None else str(option) for option in allowed)
        raise SpecError(f"{field}={value!r} is not allowed; it must be one of {', '.join(names)}")
    return value


def _divides(field: str, divisor: int, whole_field: str, whole: int) -> None:
    if whole % divisor:
        raise SpecError(f"{field}={divisor} does not divide {whole_field}={whole}")
