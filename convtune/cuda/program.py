"""From a scheduled module to a Program: the CUDA C of its kernels, and how they are launched."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convtune.cuda.extrema import keep_nan
from convtune.cuda.tensor_cores import with_prelude
from convtune.errors import KernelError, ScheduleError
from convtune.targets.gpu import STATIC_SHARED_BYTES, GpuTarget

SCHEMA = 1
DTYPE_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int32": 4}

_AXES = "xyz"
_MOST_THREADS = 1024
_MOST_BLOCKS = ((1 << 31) - 1, 65535, 65535)
_MOST_THREADS_OF_AXIS = (1024, 1024, 64)
_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"
# Without MakePackedAPI the entry function keeps its parameters and is nothing but launches. The two others need it
# to have run, and change only types that convtune has not.
_UNWANTED_PASSES = ["tirx.MakePackedAPI", "tirx.FP8StorageLegalize", "tirx.BF16StorageLegalize"]


@dataclass(frozen=True)
class Array:
    """An array in the GPU's memory, without padding, at a multiple of 256 bytes. count: its elements."""

    name: str
    count: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise KernelError(f"array {self.name} has dtype {self.dtype!r}; allowed are {', '.join(DTYPE_BYTES)}")
        if self.count < 1:
            raise KernelError(f"array {self.name} has {self.count} elements; it must have at least 1")

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.count * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel. arguments: names of parameters and workspaces, each passed as a pointer.

    grid: blocks, block: threads, both (x, y, z). dynamic_shared_bytes: of a block, besides what the kernel declares.
    """

    kernel: str
    arguments: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.kernel):
            raise KernelError(f"kernel {self.kernel!r} has no name in C")
        for name, extents in (("grid", self.grid), ("block", self.block)):
            if min(extents) < 1:
                raise KernelError(f"kernel {self.kernel}: {name} is {extents}; each must be at least 1")
        if self.dynamic_shared_bytes < 0:
            raise KernelError(f"kernel {self.kernel}: dynamic_shared_bytes is {self.dynamic_shared_bytes}, below 0")

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True)
class Program:
    """What a GPU runs for one call: launches in order, each after the one before it.

    source: CUDA C of all kernels, as TVM writes it. parameters: the arrays of a call, in order. workspaces: arrays
    that live only between the launches.
    """

    source: str
    parameters: tuple[Array, ...]
    workspaces: tuple[Array, ...]
    launches: tuple[Launch, ...]

    def __post_init__(self) -> None:
        names = [array.name for array in (*self.parameters, *self.workspaces)]
        if len(set(names)) < len(names):
            raise KernelError(f"the arrays are named {', '.join(names)}; each name may come once")
        for launch in self.launches:
            if unknown := [name for name in launch.arguments if name not in names]:
                raise KernelError(f"kernel {launch.kernel} takes {unknown[0]!r}; the arrays are {', '.join(names)}")

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Reads what `to_json` wrote. Raises KernelError when it is no program, or a newer convtune's."""
        try:
            record = json.loads(text)
        except ValueError as error:
            raise KernelError(f"program is not JSON: {error}") from error
        schema = _read("program", record, "schema", int)
        if schema != SCHEMA:
            raise KernelError(f"program has schema {schema}; this convtune reads {SCHEMA}")
        return cls(
            source=_read("program", record, "source", str),
            parameters=tuple(_arrays(record, "parameters")),
            workspaces=tuple(_arrays(record, "workspaces")),
            launches=tuple(_launches(record)),
        )


@dataclass(frozen=True)
class Lowered:
    """A program and, by kernel name, its tirx.PrimFuncs after all of TVM's passes."""

    program: Program
    functions: Mapping[str, Any]


