"""`convtune verify`: compares kernels, freshly compiled or in saved packages, with the float64 reference."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convtune import accuracy as accuracies
from convtune.cli import options, tables
from convtune.cli.application import DONE, FAILED, Invocation, one_line
from convtune.cli.notices import tell, warn_of
from convtune.errors import (
    BuildError,
    KernelError,
    MeasureError,
    ScheduleError,
    SpecError,
    TargetError,
    UnknownNameError,
    VerifyError,
)
from convtune.runtime.names import MANIFEST_NAME
from convtune.spec import ConvSpec

if TYPE_CHECKING:
    from convtune.compiler import Compiler, Package
    from convtune.measure import Bench
    from convtune.measure.check import Checker
    from convtune.runtime.manifest import KernelTarget, Manifest
    from convtune.targets import Target
    from convtune.workloads import Workload

_EMULATED = "by emulation on this CPU; never run on {} here"
_COLUMNS = {"kernel": "left", "result": "left", "error": "right", "allowed": "right"}


@dataclass(frozen=True)
class Verdict:
    """One kernel's result. status: "ok", "wrong", "crash", … or "error" where it did not come to run."""

    name: str
    spec: str | None
    status: str
    error: float | None = None
    limit: float | None = None
    message: str = ""


@click.command("verify")
@options.workloads(metavar="WORKLOAD|DIR...")
@options.target
@options.log_of_schedules
@options.accuracy
@click.option(
    "--seed", type=options.IntegerRange(min=0), default=1, show_default=True, metavar="N", help="Of the operands."
)
@options.layout
@options.threads
@options.as_json
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    workloads: tuple[str, ...],
    target: str,
    log: Path | None,
    accuracy: str,
    seed: int,
    layout: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Check kernels against the reference, which is computed in float64.

    A DIR is a saved package, or has saved packages in it, as `convtune compile` writes them. Whatever else is given is
    a workload, which is compiled first. The kernel must write its whole output and nothing else, come within the
    error allowed, and give the same bits when run again. What is for another kind of CPU, and a workload for a GPU that
    is not here, is emulated on this one.
    """
    from convtune.compiler import Compiler, open_logs
    from convtune.targets.host import choose_threads

    choose_threads(threads, default=1)  # for all packages at once: what no kernel can run on is refused here
    directories = [Path(text) for text in workloads if _is_directory(text)]
    texts = [text for text in workloads if not _is_directory(text)]
    packages = [package for directory in directories for package in packages_in(directory)]
    with contextlib.ExitStack() as stack:
        verifier = Verifier(accuracy, seed, stack)
        verdicts = [verifier.package(str(package), package, threads) for package in packages]
        if texts:
            layers, machine = _parsed(texts, layout), _runnable(target, threads)
            tell(machine)
            logs = open_logs(log)
            compiler = stack.enter_context(Compiler(machine, logs, accuracy))
            verdicts += [verifier.workload(layer, compiler) for layer in layers]
            warn_of(logs.problems)
    if as_json:
        tables.print_json(
            {"command": str(invocation), "accuracy": accuracy, "kernels": [vars(verdict) for verdict in verdicts]}
        )
    else:
        click.echo(_text(verdicts))
    return DONE if all(verdict.status == "ok" for verdict in verdicts) else FAILED


class Verifier:
    """Checks kernels in workers, one for each number of threads, which end with the stack."""

    def __init__(self, accuracy: str, seed: int, stack: contextlib.ExitStack) -> None:
        self._accuracy, self._seed, self._stack = accuracy, seed, stack
        self._checkers: dict[tuple[object, ...], Checker] = {}
        self._emulator: Bench | None = None

    def workload(self, workload: Workload, compiler: Compiler) -> Verdict:
        """The verdict on the kernel that the compiler makes for it."""
        try:
            package = compiler.package(workload.spec)
        except (BuildError, MeasureError, ScheduleError, VerifyError) as problem:
            return Verdict(workload.name, str(workload.spec), "error", message=one_line(str(problem)))
        if package.manifest.target.on_gpu and not compiler.target.is_host:
            return self._emulate(workload, package, compiler.target)
        return self.package(workload.name, package.directory, package.manifest.target.threads)

    def _emulate(self, workload: Workload, package: Package, target: Target) -> Verdict:
        """The verdict on the candidate of a package, anew, with the operands of our seed."""
        from convtune.space import Candidate

        spec, candidate = workload.spec, Candidate(**package.manifest.candidate)
        limit = accuracies.limit(spec, self._accuracy)
        bench = self._emulating(target)
        (built,) = bench.build(spec, [candidate])
        outcome = bench.verify(spec, built, limit)
        message = _EMULATED.format("a GPU") if outcome.status == "ok" else one_line(outcome.message)
        return Verdict(workload.name, str(spec), outcome.status, outcome.error, limit, message)

    def _emulating(self, target: Target) -> Bench:
        from convtune.measure.estimating import EstimatingBench
        from convtune.targets import GpuTarget

        if self._emulator is None:
            assert isinstance(target, GpuTarget)
            self._emulator = self._stack.enter_context(EstimatingBench(target, seed=self._seed))
        return self._emulator

    def package(self, name: str, directory: Path, threads: int | None) -> Verdict:
        """The verdict on a saved kernel. threads: None means as many as it was compiled for."""
        try:
            manifest = _manifest(directory)
        except KernelError as problem:
            return Verdict(name, None, "error", message=one_line(str(problem)))
        try:
            spec = ConvSpec.parse(manifest.spec)
        except (SpecError, UnknownNameError) as problem:
            return Verdict(name, manifest.spec, "error", message=one_line(f"{MANIFEST_NAME}: {problem}"))
        limit = accuracies.limit(spec, self._accuracy)
        if manifest.target.on_gpu and (missing := _why_no_gpu()):
            past = f"; when it was compiled it was verified by {manifest.verified}" if manifest.verified else ""
            return Verdict(name, manifest.spec, "error", None, limit, f"it needs a GPU, but {missing}{past}")
        pack = tuple(argument.pack for argument in manifest.arguments if argument.name == "weight")
        try:
            checker = self._checker(manifest.target, threads or manifest.target.threads)
            outcome = checker.check(spec, directory / manifest.library_name, pack, limit)
        except (KernelError, MeasureError, TargetError) as problem:
            return Verdict(name, manifest.spec, "error", None, limit, one_line(str(problem)))
        emulated = outcome.status == "ok" and not _is_here(manifest.target.machine)
        told = _EMULATED.format("such a CPU") if emulated else one_line(outcome.message)
        return Verdict(name, manifest.spec, outcome.status, outcome.error, limit, told)

    def _checker(self, target: KernelTarget, threads: int) -> Checker:
        """A worker in which kernels of a target run, or are emulated."""
        from convtune.measure.check import Checker, EmulatedChecker

        key: tuple[object, ...]
        make: Callable[[], Checker]
        if _is_here(target.machine):
            key = (threads,)
            make = functools.partial(Checker, threads, self._seed)
        else:
            key = (threads, target.machine, target.required_features)
            make = functools.partial(EmulatedChecker, target.machine, target.required_features, threads, self._seed)
        if key not in self._checkers:
            self._checkers[key] = self._stack.enter_context(make())
        return self._checkers[key]


def _is_directory(text: str) -> bool:
    # pathlib raises where a text is too long for a name; a spec may be
    return os.path.isdir(text)  # noqa: PTH112


def _parsed(texts: Sequence[str], layout: str | None) -> list[Workload]:
    """The workloads. Raises as `parse` does; a name that is unknown may have been meant as a directory's."""
    from convtune.workloads import parse

    try:
        return parse(texts, layout)
    except UnknownNameError as problem:
        if problem.kind != "workload":
            raise
        raise SpecError(f"{problem}; nor is there a directory of that name") from problem


