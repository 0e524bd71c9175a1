"""From a spec to a verified kernel: resolve a candidate, build it, compare it with the reference, keep it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune import accuracy as accuracies
from convtune import codegen, linker, resolution, targets
from convtune.errors import BuildError, KernelError, SpecError, TargetError, UnknownNameError, VerifyError
from convtune.forms import form_of
from convtune.log import Log, LogStack, ShippedLog
from convtune.paths import cache_dir, log_path
from convtune.record import installed_versions, utc_now
from convtune.resolution import Choice
from convtune.runtime.manifest import Argument, Manifest, Resolution
from convtune.runtime.names import MANIFEST_NAME, RUNTIME_NAME
from convtune.runtime.package import write_package
from convtune.spec import checked
from convtune.targets import Target

if TYPE_CHECKING:
    from convtune.measure import Bench, Built
    from convtune.measure.builder import Pack
    from convtune.runtime import CompiledConv
    from convtune.space import Candidate
    from convtune.spec import ConvSpec

SOURCES = ("convtune.schedules", "convtune.variants", "convtune.runtime", "convtune.cuda")
"""Packages whose code decides what a package holds, besides the modules below."""
SOURCE_MODULES = ("convtune.expression", "convtune.activations", "convtune.codegen", "convtune.forms")

_VERIFIED = {"measured": "device", "emulated": "emulation", "estimated": "emulation"}
"""How a bench verifies, by the origin of its times."""


@dataclass(frozen=True)
class Package:
    """A compiled kernel in a directory that `save` can copy, whether or not this machine could run it.

    error: None where the target is a CPU of this machine's kind that has more than this one, so that nothing could be
    verified here.
    """

    directory: Path
    manifest: Manifest

    @property
    def error(self) -> float | None:
        return self.manifest.error


def compile(  # the contract's name
    spec: ConvSpec,
    target: str | Target = "native",
    *,
    log: str | Path | None = None,
    candidate: Candidate | None = None,
    accuracy: str = "standard",
    weight: Any = None,
    bias: Any = None,
    allow_separable: float | None = None,
    archs: Sequence[str] = (),
) -> CompiledConv:
    """The convolution as a kernel for this machine, verified against the float64 reference.

    Args:
        target: a name as for --target, or a Target. Where it is not here the kernel is verified by emulation, can be
            saved, and raises KernelError when it is called. An x86 CPU with more than this one has cannot be emulated:
            its kernel is not verified.
        log: a tuning log to take the schedule from, over the shipped one; None: the user's own.
        candidate: the schedule to use, whatever the logs say.
        accuracy: "strict", "standard" or "loose": the largest error allowed.
        weight, bias: constants of the convolution, as its calls would bring them, which then do not; None: they do.
        allow_separable: with a dense weight, compile `spatially_separable` with factors of it in its place, where they
            need fewer multiply-accumulates and ‖weight - their product‖ / ‖weight‖ (Frobenius) is at most this. The
            result's `spec`, `resolution` and `weight_error` say what was done.
        archs: of GPUs, such as "sm_90", to have machine code for besides the target's. Newer ones get PTX. None may be
            older than what the schedule needs.

    Raises:
        SpecError: the constants do not fit the spec, or allow_separable comes without weight or with a candidate.
        UnknownNameError, TargetError: no such target, accuracy or arch, or nothing here can build for it.
        LogError: the log cannot be read.
        UnknownNameError, ScheduleError: the candidate is of no space that takes the spec, or its knobs are not allowed.
        BuildError, VerifyError: it does not build, or its result is wrong.
    """
    from convtune.runtime import CompiledConv
    from convtune.weights import known_weights

    if candidate is not None and allow_separable is not None:
        raise SpecError("candidate is given with allow_separable, which may compile another spec; leave one out")
    machine = targets.resolve(target) if isinstance(target, str) else target
    known = known_weights(checked(spec), weight, bias, allow_separable)
    with Compiler(machine, open_logs(log), accuracy, archs) as compiler:
        package = compiler.package(known.spec, candidate)
    conv = CompiledConv(package.directory, elsewhere=True)
    conv.manifest = package.manifest  # the cache says why it was compiled first, this says why it is used now
    known.give(conv)
    return conv


def open_logs(log: str | Path | None) -> LogStack:
    """The named log, which must exist, or else the user's own; over the shipped one, which has what it lacks."""
    own = Log(log_path()) if log is None else Log(log, must_exist=True)
    own.check()
    return LogStack([own, ShippedLog()])


