"""The file that a comparison goes into, layer by layer, and from which it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune.comparison.kinds import summary
from convtune.errors import ConvtuneError
from convtune.log_file import replace_file

if TYPE_CHECKING:
    from convtune.targets import Target

SCHEMA, VERSION = "convtune-bench", 1
_LAYER_FIELDS = (
    "name",
    "spec",
    "count",
    "kind",
    "run",
    "flops",
    "bytes",
    "ours",
    "peers",
    "ratio",
    "verdict",
    "others",
    "failure",
)


class ResultFile:
    """Runs and layers of a comparison on one target at one accuracy, in memory and, where it has a path, in a file.

    Layers are kept by spec: one that is measured again takes the place of what there was.
    """

    def __init__(self, path: Path | None, target: Target, accuracy: str) -> None:
        """Reads the file, if there is one.

        Raises ConvtuneError where it is not a comparison's, or of another machine or accuracy, or cannot be written.
        """
        self._path, self._machine, self._accuracy = path, target.facts(), accuracy
        self.runs: list[dict[str, Any]] = []
        self._layers: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, str] = {}
        if path is not None:
            _check_writable(path)
            if path.exists():
                self._read(path)

    def _read(self, path: Path) -> None:
        found = _loaded(path)
        if found["machine"]["fingerprint"] != self._machine["fingerprint"]:
            what = _difference(found["machine"], self._machine)
            raise ConvtuneError(f"{path}: its machine is another: {what}; name another file")
        if found["accuracy"] != self._accuracy:
            what = f"{found['accuracy']!r}, and this is {self._accuracy!r}"
            raise ConvtuneError(f"{path}: its accuracy is {what}; name another file")
        self.runs = list(found["runs"])
        for layer in found["layers"]:
            self.put(layer)

    def get(self, spec: object) -> dict[str, Any] | None:
        """What there is of a spec, whatever it was measured with."""
        return self._layers.get(str(spec))

    def put(self, layer: dict[str, Any]) -> None:
        """Keeps a layer; `save` writes it."""
        self._layers[layer["spec"]] = layer
        # once: to write all layers anew after each of many would take longer than to measure it
        self._texts[layer["spec"]] = json.dumps(layer, allow_nan=False)

    def data(self, specs: list[str] | None = None) -> dict[str, Any]:
        """The whole as the file has it; specs: of these layers alone, in this order."""
        layers = list(self._layers.values()) if specs is None else [self._layers[s] for s in specs if s in self._layers]
        return {**self._head(), "layers": layers, "summary": summary(layers)}

    def _head(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "machine": self._machine,
            "accuracy": self._accuracy,
            "runs": self.runs,
        }

    def save(self) -> None:
        """Writes the file, all at once, a layer a line, where there is one. Raises ConvtuneError where that fails."""
        if self._path is None:
            return
        whole = {**self._head(), "summary": summary(list(self._layers.values()))}
        parts = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in whole.items()]
        parts.append('"layers": [\n' + ",\n".join(self._texts.values()) + "\n]")
        try:
            replace_file(self._path, [f"{{{', '.join(parts)}}}\n".encode()])
        except OSError as problem:
            raise ConvtuneError(f"{self._path} cannot be written: {problem.strerror}") from problem


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The facts that two machines do not share; their fingerprints say nothing to people."""
    facts = [key for key in ours if key != "fingerprint" and theirs.get(key) != ours[key]] or ["fingerprint"]
    return ", ".join(f"{key} {theirs.get(key)!r}, here {ours[key]!r}" for key in facts)


def _check_writable(path: Path) -> None:
    """Finds out before anything is measured that nothing could be kept."""
    parent = path.absolute().parent
    if path.is_dir():
        raise ConvtuneError(f"{path} is a directory; it must be a file, or be missing")
    if not parent.is_dir():
        raise ConvtuneError(f"{path} cannot be written: there is no directory {parent}")
    if not os.access(parent, os.W_OK):
        raise ConvtuneError(f"{path} cannot be written: no permission to write {parent}")


def _loaded(path: Path) -> Mapping[str, Any]:
    """The file's data, as far checked as it is used. Raises ConvtuneError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConvtuneError(f"{path} cannot be gone on with: {problem.strerror}; name another file") from problem
    except (ValueError, RecursionError) as problem:
        what = f"it is not the JSON that `convtune bench` writes ({problem})"
        raise ConvtuneError(f"{path} cannot be gone on with: {what}; name another file") from problem
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConvtuneError(f"{path} is not what `convtune bench` writes: no schema {SCHEMA!r}; name another file")
    if found.get("version") != VERSION:
        raise ConvtuneError(f"{path} has version {found.get('version')!r}; this convtune reads {VERSION}")
    try:
        whole = isinstance(found["machine"]["fingerprint"], str) and isinstance(found["accuracy"], str)
        whole &= isinstance(found["runs"], list) and isinstance(found["layers"], list)
        for layer in found["layers"]:
            whole &= all(field in layer for field in _LAYER_FIELDS)
            whole &= all("status" in peer for peer in layer["peers"].values())
            whole &= layer["run"] is None or 0 <= layer["run"] < len(found["runs"])
        summary(found["layers"])
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise ConvtuneError(f"{path} is damaged ({type(problem).__name__}: {problem}); name another file") from problem
    if not whole:
        raise ConvtuneError(f"{path} is damaged: a field is missing or of another kind; name another file")
    return found
