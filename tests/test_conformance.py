"""Every variant on every space that accepts it: kernels are built, run and compared with the float64 reference."""

from __future__ import annotations

import atexit
import functools
import tempfile
from pathlib import Path

import pytest
from conformance_cases import cases, corners, covering, runnable_targets
from tolerance import allowed_error

from convtune import space
from convtune.measure.builder import Builder, BuildRequest
from convtune.measure.check import Checker
from convtune.paths import cache_dir
from convtune.reference import random_operands
from convtune.space import Candidate, Knobs, Space
from convtune.spec import ConvSpec
from convtune.targets import Target


def check(owner: Space, spec: ConvSpec, target: Target, knobs: Knobs) -> None:
    """Builds the candidate and has it run, in a process that may die, as kernels are verified before they are timed."""
    with tempfile.TemporaryDirectory() as directory:
        library = builder(target)(BuildRequest(spec, Candidate(owner.name, knobs), Path(directory)))
        outcome = checker().check(spec, library.path, library.pack, limit(spec))
    assert outcome.status == "ok", f"{dict(knobs)}: {outcome.status}: {outcome.message}"


@functools.cache
def builder(target: Target) -> Builder:
    return Builder(target, cache_dir())


@functools.cache
def checker() -> Checker:
    made = Checker(threads=2)
    atexit.register(made.close)
    return made


@functools.lru_cache(maxsize=4)
def limit(spec: ConvSpec) -> float:
    return allowed_error(spec, random_operands(spec, seed=0))


def in_turn(number: int) -> Target:
    return runnable_targets()[number % len(runnable_targets())]


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "spec", "target", "turn"), cases(in_turn))
def test_kernels_are_right(owner: Space, spec: ConvSpec, target: Target, turn: int) -> None:
    """The default and a corner of the domain; of a space that the compiler leaves for another, either, in turn."""
    extremes = corners(owner, spec, target, seed=turn)
    tried: list[Knobs] = [dict(owner.default(spec, target))]
    if extremes and (extreme := extremes[turn % len(extremes)]) != tried[0]:
        tried.append(extreme)
    if space.default_candidate(spec, target).space != owner.name:
        tried = [tried[turn // 2 % len(tried)]]  # two specs in a row differ in their layout
    for knobs in tried:
        check(owner, spec, target, knobs)


def test_a_covering_choice_leaves_out_what_shows_nothing_new() -> None:
    assert covering([{1}, {1, 2}, {3, 4}, {2}, {4, 5}, set()]) == [1, 2, 4]