class Compiler:
    """Compiles several specs with one set of workers, which start only where the cache has no answer."""

    def __init__(self, target: Target, logs: LogStack, accuracy: str = "standard", archs: Sequence[str] = ()) -> None:
        """archs: as for `compile`. Raises UnknownNameError and TargetError as that does."""
        if not isinstance(target, Target):
            raise TargetError(f"target is {target!r}; it must be a name such as 'native', or a Target")
        if accuracy not in accuracies.NAMES:
            raise UnknownNameError("accuracy", accuracy, accuracies.NAMES)
        self.target, self.logs, self.accuracy = target, logs, accuracy
        self._form = form_of(target, archs)
        self._bench: Bench | None = None

    def package(self, spec: ConvSpec, candidate: Candidate | None = None) -> Package:
        """A verified package in the user's cache; raises as `compile` does."""
        limit = accuracies.limit(checked(spec), self.accuracy)
        refused: list[str] = []
        problem: BuildError | VerifyError | None = None
        for choice in resolution.choices(spec, self.target, self.logs, limit, candidate):
            home = cache_dir() / "kernels" / self._key(spec, choice, limit)
            why = Resolution(choice.kind, "; ".join([choice.reason, *refused]))
            if cached := _cached(home):
                return Package(home, replace(cached, resolution=why))
            try:
                return self._build(spec, choice, limit, why, home)
            except (BuildError, VerifyError) as error:
                refused.append(f"{choice.kind} gave {choice.candidate}, refused: {error}")
                problem = error
        assert problem is not None, "the default is always a choice"
        raise problem

    def _key(self, spec: ConvSpec, choice: Choice, limit: float) -> str:
        """Names all that a kernel depends on, so that an equal name is an equal kernel, for whatever reason chosen."""
        linked_by = linker.find_compiler(self._form.target.machine)
        parts = [str(spec), asdict(self.target), choice.candidate.key, limit, asdict(linked_by), self._form.key]
        text = json.dumps([*parts, installed_versions(), _source_hash()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _build(self, spec: ConvSpec, choice: Choice, limit: float, why: Resolution, home: Path) -> Package:
        bench = self._workers()
        (built,) = bench.build(spec, [choice.candidate])
        if built.library is None:
            raise BuildError(f"{choice.candidate} does not build ({built.status}): {built.message} (spec: {spec})")
        try:
            kernel = self._form.kernel(built.library)
        except BuildError as problem:
            raise BuildError(f"{choice.candidate}: {problem} (spec: {spec})") from problem
        # what runs here is what the package will hold; an emulation is another library
        made = replace(built, library=replace(built.library, path=kernel)) if bench.origin == "measured" else built
        error = self._verify(bench, spec, made, limit) if bench.runs else None
        runtime = linker.build_runtime(linker.find_compiler(self._form.target.machine), cache_dir()).library
        manifest = Manifest(
            spec=str(spec),
            arguments=arguments(spec, built.library.pack, self._form.alignment),
            target=self._form.target,
            library_sha256=_sha256(kernel),
            runtime_sha256=_sha256(runtime),
            error=error,
            resolution=why,
            candidate={"space": choice.candidate.space, "knobs": dict(choice.candidate.knobs)},
            versions=dict(installed_versions()),
            created=utc_now(),
            verified=None if error is None else _VERIFIED[bench.origin],
        )
        write_package(home, manifest, kernel, runtime)
        bench.discard(built)
        return Package(home, manifest)

    def _verify(self, bench: Bench, spec: ConvSpec, made: Built, limit: float) -> float:
        """The kernel's error. Raises VerifyError where it is wrong."""
        outcome = bench.verify(spec, made, limit)
        if outcome.status != "ok":
            found = "" if outcome.error is None else f", error {outcome.error:.2e}, allowed {limit:.2e}"
            raise VerifyError(f"{made.candidate} is {outcome.status}{found}: {outcome.message} (spec: {spec})")
        assert outcome.error is not None
        return outcome.error

    def _workers(self) -> Bench:
        if self._bench is None:
            from convtune.measure import open_bench

            self._bench = open_bench(self.target)
        return self._bench

    def close(self) -> None:
        """Ends the workers, where any were started."""
        if self._bench is not None:
            self._bench.close()
            self._bench = None

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cached(home: Path) -> Manifest | None:
    """The manifest of a package in the cache; None, and the package gone, where there is none that is whole."""
    try:
        manifest = Manifest.from_json((home / MANIFEST_NAME).read_text(encoding="utf-8"))
        hashes = {manifest.library_name: manifest.library_sha256, RUNTIME_NAME: manifest.runtime_sha256}
        whole = all(_sha256(home / name) == sha for name, sha in hashes.items())
    except (OSError, ValueError, RecursionError, KernelError):
        whole = False
    if whole:
        return manifest
    shutil.rmtree(home, ignore_errors=True)
    return None


def arguments(spec: ConvSpec, pack: Pack, alignment: int = codegen.ALIGNMENT) -> tuple[Argument, ...]:
    """A kernel's arguments as its manifest lists them, in the order of `expression.Arguments`.

    alignment: bytes that it assumes of all but the packed ones.
    """
    from convtune.runtime.packing import packed_shape

    weights = [
        Argument("weight", packed_shape(steps, shape), spec.dtype, shape, tuple(steps))
        for shape, steps in zip(spec.weight_shapes, pack)
    ]
    biases = [Argument("bias", shape, spec.dtype) for shape in spec.bias_shapes]
    rest = {**spec.input_shapes, **({"residual": spec.out_shape} if spec.residual else {}), "y": spec.out_shape}
    x, *others = [
        Argument(name, shape, spec.dtype, alignment=alignment) for name, shape in {"x": spec.in_shape, **rest}.items()
    ]
    return (x, *weights, *biases, *others)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _source_hash() -> str:
    """Changes when a schedule, an expression or the runtime does, released or not."""
    digest = hashlib.sha256()
    for name in SOURCES:
        for path in importlib.import_module(name).__path__:
            for source in sorted(p for p in Path(path).iterdir() if p.suffix in (".py", ".c", ".h")):
                digest.update(source.read_bytes())
    for name in SOURCE_MODULES:
        found = importlib.util.find_spec(name)
        assert found is not None and found.origin is not None
        digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()
