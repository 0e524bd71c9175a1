"""ARM targets: recognising a machine from what Linux shows of it, and what names mean elsewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from convtune import targets
from convtune.errors import TargetError
from convtune.targets import arm, host
from convtune.targets.host import Host

V8_FLAGS = "fp asimd evtstrm aes crc32 cpuid"
N1_FLAGS = f"{V8_FLAGS} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
V1_FLAGS = f"{N1_FLAGS} jscvt fcma sha3 sve asimdfhm dit uscat ilrcpc flagm svei8mm svebf16 i8mm bf16"


@pytest.fixture(autouse=True)
def _no_thread_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(host.THREADS_VARIABLE, raising=False)


def make_host(flags: str, name: str = "neoverse-n1", **facts: Any) -> Host:
    known = {"cpus": (0, 1), "cores": 2, "l1d_bytes": 1, "l2_bytes": 2, "l3_bytes": 3}
    fields = {"machine": "aarch64", "vendor": "0x41", "family": 0, "model": 0xD0C, "model_name": name}
    return Host(flags=frozenset(flags.split()), **(known | fields | facts))


def write_board(root: Path, entries: list[tuple[str, int]], capacities: list[int] | None = None) -> None:
    """As Linux shows a board whose processors have these parts and capacities."""
    texts = []
    for cpu, (implementer, part) in enumerate(entries):
        texts.append(
            f"processor\t: {cpu}\nBogoMIPS\t: 48.00\nFeatures\t: {N1_FLAGS}\nCPU implementer\t: {implementer}\n"
            f"CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: {part:#x}\nCPU revision\t: 1\n"
        )
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        caches = (
            ["1 Data 64K", "2 Unified 512K", "3 Unified 3072K"] if part == 0xD0B else ["1 Data 32K", "2 Unified 1M"]
        )
        for index, facts in enumerate(caches):
            (folder / f"cache/index{index}").mkdir(parents=True)
            for key, value in zip(("level", "type", "size"), facts.split()):
                (folder / f"cache/index{index}/{key}").write_text(value + "\n")
        shared = f"{cpu}\n" if part == 0xD0B else "0-3\n"
        (folder / "cache/index1/shared_cpu_list").write_text(shared)
        if capacities:
            (folder / "cpu_capacity").write_text(f"{capacities[cpu]}\n")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("\n".join(texts) + "\nHardware\t: BCM2835\n")


# ---- the host ----------------------------------------------------------------------------------------


def test_a_board_with_a_shared_l2(tmp_path: Path) -> None:
    write_board(tmp_path, [("0x41", 0xD08)] * 4)
    read = host.read(tmp_path, "aarch64", frozenset(range(4)))
    assert (read.vendor, read.model, read.model_name) == ("0x41", 0xD08, "cortex-a72")
    assert read.title == "cortex-a72 (implementer 0x41 part 0xd08)"
    assert (read.cores, read.l1d_bytes, read.l2_bytes, read.l3_bytes) == (4, 32 << 10, 256 << 10, 0)
    target = arm.FAMILY.native(read, None)
    assert (target.mcpu, target.threads, target.l3_bytes) == ("cortex-a72", 4, 0)
    assert "+lse" in target.features, "the test's flags are of a later core"


@pytest.mark.parametrize(
    ("usable", "name", "cores", "order"),
    [
        ({0, 1, 2, 3}, "cortex-a76", 2, (2, 3, 0, 1)),
        ({0, 1}, "cortex-a55", 2, (0, 1)),
        ({1, 3}, "cortex-a76", 1, (3, 1)),
    ],
)
def test_slow_cores_beside_fast_ones_are_left_out(
    tmp_path: Path, usable: set[int], name: str, cores: int, order: tuple[int, ...]
) -> None:
    write_board(tmp_path, [("0x41", 0xD05)] * 2 + [("0x41", 0xD0B)] * 2, [414, 414, 1024, 1024])
    read = host.read(tmp_path, "aarch64", frozenset(usable))
    assert (read.model_name, read.cores, read.cpus) == (name, cores, order)
    assert read.l1d_bytes == (64 << 10 if name == "cortex-a76" else 32 << 10)


def test_a_lists_length() -> None:
    assert [host._length(text) for text in ("0\n", "0-3\n", "0,4", "1-2,8-15\n")] == [1, 4, 2, 10]


def test_emulated_user_mode_shows_another_machines_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nvendor_id : GenuineIntel\nmodel : 143\nflags : fpu avx2\n")
    read = host.read(tmp_path, "aarch64", frozenset({0}))
    assert (read.flags, read.vendor, read.title) == (
        frozenset(),
        "",
        "unknown processor (implementer unknown part 0x0)",
    )


# ---- recognising CPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "mcpu", "features"),
    [
        (make_host(N1_FLAGS), "neoverse-n1", ()),
        (make_host(f"{V1_FLAGS} sve256", "neoverse-v1"), "neoverse-v1", ()),
        (make_host(N1_FLAGS, "neoverse-v1"), "neoverse-v1", tuple(sorted(
            f"-{name}" for name in ("sve", "i8mm", "bf16", "sha3", "flagm", "lse2", "rcpc-immo", "complxnum", "fp16fml")
        ))),
        (make_host(V8_FLAGS, "unknown processor"), "generic", ()),
        (make_host(N1_FLAGS, "unknown processor"), "generic", ("+dotprod", "+fullfp16", "+lse", "+rcpc", "+rdm")),
        (make_host("asimd fp fphp", "cortex-a72"), "cortex-a72", ()),
    ],
)  # fmt: skip
def test_native_recognises(cpu: Host, mcpu: str, features: tuple[str, ...]) -> None:
    target = arm.FAMILY.native(cpu, None)
    assert (target.mcpu, target.features) == (mcpu, features)
    assert (target.is_host, target.threads, target.vector_registers) == (True, 2, 32)
    assert set(target.required_features) <= cpu.flags


@pytest.mark.parametrize(
    ("length", "vector_bytes"), [("", 16), ("sve256", 32), ("sve384", 16), ("sve512", 64), ("sve1024", 128)]
)
def test_vectors_are_as_long_as_this_machines_sve(length: str, vector_bytes: int) -> None:
    target = arm.FAMILY.native(make_host(f"{V1_FLAGS} {length}", "unknown processor"), None)
    assert target.vector_bytes == vector_bytes
    assert (f"sve{8 * vector_bytes}" in target.required_features) == (vector_bytes > 16)


def test_code_for_longer_vectors_is_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_host(V1_FLAGS, "neoverse-v1")
    monkeypatch.setattr(targets, "current", lambda: here)
    named = targets.resolve("neoverse-v1")
    assert not named.is_host
    assert here.lacks("aarch64", named.required_features) == ("sve256",)
    assert targets.resolve("native").vector_bytes == 16


def test_the_length_of_vectors_is_part_of_the_fingerprint() -> None:
    long, short = (targets.resolve(json.dumps({"mcpu": "neoverse-v1", "vector_bytes": n})) for n in (32, 16))
    assert long.fingerprint == targets.resolve("neoverse-v1").fingerprint != short.fingerprint


def test_a_cpu_with_sve_has_a_name_for_neon() -> None:
    sve, neon = (targets.resolve(name, elsewhere=True) for name in ("neoverse-v1", "neoverse-v1-neon"))
    assert (neon.mcpu, neon.vector_bytes) == ("neoverse-v1", 16)
    assert {*sve.required_features} - {*neon.required_features} == {"sve256"}
    assert sve.fingerprint != neon.fingerprint


def test_a_machine_without_an_l3_has_none() -> None:
    told = arm.FAMILY.native(make_host(N1_FLAGS, l3_bytes=0), None)
    silent = arm.FAMILY.native(make_host(N1_FLAGS, l1d_bytes=0, l2_bytes=0, l3_bytes=0), None)
    assert (told.l2_bytes, told.l3_bytes) == (2, 0)
    assert (silent.l1d_bytes, silent.l2_bytes, silent.l3_bytes) == (64 << 10, 1 << 20, 32 << 20)


def test_a_machine_that_tells_no_features_is_refused() -> None:
    with pytest.raises(TargetError, match=r"name the CPU, for example armv8\.2-a"):
        arm.FAMILY.native(make_host(""), None)


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["arm", "arm64", "aarch64"])
def test_the_family_is_this_machine_or_a_stand_in(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = dataclasses.replace(make_host(""), machine="x86_64")
    monkeypatch.setattr(targets, "current", lambda: elsewhere)
    stand_in = targets.resolve(text)
    assert (stand_in.mcpu, stand_in.is_host) == ("neoverse-n1", False)
    assert stand_in.notice.startswith("target 'arm': this machine is x86_64, so neoverse-n1 is meant; name another: ")
    assert stand_in.fingerprint == targets.resolve("neoverse-n1").fingerprint
    monkeypatch.setattr(targets, "current", lambda: make_host(N1_FLAGS, "cortex-a76"))
    here = targets.resolve(text)
    assert (here.mcpu, here.is_host, here.notice) == ("cortex-a76", True, "")
    assert here == targets.resolve("native")


def test_over_rpc_the_family_is_no_machine() -> None:
    with pytest.raises(TargetError, match="name its processor"):
        targets.resolve("arm", elsewhere=True)
    assert not targets.resolve("cortex-a72", elsewhere=True).is_host


def test_caches_grow_with_their_level() -> None:
    for name in arm.CPUS:
        target = targets.resolve(name, elsewhere=True)
        assert target.l1d_bytes < target.l2_bytes, name
        assert not target.l3_bytes or target.l2_bytes < target.l3_bytes, name


def test_json_of_a_cpu_that_llvm_calls_otherwise() -> None:
    target = targets.resolve('{"mcpu": "apple-m1", "name": "mac", "threads": 8}')
    assert (target.name, target.mcpu, target.model, target.threads) == ("mac", "apple-a14", "apple-m1", 8)


def test_json_with_a_cpu_that_nobody_knows() -> None:
    with pytest.raises(TargetError, match="target 'neoverse-n99': missing family, triple, "):
        targets.resolve('{"mcpu": "neoverse-n99"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mcpu": "neoverse-n99"}, "target 'board': LLVM knows no CPU 'neoverse-n99' for aarch64-unknown-linux-gnu"),
        ({"triple": "x86_64-linux-gnu"}, "triple is 'x86_64-linux-gnu'; allowed for machine 'aarch64': aarch64-…"),
    ],
)
def test_json_of_a_machine_that_cannot_be(change: dict[str, str], message: str) -> None:
    document = dataclasses.asdict(targets.resolve("cortex-a72", elsewhere=True))
    del document["is_host"], document["notice"]
    with pytest.raises(TargetError) as refusal:
        targets.resolve(json.dumps(document | {"name": "board", "mcpu": "cortex-a35"} | change))
    assert message in str(refusal.value)
    assert targets.resolve(json.dumps(document | {"mcpu": "cortex-a35"})).mcpu == "cortex-a35"


@pytest.mark.parametrize("key", sorted(host.ARM_NAMES))
def test_parts_have_names_of_llvms(key: tuple[str, int]) -> None:
    import tvm

    tvm_target = targets.resolve("armv8-a", elsewhere=True).to_tvm()
    known = set(map(str, tvm.get_global_func("target.llvm_get_cpu_archlist")(tvm_target))) | {"apple-m1"}
    assert host.ARM_NAMES[key] in known
