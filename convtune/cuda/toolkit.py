"""Toolkit: finds nvcc and compiles CUDA C with it, to machine code whose registers and spills are known, or to PTX."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convtune.errors import BuildError, TargetError

_TIMEOUT_S = 60
_EXTRA = "`pip install 'convtune[cuda]'` brings one"
_REINSTALL = "install CUDA's toolkit again, or name another one in CUDA_PATH"
_WHEELS = {
    "nvvm/bin/cicc": "nvidia-nvvm",
    "include/cuda_runtime.h": "nvidia-cuda-runtime",
    "include/crt/host_config.h": "nvidia-cuda-crt",
}
"""What nvcc from a wheel needs of other wheels, which pip may have put elsewhere, or not at all."""


class NvccError(TargetError):
    """No nvcc serves. remedy: what to do, empty where the wheels bring what lacks. missing: there is no nvcc at all."""

    def __init__(self, message: str, *, remedy: str = "", missing: bool = False) -> None:
        self.remedy, self.missing = remedy, missing
        super().__init__(message)


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel.

    registers: of a thread. spill_stores_bytes, spill_loads_bytes: instructions' sizes, each counted once. stack_bytes:
    of a thread, with spills and local arrays that are not in registers, and with the functions it calls. shared_bytes:
    of a block, only what the kernel declares.
    """

    registers: int
    spill_stores_bytes: int
    spill_loads_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one arch, and what each kernel in it takes."""

    data: bytes
    resources: Mapping[str, Resources]


@dataclass(frozen=True)
class Toolkit:
    """An nvcc, the C++ compiler whose preprocessor it uses, and its version, such as "13.0.88"."""

    nvcc: Path
    host_compiler: str
    version: str

    def archs(self) -> tuple[str, ...]:
        """What it compiles for, such as "sm_80", the oldest first."""
        return _archs(self.nvcc)

    def check(self, arch: str) -> None:
        """Raises TargetError for an arch that this nvcc does not know."""
        if arch.rstrip("af") not in self.archs():
            raise self._unknown(arch)

    def compile(self, source: str, arch: str, directory: Path) -> Cubin:
        """Compiles CUDA C to machine code for `arch` and no other.

        directory: where temporary files may be; none is left there.

        Raises TargetError for an arch that this nvcc does not know, BuildError when it fails or takes too long.
        """
        data, log = self._run(["--cubin", "-Xptxas", "-v"], source, arch, directory)
        return Cubin(data, read_resources(log))

    def ptx(self, source: str, arch: str, directory: Path) -> str:
        """Compiles CUDA C to PTX, which drivers translate for `arch` and later ones. Otherwise as `compile`."""
        return self._run(["--ptx"], source, arch, directory)[0].decode()

    def _unknown(self, arch: str) -> TargetError:
        return TargetError(f"nvcc {self.version} does not know arch {arch!r}; it knows {', '.join(self.archs())}")

    def _run(self, flags: Sequence[str], source: str, arch: str, directory: Path) -> tuple[bytes, str]:
        self.check(arch)
        with tempfile.TemporaryDirectory(dir=directory, prefix="nvcc-") as name:
            scratch = Path(name).absolute()
            written, made = scratch / "kernel.cu", scratch / "kernel.out"
            written.write_text(source, encoding="utf-8")
            # TVM's unused cse_v1 alone would give a screen of warnings
            command = [str(self.nvcc), *flags, f"-arch={arch}", "-std=c++17", "-w", "-ccbin", self.host_compiler]
            command += ["-o", made.name, written.name]
            log, failure = _call(command, scratch)
            if "Unsupported gpu architecture" in failure:
                raise self._unknown(arch)
            if failure:
                raise BuildError(f"nvcc {self.version} for {arch}: {failure}")
            return made.read_bytes(), log


def find() -> Toolkit:
    """The nvcc of `$CUDA_PATH` or `$CUDA_HOME`, else on the path, else from the wheels of the extra `cuda`.

    Its C++ compiler is `$NVCC_CCBIN`, else g++ or clang++. Raises TargetError where there is no nvcc that runs, no C++
    compiler for it, or CUDA_PATH or CUDA_HOME is set and has none.
    """
    environment = os.environ.get
    home = next((name for name in ("CUDA_PATH", "CUDA_HOME") if environment(name)), "")
    return _find(home, environment(home, ""), environment("PATH", ""), environment("NVCC_CCBIN", ""))


@functools.cache
def _find(home_name: str, home: str, path: str, host_compiler: str) -> Toolkit:
    nvcc = _home_nvcc(home_name, home) if home else _path_nvcc(path) or _wheel_nvcc()
    if not nvcc:
        lacking = "none on PATH, CUDA_PATH is not set, and the wheels are not installed"
        raise NvccError(f"no nvcc: {lacking}; {_EXTRA}", missing=True)
    said, failure = _call([str(nvcc), "--version"])
    version = re.search(r"release [\d.]+, V([\d.]+)", said)
    if failure or not version:
        raise NvccError(f"{nvcc} does not tell its version: {failure or repr(said)}", remedy=_REINSTALL)
    return Toolkit(nvcc, host_compiler or _host_compiler(path), version[1])


def _home_nvcc(name: str, home: str) -> Path:
    nvcc = Path(home) / "bin" / "nvcc"
    if not nvcc.exists():
        message = f"{name}={home!r} has no bin/nvcc; correct it, or unset it to use another nvcc"
        raise NvccError(message, remedy=f"correct or unset {name}")
    return nvcc.absolute()


def _path_nvcc(path: str) -> Path | None:
    found = shutil.which("nvcc", path=path)
    return Path(found).absolute() if found else None


def _wheel_nvcc() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for nvcc in (nvcc for place in places for nvcc in sorted(place.glob("cu*/bin/nvcc"), reverse=True)):
        home = nvcc.parent.parent
        if missing := [wheel for file, wheel in _WHEELS.items() if not (home / file).exists()]:
            raise NvccError(f"{nvcc} lacks {', '.join(missing)} in the same place; {_EXTRA}")
        return nvcc
    return None


def _host_compiler(path: str) -> str:
    """nvcc preprocesses device code with a C++ compiler, and on x86 takes GNU's library only."""
    for name in ("g++", "clang++"):
        if found := shutil.which(name, path=path):
            macros, failure = _call([found, "-E", "-dM", "-include", "type_traits", "-x", "c++", "/dev/null"])
            if not failure and "__GLIBCXX__" in macros:
                return found
    remedy = "install g++, or name a compiler in NVCC_CCBIN"
    raise NvccError(
        "nvcc needs a C++ compiler that has GNU's C++ library; g++ and clang++ on PATH do not serve, nor does ziglang; "
        f"{remedy}",
        remedy=remedy,
    )


