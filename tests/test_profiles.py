"""scripts/profiles.py: that samples are counted where their instructions are, in a library made for the purpose."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import profiles
import pytest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("objdump"), reason="reads x86 code with objdump"
)

SOURCE = """
    .globl  sums
sums:
    xorl    %eax, %eax
again:
    vfmadd231ps (%rdi), %ymm1, %ymm0
    vfmadd231ps 32(%rdi), %ymm1, %ymm2
    incl    %eax
    cmpl    %esi, %eax
    jne     again
    vmovups %ymm0, (%rdx)
    ret
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    source, made = tmp_path / "sums.s", tmp_path / "sums.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-nostdlib", "-o", str(made), str(source)], check=True)
    return made


def address(library: Path, mnemonic: str) -> int:
    text, places = profiles.disassembled(library)
    instructions = [line for line in text.splitlines() if line.startswith("\t")]
    return places[next(n for n, line in enumerate(instructions) if mnemonic in line)]


def test_samples_are_counted_by_loop(library: Path) -> None:
    samples = {address(library, "inc"): 6, address(library, "ret"): 1, address(library, "xor"): 1, None: 2}
    shown = [str(region) for region in profiles.regions(library, samples)]
    assert shown == ["60% (2 fma, 2 scalar, 1 branch)", "20% elsewhere in the kernel", "20% outside of it"]


def test_an_address_of_this_process_is_one_of_the_file(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ctypes.cast(ctypes.CDLL(str(library)).sums, ctypes.c_void_p).value
    assert start is not None
    inside = start + address(library, "vmovups") - address(library, "xor")
    read = profiles.output

    def sampled(*command: str) -> str:
        return f"{inside:x}\n{id(read):x}\n" if command[0] == "perf" else read(*command)

    monkeypatch.setattr(profiles, "output", sampled)
    assert profiles.addresses(tmp_path / "perf.data", library) == {address(library, "vmovups"): 1, None: 1}
