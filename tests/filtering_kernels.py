"""Kernels with fewer multiplications than their definition has: right, and no more wrong than was expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from conformance_cases import corner, runnable_targets

from convtune import accuracy
from convtune.measure.builder import Builder, BuildRequest
from convtune.measure.check import Checker
from convtune.paths import cache_dir
from convtune.space import Candidate, Estimating, KnobValue, Space
from convtune.spec import ConvSpec
from convtune.targets import Target

Case = tuple[str, Mapping[str, KnobValue]]  # a spec, and knobs that its candidate has


def check_odd(owner: Space, directory: Path, turn: int, case: Case) -> None:
    """Builds the first candidate of the case and runs it. turn: of the targets that run here."""
    text, wanted = case
    assert isinstance(owner, Estimating)
    target = runnable_targets()[turn % len(runnable_targets())]
    spec = ConvSpec.parse(text)
    knobs = corner(owner, spec, target, wanted)
    error = error_of(spec, target, Candidate(owner.name, knobs), directory, accuracy.limit(spec, "standard"))
    assert error <= owner.expected_error(spec, target, knobs), "expected errors are rather above"


def error_of(spec: ConvSpec, target: Target, candidate: Candidate, directory: Path, limit: float) -> float:
    """Of a kernel that is within the limit."""
    library = Builder(target, cache_dir())(BuildRequest(spec, candidate, directory))
    checker = Checker(threads=2)
    try:
        outcome = checker.check(spec, library.path, library.pack, limit)
    finally:
        checker.close()
    assert outcome.status == "ok", f"{candidate}: {outcome.message}"
    assert outcome.error is not None
    return outcome.error


def dimensions_filtered(owner: Space, spec: ConvSpec, target: Target) -> set[str] | None:
    """The tile sizes, d_tile to w_tile, that may be larger than one; None where the space does not take the spec."""
    if not owner.takes(spec, target):
        return None
    knobs = owner.knobs(spec, target)
    return {name for name in knobs if name.endswith("_tile") and max(map(int, knobs[name])) > 1}
