"""The C++ compiler of the emulator, and the compiled scheduler that all emulated programs share."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

from convtune.errors import TargetError
from convtune.linker import Compiler, chosen, first_that_runs, make_once
from convtune.paths import cache_dir

SOURCES = Path(__file__).parent
_NATIVE = "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"
_FLAGS = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-pthread", "-w", "-Wfatal-errors",
    "-fno-strict-aliasing",  # CUDA C reads arrays of one type as another
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",  # as nvcc does
)  # fmt: skip
_SPEED = {False: ("-O3", _NATIVE), True: ("-O1", _NATIVE)}


def find_compiler() -> Compiler:
    """The C++ compiler for this machine: `$CONVTUNE_CXX`, `c++`, `g++`, `clang++`, then the `ziglang` package.

    Raises TargetError where there is none, and where `$CONVTUNE_CXX` does not work.
    """
    return _find_compiler(os.environ.get("CONVTUNE_CXX", ""))


@functools.cache
def _find_compiler(wanted: str) -> Compiler:
    if wanted:
        return chosen(platform.machine(), "CONVTUNE_CXX", wanted, "C++")
    if compiler := first_that_runs(platform.machine(), ("c++", "g++", "clang++"), ("c++",)):
        return compiler
    raise TargetError(
        "no C++ compiler found, which emulating CUDA needs (tried CONVTUNE_CXX, c++, g++, clang++, ziglang); "
        "`pip install ziglang` brings one"
    )


def flags(checked: bool) -> list[str]:
    """The compiler's options for a program of the emulator, or for its scheduler."""
    includes = ["-I", str(SOURCES), "-I", str(SOURCES / "stubs")]
    return [*_FLAGS, *_SPEED[checked], f"-DEMULATION_CHECKED={int(checked)}", *includes]


def scheduler_object(compiler: Compiler, checked: bool) -> Path:
    """The compiled scheduler, in the user's cache: once for each source, compiler and kind.

    Raises TargetError when the compiler refuses.
    """
    key = hashlib.sha256(repr((compiler, flags(checked))).encode())
    for source in sorted(SOURCES.glob("*.h")):
        key.update(source.read_bytes())
    home = cache_dir() / f"emulation-{compiler.machine}-{key.hexdigest()[:16]}"

    def compile_into(work: Path) -> None:
        arguments = ["-c", "-x", "c++", str(SOURCES / "launcher.h"), "-o", str(work / "scheduler.o")]
        if failure := compiler.run([*flags(checked), *arguments]):
            raise TargetError(f"cannot compile the emulator's scheduler: {failure}")

    make_once(home, compile_into)
    return home / "scheduler.o"
