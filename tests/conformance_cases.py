"""What conformance tests try: awkward specs of every variant, targets that run here, corners of a space's domain."""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from convtune import space, targets, variants
from convtune.errors import SpecError
from convtune.space import Knobs, Space, all_knobs
from convtune.spec import ACTIVATIONS, LAYOUTS, ConvSpec
from convtune.targets import Target

Fields = Mapping[str, Any]

GEOMETRIES: Sequence[Fields] = (
    {"in_size": (7, 11), "kernel": (3, 3), "padding": 1},  # primes
    {"in_size": (5, 1), "kernel": (3, 1), "padding": (1, 0)},  # one wide
    {"in_size": (1, 1), "kernel": (1, 1)},
    {"in_size": (3, 2), "kernel": (5, 4), "padding": (1, (1, 2))},  # kernel beyond the input, not the padded input
    {"in_size": (11, 13), "kernel": (2, 2), "stride": (5, 3)},  # stride beyond the kernel
    {"in_size": (9, 8), "kernel": (3, 2), "padding": ((1, -2), (0, -1)), "stride": (1, 2)},
    {"in_size": (8, 8), "kernel": 3, "padding": 1, "stride": 2},  # the last column is not read
    {"in_size": (4, 37), "kernel": (1, 3), "padding": (0, 1), "stride": (1, 2), "batch": 3},
    {"in_size": (3, 2), "kernel": (2, 2), "padding": (4, 3)},  # windows in the padding alone
    {"in_size": (6, 16), "kernel": (3, 3), "padding": "same"},  # whole tiles and vectors
    {"in_size": (14, 14), "kernel": (5, 3), "padding": "same", "stride": 2},
    {"in_size": (8, 12), "kernel": (1, 1), "batch": 2},
    {"in_size": (5, 7), "kernel": (1, 1), "stride": 2, "padding": 1},
    {"in_size": (9, 17), "kernel": (3, 3), "dilation": (2, 3), "padding": (2, 3)},
    {"in_size": (13, 6), "kernel": (2, 3), "dilation": (4, 1), "stride": (2, 1), "padding": ((0, -1), 1)},
    {"in_size": (3, 5), "kernel": (3, 2), "dilation": 7, "padding": 9, "batch": 3},
    {"in_size": 23, "kernel": 5, "padding": ((4, 0),)},  # causal
    {"in_size": 1, "kernel": 3, "padding": 1},
    {"in_size": 301, "kernel": 2, "stride": 3, "batch": 2},
    {"in_size": 97, "kernel": 1},
    {"in_size": 53, "kernel": 3, "dilation": 8, "padding": ((16, 0),)},
    {"in_size": (3, 4, 5), "kernel": (2, 3, 1), "padding": ((0, 1), (2, 0), 1), "batch": 2},
    {"in_size": (5, 3, 9), "kernel": 3, "padding": 1, "stride": (2, 1, 2)},
    {"in_size": (2, 3, 19), "kernel": 1},
    {"in_size": (9, 3, 7), "kernel": (3, 1, 1), "padding": (1, 0, 0)},
    {"in_size": (5, 7, 6), "kernel": (2, 2, 3), "dilation": (3, 1, 2), "padding": 2},
    # output_padding is for transposed convolutions alone
    {"in_size": (7, 13), "kernel": (4, 3), "stride": 2, "padding": 1, "output_padding": (0, 1)},
    {"in_size": (4, 3), "kernel": (2, 5), "stride": (4, 6), "dilation": (2, 4), "output_padding": (3, 5)},
    {"in_size": (5, 6), "kernel": 2, "stride": (2, 3), "padding": ((1, -2), 0), "output_padding": (1, 0)},
    {"in_size": 19, "kernel": 16, "stride": 8, "padding": 4, "output_padding": 3, "batch": 2},
    {"in_size": (2, 3, 4), "kernel": (2, 1, 3), "stride": (2, 1, 3), "output_padding": (1, 0, 2)},
)  # fmt: skip

CHANNELS: Sequence[Fields] = (
    {"in_channels": 1, "out_channels": 1},
    {"in_channels": 3, "out_channels": 5},
    {"in_channels": 16, "out_channels": 32},
    {"in_channels": 7, "out_channels": 7},
    {"in_channels": 5, "out_channels": 75},
    {"in_channels": 6, "out_channels": 4, "groups": 2},
    {"in_channels": 16, "out_channels": 64, "groups": 16},
    {"in_channels": 32, "out_channels": 32, "groups": 8},
    {"in_channels": 9, "out_channels": 51, "groups": 3},
    {"in_channels": 40, "out_channels": 40, "groups": 40},
    {"in_channels": 10, "out_channels": 5, "groups": 5},
    {"in_channels": 34, "out_channels": 34, "groups": 2},
    {"in_channels": 5, "out_channels": 15, "groups": 5},
    {"in_channels": 36, "out_channels": 3},
    {"in_channels": 12, "out_channels": 20},
    {"in_channels": 67, "out_channels": 62},  # halves of whole vectors but one
)


@functools.cache
def specs() -> tuple[ConvSpec, ...]:
    """Every geometry that a variant takes, in both layouts, with channels and epilogues in turn."""
    return tuple(spec for variant in variants.known() for spec in _specs_of(variant))


