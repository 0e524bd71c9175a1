"""From a program's CUDA C to C++ for the emulator: what shared arrays, pointers and waits become."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from convtune.cuda.emulation import assembly
from convtune.cuda.program import DTYPE_BYTES, Launch, Program
from convtune.errors import BuildError

ZONE_BYTES = 256
"""As kZoneBytes of worker.h."""

_SCALARS = {
    "bool": 1, "char": 1, "signed char": 1, "unsigned char": 1, "uchar": 1, "int8_t": 1, "uint8_t": 1,
    "short": 2, "unsigned short": 2, "ushort": 2, "int16_t": 2, "uint16_t": 2, "half": 2, "__half": 2,
    "int": 4, "unsigned int": 4, "unsigned": 4, "uint": 4, "int32_t": 4, "uint32_t": 4, "float": 4,
    "long long": 8, "unsigned long long": 8, "int64_t": 8, "uint64_t": 8, "double": 8,
    "longlong": 8, "__half2": 4,
}  # fmt: skip
_NAMES = "|".join(sorted(map(re.escape, _SCALARS), key=len, reverse=True))
_TYPE = rf"(?:{_NAMES}|void)[1-4]?"
_POINTER = re.compile(rf"(?:\b(?:const|volatile)\s+)*\b({_TYPE})\s*(?:const\s*)?\*(?:\s*__restrict__)?")
_SHARED = re.compile(rf"__shared__\s+(?:(?:alignas|__align__)\(\d+\)\s+)?({_TYPE})\s+(\w+)\s*((?:\[[^\]]*\]\s*)+);")
# to the emulator an address in shared memory is the pointer it was
_SHARED_ADDRESS = re.compile(
    r"\b(?:unsigned(?: int)?|uint|uint32_t)\s+(\w+\s*=\s*)(?:\(\w+(?: int)?\)\s*)?(?=__cvta_generic_to_shared\b)"
)
_FUNCTION = re.compile(r"\b(?:__global__|__device__)\b[^;{}]*?\b(\w+)\s*\(([^()]*)\)\s*\{")
_WAITS = {
    "__syncthreads": "emulation::barrier",
    "__syncwarp": "emulation::sync_warp",
    "__shfl_sync": "emulation::shuffle",
    "__shfl_up_sync": "emulation::shuffle_up",
    "__shfl_down_sync": "emulation::shuffle_down",
    "__shfl_xor_sync": "emulation::shuffle_xor",
    "__ballot_sync": "emulation::ballot",
    "__any_sync": "emulation::any",
    "__all_sync": "emulation::all",
}
_WAIT = re.compile(rf"\b({'|'.join(_WAITS)})\s*\(\s*(\)?)")
# an asynchronous copy has to wait in a thread of its own, too
_MORE_WAITS = ("emulation::copy_async", "emulation::wait_for_copies", "emulation::multiply", "wmma::")
_INDICES = {"threadIdx": "thread", "blockIdx": "block", "blockDim": "block_extent", "gridDim": "grid_extent"}


@dataclass(frozen=True)
class _SharedArray:
    """In a block's shared memory. count: 0 where the launch says how many bytes it has."""

    type: str
    name: str
    count: int
    offset: int
    element_bytes: int

    def declaration(self, index: int, checked: bool) -> str:
        if checked:
            return f"auto {self.name} = emulation::shared_array<{self.type}>(emulation_place, {index});"
        return f"{self.type}* const {self.name} = ({self.type}*)(emulation_place.shared + {self.offset});"


def translate(program: Program, checked: bool) -> str:
    """The C++ of a program; checked: with pointers that report what is done through them.

    Raises BuildError where it has what the emulator does not know.
    """
    source = _number_waits(program.source)
    source = assembly.translate(_SHARED_ADDRESS.sub(r"auto \1", source))
    synchronises = any(name in source for name in (*_WAITS.values(), *_MORE_WAITS))
    source, arrays = _translate_functions(source, checked)
    if checked:
        source = _POINTER.sub(lambda match: f"emulation::Pointer<{_pointee(match[1])}>", source)
    header = '#include "cuda_on_cpu.h"\n'
    return header + source + _tables(program, arrays, synchronises)


def _pointee(name: str) -> str:
    return {"void": "unsigned char"}.get(name, name)


def _number_waits(source: str) -> str:
    """Gives each wait the line it is in, to tell whether threads wait at the same."""

    def number(match: re.Match[str]) -> str:
        line = source.count("\n", 0, match.start()) + 1
        return f"{_WAITS[match[1]]}({line}{')' if match[2] else ', '}"

    return _WAIT.sub(number, source)


def _translate_functions(source: str, checked: bool) -> tuple[str, dict[str, list[_SharedArray]]]:
    """Declares where a thread is in functions that ask for it, and places shared arrays; those by function."""
    pieces, done, arrays = [], 0, {}
    for name, start, end in _functions(source):
        body, arrays[name] = _place_shared(source[start:end], checked)
        used = [index for index in _INDICES if re.search(rf"\b{index}\b", body)]
        place = "\n  const emulation::Place& emulation_place = emulation::place();" if used or arrays[name] else ""
        declared = "".join(f"\n  const uint3 {index} = emulation_place.{_INDICES[index]};" for index in used)
        pieces += [source[done:start], place, declared, body]
        done = end
    return "".join([*pieces, source[done:]]), arrays