def lower(module: Any, target: GpuTarget) -> Lowered:
    """Lowers a tvm.IRModule whose loops are bound to threads.

    Every array may be assumed to start at a multiple of 64 bytes. Stages marked as asynchronous become `cp.async`.

    Raises ScheduleError where something is left for the CPU to compute, or the target lacks what the module needs, and
    whatever TVM raises.
    """
    import tvm

    if len(module.functions) != 1:
        raise ScheduleError(f"the module has {len(module.functions)} functions; it must have one")
    tvm_target = target.to_tvm()
    pipeline, _, finalize_device = tvm.tirx.get_default_tir_pipeline(tvm_target)
    config = {"tirx.use_async_copy": target.has_async_copy}
    if _copies_asynchronously(module):
        # TVM 0.27: what it retypes as vectors there, InjectPTXAsyncCopy cannot read
        config["tirx.disable_storage_rewrite"] = True
    with tvm.transform.PassContext(config=config, disabled_pass=_UNWANTED_PASSES):
        lowered = pipeline(tvm.tirx.transform.BindTarget(tvm_target)(module))
    kernels = dict(lowered.functions.items())
    entry = _Entry(kernels.pop(next(name for name, f in kernels.items() if "tirx.is_entry_func" in f.attrs)))
    device = finalize_device()(tvm.IRModule(kernels))
    device = tvm.IRModule({name: keep_nan(function) for name, function in device.functions.items()})
    functions = {name.name_hint: function for name, function in device.functions.items()}
    for launch in entry.launches:
        _check_limits(launch, _static_shared_bytes(functions[launch.kernel]), target)
    source = with_prelude(_source(device, tvm_target), target.compute)
    if "cp.async" in source and not target.has_async_copy:
        raise ScheduleError(f"a stage is marked as asynchronous; {target.name} is {target.arch}, which has no cp.async")
    return Lowered(Program(source, entry.parameters, tuple(entry.workspaces), tuple(entry.launches)), functions)


def _source(device: Any, tvm_target: Any) -> str:
    import tvm
    import tvm_ffi

    # Where there is a driver TVM hands the source to NVRTC or nvcc at once. What compiles it here is Toolkit.
    hook = "tvm_callback_cuda_compile"
    compile_now = tvm.get_global_func(hook)
    tvm_ffi.register_global_func(hook, lambda code: b"", override=True)
    try:
        return str(tvm.get_global_func("target.build.cuda")(device, tvm_target).inspect_source("cuda"))
    finally:
        tvm_ffi.register_global_func(hook, compile_now, override=True)


def _copies_asynchronously(module: Any) -> bool:
    """Whether a loop has stages that copy while others compute."""
    import tvm_ffi
    from tvm import tirx

    found = []

    def look(loop: Any) -> None:
        found.append("software_pipeline_async_stages" in loop.annotations)

    for function in module.functions.values():
        tvm_ffi.structural_walk(function.body, (tirx.For, look))
    return any(found)


class _Entry:
    """Reads the entry function that SplitHostDevice leaves: allocations, views of arrays, and launches."""

    def __init__(self, function: Any) -> None:
        self.workspaces: list[Array] = []
        self.launches: list[Launch] = []
        self._names: dict[Any, str] = {}  # by buffer: TVM gives two of them the same name
        self.parameters = tuple(self._array(buffer) for buffer in function.params)
        for statement in _statements(function.body):
            self._read(statement)
        if not self.launches:
            raise ScheduleError("no loop is bound to blockIdx or threadIdx: there is no kernel")

    def _array(self, buffer: Any) -> Array:
        taken, name, number = set(self._names.values()), buffer.name, 0
        while name in taken:
            number += 1
            name = f"{buffer.name}_{number}"
        self._names[buffer] = name
        dtype, _, lanes = str(buffer.dtype).partition("x")
        if dtype not in DTYPE_BYTES:
            raise ScheduleError(f"array {name} has dtype {dtype}; allowed are {', '.join(DTYPE_BYTES)}")
        return Array(name, _elements(buffer) * int(lanes or 1), dtype)

    def _read(self, statement: Any) -> None:
        from tvm import tirx

        if isinstance(statement, tirx.AllocBuffer):
            self.workspaces.append(self._array(statement.buffer))
        elif isinstance(statement, tirx.DeclBuffer):
            self._names[statement.buffer] = self._pointer(statement.data)
        elif isinstance(statement, tirx.Evaluate) and _is_call(statement.value, "tirx.call_ffi_kernel"):
            self.launches.append(self._launch(statement.value))
        else:
            raise ScheduleError(_left_for_the_cpu(statement))

    def _launch(self, call: Any) -> Launch:
        parameters = list(call.attrs.launch_params)
        kernel, *values = call.args
        pointers, extents = values[: len(values) - len(parameters)], values[len(values) - len(parameters) :]
        kernel = kernel.value
        launched = {name: _constant(f"kernel {kernel}: {name}", value) for name, value in zip(parameters, extents)}
        launch = Launch(
            kernel=kernel,
            arguments=tuple(self._pointer(pointer, kernel) for pointer in pointers),
            grid=_pop_extents(launched, "blockIdx"),
            block=_pop_extents(launched, "threadIdx"),
            dynamic_shared_bytes=launched.pop(_DYNAMIC_SHARED, 0),
        )
        if launched:
            raise ScheduleError(f"kernel {kernel} is launched with {', '.join(launched)}, which convtune does not know")
        return launch

    def _pointer(self, value: Any, kernel: str = "") -> str:
        if not _is_call(value, "tirx.buffer_data"):
            raise ScheduleError(f"kernel {kernel} takes the number {value}; it may take whole arrays only")
        return self._names[value.args[0]]


