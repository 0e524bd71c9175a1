"""Targets written as JSON, for machines that have no name here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convtune.errors import TargetError
from convtune.targets.base import Target
from convtune.targets.cpu import CpuTarget
from convtune.targets.gpu import GpuTarget, check_arch
from convtune.targets.host import Host


def _fields_of(kind: type[Target]) -> dict[str, str]:
    return {f.name: str(f.type) for f in dataclasses.fields(kind) if f.name not in ("is_host", "notice")}


_CPU_FIELDS, _GPU_FIELDS = _fields_of(CpuTarget), _fields_of(GpuTarget)


def is_document(text: str) -> bool:
    """Whether a --target means JSON, inline or in a file, and no name."""
    return text.lstrip().startswith("{") or text.endswith(".json")


def load(text: str) -> dict[str, Any]:
    """The JSON object that `text` is, or that is in the file it names: with an mcpu, or with an arch for a GPU.

    Raises:
        TargetError: no such file, not JSON, not an object, or an unknown field.
    """
    inline = text.lstrip().startswith("{")
    source = "target JSON" if inline else f"target file {text!r}"
    try:
        document = json.loads(text if inline else Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"{source}: {error.strerror}") from error
    except ValueError as error:
        raise TargetError(f"{source} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise TargetError(
            f"{source} is {type(document).__name__}; allowed: an object with the fields {', '.join(_CPU_FIELDS)}, "
            f"or for a GPU {', '.join(_GPU_FIELDS)}"
        )
    gpu = "arch" in document or document.get("family") == "cuda"
    fields, needed = (_GPU_FIELDS, "arch") if gpu else (_CPU_FIELDS, "mcpu")
    for key in document:
        if key not in fields:
            raise TargetError(f"{source}: unknown field {key!r}; allowed: {', '.join(fields)}")
    if needed not in document:
        raise TargetError(f"{source}: {needed} is missing" + ("" if gpu else ", or arch for a GPU"))
    if "features" in document and "required_features" not in document:
        raise TargetError(f"{source}: features without required_features, the /proc/cpuinfo names that they need")
    return {key: _typed(source, key, value, fields[key]) for key, value in document.items()}


def processor(document: Mapping[str, Any]) -> str:
    """What the document names: an mcpu, or a GPU's arch, without the suffix of sm_90a."""
    return re.sub(r"(?<=\d)[af]$", "", document["arch"]) if "arch" in document else str(document["mcpu"])


def build(document: Mapping[str, Any], base: Target | None, host: Host, threads: int | None) -> Target:
    """The target of a document; what it leaves out is as in `base`, the named target with its mcpu or arch.

    The model is this machine's where this machine can run it, unless the document says otherwise. Another model is
    another machine, even where its code runs here: its times would be this machine's.

    Raises:
        TargetError: a field is impossible, or missing where there is no base.
    """
    if "arch" in document:
        return _gpu(document, base, threads)
    values = _values(document, base, _CPU_FIELDS)
    if isinstance(base, CpuTarget):
        values["mcpu"] = base.mcpu  # LLVM's name may be another one
    if threads is not None:
        values["threads"] = threads
    _require(values, _CPU_FIELDS)
    runs_here = not host.lacks(values["machine"], values["required_features"])
    values["model"] = document.get("model", host.title if runs_here else document["mcpu"])
    return CpuTarget(**values, is_host=runs_here and values["model"] == host.title)


def _gpu(document: Mapping[str, Any], base: Target | None, threads: int | None) -> GpuTarget:
    values = {"family": "cuda", **_values(document, base, _GPU_FIELDS)}
    if threads is not None:
        raise TargetError(
            f"target {values['name']!r}: threads is {threads}; only CPUs have a number of threads to choose"
        )
    check_arch(values["name"], values["arch"])
    _require(values, _GPU_FIELDS)
    here = base.model if base is not None and base.is_host else ""
    values["model"] = document.get("model", here or f"a GPU of {values['arch']}, described in JSON")
    return GpuTarget(**values, is_host=values["model"] == here)


def _values(document: Mapping[str, Any], base: Target | None, fields: Mapping[str, str]) -> dict[str, Any]:
    known = {} if base is None else {key: getattr(base, key) for key in fields}
    return known | {"name": str(document["arch" if "arch" in document else "mcpu"]), **document}


def _require(values: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    missing = [key for key in fields if key not in values and key != "model"]
    if missing:
        kind = "GPU archs" if "arch" in values else "CPUs"
        raise TargetError(
            f"target {values['name']!r}: missing {', '.join(missing)}; only known {kind} need not give all"
        )


def _typed(source: str, key: str, value: Any, kind: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and number and isinstance(value, int):
        return value
    if kind == "float" and number:
        return float(value)
    if kind.startswith("tuple") and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    allowed = {"str": "a string", "int": "a whole number", "float": "a number"}.get(kind, "a list of strings")
    raise TargetError(f"{source}: {key} is {value!r}; allowed: {allowed}")
