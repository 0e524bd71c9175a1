"""From what --target says to the machine compiled for. Imports TVM, which costs a second, for CPUs in JSON alone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from convtune.discovery import discover
from convtune.errors import TargetError, UnknownNameError
from convtune.targets import document
from convtune.targets.base import Family, Target
from convtune.targets.cpu import CpuTarget
from convtune.targets.cpu_family import CpuFamily
from convtune.targets.gpu import GpuTarget
from convtune.targets.host import NOWHERE, Host, current

__all__ = ["CpuTarget", "Family", "GpuTarget", "Target", "families", "known", "native", "resolve"]

NATIVE = ("native", "host")


def resolve(text: str, threads: int | None = None, elsewhere: bool = False) -> Target:
    """The target that `text` names.

    text: "native" (the machine at hand; also "host", and its family's name), a CPU by LLVM's name, "cuda" (the GPU at
    hand, also "gpu"; where there is none another, and the target's `notice` says so), a GPU's arch or TVM's name, or
    JSON with the fields of CpuTarget or GpuTarget, inline or as the path of a .json file. threads: a CPU's cores to
    use; default: CONVTUNE_NUM_THREADS, else the physical cores that this process may use. elsewhere: another machine
    is meant, even where the one at hand is of that name or could run its code; it must be named.

    Raises:
        UnknownNameError: no such target. TargetError: a family this version lacks, or an impossible machine.
    """
    host = NOWHERE if elsewhere else current()
    if document.is_document(text):
        return _from_document(text, host, threads)
    if elsewhere and (text in NATIVE or any(text in (family.name, *family.aliases) for family in families().values())):
        raise TargetError(f"target {text!r} does not say which machine is to run the kernels; name its processor")
    if text in NATIVE:
        return native(threads)
    for family in families().values():
        if text == family.name or text in family.aliases:
            return family.native(host, threads)
        if text in family.names():
            return family.named(text, host, threads)
    for family in families().values():
        if why := family.refusal(text):
            raise TargetError(f"target {text!r}: {why}")
    raise UnknownNameError("target", text, _names())


def native(threads: int | None = None) -> CpuTarget:
    """The CPU of the machine at hand; raises TargetError as `resolve` does."""
    host = current()
    cpus = [family for family in families().values() if isinstance(family, CpuFamily)]
    for family in cpus:
        if host.machine in family.machines:
            return family.native(host, threads)
    raise TargetError(
        f"target 'native': this machine is {host.machine}, and this version compiles for "
        f"{', '.join(family.name for family in cpus)} only; name a CPU to compile for it from here"
    )


def known() -> list[Target]:
    """The machine at hand, where its family is known, then every named processor."""
    host = current()
    found: list[Target] = []
    for family in families().values():
        if not isinstance(family, CpuFamily) or host.machine in family.machines:
            with contextlib.suppress(TargetError):  # this machine does not say what it is
                found.append(family.native(host, None))
    return found + [family.named(name, host, None) for family in families().values() for name in family.names()]


def families() -> Mapping[str, Family]:
    """The families of this version, by name."""
    return discover("convtune.targets", Family)


def _names() -> list[str]:
    return [*NATIVE[:1], *families(), *(name for family in families().values() for name in family.names())]


def _from_document(text: str, host: Host, threads: int | None) -> Target:
    fields = document.load(text)
    base = None
    for family in families().values():
        if document.processor(fields) in family.names():
            base = family.named(document.processor(fields), host, None)
    target = document.build(fields, base, host, threads)
    if target.family not in families():
        raise TargetError(f"target {target.name!r}: family is {target.family!r}; allowed: {', '.join(families())}")
    if base is None and isinstance(target, CpuTarget):
        target.check_mcpu()
    return target
