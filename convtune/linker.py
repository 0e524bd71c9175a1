"""Turns a kernel's object file into a shared library that needs no TVM: the C compiler, the runtime, the link."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convtune.errors import BuildError, TargetError
from convtune.runtime.names import RUNTIME_NAME

_SOURCES = Path(__file__).parent / "runtime"
_SUMS = "sha256.json"
_TIMEOUT_S = 180  # zig compiles its own C library stubs at first use: 15 s on an idle machine
FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread")
"""For C that goes into a kernel's library or its runtime."""
# What glue.c defines. TVM's code generator knows more of these pointers, and a null one crashes when called.
_BOUND_POINTERS = {"__TVMBackendParallelLaunch", "__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace"}


@dataclass(frozen=True)
class Compiler:
    """A C compiler that also links, for one machine (`x86_64` or `aarch64`)."""

    command: tuple[str, ...]
    machine: str
    version: str

    def run(self, arguments: list[str]) -> str:
        """Runs it; returns an empty string, or in one line why it failed, or wrote no file where it has `-o`."""
        try:
            done = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{shlex.join(self.command)} took longer than {_TIMEOUT_S} s"
        except OSError as error:
            return f"{shlex.join(self.command)} did not start: {error}"
        if done.returncode == 0:
            outputs = (Path(path) for option, path in itertools.pairwise(arguments) if option == "-o")
            missing = next((path.name for path in outputs if not path.exists()), "")
            return f"{shlex.join(self.command)} exited with 0 and did not write {missing}" if missing else ""
        said = " | ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        return f"{shlex.join(self.command)} exited with {done.returncode}: {said[-2000:] or 'it said nothing'}"


@dataclass(frozen=True)
class Runtime:
    """The compiled runtime: the shared library and the object linked into every kernel."""

    library: Path
    glue: Path


def find_compiler(machine: str | None = None) -> Compiler:
    """The C compiler for `machine`, by default this one.

    For this machine: `$CONVTUNE_CC`, `cc`, `gcc`, `clang`, then the `ziglang` package; for another one its GNU
    cross compiler (`aarch64-linux-gnu-gcc`), then `ziglang`.

    Raises TargetError where there is none, and where `$CONVTUNE_CC` does not work.
    """
    return _find_compiler(machine or platform.machine(), os.environ.get("CONVTUNE_CC", ""))


@functools.cache
def _find_compiler(machine: str, wanted: str) -> Compiler:
    native = machine == platform.machine()
    if native and wanted:
        return chosen(machine, "CONVTUNE_CC", wanted, "C")
    names = ("cc", "gcc", "clang") if native else (f"{machine}-linux-gnu-gcc",)
    if compiler := first_that_runs(machine, names, ("cc", "-target", f"{machine}-linux-gnu.2.28")):
        return compiler
    tried = "CONVTUNE_CC, cc, gcc, clang, ziglang" if native else f"{machine}-linux-gnu-gcc, ziglang"
    # with the emulator that verifies what is built for ARM elsewhere
    package = "'convtune[arm]'" if machine == "aarch64" and not native else "ziglang"
    raise TargetError(f"no C compiler for {machine} found (tried {tried}); `pip install {package}` brings one")


def chosen(machine: str, variable: str, command: str, language: str) -> Compiler:
    """The compiler that the command of an environment variable starts. Raises TargetError where it starts none."""
    problem = f"{variable}={command!r} is not a {language} compiler that runs"
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:  # an unbalanced quote
        raise TargetError(f"{problem}: {error}") from error
    if compiler := running(machine, words):
        return compiler
    raise TargetError(problem)


