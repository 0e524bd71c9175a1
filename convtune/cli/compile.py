"""`convtune compile`: writes every layer's kernel as a Python package, and says which schedule it has and why."""

from __future__ import annotations

import itertools
import keyword
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convtune.cli import options, tables
from convtune.cli.application import DONE, FAILED, Invocation, one_line
from convtune.cli.notices import tell, warn_of
from convtune.errors import BuildError, KernelError, MeasureError, ScheduleError, VerifyError

if TYPE_CHECKING:
    from convtune.compiler import Compiler, Package
    from convtune.targets import Target
    from convtune.workloads import Workload

_REPEATS = 10
_EMULATED = "verified by emulation on this CPU; never run on {} here"


@dataclass(frozen=True)
class Output:
    """A workload and the directory that its package goes to."""

    workload: Workload
    directory: Path


@dataclass(frozen=True)
class Compiled:
    """What came of it. failure: why there is no package; "" where there is one. time_us: None for another machine."""

    output: Output
    package: Package | None = None
    time_us: float | None = None
    failure: str = ""


@click.command("compile")
@options.workloads()
@options.target
@options.log_of_schedules
@options.accuracy
@click.option(
    "-o",
    "--output",
    type=options.PLACE,
    required=True,
    metavar="DIR",
    help="The package itself where there is one spec, otherwise a directory with one package per layer.",
)
@click.option(
    "--arch",
    "archs",
    multiple=True,
    metavar="ARCH",
    help="Of another GPU to have machine code for, such as sm_90, besides the target's own; may be repeated, or a list "
    "with commas. The oldest may not be older than what the schedule needs; newer GPUs translate its PTX.",
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
    output: Path,
    archs: tuple[str, ...],
    layout: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Write every layer's kernel as a Python package that needs NumPy only.

    The schedule comes from the log: the winner for this spec and machine, then one for a machine of its family, then
    the nearest spec's; otherwise it is the default. Each kernel is verified first, where this machine can run it; what
    is for another kind of CPU, or a GPU that is not here, runs in emulation. Nothing is written unless all of them are
    right.
    """
    from convtune import targets
    from convtune.compiler import Compiler, open_logs
    from convtune.workloads import parse

    outputs = place(parse(workloads, layout), output)
    machine = targets.resolve(target, threads)
    tell(machine)
    with Compiler(machine, open_logs(log), accuracy, _listed(archs)) as compiler:
        compiled = [_compile(compiler, entry, f"[{i}/{len(outputs)}]") for i, entry in enumerate(outputs, start=1)]
        warn_of(compiler.logs.problems)
    if machine.is_host:  # now that no worker is left: after a reference, the threads of its BLAS spin on all CPUs
        compiled = [replace(entry, time_us=_time_us(entry.package)) if entry.package else entry for entry in compiled]
    failed = any(entry.failure for entry in compiled)
    if not failed:
        for entry in compiled:
            _write(entry)
    if as_json:
        tables.print_json(_data(compiled, machine, accuracy, invocation))
    else:
        click.echo(_text(compiled, machine))
    return FAILED if failed else DONE


def _listed(archs: Sequence[str]) -> list[str]:
    return [arch for text in archs for arch in text.split(",")]


def place(workloads: Sequence[Workload], directory: Path) -> list[Output]:
    """Where each workload's package goes: DIR itself for a lone one, otherwise DIR and a name that Python can import.

    Raises:
        KernelError: something is there that is neither missing, an empty directory nor an earlier package; or Python
            cannot import a package of DIR's name.
    """
    from convtune.runtime.package import check_importable

    distinct = {(workload.name, str(workload.spec)): workload for workload in workloads}
    found = list(distinct.values())
    names = [identifier(workload.layer) for workload in found]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    names = [identifier(w.name) if name in repeated else name for w, name in zip(found, names)]
    outputs: list[Output] = []
    taken = set[str]()
    for workload, name in zip(found, names):
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        unique = next(n for n in itertools.chain([name], numbered) if n not in taken)
        taken.add(unique)
        outputs.append(Output(workload, directory if len(found) == 1 else directory / unique))
    for entry in outputs:
        _check_free(entry.directory)
        check_importable(entry.directory)
    return outputs


def identifier(name: str) -> str:
    """The name as Python can import it."""
    text = re.sub(r"[^0-9A-Za-z]+", "_", name.replace("=", "")).strip("_")
    return f"conv_{text}" if not text.isidentifier() or keyword.iskeyword(text) else text


def _check_free(directory: Path) -> None:
    try:
        for place in (directory, *directory.absolute().parents):
            if place.exists() and not place.is_dir():
                raise KernelError(f"{directory} cannot be written: {place} is a file; a package is a directory")
        # found out before anything is compiled
        parent = next(place for place in directory.absolute().parents if place.exists())
        if not os.access(parent, os.W_OK):
            raise KernelError(f"{directory} cannot be written: no permission to write {parent}")
        foreign = directory.exists() and any(directory.iterdir()) and not (directory / "manifest.json").exists()
    except OSError as problem:
        raise KernelError(f"{directory} cannot be used: {problem.strerror}") from problem
    if foreign:
        raise KernelError(f"{directory} is not an earlier convtune package (no manifest.json); not overwriting it")


def _compile(compiler: Compiler, output: Output, label: str) -> Compiled:
    try:
        package = compiler.package(output.workload.spec)
    except (BuildError, MeasureError, ScheduleError, VerifyError) as problem:
        failure = one_line(str(problem))
        click.echo(f"{label} {output.workload.name}: failed: {failure}", err=True)
        return Compiled(output, failure=failure)
    click.echo(f"{label} {output.workload.name}: {package.manifest.resolution.kind}", err=True)
    return Compiled(output, package)


def _time_us(package: Package) -> float:
    import statistics

    from convtune.runtime import CompiledConv

    conv = CompiledConv(package.directory)
    conv.kernel.num_threads = package.manifest.target.threads
    return statistics.median(map(float, conv.time(_REPEATS))) * 1e6


def _write(entry: Compiled) -> None:
    from convtune.runtime.names import RUNTIME_NAME
    from convtune.runtime.package import write_package

    assert entry.package is not None
    made, directory = entry.package, entry.output.directory
    write_package(directory, made.manifest, made.directory / made.manifest.library_name, made.directory / RUNTIME_NAME)


def _unverified(target: Target) -> str:
    return f"not verified: {target.why_not_here()}"


def _text(compiled: Sequence[Compiled], target: Target) -> str:
    """One paragraph per package: reasons are sentences, which no table column holds."""
    lines = []
    written = not any(entry.failure for entry in compiled)
    for entry in compiled:
        spec = entry.output.workload.spec
        lines += [entry.output.workload.name] if entry.output.workload.name != str(spec) else []
        lines.append(f"  spec        {spec}")
        if entry.package is None:
            lines += [f"  failed      {entry.failure}", ""]
            continue
        manifest = entry.package.manifest
        knobs = ", ".join(f"{name}={value}" for name, value in manifest.candidate["knobs"].items())
        lines.append(f"  schedule    {manifest.candidate['space']}({knobs[:200]})")
        lines.append(f"  from        {manifest.resolution.kind}: {one_line(manifest.resolution.reason)}")
        if manifest.error is None:
            lines.append(f"  error       {_unverified(target)}")
        else:
            such = "a GPU" if manifest.target.on_gpu else "such a CPU"
            how = f", {_EMULATED.format(such)}" if manifest.verified == "emulation" else ""
            lines.append(f"  error       {manifest.error:.1e}{how}")
        if manifest.target.on_gpu:
            ptx = f"; PTX of {manifest.target.ptx}" if manifest.target.ptx else "; no PTX"
            lines.append(f"  code        for {', '.join(manifest.target.archs)}{ptx}")
        lines += (
            [f"  time        {tables.rank(entry.time_us)}, median of {_REPEATS} just measured"]
            if entry.time_us is not None
            else []
        )
        lines += [f"  package     {entry.output.directory}", ""] if written else [""]
    if not written:
        lines.append("nothing was written, because some failed")
    return "\n".join([*lines, target.description, tables.versions()])


def _data(compiled: Sequence[Compiled], target: Target, accuracy: str, invocation: Invocation) -> dict[str, Any]:
    return {
        "command": str(invocation),
        "target": target.facts(),
        "accuracy": accuracy,
        "written": not any(entry.failure for entry in compiled),
        "not_verified": _unverified(target) if any(_lacks_error(entry) for entry in compiled) else None,
        "packages": [_package_data(entry) for entry in compiled],
    }


def _lacks_error(entry: Compiled) -> bool:
    return entry.package is not None and entry.package.error is None


def _package_data(entry: Compiled) -> dict[str, Any]:
    manifest = entry.package.manifest if entry.package else None
    return {
        "name": entry.output.workload.name,
        "spec": str(entry.output.workload.spec),
        "failure": entry.failure or None,
        "directory": str(entry.output.directory),
        "candidate": dict(manifest.candidate) if manifest else None,
        "resolution": {"kind": manifest.resolution.kind, "reason": manifest.resolution.reason} if manifest else None,
        "error": manifest.error if manifest else None,
        "verified": manifest.verified if manifest else None,
        "archs": list(manifest.target.archs) if manifest else None,
        "time_us": entry.time_us,
    }
