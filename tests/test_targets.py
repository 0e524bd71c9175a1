"""Targets: what --target may say, and that the facts agree with the CPU and with LLVM."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convtune import targets
from convtune.errors import TargetError, UnknownNameError
from convtune.targets import host, x86
from convtune.targets.cpu_family import CROSS_THREADS
from convtune.targets.host import MAX_THREADS, Host, current

V3_FLAGS = (
    "fpu sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes avx f16c lahf_lm abm bmi1 avx2 bmi2 3dnowprefetch"
)
V4_FLAGS = f"{V3_FLAGS} avx512f avx512dq avx512cd avx512bw avx512vl"
ZEN5_FLAGS = (
    f"{V4_FLAGS} sse4a gfni avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq "
    "avx512_bf16 avx_vnni"
)


@pytest.fixture(autouse=True)
def _no_thread_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(host.THREADS_VARIABLE, raising=False)


def make_host(flags: str, vendor: str = "GenuineIntel", family: int = 6, model: int = 0x55, **facts: Any) -> Host:
    known = {
        "machine": "x86_64",
        "model_name": "Test CPU",
        "cpus": tuple(range(8)),
        "cores": 8,
        "l1d_bytes": 1,
        "l2_bytes": 2,
        "l3_bytes": 3,
    }
    return Host(vendor=vendor, family=family, model=model, flags=frozenset(flags.split()), **(known | facts))


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def write_machine(root: Path) -> None:
    """Four logical CPUs on two cores, as Linux shows them."""
    entry = (
        "processor : {}\nvendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nmodel name : Xeon X\nflags : fpu avx2\n"
    )
    cpu = "sys/devices/system/cpu/cpu{}/"
    files = {"proc/cpuinfo": "\n".join(entry.format(i) for i in range(4))}
    for i in range(4):
        files[cpu.format(i) + "topology/thread_siblings_list"] = f"{i % 2},{i % 2 + 2}\n"
        for index, facts in enumerate(["1 Data 48K", "1 Instruction 32K", "2 Unified 2M", "3 Unified 107520K"]):
            for key, value in zip(("level", "type", "size"), facts.split()):
                files[f"{cpu.format(i)}cache/index{index}/{key}"] = value + "\n"
    write_files(root, files)


# ---- the host ----------------------------------------------------------------------------------------


def test_host_is_read_from_proc_and_sys(tmp_path: Path) -> None:
    write_machine(tmp_path)
    read = host.read(tmp_path, "x86_64", frozenset(range(4)))
    assert (read.vendor, read.family, read.model, read.model_name) == ("GenuineIntel", 6, 143, "Xeon X")
    assert read.flags == {"fpu", "avx2"}
    assert (read.l1d_bytes, read.l2_bytes, read.l3_bytes) == (48 << 10, 2 << 20, 105 << 20)
    assert read.cores == 2, "two threads of a core share its FMA units"
    assert read.cpus == (0, 1, 2, 3)


@pytest.mark.parametrize(("cpus", "cores"), [({0, 1}, 2), ({1, 3}, 1), ({2}, 1)])
def test_affinity_limits_the_cores(tmp_path: Path, cpus: set[int], cores: int) -> None:
    write_machine(tmp_path)
    assert host.read(tmp_path, "x86_64", frozenset(cpus)).cores == cores


def test_one_cpu_of_each_core_comes_first(tmp_path: Path) -> None:
    write_machine(tmp_path)
    for cpu in range(4):  # siblings side by side
        write_files(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu // 2}\n"})
    assert host.read(tmp_path, "x86_64", frozenset(range(4))).cpus == (0, 2, 1, 3)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/docker/12\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cgroup_quota_limits_the_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    write_files(tmp_path, files)
    assert host.read(tmp_path, "x86_64", frozenset(range(8))).cores == cores


def test_a_system_that_says_nothing_gives_empty_facts(tmp_path: Path) -> None:
    read = host.read(tmp_path, "arm64", frozenset({0, 1}))
    assert (read.flags, read.cores, read.l1d_bytes) == (frozenset(), 2, 0)


def test_aarch64_features_are_flags(tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp sve\n"})
    assert host.read(tmp_path, "aarch64", frozenset({0})).flags == {"fp", "asimd", "asimddp", "sve"}


def test_host_agrees_with_the_operating_system() -> None:
    import psutil

    current = host.current()
    assert 1 <= current.cores <= len(os.sched_getaffinity(0)) <= psutil.cpu_count()


# ---- recognising CPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "mcpu", "features"),
    [
        (make_host(V4_FLAGS), "skylake-avx512", ()),
        (make_host(V4_FLAGS + " avx512_vnni"), "cascadelake", ()),
        (make_host(V4_FLAGS + " avx512_vnni avx512_bf16"), "cooperlake", ()),
        (make_host(V3_FLAGS, model=0x9E), "skylake", ()),
        (make_host(ZEN5_FLAGS, "AuthenticAMD", 0x1A, 0x02), "znver5", ()),
        (make_host(ZEN5_FLAGS, "AuthenticAMD", 0x19, 0x11), "znver4", ("+avxvnni",)),
        (make_host(V3_FLAGS + " sse4a", "HygonGenuine", 0x18, 1), "znver1", ()),
        (make_host(V4_FLAGS, model=0xFF), "x86-64-v4", ("+prfchw",)),
        (make_host(V3_FLAGS + " avx_vnni", "CentaurHauls", 7, 0x5B), "x86-64-v3", ("+avxvnni", "+prfchw")),
        (make_host("fpu sse2", "QEMU"), "x86-64", ()),
        (
            make_host(V3_FLAGS),  # a Skylake server whose hypervisor hides AVX-512
            "skylake-avx512",
            ("-avx512bw", "-avx512cd", "-avx512dq", "-avx512f", "-avx512vl"),
        ),
    ],
)
def test_native_recognises(cpu: Host, mcpu: str, features: tuple[str, ...]) -> None:
    target = x86.FAMILY.native(cpu, None)
    assert target.mcpu == mcpu
    assert tuple(f for f in target.features if f != "-prefer-256-bit") == features
    assert target.is_host
    assert target.threads == 8
    assert set(target.required_features) <= cpu.flags


@pytest.mark.parametrize(
    ("flags", "vector_bytes", "registers"), [(V4_FLAGS, 64, 32), (V3_FLAGS, 32, 16), ("sse2 pni", 16, 16)]
)
def test_vectors_are_those_of_the_flags(flags: str, vector_bytes: int, registers: int) -> None:
    target = x86.FAMILY.native(make_host(flags), None)
    assert (target.vector_bytes, target.vector_registers, target.lanes) == (vector_bytes, registers, vector_bytes // 4)


def test_the_hosts_caches_count_and_the_tables_where_it_does_not_say() -> None:
    told = x86.FAMILY.native(make_host(V4_FLAGS), None)
    assert (told.l1d_bytes, told.l2_bytes, told.l3_bytes) == (1, 2, 3)
    silent = x86.FAMILY.native(make_host(V4_FLAGS, l1d_bytes=0, l2_bytes=0, l3_bytes=0), None)
    assert (silent.l1d_bytes, silent.l2_bytes) == (32 << 10, 1 << 20)


def test_native_on_another_family_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "current", lambda: make_host("", vendor="", machine="riscv64"))
    for text in ("native", "x86"):
        with pytest.raises(TargetError, match="this machine is riscv64"):
            targets.resolve(text)
    assert not targets.resolve("znver4").is_host
    assert all(not target.is_host for target in targets.known())


def test_native_without_cpuinfo_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "current", lambda: make_host(""))
    with pytest.raises(TargetError, match=r"no /proc/cpuinfo .* name the CPU"):
        targets.resolve("native")


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.skipif(host.current().machine != "x86_64", reason="the host is not x86-64")
def test_native_has_three_names_and_needs_no_more_than_the_host_has() -> None:
    native = targets.resolve("native")
    assert native.is_host
    assert native == targets.resolve("host") == targets.resolve("x86")
    assert set(native.required_features) <= host.current().flags


def test_a_named_cpu_the_host_can_run_is_the_host_with_that_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = make_host(ZEN5_FLAGS, "AuthenticAMD", 0x1A, 0x02)
    monkeypatch.setattr(targets, "current", lambda: wide)
    native, narrow, absent = (targets.resolve(name) for name in ("native", "x86-64-v3", "sapphirerapids"))
    assert (narrow.is_host, narrow.vector_bytes, narrow.vector_registers) == (True, 32, 16)
    assert (narrow.model, narrow.threads, narrow.l2_bytes) == (native.model, 8, 2)
    assert narrow.fingerprint != native.fingerprint
    assert targets.resolve("znver5").fingerprint == native.fingerprint, "the same code on the same machine"
    assert (absent.is_host, absent.model, absent.threads) == (False, "sapphirerapids", CROSS_THREADS)
    assert (absent.l1d_bytes, absent.l2_bytes) == (48 << 10, 2 << 20)


def test_fingerprints_tell_threads_and_models_apart() -> None:
    base = x86.FAMILY.native(make_host(V4_FLAGS), 2)
    others = [
        x86.FAMILY.native(make_host(V4_FLAGS), 4),
        x86.FAMILY.native(make_host(V4_FLAGS, model_name="Other"), 2),
        x86.FAMILY.native(make_host(V4_FLAGS + " avx512_vnni"), 2),
    ]
    assert len({target.fingerprint for target in [base, *others]}) == 4
    assert base.fingerprint == x86.FAMILY.native(make_host(V4_FLAGS, l3_bytes=99), 2).fingerprint


def test_known_lists_every_target_once() -> None:
    names = [target.name for target in targets.known()]
    assert len(names) == len(set(names))
    assert {"x86-64-v2", "x86-64-v4", "haswell", "skylake-avx512", "icelake-server", "znver1", "znver5"} <= set(names)


def test_caches_grow_with_their_level() -> None:
    for name in x86.CPUS:
        target = x86.FAMILY.named(name, make_host(""), None)
        assert target.l1d_bytes < target.l2_bytes < target.l3_bytes, name


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("znver9", UnknownNameError, "unknown target 'znver9'; near it: znver5"),
        ("skylake-avx521", UnknownNameError, "near it: skylake-avx512"),
        ("", UnknownNameError, "unknown target ''; known: "),
        ("neoverse-n99", UnknownNameError, "unknown target 'neoverse-n99'; near it: neoverse-n2, neoverse-n1"),
    ],
)
def test_unknown_names(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        targets.resolve(text)


# ---- threads -----------------------------------------------------------------------------------------


def test_threads_come_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert targets.resolve("haswell", threads=7).threads == 7
    monkeypatch.setenv("CONVTUNE_NUM_THREADS", "3")
    assert targets.resolve("haswell").threads == 3
    assert targets.resolve("haswell", threads=5).threads == 5


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " "])
def test_a_bad_thread_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CONVTUNE_NUM_THREADS", text)
    with pytest.raises(TargetError, match=f"CONVTUNE_NUM_THREADS is '{text}'; allowed: 1 to 1024"):
        targets.resolve("haswell")


@pytest.mark.parametrize("threads", [0, 1025, 99999])
def test_threads_that_the_runtime_cannot_have_are_an_error(threads: int) -> None:
    for text in ("haswell", json.dumps(complete_document())):
        with pytest.raises(TargetError, match=f"threads is {threads}; allowed: 1 to 1024"):
            targets.resolve(text, threads=threads)


def test_the_bound_on_threads_is_the_runtimes() -> None:
    source = (Path(targets.__file__).parent.parent / "runtime/runtime.c").read_text()
    assert re.findall(r"MAX_THREADS = (\d+)", source) == [str(MAX_THREADS)]
    assert targets.resolve("haswell", threads=MAX_THREADS).threads == MAX_THREADS


# ---- JSON --------------------------------------------------------------------------------------------


def complete_document() -> dict[str, Any]:
    document = dataclasses.asdict(targets.resolve("x86-64-v2", threads=2))
    del document["is_host"], document["notice"]
    return document | {"name": "board", "mcpu": "tremont", "l3_bytes": 0}


def test_json_with_a_known_cpu_changes_what_it_names() -> None:
    target = targets.resolve('{"mcpu": "znver4", "name": "server", "threads": 96, "l3_bytes": 402653184}')
    assert (target.name, target.threads, target.l3_bytes) == ("server", 96, 384 << 20)
    assert dataclasses.replace(target, name="znver4", threads=1, l3_bytes=1) == dataclasses.replace(
        targets.resolve("znver4"), threads=1, l3_bytes=1
    )
    assert targets.resolve('{"mcpu": "znver4", "threads": 96}', threads=3).threads == 3


def test_json_file_with_all_fields(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps(complete_document()))
    target = targets.resolve(str(path))
    assert (target.name, target.mcpu, target.l3_bytes, target.vector_bytes) == ("board", "tremont", 0, 16)


@pytest.mark.parametrize("whole", [True, False])
def test_json_with_the_model_of_another_machine_is_not_timed_here(whole: bool) -> None:
    document = complete_document() if whole else {"mcpu": "x86-64"}
    other = targets.resolve(json.dumps(document | {"model": "Atom x6425E"}))
    assert (other.model, other.is_host) == ("Atom x6425E", False)


@pytest.mark.skipif(current().machine != "x86_64", reason="x86 targets run on x86 only")
@pytest.mark.parametrize("whole", [True, False])
def test_json_without_a_model_is_this_machine_where_it_runs(whole: bool) -> None:
    document = complete_document() if whole else {"mcpu": "x86-64"}
    document.pop("model", None)
    document["required_features"] = []
    here = targets.resolve(json.dumps(document))
    assert (here.model, here.is_host) == (current().title, True)
    assert targets.resolve(json.dumps(document | {"model": current().title})) == here
    absent = targets.resolve(json.dumps(document | {"required_features": ["no_such_feature"]}))
    assert (absent.model, absent.is_host) == (document["mcpu"], False)


def test_the_documented_json_is_a_target() -> None:
    text = (Path(__file__).parent.parent / "docs/targets.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert [targets.resolve(example).name for example in examples] == ["board", "laptop"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mcpu": None}, "mcpu is None; allowed: a string"),
        ({"threads": "2"}, "threads is '2'; allowed: a whole number"),
        ({"threads": True}, "threads is True; allowed: a whole number"),
        ({"threads": 0}, "threads is 0; allowed: 1 to 1024"),
        ({"threads": 99999}, "threads is 99999; allowed: 1 to 1024"),
        ({"l3_bytes": -1}, "l3_bytes is -1; allowed: 0"),
        ({"vector_bytes": 48}, "vector_bytes is 48; allowed: 4, 8"),
        ({"features": ["avx"]}, "feature 'avx'; allowed:"),
        ({"features": "avx"}, "features is 'avx'; allowed: a list of strings"),
        ({"model": ""}, "model is empty"),
        ({"family": "vax"}, "family is 'vax'; allowed: arm, cuda, x86"),
        ({"is_host": True}, "unknown field 'is_host'; allowed: name"),
    ],
)
def test_impossible_json(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        targets.resolve(json.dumps(complete_document() | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: "),
        ("{}", "mcpu is missing"),
        ("/nowhere/x.json", "target file '/nowhere/x.json': No such file"),
        ('{"mcpu": "tremont"}', "target 'tremont': missing family, triple, "),
        ('{"mcpu": "znver4", "features": ["-avx512f"]}', "features without required_features"),
    ],
)
def test_unusable_json(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        targets.resolve(text)


def test_json_that_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(TargetError, match="is list; allowed: an object with the fields name, family"):
        targets.resolve(str(tmp_path / "t.json"))


def test_targets_import_no_tvm() -> None:
    code = (
        "import sys; from convtune import targets; targets.known(); print('tvm' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