def first_that_runs(machine: str, names: Iterable[str], zig: Sequence[str]) -> Compiler | None:
    """Of the compilers of these names on the PATH, and the `ziglang` package with those arguments."""
    commands: list[tuple[str, ...]] = [(path,) for name in names if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang"):
        commands.append((sys.executable, "-m", "ziglang", *zig))
    return next((each for command in commands if (each := running(machine, command))), None)


def running(machine: str, command: tuple[str, ...]) -> Compiler | None:
    """The compiler that the command starts; None where it does not tell its version."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = done.stdout.partition("\n")[0] if done.returncode == 0 else ""
    return Compiler(command, machine, version) if version else None


def build_runtime(compiler: Compiler, cache_dir: Path) -> Runtime:
    """Compiles the runtime once per source and compiler into `cache_dir`, which only its owner may enter.

    What is damaged there is compiled again. Safe between processes. Raises TargetError when the compiler fails,
    since no kernel will link either.
    """
    sources = [_SOURCES / name for name in ("runtime.c", "glue.c")]
    key = hashlib.sha256(repr((compiler, FLAGS)).encode())
    for source in (*sources, _SOURCES / "scratch.h"):
        key.update(source.read_bytes())
    home = cache_dir / f"runtime-{compiler.machine}-{key.hexdigest()[:16]}"

    def compile_into(work: Path) -> None:
        shared = ["-shared", f"-Wl,-soname,{RUNTIME_NAME}", "-Wl,-z,nodelete", "-o", str(work / RUNTIME_NAME)]
        for arguments in ([*shared, str(sources[0])], ["-c", "-o", str(work / "glue.o"), str(sources[1])]):
            if failure := compiler.run([*FLAGS, *arguments]):
                raise TargetError(f"cannot compile convtune's runtime: {failure}")

    make_once(home, compile_into)
    return Runtime(home / RUNTIME_NAME, home / "glue.o")


def make_once(home: Path, make: Callable[[Path], None]) -> None:
    """Fills the cache entry `home`, a directory, with the files that `make` writes, unless it has them undamaged.

    Their SHA-256 are kept beside them. Safe between processes: no file that was whole is ever missing or in part.
    """
    if _is_intact(home):
        return
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as scratch:
        make(Path(scratch))
        made = sorted(Path(scratch).iterdir())
        sums = Path(scratch) / _SUMS
        sums.write_text(json.dumps({path.name: _sha256(path) for path in made}), encoding="utf-8")
        home.mkdir(mode=0o700, exist_ok=True)
        # The sums last: what is cut short before them, or mixed with another process's files, is made again.
        for path in (*made, sums):
            path.replace(home / path.name)


def _is_intact(home: Path) -> bool:
    try:
        sums = json.loads((home / _SUMS).read_bytes())
        return isinstance(sums, dict) and bool(sums) and all(_sha256(home / name) == sums[name] for name in sums)
    except (OSError, ValueError):  # missing or damaged: the entry is made again
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def link(object_path: Path, library_path: Path, cache_dir: Path, machine: str | None = None) -> Path:
    """Links `object_path`, as TVM wrote it, into `library_path`, and puts the runtime beside it.

    The library finds the runtime in its own directory, and shares the one already loaded, if any.

    Returns `library_path`. Raises BuildError when the object does not link or needs what the runtime does not
    have, TargetError without a working compiler.
    """
    pointers = {name.decode() for name in re.findall(rb"__TVM\w+", object_path.read_bytes())}
    if missing := sorted(pointers - _BOUND_POINTERS):
        has = ", ".join(sorted(_BOUND_POINTERS))
        raise BuildError(f"{object_path.name} needs {', '.join(missing)}; convtune's runtime has {has}")
    compiler = find_compiler(machine)
    runtime = build_runtime(compiler, cache_dir)
    unfinished = library_path.with_name(f".{library_path.name}.{os.getpid()}")
    arguments = ["-shared", "-nostartfiles", "-o", str(unfinished), str(object_path), str(runtime.glue)]
    arguments += [
        str(runtime.library),
        "-Wl,-rpath,$ORIGIN",
        "-Wl,-z,defs",
        "-Wl,-S",
        "-Wl,--as-needed",
        "-lm",
        "-ldl",
    ]
    try:
        if failure := compiler.run(arguments):
            raise BuildError(f"cannot link {object_path.name}: {failure}")
        _place(runtime.library, library_path.with_name(RUNTIME_NAME))
        unfinished.replace(library_path)
    finally:
        unfinished.unlink(missing_ok=True)
    return library_path


def _place(source: Path, destination: Path) -> None:
    if destination.exists() and destination.samefile(source):
        return
    unfinished = destination.with_name(f".{destination.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(source, unfinished)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, unfinished)
    unfinished.replace(destination)
