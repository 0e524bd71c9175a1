"""What a saved package says about its kernel: `manifest.json`, read back with every field checked."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import KernelError
from .kernel import ALIGNMENT
from .packing import Step, packed_shape

SCHEMA = 1
NAMES = ("x", "weight", "bias", "offset", "mask", "residual", "y")
DTYPES = ("float32", "float16", "int8", "uint8", "int32")
VERIFIED = ("device", "emulation")
PARAMETERS = ("weight", "bias")
"""What can be packed, be constant, and come more than once."""


@dataclass(frozen=True)
class Argument:
    """One argument of the kernel, in the order it takes them. Composite variants have several named `weight`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    shape_in: tuple[int, ...] | None = None
    """What the user passes, in PyTorch's layout; None: `shape` itself."""
    pack: tuple[Step, ...] = ()
    """Turns `shape_in` into `shape`; see `packing`."""
    alignment: int = ALIGNMENT
    """Bytes that the kernel assumes; an array at a lesser address is copied first."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise KernelError(f"argument {self.name!r} is unknown; known are {', '.join(NAMES)}")
        if self.dtype not in DTYPES:
            raise KernelError(f"argument {self.name} has dtype {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        if self.alignment < 1 or ALIGNMENT % self.alignment:
            raise KernelError(f"argument {self.name} has alignment {self.alignment}; it must divide {ALIGNMENT}")
        if any(size < 1 for size in (*self.shape, *self.user_shape)):
            raise KernelError(f"argument {self.name} has shape {self.shape}, of {self.user_shape}; sizes are 1 or more")
        if self.name not in PARAMETERS and (self.pack or self.shape_in is not None):
            raise KernelError(f"argument {self.name} cannot be packed; only {' and '.join(PARAMETERS)} can")
        made = packed_shape(self.pack, self.user_shape)
        if made != self.shape:
            raise KernelError(
                f"argument {self.name} packs {self.user_shape} into {made}; the kernel takes {self.shape}"
            )

    @property
    def user_shape(self) -> tuple[int, ...]:
        """The shape of the array that the user passes."""
        return self.shape if self.shape_in is None else self.shape_in


@dataclass(frozen=True)
class KernelTarget:
    """The machine a kernel was compiled for. `required_features` has Linux's names, as in /proc/cpuinfo.

    A GPU's kernels have the machine of the CPU that launches them, and:
    archs: of the GPUs that the package has machine code for, such as "sm_80"; none for CPUs.
    ptx: the oldest arch that the GPU's driver can compile the kernels for; "" where the package has no PTX.
    """

    name: str
    machine: str
    required_features: tuple[str, ...]
    threads: int
    archs: tuple[str, ...] = ()
    ptx: str = ""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise KernelError(f"manifest.json: target: threads is {self.threads}; it must be 1 or more")
        for arch in (*self.archs, *filter(None, [self.ptx])):
            if not re.fullmatch(r"sm_[0-9]+[af]?", arch):
                raise KernelError(f"manifest.json: target: {arch!r} is no arch of a GPU; those are such as 'sm_80'")
        if self.ptx and not self.archs:
            raise KernelError(f"manifest.json: target: archs are missing, and ptx is {self.ptx!r}; it must have both")

    @property
    def on_gpu(self) -> bool:
        """Whether kernels run on a GPU."""
        return bool(self.archs or self.ptx)


@dataclass(frozen=True)
class Resolution:
    """Which candidate was compiled, and why: kind is `explicit`, `log`, `transfer` or `default`."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """All that a package says about its kernel."""

    spec: str
    arguments: tuple[Argument, ...]
    target: KernelTarget
    library_sha256: str
    runtime_sha256: str
    error: float | None
    """max |y - reference| / max |reference|, with the reference in float64, when it was compiled; None where it was
    not verified."""
    resolution: Resolution
    candidate: Mapping[str, Any]
    """`space` and `knobs`."""
    versions: Mapping[str, str]
    created: str
    """UTC, ISO 8601."""
    constants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of the file of each weight and bias, where they belong to the convolution; empty where each call brings
    them."""
    weight_error: float | None = None
    """‖W - W'‖ / ‖W‖ in the Frobenius norm where the weights are factors whose product W' stands for the weight W;
    None where they are the user's own. It is no part of `error`."""
    verified: str | None = None
    """How `error` was found: on the "device" that the kernel is for, or by "emulation" on a CPU; None where it was
    compiled for another machine and could not be verified."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        names = [argument.name for argument in self.arguments]
        for name in sorted(set(names)):
            if names.count(name) > 1 and name not in PARAMETERS:
                raise KernelError(f"manifest.json: {names.count(name)} arguments are named {name}; only one may be")
        if missing := [name for name in ("x", "weight", "y") if name not in names]:
            raise KernelError(f"manifest.json: no argument is named {missing[0]}")
        if self.verified not in (None, *VERIFIED):
            raise KernelError(
                f"manifest.json: verified is {self.verified!r}; allowed are {', '.join(VERIFIED)}, or null"
            )
        if self.constants and set(self.constants) != set(self.parameter_files.values()):
            wanted = ", ".join(self.parameter_files.values())
            raise KernelError(
                f"manifest.json: constants are {', '.join(self.constants)}; they must be {wanted}, or none"
            )
        for digest in (self.library_sha256, self.runtime_sha256, *self.constants.values()):
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise KernelError(f"manifest.json: {digest!r} is not a SHA-256 in hexadecimal")

    @property
    def library_name(self) -> str:
        """The kernel's file. Its hash is in its name because the dynamic loader would take a new library for an old
        one of the same path that is still loaded."""
        return f"kernel-{self.library_sha256[:16]}.so"

    @property
    def parameter_files(self) -> dict[int, str]:
        """By argument index, the file of each weight and bias where they are constants."""
        seen: dict[str, int] = {}
        files = {}
        for index, name in enumerate(argument.name for argument in self.arguments):
            if name in PARAMETERS:
                files[index] = f"{name}-{seen.get(name, 0)}.npy"
                seen[name] = seen.get(name, 0) + 1
        return files

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads manifest.json. Raises KernelError when it is no manifest, or a newer convtune's."""
        try:
            record = json.loads(text)
        except ValueError as error:
            raise KernelError(f"manifest.json is not JSON: {error}") from error
        schema = _read("manifest.json", record, "schema", int)
        if schema != SCHEMA:
            raise KernelError(f"manifest.json has schema {schema}; this convtune reads {SCHEMA}")
        where = "manifest.json"
        arguments = _read(where, record, "arguments", list)
        return cls(
            spec=_read(where, record, "spec", str),
            arguments=tuple(_argument(f"{where}: arguments[{i}]", entry) for i, entry in enumerate(arguments)),
            target=_target(_read(where, record, "target", dict)),
            library_sha256=_read(where, record, "library_sha256", str),
            runtime_sha256=_read(where, record, "runtime_sha256", str),
            error=_number_or_none(record, "error"),
            resolution=_resolution(_read(where, record, "resolution", dict)),
            candidate=_read(where, record, "candidate", dict),
            versions=_read(where, record, "versions", dict),
            created=_read(where, record, "created", str),
            constants=_constants(record),
            weight_error=_number_or_none({"weight_error": None, **record}, "weight_error"),
            verified=_verified(record),
        )


