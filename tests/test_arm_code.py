"""What is made for ARM: the code of every space, and packages, from any machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conformance_cases import specs
from test_emulation_conformance import LONG_VECTORS, NEON, OLD, check

from convtune import codegen, space, targets
from convtune.assembly import MULTIPLY_ADD, Listing, listing
from convtune.compiler import Compiler, open_logs
from convtune.measure.builder import scheduled
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget, Target
from convtune.targets.arm import CPUS
from convtune.targets.host import current

NAMES = ("cortex-a72", "neoverse-n1", "neoverse-v1", "apple-m1")


def assembly(spec: ConvSpec, target: Target, owner: str) -> str:
    """Of the space's default schedule."""
    import tvm

    knobs = space.get(owner).default(spec, target)
    module, _ = scheduled(spec, target, Candidate(owner, knobs))
    return str(tvm.compile(codegen.any_alignment(module), target=target.to_tvm()).mod.inspect_source("asm"))


def on(name: str) -> CpuTarget:
    target = targets.resolve(name, 2, elsewhere=True)
    assert isinstance(target, CpuTarget)
    return target


def cases() -> list[tuple[str, str, ConvSpec]]:
    """Of each space that is for CPUs the largest spec that it takes, and the targets in turn."""
    found = []
    for turn, (owner, its) in enumerate(space.known().items()):
        allowed = (spec for spec in specs() if spec.dtype in its.dtypes and its.accepts(spec, on("neoverse-n1")))
        falling = sorted(allowed, key=lambda spec: (spec.in_channels * spec.out_channels, str(spec)), reverse=True)
        spec = next((spec for spec in falling if its.takes(spec, on("neoverse-n1"))), None)
        if spec is not None:
            found += [(owner, NAMES[turn % 4], spec), (owner, NAMES[(turn + 2) % 4], spec)]
    return found


@pytest.mark.parametrize(("owner", "name", "spec"), cases())
def test_every_space_makes_vector_code_for_arm(owner: str, name: str, spec: ConvSpec) -> None:
    text = assembly(spec, on(name), owner)
    assert re.search(r"\bfn?m(l[as]|ad|sb)\s+[vz]\d+\.", text)
    longer = re.search(r"\bz\d+\.s", text)
    short = owner == "input_lanes" and spec.in_channels % on(name).lanes != 0  # its vectors divide the input channels
    assert bool(longer) == (name == "neoverse-v1" and not short)
    assert not re.search(r"\bbl\s+(?!memset|memcpy|memmove|main_|__tvm|TVM)\w", text), "libraries are for no inner loop"


@pytest.mark.parametrize("name", [name for name in CPUS if name not in (NEON, LONG_VECTORS, OLD)])
def test_kernels_for_every_other_cpu_are_right_in_emulation(name: str) -> None:
    """Every space is emulated for those three by the tests of emulation."""
    for text in (
        "conv,ic=5,oc=19,in=7x9,k=3x3,p=1,layout=NHWC,bias,act=silu",
        "depthwise,ic=21,oc=21,in=11x9,k=3x3,s=2",
    ):
        spec = ConvSpec.parse(text)
        owner = space.accepting(spec, on(name))[0]
        check(owner, spec, name, owner.default(spec, on(name)))


def loop_of(spec: str, name: str, owner: str) -> tuple[Listing, str]:
    text = assembly(ConvSpec.parse(spec), on(name), owner)
    return listing(text), text


@pytest.mark.parametrize("name", ["cortex-a72", "neoverse-n1", "neoverse-v2", "apple-m1", "armv8.2-a"])
@pytest.mark.parametrize(
    ("spec", "owner"),
    [
        ("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC", "dense_direct"),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,p=1", "dense_direct"),
        ("pointwise,ic=128,oc=256,in=28x28,k=1x1,layout=NHWC", "pointwise_gemm"),
    ],
)
def test_dense_tiles_multiply_by_lanes_and_stay_in_registers(spec: str, owner: str, name: str) -> None:
    found, text = loop_of(spec, name, owner)
    assert found.loop is not None
    assert (found.loop.stack_stores, found.loop.stack_loads) == (0, 0)
    assert found.loop.kinds[MULTIPLY_ADD] > 0.5 * found.loop.instructions
    assert found.loop.kinds["other vector arithmetic"] == 0, "such as copies of registers"
    by_lane = re.findall(r"\bfmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[", text)
    whole = re.findall(r"\bfmla\s+v\d+\.4s, v\d+\.4s, v\d+\.4s", text)
    assert len(by_lane) > 2 * len(whole)


def test_dense_tiles_of_sve() -> None:
    found, text = loop_of("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC", "neoverse-v1", "dense_direct")
    assert found.loop is not None
    assert (found.loop.stack_stores, found.loop.stack_loads) == (0, 0)
    assert found.loop.kinds["other vector arithmetic"] == 0
    assert re.search(r"\bfml[as]\s+z\d+\.s", text)


@pytest.mark.skipif(current().machine == "aarch64", reason="the package may run here")
@pytest.mark.parametrize(("name", "needs"), [("cortex-a72", "asimd"), ("neoverse-v1", "sve256")])
def test_a_package_for_arm_says_so_where_it_cannot_run(name: str, needs: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    with Compiler(targets.resolve(name), open_logs(None)) as compiler:
        package = compiler.package(ConvSpec("conv", 3, 5, (7, 5), 3))
    shutil.copytree(package.directory, tmp_path / "kernel")
    manifest = json.loads((tmp_path / "kernel/manifest.json").read_text())
    assert (manifest["target"]["machine"], manifest["target"]["name"]) == ("aarch64", name)
    assert needs in manifest["target"]["required_features"]
    for library in (tmp_path / "kernel").glob("*.so*"):
        assert int.from_bytes(library.read_bytes()[18:20], "little") == 183  # ELF's e_machine: EM_AARCH64
    done = subprocess.run([sys.executable, "-c", "import kernel"], cwd=tmp_path, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert said.endswith(f"UnfitCpuError: the kernel was compiled for aarch64; this machine is {current().machine}")
