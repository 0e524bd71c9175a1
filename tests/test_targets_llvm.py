"""Targets against LLVM's opinion: features of named CPUs, detection of this one, and the code that comes out."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from convtune import targets
from convtune.errors import TargetError
from convtune.targets import arm, host, x86
from convtune.targets.host import Host


def llvm_features(target: Any) -> set[str]:
    """Features that LLVM says the target's mcpu has; it does not look at mattr here."""
    import tvm

    return set(map(str, tvm.get_global_func("target.llvm_get_cpu_features")(target)))


@pytest.mark.parametrize("name", list(x86.CPUS))
def test_llvm_knows_every_cpu_with_these_features(name: str) -> None:
    """Both ways: a feature missing here would crash an older CPU, one too many would refuse to run on the right one."""
    said = llvm_features(dataclasses.replace(targets.resolve(name), features=()).to_tvm())
    assert x86.CPUS[name].features == said & set(x86.CPUINFO_NAMES)
    intrinsic_only = {"avx512vp2intersect"}
    families = re.compile(r"(s?sse|avx|fma|f16c|bmi|popcnt|lzcnt|movbe|gfni|cmpcc|xop|tbm|apx|egpr|ndd|ccmp|cf$)")
    unlisted = {f for f in said if families.match(f)} - set(x86.CPUINFO_NAMES) - intrinsic_only - {"sse", "sse2"}
    assert not unlisted


@pytest.mark.parametrize("name", list(arm.CPUS))
def test_llvm_knows_every_arm_cpu_with_these_features(name: str) -> None:
    """Both ways, too. Of a level LLVM knows no name: it is the generic CPU with features switched on."""
    target = targets.resolve(name, elsewhere=True)
    said = llvm_features(dataclasses.replace(target, features=()).to_tvm())
    switched = {feature[1:] for feature in target.features}
    assert all(feature.startswith("+") for feature in target.features)
    assert arm.CPUS[name].features - switched == said & set(arm.CPUINFO_NAMES)
    assert not switched or target.mcpu == "generic"
    families = re.compile(r"(sve|sme|neon|fp|fullfp|dot|i8mm|bf16|lse|rcpc|rdm|complx|sha3|flagm|f\d+mm|mops|cssc)")
    intrinsic_only = {"fptoint", "fpac"}
    assert not {f for f in said if families.match(f)} - set(arm.CPUINFO_NAMES) - intrinsic_only


@pytest.mark.skipif(host.current().machine != "x86_64", reason="the host is not x86-64")
def test_native_agrees_with_llvms_own_detection() -> None:
    import tvm

    native = targets.resolve("native")
    detected = str(tvm.get_global_func("target.llvm_get_system_cpu")())
    if detected in x86.CPUS:
        assert native.mcpu == detected
    present = {str(k) for k, v in tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")().items() if v}
    enabled = {name for name, flag in x86.CPUINFO_NAMES.items() if flag in native.required_features}
    assert enabled <= present, "LLVM asks the CPU itself"


def test_an_mcpu_that_llvm_does_not_know_is_an_error() -> None:
    target = dataclasses.replace(targets.resolve("x86-64-v3"), mcpu="znver99")
    with pytest.raises(TargetError, match=r"LLVM knows no CPU 'znver99' for x86_64"):
        target.to_tvm()


def doubling_asm(target: targets.Target) -> str:
    """Assembly of a plain loop that LLVM vectorises by itself."""
    import tvm
    from tvm import te

    x = te.placeholder((4096,), "float32", name="x")
    y = te.compute((4096,), lambda i: x[i] * 2.0, name="y")
    return str(tvm.compile(te.create_prim_func([x, y]), target=target.to_tvm()).mod.inspect_source("asm"))


@pytest.mark.parametrize("name", ["x86-64-v4", "skylake-avx512", "sapphirerapids", "znver4", "znver5"])
def test_plain_loops_use_full_vectors(name: str) -> None:
    asm = doubling_asm(targets.resolve(name))
    assert re.search(r"v(mul|add)ps\s.*%zmm", asm)
    assert not re.search(r"v(mul|add)ps\s.*%ymm", asm)


def scaled_asm(name: str, lanes: int) -> str:
    """Assembly of a schedule with vectors of so many lanes."""
    import tvm
    from tvm import s_tir, te

    x, w = te.placeholder((8, 64), "float32", name="x"), te.placeholder((8,), "float32", name="w")
    r = te.reduce_axis((0, 8), name="r")
    y = te.compute((64,), lambda i: te.sum(x[r, i] * w[r], axis=r), name="y")
    schedule = s_tir.Schedule(te.create_prim_func([x, w, y]))
    block = schedule.get_sblock("y")
    i, r = schedule.get_loops(block)
    outer, inner = schedule.split(i, [None, lanes])
    schedule.reorder(outer, r, inner)
    schedule.vectorize(inner)
    schedule.decompose_reduction(block, r)
    target = targets.resolve(name, elsewhere=True).to_tvm()
    return str(tvm.compile(schedule.mod, target=target).mod.inspect_source("asm"))


def test_vectors_of_sve_are_used_where_they_are_longer_than_neons() -> None:
    """The option that asks for them must not outlive the build, nor be of one CPU alone."""
    neon, sve, after = (scaled_asm(name, 8) for name in ("neoverse-n1", "neoverse-v1", "neoverse-n1"))
    assert re.search(r"fml\w+\s+z\d+\.s", sve)
    assert not re.search(r"fml\w+\s+v\d+\.4s", sve)
    assert re.search(r"fmla\s+v\d+\.4s", neon)
    assert not re.search(r"\bz\d+\.s|\bp\d/", neon)
    assert neon == after


def test_features_that_a_hypervisor_hides_are_not_used() -> None:
    flags = frozenset(x86.CPUINFO_NAMES[name] for name in x86.CPUS["x86-64-v3"].features)
    hidden = x86.FAMILY.native(
        Host("x86_64", "AuthenticAMD", 0x1A, 2, "virtual Zen 5", flags, (0, 1), 2, 0, 0, 0), None
    )
    assert (hidden.mcpu, hidden.vector_bytes) == ("znver5", 32)
    asm = doubling_asm(hidden)
    assert "%ymm" in asm
    assert "%zmm" not in asm
    assert not re.search(r"%[xy]mm(1[6-9]|2\d|3[01])|%k\d", asm), "registers that only AVX-512 has"