def _pop_extents(launched: dict[str, int], index: str) -> tuple[int, int, int]:
    x, y, z = (launched.pop(f"{index}.{axis}", 1) for axis in _AXES)
    return (x, y, z)


def _statements(body: Any) -> Iterator[Any]:
    from tvm import tirx

    if isinstance(body, tirx.SeqStmt):
        for statement in body.seq:
            yield from _statements(statement)
    else:
        yield body


def _is_call(value: Any, name: str) -> bool:
    from tvm.ir import Call

    return isinstance(value, Call) and getattr(value.op, "name", None) == name


def _left_for_the_cpu(statement: Any) -> str:
    import tvm_ffi
    from tvm import tirx

    written: list[str] = []
    tvm_ffi.structural_walk(statement, (tirx.BufferStore, lambda store: written.append(store.buffer.name)))
    if written:
        names = ", ".join(dict.fromkeys(written))
        return f"{names}: the CPU would compute it, since no loop around it is bound to blockIdx or threadIdx"
    return "a loop outside of blockIdx and threadIdx launches kernels; bind it too, or put it inside"


def _elements(buffer: Any) -> int:
    return math.prod(_constant(f"an extent of {buffer.name}", extent) for extent in buffer.shape)


def _constant(what: str, value: Any) -> int:
    from tvm.tirx import IntImm

    if not isinstance(value, IntImm):
        raise ScheduleError(f"{what} is {value}; it must be a constant")
    return int(value.value)


def _static_shared_bytes(function: Any) -> int:
    """Of all arrays that the kernel declares in shared memory; nvcc may add some to align them."""
    import tvm_ffi
    from tvm import tirx

    sizes = []

    def add(statement: Any) -> None:
        if statement.buffer.scope() == "shared":
            dtype = tvm_ffi.dtype(statement.buffer.dtype)
            sizes.append(_elements(statement.buffer) * (dtype.bits * dtype.lanes // 8))

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, add))
    return sum(sizes)


def _check_limits(launch: Launch, static_shared: int, target: GpuTarget) -> None:
    def check(what: str, value: int, most: int) -> None:
        if value > most:
            raise ScheduleError(f"kernel {launch.kernel}: {what} is {value}; {target.name} allows {most}")

    for axis, extent, most in zip(_AXES, launch.block, _MOST_THREADS_OF_AXIS):
        check(f"threadIdx.{axis}", extent, most)
    check("threads of a block", launch.threads, _MOST_THREADS)
    for axis, extent, most in zip(_AXES, launch.grid, _MOST_BLOCKS):
        check(f"blockIdx.{axis}", extent, most)
    check("static shared memory in bytes", static_shared, STATIC_SHARED_BYTES)
    check("shared memory in bytes", static_shared + launch.dynamic_shared_bytes, target.shared_per_block)


def _read(where: str, record: Any, field: str, kind: type) -> Any:
    if not isinstance(record, dict) or field not in record:
        raise KernelError(f"{where} has no field {field!r}")
    value = record[field]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise KernelError(f"{where}: {field} is {value!r}; it must be {kind.__name__}")
    return value


def _arrays(record: Any, field: str) -> Iterator[Array]:
    for index, entry in enumerate(_read("program", record, field, list)):
        where = f"program: {field}[{index}]"
        name, dtype = _read(where, entry, "name", str), _read(where, entry, "dtype", str)
        yield Array(name, _read(where, entry, "count", int), dtype)


def _launches(record: Any) -> Iterator[Launch]:
    for index, entry in enumerate(_read("program", record, "launches", list)):
        where = f"program: launches[{index}]"
        yield Launch(
            kernel=_read(where, entry, "kernel", str),
            arguments=_list_of(where, entry, "arguments", str),
            grid=_extents(where, entry, "grid"),
            block=_extents(where, entry, "block"),
            dynamic_shared_bytes=_read(where, entry, "dynamic_shared_bytes", int),
        )


def _extents(where: str, record: Any, field: str) -> tuple[int, int, int]:
    values = _list_of(where, record, field, int)
    if len(values) != 3:
        raise KernelError(f"{where}: {field} has {len(values)} numbers; it must have 3")
    return (values[0], values[1], values[2])


def _list_of(where: str, record: Any, field: str, kind: type) -> tuple[Any, ...]:
    values = _read(where, record, field, list)
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise KernelError(f"{where}: {field} is {values!r}; each entry must be {kind.__name__}")
    return tuple(values)
