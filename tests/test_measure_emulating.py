"""The bench of a CPU of another kind: what it finds of kernels, what they cost, and what it needs."""

from __future__ import annotations

import importlib.util
import itertools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure_kernels as kernels
import parallel_kernels as parallel
import pytest

from convtune import accuracy, cache_model, space, targets
from convtune.emulation import machines
from convtune.errors import TargetError
from convtune.measure import Built, Wanted, open_bench
from convtune.measure.builder import Library
from convtune.measure.check import EmulatedChecker
from convtune.measure.emulating import EmulatingBench
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

NAME, MACHINE = ("x86-64-v2", "x86_64") if platform.machine() == "aarch64" else ("neoverse-n1", "aarch64")
SPEC = ConvSpec.parse("conv,ic=8,oc=12,in=7x9,k=3,p=1,act=relu,bias")
LIMIT = accuracy.limit(SPEC, "standard")
numbers = itertools.count()


def other() -> CpuTarget:
    target = targets.resolve(NAME, threads=3)
    assert isinstance(target, CpuTarget)
    return target


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatingBench]:
    with EmulatingBench(other(), tmp_path_factory.mktemp("bench")) as bench:
        yield bench


def built(library: Path) -> Built:
    traffic = cache_model.Traffic(64.0, 64.0, 64.0, 64.0)
    return Built(
        Candidate("c", {"n": str(library)}), "ok", library=Library(library, kernels.PACK, 0.1, 1, None, (), traffic)
    )


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("none", "ok", ""),
        ("null pointer", "crash", "wrote 4 bytes at address 0x0, where there is nothing (at kernel.so+0x"),
        ("endless loop", "timeout", "ran more than 300006000 instructions"),
        ("one element too many", "wrong", "wrote outside an array: 4 bytes after the end of y"),
        ("slightly wrong", "wrong", "wrong result: error"),
        ("failure", "error", "while running: KernelError: kernel failed with status -1"),
        ("too large a workspace", "out_of_memory", "while running: out of memory"),
    ],
)
def test_what_a_kernel_does_is_its_outcome(
    bench: EmulatingBench, fault: str, status: str, message: str, tmp_path: Path
) -> None:
    kernel = built(kernels.library(tmp_path / "k", fault, machine=MACHINE))
    outcome = bench.measure(kernels.SPEC, kernel, 2e-5)
    assert (outcome.status, outcome.times_us) == (status, ())
    assert outcome.message.startswith(message)
    assert (outcome.cost is not None) == (outcome.counts is not None) == (status == "ok")
    assert (tmp_path / "k").exists() == (status == "ok")


def test_finalists_are_checked_for_more_than_candidates(bench: EmulatingBench, tmp_path: Path) -> None:
    kernel = built(parallel.library(tmp_path / "k", MACHINE, "reads what other tasks wrote"))
    assert EmulatingBench.samples
    assert bench.measure(kernels.SPEC, kernel, 2e-5).status == "ok"
    outcome = bench.verify(kernels.SPEC, kernel, 2e-5)
    assert (outcome.status, outcome.cost) == ("wrong", None)
    assert outcome.message.startswith("gives another result when run again")


def test_candidates_have_a_cost_which_is_the_same_each_time(bench: EmulatingBench) -> None:
    owner = space.get("dense_direct")
    domain = list(space.all_knobs(owner, SPEC, other()))
    candidates = [Candidate(owner.name, knobs) for knobs in (domain[0], domain[len(domain) // 2], domain[-1])]
    wrong = Candidate("no such space", {})

    def outcomes() -> dict[str, Any]:
        said: list[str] = []
        wanted = Wanted(SPEC, [*candidates, wrong], LIMIT, candidates[0], lambda: None, said.append)
        found = bench.outcomes(wanted)
        answers = {each.candidate.key: (each, outcome) for each, outcome in found}
        assert said == ["building 4 candidates", "emulating 3 candidates"]
        return answers

    first, second = outcomes(), outcomes()
    assert first.keys() == second.keys() == {candidate.key for candidate in [*candidates, wrong]}
    assert first[wrong.key][1].status == "build_error"
    costs = set()
    for candidate in candidates:
        (kernel, outcome), (_, again) = first[candidate.key], second[candidate.key]
        assert outcome.status == "ok", outcome.message
        assert (outcome.cost, outcome.counts, outcome.times_us) == (again.cost, again.counts, ())
        assert outcome.counts["vector_arithmetic"] >= SPEC.macs / other().lanes
        assert outcome.counts["l1_bytes"] >= outcome.counts["l2_bytes"] >= outcome.counts["l3_bytes"] >= 0
        verified = bench.verify(SPEC, kernel, LIMIT)
        assert (verified.status, verified.cost) == ("ok", outcome.cost)
        costs.add(outcome.cost)
    assert len(costs) > 1
    assert bench.finals(SPEC, [first[candidate.key][0] for candidate in candidates]) == [(), (), ()]


def test_a_target_of_another_machine_is_emulated() -> None:
    with open_bench(other()) as bench:
        assert isinstance(bench, EmulatingBench)
        assert (bench.origin, bench.runs) == ("emulated", True)
    with open_bench(targets.resolve("native")) as bench:
        assert bench.origin == "measured"


def test_what_cannot_be_emulated_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="kernels that need avx2 cannot be emulated: Unicorn does not have it"):
        machines.check("x86_64", ["avx2", "sse4_2"])
    with pytest.raises(TargetError, match="machine 'riscv64' cannot be emulated; what can is aarch64, x86_64"):
        EmulatedChecker("riscv64", [], 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"needs the package unicorn, .*pip install 'convtune\[arm\]'"):
        EmulatingBench(other())