def _read(where: str, record: Any, field: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(record, dict) or field not in record:
        raise KernelError(f"{where} has no field {field!r}")
    value = record[field]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise KernelError(f"{where}: {field} is {value!r}; it must be {' or '.join(k.__name__ for k in kinds)}")
    return value


def _number_or_none(record: Any, field: str) -> float | None:
    if isinstance(record, dict) and field in record and record[field] is None:
        return None
    return float(_read("manifest.json", record, field, (int, float)))


def _verified(record: Any) -> str | None:
    # earlier versions verified on the machine at hand only
    if "verified" not in record:
        return None if record["error"] is None else "device"
    value: str | None = record["verified"]
    return value


def _constants(record: Any) -> dict[str, str]:
    constants = _read("manifest.json", {"constants": {}, **record}, "constants", dict)
    return {name: _read("manifest.json: constants", constants, name, str) for name in constants}


def _list_of(where: str, record: Any, field: str, kind: type) -> tuple[Any, ...]:
    values = _read(where, record, field, list)
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise KernelError(f"{where}: {field} is {values!r}; each entry must be a {kind.__name__}")
    return tuple(values)


def _argument(where: str, record: Any) -> Argument:
    shape_in: Sequence[int] | None = None
    if isinstance(record, dict) and record.get("shape_in") is not None:
        shape_in = _list_of(where, record, "shape_in", int)
    return Argument(
        name=_read(where, record, "name", str),
        shape=_list_of(where, record, "shape", int),
        dtype=_read(where, record, "dtype", str),
        shape_in=None if shape_in is None else tuple(shape_in),
        pack=_list_of(where, record, "pack", dict),
        alignment=_read(where, record, "alignment", int),
    )


def _target(record: Any) -> KernelTarget:
    where = "manifest.json: target"
    return KernelTarget(
        name=_read(where, record, "name", str),
        machine=_read(where, record, "machine", str),
        required_features=_list_of(where, record, "required_features", str),
        threads=_read(where, record, "threads", int),
        archs=_list_of(where, {"archs": [], **record}, "archs", str),
        ptx=_read(where, {"ptx": "", **record}, "ptx", str),
    )


def _resolution(record: Any) -> Resolution:
    where = "manifest.json: resolution"
    return Resolution(kind=_read(where, record, "kind", str), reason=_read(where, record, "reason", str))
