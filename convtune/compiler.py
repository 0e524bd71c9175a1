"""From a spec to a verified kernel: resolve a candidate, build it, compare it with the reference, keep it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune import accuracy as accuracies
from convtune import codegen, linker, resolution, targets
from convtune.errors import BuildError, KernelError, SpecError, TargetError, UnknownNameError, VerifyError
from convtune.log import Log, LogStack, ShippedLog
from convtune.paths import cache_dir, log_path
from convtune.record import installed_versions, utc_now
from convtune.resolution import Choice
from convtune.runtime.manifest import Argument, KernelTarget, Manifest, Resolution
from convtune.runtime.names import MANIFEST_NAME, RUNTIME_NAME
from convtune.runtime.package import write_package
from convtune.spec import checked
from convtune.targets import CpuTarget, Target

if TYPE_CHECKING:
    from convtune.measure import Bench, Built
    from convtune.measure.builder import Pack
    from convtune.runtime import CompiledConv
    from convtune.space import Candidate
    from convtune.spec import ConvSpec

SOURCES = ("convtune.schedules", "convtune.variants", "convtune.runtime")
"""Packages whose code decides what a package holds, besides the modules below."""
SOURCE_MODULES = ("convtune.expression", "convtune.activations", "convtune.codegen")


@dataclass(frozen=True)
class Package:
    """A compiled kernel in a directory that `save` can copy, whether or not this machine could run it.

    error: None where the target is not this machine, so that nothing could be verified here.
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
) -> CompiledConv:
    """The convolution as a kernel for this machine, verified against the float64 reference.

    Args:
        target: a name as for --target, or a Target; it must be able to run here.
        log: a tuning log to take the schedule from; None: the user's log, over the shipped one.
        candidate: the schedule to use, whatever the logs say.
        accuracy: "strict", "standard" or "loose": the largest error allowed.
        weight, bias: constants of the convolution, as its calls would bring them, which then do not; None: they do.
        allow_separable: with a dense weight, compile `spatially_separable` with factors of it in its place, where they
            need fewer multiply-accumulates and ‖weight - their product‖ / ‖weight‖ (Frobenius) is at most this. The
            result's `spec`, `resolution` and `weight_error` say what was done.

    Raises:
        SpecError: the constants do not fit the spec, or allow_separable comes without weight or with a candidate.
        UnknownNameError, TargetError: no such target or accuracy, or the target's kernels do not run here.
        LogError: the log cannot be read.
        BuildError, VerifyError: the named candidate does not build, or its result is wrong.
    """
    from convtune.runtime import CompiledConv
    from convtune.weights import known_weights

    if candidate is not None and allow_separable is not None:
        raise SpecError("candidate is given with allow_separable, which may compile another spec; leave one out")
    machine = targets.resolve(target) if isinstance(target, str) else target
    known = known_weights(checked(spec), weight, bias, allow_separable)
    with Compiler(machine, open_logs(log), accuracy) as compiler:
        package = compiler.package(known.spec, candidate)
    conv = CompiledConv(package.directory)
    conv.manifest = package.manifest  # the cache says why it was compiled first, this says why it is used now
    known.give(conv)
    return conv


def open_logs(log: str | Path | None) -> LogStack:
    """The named log alone, which must exist; or the user's own over the shipped one."""
    if log is not None:
        return LogStack([Log(log, must_exist=True)])
    return LogStack([Log(log_path()), ShippedLog()])


