"""The receptive field: how much of the input one output of a layer, or of a chain of layers, is made of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from convtune import variants
from convtune.errors import SpecError

if TYPE_CHECKING:
    from convtune.spec import ConvSpec, Dims

LONGEST_PERIOD = 2**13  # outputs that can differ from each other in what they see of a dimension

Interval = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """What the outputs of a layer see of the input of the chain, away from its borders.

    Args:
        size: input elements per dimension from the first to the last that an output is made of: the largest of all
            outputs, as those of transposed layers differ; 0 where they are made of none.
        jump: how far apart, in input elements, the fields of neighbouring outputs are; below 1 where there are more
            outputs than inputs.
    """

    size: Dims
    jump: tuple[Fraction, ...]


def receptive_fields(specs: Sequence[ConvSpec]) -> tuple[Field, ...]:
    """The field after each layer of a chain, in which every layer reads what the one before makes.

    For layers with strides s_i and windows of w_i = d_i (k_i - 1) + 1 elements, none of them transposed, it is
    1 + sum over i of (w_i - 1) * j_i, with the jump j_i the product of the strides before it (Araujo, Norris and Sim,
    Computing Receptive Fields of Convolutional Neural Networks, Distill 2019, equation 2). An output of a transposed
    layer is made of at most ceil(w / s) inputs, and its jump is 1 / s; which they are depends on the output modulo the
    stride, so that here outputs are followed one by one until they repeat. Of a composite variant all stages count.
    `deformable` is taken with all offsets zero.

    Raises:
        SpecError: a layer does not take what the one before gives, or outputs repeat after LONGEST_PERIOD only.
    """
    _check_chain(specs)
    axes = [_Axis(index, ((0, 0),), 1) for index in range(specs[0].rank)] if specs else []
    fields = []
    for spec in specs:
        for stage in spec.stages:
            axes = [axis.after(stage) for axis in axes]
        fields.append(Field(tuple(axis.size for axis in axes), tuple(axis.jump for axis in axes)))
    return tuple(fields)


@dataclass(frozen=True)
class _Axis:
    """Which of the chain's inputs each output is made of, in one dimension.

    Args:
        reach: the first and last input of each output until they repeat, None where it is made of none.
        shift: by how many inputs those of the next such outputs lie further on.
    """

    index: int
    reach: Sequence[Interval | None]
    shift: int

    @property
    def size(self) -> int:
        return max((last - first + 1 for first, last in filter(None, self.reach)), default=0)

    @property
    def jump(self) -> Fraction:
        return Fraction(self.shift, len(self.reach))

    def after(self, layer: ConvSpec) -> _Axis:
        variant = variants.primitive(layer)
        turns = variant.jump(layer)[self.index] / len(self.reach)
        period = turns.denominator
        if period > LONGEST_PERIOD:
            raise SpecError(f"receptive field: outputs repeat every {period}; at most {LONGEST_PERIOD} are followed")
        reach = [self._seen(variant.reads(layer, self.index, out)) for out in range(period)]
        return _Axis(self.index, reach, turns.numerator * self.shift)

    def _seen(self, positions: range) -> Interval | None:
        """The first and last input that outputs at evenly spaced positions are made of."""
        ends = {*positions[: len(self.reach)], *positions[-len(self.reach) :]}  # what is between them repeats
        seen = [interval for position in ends if (interval := self._at(position))]
        return (min(first for first, _ in seen), max(last for _, last in seen)) if seen else None

    def _at(self, position: int) -> Interval | None:
        turns, turn = divmod(position, len(self.reach))
        interval, shift = self.reach[turn], turns * self.shift
        return (interval[0] + shift, interval[1] + shift) if interval else None


def _check_chain(specs: Sequence[ConvSpec]) -> None:
    for number, (before, spec) in enumerate(itertools.pairwise(specs), start=1):
        gives = (before.batch, before.out_channels, before.out_size)
        takes = (spec.batch, spec.in_channels, spec.in_size)
        if gives != takes:
            raise SpecError(
                f"layer {number + 1} of the chain takes {_text(*takes)}, but layer {number} gives {_text(*gives)}: "
                f"{spec} after {before}"
            )


def _text(batch: int, channels: int, size: Dims) -> str:
    return f"{channels} channels of {'x'.join(map(str, size))}" + (f" in a batch of {batch}" if batch > 1 else "")
