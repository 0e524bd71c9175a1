"""Every variant on every space for CPUs, built for ARM and emulated: compared with the float64 reference."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conformance_cases import corners, specs
from tolerance import allowed_error

from convtune import space, targets
from convtune.emulation.counts import KINDS
from convtune.measure.builder import BuildRequest, EmulatedBuilder
from convtune.measure.device import Prepare
from convtune.measure.emulated_cpu import EmulatedCpu, Execute
from convtune.paths import cache_dir
from convtune.reference import random_operands
from convtune.space import Candidate, Knobs, Space
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

NEON, LONG_VECTORS, OLD = "neoverse-n1", "neoverse-v1", "cortex-a72"


@functools.cache
def arm(name: str) -> CpuTarget:
    target = targets.resolve(name, threads=3)
    assert isinstance(target, CpuTarget)
    return target


@functools.cache
def builder(name: str) -> EmulatedBuilder:
    return EmulatedBuilder(arm(name), cache_dir())


def cases() -> list[Any]:
    """One spec for each variant and space that go together, in turn of those, and the target that they are for."""
    pairs: dict[tuple[str, str], list[ConvSpec]] = {}
    for spec in specs():
        for owner in space.known().values():
            if spec.dtype in owner.dtypes and owner.accepts(spec, arm(NEON)):  # all candidates of each take seconds
                pairs.setdefault((spec.variant, owner.name), []).append(spec)
    found = []
    for turn, ((_, name), those) in enumerate(pairs.items()):
        owner = space.known()[name]
        for target, start, step in ((NEON, 0, 7), (LONG_VECTORS, 3, 5), (OLD, 5, 11)):
            if target == OLD and turn % 3:
                continue
            first = (start + step * turn) % len(those)
            spec = next((s for s in those[first:] + those[:first] if owner.takes(s, arm(target))), None)
            if spec is None:
                continue
            marks = [] if target == NEON else [pytest.mark.slow]
            found.append(pytest.param(owner, spec, target, turn, id=f"{name}-{spec}-{target}", marks=marks))
    return found


@pytest.mark.parametrize(("owner", "spec", "target", "turn"), cases())
def test_arm_kernels_are_right(owner: Space[Any], spec: ConvSpec, target: str, turn: int) -> None:
    default = dict(owner.default(spec, arm(target)))
    check(owner, spec, target, default)
    if target != NEON and (extremes := corners(owner, spec, arm(target), seed=turn)):
        check(owner, spec, target, extremes[turn % len(extremes)])


def check(owner: Space[Any], spec: ConvSpec, name: str, knobs: Knobs) -> None:
    target = arm(name)
    limit = allowed_error(spec, random_operands(spec, seed=0))
    with tempfile.TemporaryDirectory() as directory:
        library = builder(name)(BuildRequest(spec, Candidate(owner.name, knobs), Path(directory)))
        assert library.traffic is not None
        device = EmulatedCpu(Path(directory), target.threads, target.required_features, target, 0)
        device(Prepare(spec))
        found = device(Execute(spec, library.path, library.pack, limit, library.traffic, twice=True))
    assert found is not None
    assert found.status == "ok", f"{dict(knobs)}: {found.status}: {found.message}"
    assert found.cost is not None and found.cost > 0
    assert found.counts is not None and {*KINDS} < {*found.counts}


def test_code_of_a_later_processor_is_refused_by_an_older_one(tmp_path: Path) -> None:
    """As a check that targets are emulated as they are, and not as whatever the emulator can do."""
    spec = ConvSpec.parse("conv,ic=8,oc=16,in=9x9,k=3")
    owner = space.get("dense_direct")
    target = arm(LONG_VECTORS)
    library = builder(LONG_VECTORS)(BuildRequest(spec, Candidate(owner.name, owner.default(spec, target)), tmp_path))
    for name, status in ((LONG_VECTORS, "ok"), (NEON, "crash"), (OLD, "crash")):
        device = EmulatedCpu(tmp_path, 2, arm(name).required_features, None, 0)
        device(Prepare(spec))
        found = device(Execute(spec, library.path, library.pack, 2e-5, None, twice=True))
        assert found is not None
        assert found.status == status, name
        assert status == "ok" or "none of this processor" in found.message
