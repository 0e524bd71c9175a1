"""The pinned versions are the ones installed, and MetaSchedule, which a wrong tvm-ffi breaks, works with them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap

import pytest
from packaging.requirements import Requirement

PINNED = [r for r in map(Requirement, importlib.metadata.requires("convtune") or []) if "==" in str(r.specifier)]


def test_tvm_and_its_ffi_are_pinned() -> None:
    assert {"apache-tvm", "apache-tvm-ffi"} <= {requirement.name for requirement in PINNED}


@pytest.mark.parametrize("requirement", [r for r in PINNED if r.marker is None], ids=lambda r: r.name)
def test_what_is_installed_is_what_is_pinned(requirement: Requirement) -> None:
    assert requirement.specifier.contains(importlib.metadata.version(requirement.name))


def test_metaschedule_proposes_and_does_so_without_tensor_intrinsics() -> None:
    """With tvm-ffi 0.1.15.post2, which pip picks where nothing is pinned, this process ends with a segfault."""
    program = """
        import sys
        from convtune import ConvSpec, targets
        from convtune.search.metaschedule_worker import Propose, Proposer

        spec = ConvSpec.parse("conv,ic=4,oc=8,in=6x6,k=3x3")
        print(len(Proposer(targets.resolve("x86-64-v3"))(Propose(spec, (), (), 2, 1))))
        print("tvm.s_tir.tensor_intrin" in sys.modules)  # importing it takes 15 s
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "False"]), done.stderr