def packages_in(directory: Path) -> list[Path]:
    """The package that this directory is, or those in it; raises KernelError where there are none."""
    manifests = [directory / MANIFEST_NAME, *sorted(directory.glob(f"*/{MANIFEST_NAME}"))]
    found = [manifest.parent for manifest in manifests if manifest.exists()]
    if not found:
        raise KernelError(f"{directory} is not a convtune package, and has none in it: there is no {MANIFEST_NAME}")
    return found


def _is_here(machine: str) -> bool:
    return machine == platform.machine()


def _manifest(directory: Path) -> Manifest:
    """Of a package whose kernel this CPU can execute, or that has to be emulated; otherwise raises KernelError."""
    from convtune.runtime import CompiledConv
    from convtune.runtime.package import content, read_manifest

    manifest = read_manifest(directory)
    if manifest.target.on_gpu or _is_here(manifest.target.machine):
        return CompiledConv(directory).manifest
    content(directory / manifest.library_name, manifest.library_sha256)
    return manifest


def _why_no_gpu() -> str:
    """ "" where there is one."""
    from convtune.targets.cuda_driver import first_gpu

    return first_gpu().why_none


def _runnable(target: str, threads: int | None) -> Target:
    from convtune import targets
    from convtune.emulation import machines as emulated_machines

    machine = targets.resolve(target, threads)
    if isinstance(machine, targets.CpuTarget) and not _is_here(machine.machine):
        emulated_machines.check(machine.machine, machine.required_features)
    elif not machine.is_host and not isinstance(machine, targets.GpuTarget):
        raise TargetError(f"target {machine.name!r} cannot be verified here: {machine.why_not_here()}")
    return machine


def _text(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [verdict.name, verdict.status, tables.error(verdict.error), tables.error(verdict.limit)] for verdict in verdicts
    ]
    told = [f"{verdict.name}: {verdict.message}" for verdict in verdicts if verdict.message]
    wrong = sum(verdict.status != "ok" for verdict in verdicts)
    count = f"{len(verdicts) - wrong} of {tables.plural(len(verdicts), 'kernel')} right"
    return "\n".join([tables.render(_COLUMNS, rows), "", *told, count])