class Compiler:
    """Compiles several specs with one set of workers, which start only where the cache has no answer."""

    def __init__(self, target: Target, logs: LogStack, accuracy: str = "standard") -> None:
        if not isinstance(target, Target):
            raise TargetError(f"target is {target!r}; it must be a name such as 'native', or a Target")
        if not isinstance(target, CpuTarget):
            raise TargetError(f"target {target.name!r}: this version compiles for CPUs only")
        if accuracy not in accuracies.NAMES:
            raise UnknownNameError("accuracy", accuracy, accuracies.NAMES)
        self.target, self.logs, self.accuracy = target, logs, accuracy
        self._bench: Bench | None = None

    def package(self, spec: ConvSpec, candidate: Candidate | None = None) -> Package:
        """A verified package in the user's cache; raises as `compile` does."""
        limit = accuracies.limit(checked(spec), self.accuracy)
        refused: list[str] = []
        for choice in resolution.choices(spec, self.target, self.logs, limit, candidate):
            home = cache_dir() / "kernels" / self._key(spec, choice, limit)
            why = Resolution(choice.kind, "; ".join([choice.reason, *refused]))
            if cached := _cached(home):
                return Package(home, replace(cached, resolution=why))
            try:
                return self._build(spec, choice, limit, why, home)
            except (BuildError, VerifyError) as error:
                if choice.kind in ("explicit", "default"):
                    raise
                refused.append(f"{choice.kind} gave {choice.candidate}, refused: {error}")
        raise AssertionError("the default is always a choice")

    def _key(self, spec: ConvSpec, choice: Choice, limit: float) -> str:
        """Names all that a kernel depends on, so that an equal name is an equal kernel, for whatever reason chosen."""
        linked_by = linker.find_compiler(self.target.machine)
        parts = [str(spec), asdict(self.target), choice.candidate.key, limit, asdict(linked_by)]
        text = json.dumps([*parts, installed_versions(), _source_hash()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _build(self, spec: ConvSpec, choice: Choice, limit: float, why: Resolution, home: Path) -> Package:
        bench = self._workers()
        (built,) = bench.build(spec, [choice.candidate])
        if built.library is None:
            raise BuildError(f"{choice.candidate} does not build ({built.status}): {built.message} (spec: {spec})")
        error = None
        if self.target.is_host:
            outcome = bench.verify(spec, built, limit)
            if outcome.status != "ok":
                found = "" if outcome.error is None else f", error {outcome.error:.2e}, allowed {limit:.2e}"
                raise VerifyError(f"{choice.candidate} is {outcome.status}{found}: {outcome.message} (spec: {spec})")
            error = outcome.error
        manifest = self._manifest(spec, choice.candidate, built, error, why)
        runtime = linker.build_runtime(linker.find_compiler(self.target.machine), cache_dir()).library
        write_package(home, manifest, built.library.path, runtime)
        bench.discard(built)
        return Package(home, manifest)

    def _manifest(
        self, spec: ConvSpec, candidate: Candidate, built: Built, error: float | None, why: Resolution
    ) -> Manifest:
        assert built.library is not None
        target = self.target
        return Manifest(
            spec=str(spec),
            arguments=arguments(spec, built.library.pack),
            target=KernelTarget(target.name, target.machine, target.required_features, target.threads),
            library_sha256=hashlib.sha256(built.library.path.read_bytes()).hexdigest(),
            runtime_sha256=self._runtime_hash(),
            error=error,
            resolution=why,
            candidate={"space": candidate.space, "knobs": dict(candidate.knobs)},
            versions=dict(installed_versions()),
            created=utc_now(),
        )

    def _runtime_hash(self) -> str:
        runtime = linker.build_runtime(linker.find_compiler(self.target.machine), cache_dir())
        return hashlib.sha256(runtime.library.read_bytes()).hexdigest()

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
        whole = all(hashlib.sha256((home / name).read_bytes()).hexdigest() == sha for name, sha in hashes.items())
    except (OSError, ValueError, RecursionError, KernelError):
        whole = False
    if whole:
        return manifest
    shutil.rmtree(home, ignore_errors=True)
    return None


def arguments(spec: ConvSpec, pack: Pack) -> tuple[Argument, ...]:
    """A kernel's arguments as its manifest lists them, in the order of `expression.Arguments`."""
    from convtune.runtime.packing import packed_shape

    weights = [
        Argument("weight", packed_shape(steps, shape), spec.dtype, shape, tuple(steps))
        for shape, steps in zip(spec.weight_shapes, pack)
    ]
    biases = [Argument("bias", shape, spec.dtype) for shape in spec.bias_shapes]
    rest = {**spec.input_shapes, **({"residual": spec.out_shape} if spec.residual else {}), "y": spec.out_shape}
    x, *others = [
        Argument(name, shape, spec.dtype, alignment=codegen.ALIGNMENT)
        for name, shape in {"x": spec.in_shape, **rest}.items()
    ]
    return (x, *weights, *biases, *others)


@functools.cache
def _source_hash() -> str:
    """Changes when a schedule, an expression or the runtime does, released or not."""
    digest = hashlib.sha256()
    for name in SOURCES:
        for path in importlib.import_module(name).__path__:
            for source in sorted(p for p in Path(path).iterdir() if p.suffix in (".py", ".c")):
                digest.update(source.read_bytes())
    for name in SOURCE_MODULES:
        found = importlib.util.find_spec(name)
        assert found is not None and found.origin is not None
        digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()