def _specs_of(variant: str) -> Iterator[ConvSpec]:
    turn = itertools.count()
    for geometry in GEOMETRIES:
        allowed = [spec for channels in CHANNELS if (spec := _spec(variant, geometry, channels))]
        for layout in LAYOUTS[allowed[0].rank] if allowed else ():
            i = next(turn)
            epilogue = {
                "bias": i % 2 == 0,
                "activation": (*ACTIVATIONS, None)[i % (len(ACTIVATIONS) + 1)],
                "residual": i % 3 == 0,
            }
            spec = allowed[i % len(allowed)]
            yield spec.replace(layout=layout, **epilogue, **_extras(spec, i))


def _extras(spec: ConvSpec, turn: int) -> dict[str, Any]:
    """The fields that only some variants have, in turn; output_padding comes with the geometry."""
    divisors = [n for n in range(1, spec.in_channels + 1) if spec.in_channels % n == 0]
    joints = variants.get(spec.variant).joints(spec.rank)

    def at_joints(*choices: Any) -> Sequence[Any]:
        return [(choice,) * joints for choice in choices]

    values: Mapping[str, Sequence[Any]] = {
        "offset_groups": divisors,
        "modulated": (True, False),
        "channel_multiplier": (1, 2, 3),
        "mid_channels": at_joints(5, 16, 35, 1),
        "stage_bias": at_joints(True, True, False),
        "stage_activations": at_joints("relu", None, "sigmoid", "gelu"),
    }
    has = variants.get(spec.variant).extras
    return {field: choices[turn % len(choices)] for field, choices in values.items() if field in has}


def _spec(variant: str, geometry: Fields, channels: Fields) -> ConvSpec | None:
    try:
        return ConvSpec(variant, **geometry, **channels)
    except SpecError:  # not this variant's: dense convolutions have no groups, others no dilation
        return None


@functools.cache
def runnable_targets() -> tuple[Target, ...]:
    """Targets of each vector width whose kernels run here."""
    names = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "neoverse-v1", "armv8.2-a", "armv8-a")
    named = (targets.resolve(name, threads=2) for name in names)
    return tuple(target for target in named if target.is_host)


def runnable(name: str) -> Target:
    """The target of the name; the test is skipped where its kernels do not run."""
    target = targets.resolve(name, threads=2)
    return target if target.is_host else pytest.skip(f"kernels for {name} do not run here: {target.why_not_here()}")


def corner(owner: Space, spec: ConvSpec, target: Target, wanted: Knobs) -> Knobs:
    """The first candidate that has these knobs."""
    for knobs in all_knobs(owner, spec, target):
        if all(knobs[name] == value for name, value in wanted.items()):
            return knobs
    raise AssertionError(f"no candidate of {spec} has {dict(wanted)}")


def cases(target_of: Callable[[int], Target]) -> list[Any]:
    """A covering choice of each spec with each space that takes it, its target, and the spec's number, a seed.

    target_of: for the spec of a number.
    """
    every = [(owner, spec, target_of(i), i) for i, spec in enumerate(specs()) for owner in space.known().values()]
    taken = [case for case in every if case[0].takes(*case[1:3])]
    chosen = [taken[i] for i in covering([facets(*case[:3]) for case in taken])]
    return [pytest.param(*case, id=f"{case[0].name}-{case[1]}-{case[2].name}") for case in chosen]


def facets(owner: Space[Any], spec: ConvSpec, target: Target) -> set[Hashable]:
    """What a case shows. All that any case shows is shown by one that is chosen.

    Of each space: each variant in each layout, each of both on each target, and each geometry, choice of channels,
    activation and epilogue. Over all spaces: each geometry and choice of channels with each variant, target and side
    of the channels. Of a last resort, which has one schedule: its variants and targets with the layouts.
    """
    geometry = (spec.in_size, spec.kernel, spec.stride, spec.dilation, spec.padding, spec.output_padding, spec.batch)
    channels = (spec.in_channels, spec.out_channels, spec.groups)
    name, variant, layout, machine = owner.name, spec.variant, spec.layout, target.name
    found: set[Hashable] = {(name, variant, layout), (name, layout, machine)}
    if owner.last_resort:
        return found
    epilogue = (spec.bias, spec.residual)
    found |= {(name, each) for each in (geometry, channels, spec.activation, epilogue, (variant, machine))}
    sides = (variant, machine, spec.channels_last)
    return found | {(what, side) for what in (geometry, channels) for side in sides}


def covering(shown: Sequence[set[Hashable]]) -> list[int]:
    """The places of sets that together have all elements: each time the first of those that add most."""
    heap = [(-len(each), place) for place, each in enumerate(shown)]
    heapq.heapify(heap)
    seen: set[Hashable] = set()
    chosen = []
    while heap:
        promised, place = heapq.heappop(heap)
        adds = len(shown[place] - seen)
        if adds and adds == -promised:
            chosen.append(place)
            seen |= shown[place]
        elif adds:
            heapq.heappush(heap, (-adds, place))
    return sorted(chosen)


def corners(owner: Space, spec: ConvSpec, target: Target, seed: int) -> list[Knobs]:
    """Candidates that hold each knob at its first and last value, the others as the seed has it; each once."""
    found: list[Knobs] = []
    candidates = list(all_knobs(owner, spec, target))
    random.Random(seed).shuffle(candidates)
    for knob, values in owner.knobs(spec, target).items():
        for value in (values[0], values[-1]):
            corner = next((knobs for knobs in candidates if knobs[knob] == value), None)
            if corner is not None and corner not in found:
                found.append(corner)
    return found
