"""The CPU check, on recorded /proc/cpuinfo files."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from convtune.runtime import cpu
from convtune.runtime.errors import KernelError

X86 = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse2 avx avx2 fma\nbugs\t\t: spectre\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    def pretend(name: str, cpuinfo: str) -> None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(platform, "machine", lambda: name)
        monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(cpu, "AUXV", tmp_path / "auxv")
        cpu.features.cache_clear()

    yield pretend
    cpu.features.cache_clear()


def test_features(machine: Callable[[str, str], None]) -> None:
    machine("x86_64", X86)
    assert cpu.features() == {"fpu", "sse2", "avx", "avx2", "fma"}
    machine("aarch64", ARM)
    assert cpu.features() == {"fp", "asimd", "asimddp"}


def test_check(machine: Callable[[str, str], None]) -> None:
    machine("x86_64", X86)
    cpu.check("x86_64", ["avx2", "fma"])
    with pytest.raises(
        KernelError, match=r"needs CPU features avx2, avx512f, avx512vl; this CPU lacks avx512f, avx512vl$"
    ):
        cpu.check("x86_64", ["avx512vl", "avx2", "avx512f"])
    with pytest.raises(KernelError, match="the kernel was compiled for aarch64; this machine is x86_64"):
        cpu.check("aarch64", [])


def test_machines_that_say_nothing(machine: Callable[[str, str], None], tmp_path: Path) -> None:
    machine("aarch64", X86)
    with pytest.raises(KernelError, match=r"cannot tell what this CPU supports: .* has no line 'Features'"):
        cpu.check("aarch64", ["asimd"])
    machine("s390x", "")
    with pytest.raises(KernelError, match="this machine is s390x; kernels exist for x86_64, aarch64"):
        cpu.features()
    machine("x86_64", X86)
    (tmp_path / "cpuinfo").unlink()
    with pytest.raises(KernelError, match=r"cannot tell what this CPU supports: .*No such file"):
        cpu.features()
    cpu.check("x86_64", [])


def test_the_auxiliary_vector_where_cpuinfo_is_another_machines(
    machine: Callable[[str, str], None], tmp_path: Path
) -> None:
    machine("aarch64", X86)
    pairs = {6: 4096, 16: 1 << 0 | 1 << 1 | 1 << 20 | 1 << 31, 26: 1 << 13, 0: 0}
    (tmp_path / "auxv").write_bytes(b"".join(struct.pack("@LL", *pair) for pair in pairs.items()))
    assert cpu.features() == {"fp", "asimd", "asimddp", "pacg", "i8mm"}


@pytest.mark.parametrize(
    ("answer", "lengths"),
    [(16, set()), (32 | 1 << 17, {"sve256"}), (64, {"sve512"}), (48, {"sve384"}), (-1, set())],
)
def test_the_length_of_vectors_is_a_feature(
    machine: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, answer: int, lengths: set[str]
) -> None:
    asked = []

    class Process:
        def prctl(self, *arguments: int) -> int:
            asked.append(arguments)
            return answer

    machine("aarch64", ARM.replace("asimddp", "sve"))
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: Process())
    assert cpu.features() == {"fp", "asimd", "sve", *lengths}
    assert asked == [(51, 0, 0, 0, 0)]
    if not lengths:
        with pytest.raises(KernelError, match=r"needs CPU features sve, sve256; this CPU lacks sve256$"):
            cpu.check("aarch64", ["sve", "sve256"])


def test_this_machine_has_the_features_of_its_family() -> None:
    assert cpu.features() >= ({"sse2"} if platform.machine() == "x86_64" else {"asimd"})