@functools.cache
def _archs(nvcc: Path) -> tuple[str, ...]:
    said, failure = _call([str(nvcc), "--list-gpu-code"])
    known = sorted({int(number) for number in re.findall(r"^sm_(\d+)$", said, re.MULTILINE)})
    if failure or not known:
        _check_temporary_directory()
        raise NvccError(f"{nvcc} does not tell which archs it knows: {failure or repr(said)}", remedy=_REINSTALL)
    return tuple(f"sm_{number}" for number in known)


def _check_temporary_directory() -> None:
    """nvcc fails without one, and calls it an output file."""
    place = os.environ.get("TMPDIR") or "/tmp"  # not tempfile's, which passes over one that cannot be written
    remedy = "name another one in TMPDIR"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        message = f"the temporary directory {place} cannot be written: {error.strerror}; {remedy}"
        raise NvccError(message, remedy=remedy) from error


def _call(command: Sequence[str], directory: Path | None = None) -> tuple[str, str]:
    """Its output and errors together, and in one line why it failed, else an empty string.

    It stays in our process group, so that it ends with the worker that we may be.
    """
    environment = {**os.environ, "TMPDIR": str(directory)} if directory else None
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return "", f"it does not start: {error.strerror}"
    with process:
        try:
            said, _ = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            return "", f"it took longer than {_TIMEOUT_S} s"
    return said, _failure(process.returncode, said)


def _kill(pid: int) -> None:
    """With its children: what takes too long is cicc or ptxas, which would go on without nvcc."""
    import psutil

    parent = psutil.Process(pid)
    for process in (*parent.children(recursive=True), parent):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _failure(status: int, said: str) -> str:
    """The first error that nvcc reports, or what else is known of it."""
    if status == 0:
        return ""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|\bfatal\b|not found|No such file", line)]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return errors[0] if errors else f"exit status {status}: {' | '.join(lines)[-500:] or 'it said nothing'}"


def read_resources(log: str) -> dict[str, Resources]:
    """By kernel, what `ptxas -v` reports. Raises BuildError where something is missing in it."""
    used: dict[str, str] = {}
    frames: dict[str, tuple[int, int, int]] = {}
    kernel = function = ""
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '([^']+)'", line):
            kernel = entry[1]
            used[kernel] = ""
        elif properties := re.search(r"Function properties for (\S+)", line):
            function = properties[1]
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frames[function] = (int(frame[1]), int(frame[2]), int(frame[3]))
        elif kernel and re.search(r"Used \d+ registers", line):
            used[kernel] = line
    if not used:
        raise BuildError("ptxas reports no kernel")
    if missing := [name for name, line in used.items() if not line or name not in frames]:
        raise BuildError(f"ptxas does not report what kernel {missing[0]} uses")
    return {name: _resources(line, *frames[name]) for name, line in used.items()}


def _resources(used: str, stack: int, spill_stores: int, spill_loads: int) -> Resources:
    def number(unit: str) -> int:
        found = re.search(rf"(\d+) {unit}", used)
        return int(found[1]) if found else 0

    whole_stack = max(stack, number("bytes cumulative stack size"))
    return Resources(number("registers"), spill_stores, spill_loads, whole_stack, number("bytes smem"))