def _functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name of each function for the GPU, and where the inside of its braces starts and ends."""
    for match in _FUNCTION.finditer(source):
        depth, position = 1, match.end()
        while depth and position < len(source):
            depth += {"{": 1, "}": -1}.get(source[position], 0)
            position += 1
        yield match[1], match.end(), position - 1


def _place_shared(body: str, checked: bool) -> tuple[str, list[_SharedArray]]:
    arrays: list[_SharedArray] = []
    offset = ZONE_BYTES

    def place(match: re.Match[str]) -> str:
        nonlocal offset
        array = _shared_array(match, offset, body)
        offset = -(-(offset + array.count * array.element_bytes) // 256) * 256 + ZONE_BYTES
        arrays.append(array)
        return array.declaration(len(arrays) - 1, checked)

    static = re.sub(_SHARED, lambda match: match[0] if _is_dynamic(match) else place(match), body)
    placed = re.sub(r"\bextern\s+(?=__shared__)", "", static)
    placed = re.sub(_SHARED, place, placed)
    if "__shared__" in placed:
        line = next(line.strip() for line in placed.splitlines() if "__shared__" in line)
        raise BuildError(f"the emulator does not know this declaration of shared memory: {line[:200]}")
    if [array.count for array in arrays].count(0) > 1:
        raise BuildError("a kernel declares dynamic shared memory twice; the emulator takes one array")
    return placed, arrays


def _is_dynamic(match: re.Match[str]) -> bool:
    return re.fullmatch(r"\[\s*\]\s*", match[3]) is not None


def _shared_array(match: re.Match[str], offset: int, body: str) -> _SharedArray:
    type_, name, extents = match[1], match[2], match[3]
    if _is_dynamic(match):
        # accesses are told apart by elements, so those of the smallest type that the array is read as
        views = re.findall(rf"\(\s*(?:volatile\s+)?({_TYPE})\s*\*\s*\)\s*{name}\b", body)
        return _SharedArray(type_, name, 0, offset, min((_bytes(view) for view in views), default=_bytes(type_)))
    extent = re.fullmatch(r"\[\s*(\d+)\s*\]\s*", extents)
    if not extent:
        raise BuildError(f"shared array {name} has extents {extents.strip()}; the emulator takes one number")
    return _SharedArray(type_, name, int(extent[1]), offset, _bytes(type_))


def _bytes(name: str) -> int:
    if name in _SCALARS:
        return _SCALARS[name]
    return _SCALARS[name[:-1]] * int(name[-1])


def _tables(program: Program, arrays: dict[str, list[_SharedArray]], synchronises: bool) -> str:
    """What launcher.h runs: arrays and launches."""
    names = [array.name for array in (*program.parameters, *program.workspaces)]
    rows = [
        f'{{"{array.name}", {array.bytes}, {DTYPE_BYTES[array.dtype]}, {int(array in program.parameters)}}}'
        for array in (*program.parameters, *program.workspaces)
    ]
    lines = ["", f"const emulation::Array convtune_arrays[] = {{{', '.join(rows)}}};"]
    lines.append(f"const int convtune_array_count = {len(rows)};")
    launches = []
    for number, launch in enumerate(program.launches):
        lines += _launch_tables(number, launch, names, arrays[launch.kernel])
        launches.append(_launch(number, launch, arrays[launch.kernel], synchronises))
    lines.append(f"const emulation::Launch convtune_launches[] = {{{', '.join(launches)}}};")
    lines.append(f"const int convtune_launch_count = {len(launches)};")
    return "\n".join([*lines, ""])


def _launch_tables(number: int, launch: Launch, names: list[str], arrays: list[_SharedArray]) -> Iterator[str]:
    values = ", ".join(f"a[{i}]" for i in range(len(launch.arguments)))
    yield f"static void call_{number}(const emulation::Argument* a) {{ {launch.kernel}({values}); }}"
    indices = ", ".join(str(names.index(name)) for name in launch.arguments)
    yield f"static const int arguments_{number}[] = {{{indices}}};"
    rows = ", ".join(f'{{"{a.name}", {a.offset}, {a.count * a.element_bytes}, {a.element_bytes}}}' for a in arrays)
    yield f"static const emulation::SharedArray shared_{number}[] = {{{rows or '{}'}}};"


def _launch(number: int, launch: Launch, arrays: list[_SharedArray], synchronises: bool) -> str:
    extents = ", ".join("{" + ", ".join(map(str, extent)) + "}" for extent in (launch.grid, launch.block))
    static = max((array.offset + array.count * array.element_bytes for array in arrays), default=0)
    return (
        f'{{"{launch.kernel}", call_{number}, arguments_{number}, {len(launch.arguments)}, {extents}, '
        f"{launch.dynamic_shared_bytes}, {static}, shared_{number}, {len(arrays)}, {str(synchronises).lower()}}}"
    )
