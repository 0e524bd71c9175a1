"""Targets written as JSON, for machines that have no name here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convtune.errors import TargetError
from convtune.targets.cpu import CpuTarget
from convtune.targets.host import Host

_FIELDS = {f.name: str(f.type) for f in dataclasses.fields(CpuTarget) if f.name != "is_host"}


def is_document(text: str) -> bool:
    """Whether a --target means JSON, inline or in a file, and no name."""
    return text.lstrip().startswith("{") or text.endswith(".json")


def load(text: str) -> dict[str, Any]:
    """The JSON object that `text` is, or that is in the file it names.

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
            f"{source} is {type(document).__name__}; allowed: an object with the fields {', '.join(_FIELDS)}"
        )
    for key in document:
        if key not in _FIELDS:
            raise TargetError(f"{source}: unknown field {key!r}; allowed: {', '.join(_FIELDS)}")
    if "mcpu" not in document:
        raise TargetError(f"{source}: mcpu is missing")
    if "features" in document and "required_features" not in document:
        raise TargetError(f"{source}: features without required_features, the /proc/cpuinfo names that they need")
    return {key: _typed(source, key, value) for key, value in document.items()}


def build(document: Mapping[str, Any], base: CpuTarget | None, host: Host, threads: int | None) -> CpuTarget:
    """The target of a document; what it leaves out is as in `base`, the named target with its mcpu.

    The model is the host's where the host can run it, unless the document says otherwise. Another model than the
    host's is another machine, even where its code runs here: its times would be this machine's.

    Raises:
        TargetError: a field is impossible, or missing where there is no base.
    """
    values = {} if base is None else {key: getattr(base, key) for key in _FIELDS}
    values |= {"name": document["mcpu"], **document}
    if threads is not None:
        values["threads"] = threads
    missing = [key for key in _FIELDS if key not in values and key != "model"]
    if missing:
        raise TargetError(f"target {values['name']!r}: missing {', '.join(missing)}; only known CPUs need not give all")
    runs_here = not host.lacks(values["machine"], values["required_features"])
    values["model"] = document.get("model", host.title if runs_here else values["mcpu"])
    return CpuTarget(**values, is_host=runs_here and values["model"] == host.title)


def _typed(source: str, key: str, value: Any) -> Any:
    kind = _FIELDS[key]
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind.startswith("tuple") and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    allowed = {"str": "a string", "int": "a whole number"}.get(kind, "a list of strings")
    raise TargetError(f"{source}: {key} is {value!r}; allowed: {allowed}")
