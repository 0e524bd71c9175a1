"""Makes a shared library of a program: a launcher for the CPU with machine code and PTX for GPUs in it."""

from __future__ import annotations

import hashlib
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from convtune import linker, targets
from convtune.cuda.program import DTYPE_BYTES, Launch, Program
from convtune.errors import BuildError
from convtune.targets.cuda import ARCHS
from convtune.targets.gpu import GpuTarget, compute

LAUNCHER = Path(linker.__file__).parent / "runtime" / "cuda_launcher.c"

_TABLES = "cuda_program.inc"
_DLPACK_CODES = {"int": 0, "uint": 1, "float": 2}
_TEGRA = (72, 87, 110)  # is_tegra of cuda_gpus.h
_NEEDS = {
    "cp.async": ("copies asynchronously", 80),
    ".m16n8k16.": ("multiplies by Tensor Cores, 16 terms at a time", 80),
}
"""By what is in the CUDA C: what it does, and the oldest compute capability that can."""


def link(program: Program, images: Mapping[str, bytes], ptx: str | None, directory: Path, cache_dir: Path) -> Path:
    """The library, of a name of its own in `directory`, with the runtime beside it.

    It is called as a CPU's kernel is, needs NVIDIA's driver from the first call on and nothing of its toolkit.

    Args:
        images: machine code by arch, such as "sm_80".
        ptx: what newer GPUs take; None: nothing.
        cache_dir: of the linker's runtime.

    Raises:
        BuildError: there is neither code nor PTX, the PTX does not say its arch, or the launcher does not compile.
        TargetError: there is no C compiler.
    """
    tables = "\n".join(_tables(program, images, ptx)) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="launcher-") as scratch:
        (Path(scratch) / _TABLES).write_text(tables, encoding="ascii")
        object_path = Path(scratch) / "launcher.o"
        arguments = [*linker.FLAGS, "-I", scratch, "-c", "-o", str(object_path), str(LAUNCHER)]
        if failure := linker.find_compiler().run(arguments):
            raise BuildError(f"cannot compile the launcher: {failure}")
        name = hashlib.sha256(tables.encode("ascii")).hexdigest()[:16]
        return linker.link(object_path, directory / f"launcher-{name}.so", cache_dir, platform.machine())


def check_arch(program: Program, arch: str) -> None:
    """Raises BuildError where the arch lacks an instruction, or a launch's shared memory, which nvcc does not see."""
    for instruction, (does, least) in _NEEDS.items():
        if instruction in program.source and compute(arch) < least:
            way = f"compile with --target {arch} and name the newer ones by --arch, or leave {arch} out"
            raise BuildError(f"its schedule {does}, which {arch} cannot, only sm_{least} and newer; {way}")
    if arch not in ARCHS:
        return
    target = targets.resolve(arch)
    assert isinstance(target, GpuTarget)
    for launch in program.launches:
        if launch.dynamic_shared_bytes > target.shared_per_block:
            needs = f"{launch.kernel} needs {launch.dynamic_shared_bytes} bytes of shared memory"
            raise BuildError(f"{needs}; a block of {arch} has {target.shared_per_block}")


def _tables(program: Program, images: Mapping[str, bytes], ptx: str | None) -> Iterator[str]:
    arrays = (*program.parameters, *program.workspaces)
    indices = {array.name: index for index, array in enumerate(arrays)}
    rows = [_image(arch, f"code_{index}", False) for index, arch in enumerate(by_age(images))]
    for index, arch in enumerate(by_age(images)):
        yield f"static const _Alignas(64) char code_{index}[] = {_literal(images[arch])};"
    if ptx is not None:
        yield f"static const char ptx[] = {_literal(ptx.encode())};"
        rows.append(_image(_ptx_arch(ptx), "ptx", True))
    if not rows:
        raise BuildError("the launcher has neither machine code nor PTX; it needs some")
    counts = {
        "PARAMETERS": len(program.parameters),
        "ARRAYS": len(arrays),
        "LAUNCHES": len(program.launches),
        "IMAGES": len(rows),
    }
    most = max((len(launch.arguments) for launch in program.launches), default=1)
    yield f"enum {{ {', '.join(f'NUM_{name} = {count}' for name, count in counts.items())}, MOST_ARGUMENTS = {most} }};"
    yield f"static const Array arrays[] = {{{', '.join(_array(a.name, a.bytes, a.dtype) for a in arrays)}}};"
    for number, launch in enumerate(program.launches):
        yield f"static const int arguments_{number}[] = {{{', '.join(str(indices[a]) for a in launch.arguments)}}};"
    launches = ", ".join(_launch(number, launch) for number, launch in enumerate(program.launches))
    yield f"static const Launch launches[] = {{{launches}}};"
    yield f"static const Image images[] = {{{', '.join(rows)}}};"


def by_age(archs: Iterable[str]) -> list[str]:
    """Oldest first, those whose code runs on one arch alone behind it."""
    return sorted(archs, key=lambda arch: (compute(arch), arch))


def _image(arch: str, data: str, is_ptx: bool) -> str:
    exact = arch.endswith("a") or (compute(arch) in _TEGRA and not is_ptx)
    return f'{{"{arch}", {compute(arch)}, {int(exact)}, {int(is_ptx)}, {data}}}'


def _array(name: str, size_bytes: int, dtype: str) -> str:
    code = _DLPACK_CODES[dtype.rstrip("0123456789")]
    return f"{{{_literal(name.encode())}, {size_bytes}, {code}, {8 * DTYPE_BYTES[dtype]}}}"


def _launch(number: int, launch: Launch) -> str:
    grid, block = (", ".join(map(str, extents)) for extents in (launch.grid, launch.block))
    arguments = f"arguments_{number}, {len(launch.arguments)}"
    return f'{{"{launch.kernel}", {arguments}, {{{grid}}}, {{{block}}}, {launch.dynamic_shared_bytes}}}'


def _ptx_arch(ptx: str) -> str:
    found = re.search(r"^\s*\.target\s+(sm_\d+[af]?)\b", ptx, re.MULTILINE)
    if not found:
        raise BuildError("the PTX has no .target that says its arch")
    return found[1]


def _literal(data: bytes) -> str:
    """As a string of C, which compilers read many times faster than a list of numbers."""
    # always three digits, as a digit of the text may follow
    return '"' + "".join(_ESCAPED[byte] for byte in data) + '"'


_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,;:+-*/=<>()[]{}@$%&|^~!# ")
_ESCAPED = [chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in range(256)]
