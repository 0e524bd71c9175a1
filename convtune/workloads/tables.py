"""Reads lists of specs from CSV and JSON files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convtune.canonical import FIELD_READERS
from convtune.errors import SpecError
from convtune.spec import LAYOUTS, ConvSpec
from convtune.workloads.workload import Workload, located

FIELDS = tuple(field.name for field in dataclasses.fields(ConvSpec))
REQUIRED = tuple(f.name for f in dataclasses.fields(ConvSpec) if f.default is dataclasses.MISSING)


@dataclass(frozen=True)
class Row:
    """One row of a CSV file, read but not yet a spec."""

    where: str  # file and line
    fields: Mapping[str, Any]  # of ConvSpec
    network: str | None
    layer: str | None
    count: int

    @property
    def name(self) -> str | None:
        return "/".join(filter(None, (self.network, self.layer))) or None

    def workload(self, channels_last: bool = False) -> Workload:
        """The row's workload, in this layout where the row has none; errors begin with file and line."""
        with located(self.where):
            spec = _spec(self.fields)
            if channels_last and "layout" not in self.fields:
                spec = spec.replace(layout=LAYOUTS[spec.rank][1])
        return Workload(self.name or str(spec), spec, self.count)


def parse_csv(path: Path) -> list[Workload]:
    """The workloads of a CSV file, one a row; its columns are ConvSpec's fields, `network`, `layer` and `count`.

    A cell has the form that the canonical string has; an empty one means the default.

    Raises:
        SpecError: names the file, the line, and the column of a cell that cannot be read.
    """
    return [row.workload() for row in read_rows(read_text(path), str(path))]


def read_rows(text: str, source: str) -> Iterator[Row]:
    """The rows of a CSV text; `source` names it in errors, which are SpecErrors."""
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [cell.strip() for cell in next(lines, [])]
        _check_header(header, f"{source}, line 1")
        for cells in lines:
            if cells:
                yield _row(header, cells, f"{source}, line {lines.line_num}")
    except csv.Error as error:
        raise SpecError(f"{source}, line {lines.line_num}: {error}") from error


def _check_header(header: list[str], where: str) -> None:
    allowed = ("network", "layer", *FIELDS, "count")
    for column in header:
        if column not in allowed:
            raise SpecError(f"{where}: unknown column {column!r}; columns are {', '.join(allowed)}")
        if header.count(column) > 1:
            raise SpecError(f"{where}: column {column!r} is there twice")
    missing = [field for field in REQUIRED if field not in header]
    if missing:
        raise SpecError(f"{where}: the header has no column {', '.join(missing)}")


def _row(header: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(header):
        raise SpecError(f"{where}: {len(cells)} cells, but the header has {len(header)} columns")
    values: dict[str, Any] = {}
    for column, cell in zip(header, map(str.strip, cells)):
        if not cell:
            continue
        try:
            values[column] = _READERS[column](cell)
        except ValueError as allowed:
            problem = f"{cell!r} is no value for {column}; it must be {allowed}"
            raise SpecError(f"{where}, column {column!r}: {problem}") from None
    network, layer, repeats = values.pop("network", None), values.pop("layer", None), values.pop("count", 1)
    return Row(where, values, network, layer, _count(repeats, where))


_READERS: Mapping[str, Callable[[str], Any]] = {
    **FIELD_READERS,
    **dict.fromkeys(("variant", "network", "layer"), str),
    "count": FIELD_READERS["batch"],
}


def parse_json(path: Path) -> list[Workload]:
    """The workloads of a JSON file: a list of canonical strings, or of objects with ConvSpec's fields, `name`, `count`.

    Raises:
        SpecError: names the file and the entry, counted from 1, or the line and column of bad JSON.
    """
    text = read_text(path)
    try:
        entries = json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError:
        raise SpecError(f"{path}: is nested too deeply; it must be a list of specs") from None
    except ValueError as error:  # a number of thousands of digits
        raise SpecError(f"{path}: {error}") from error
    if not isinstance(entries, list):
        raise SpecError(f"{path}: holds a JSON {type(entries).__name__}; it must be a list of specs")
    return [_entry(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, start=1)]


def _entry(entry: Any, where: str) -> Workload:
    if isinstance(entry, str):
        with located(where):
            spec = ConvSpec.parse(entry)
        return Workload(str(spec), spec)
    if not isinstance(entry, dict):
        raise SpecError(f"{where}: is {reprlib.repr(entry)}; it must be an object or a canonical string")
    fields = dict(entry)
    name, repeats = fields.pop("name", None), _count(fields.pop("count", 1), where)
    if name is not None and not isinstance(name, str):
        raise SpecError(f"{where}: name={name!r} is not a string")
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        raise SpecError(f"{where}: unknown field {unknown[0]!r}; fields are name, count, {', '.join(FIELDS)}")
    with located(where):
        spec = _spec(fields)
    return Workload(name or str(spec), spec, repeats)


def _spec(fields: Mapping[str, Any]) -> ConvSpec:
    missing = [field for field in REQUIRED if field not in fields]
    if missing:
        raise SpecError(f"{', '.join(missing)} missing")
    return ConvSpec(**fields)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{where}: count={value!r} is out of range; it must be an integer of at least 1")
    return value


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; raises SpecError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError where a name is there twice, of which JSON would drop the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"{name!r} is given twice in one object")
    return found
