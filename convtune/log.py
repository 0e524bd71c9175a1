"""Log: an append-only file of records that several processes write and read at once, and layers of such logs."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

from convtune.errors import LogError
from convtune.log_file import (
    is_file,
    locked,
    mend_last_line,
    os_errors,
    read_lines,
    settled_size,
    sync_directory,
    write,
)
from convtune.record import Record, winner
from convtune.spec import ConvSpec

if TYPE_CHECKING:
    from importlib.abc import Traversable

Spec: TypeAlias = ConvSpec | str


@dataclass(frozen=True)
class Problem:
    """A line that is no record: it is skipped, and stays in the file."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source} line {self.line}: {self.reason}"


class Layer(Protocol):
    """Anything that answers with records. name: for people. problems: lines that could not be read so far."""

    name: str
    problems: list[Problem]

    def records(self, spec: Spec | None = None, fingerprint: str | None = None) -> list[Record]: ...


class _Table:
    """Records in order, found by spec."""

    def __init__(self) -> None:
        self._all: list[Record] = []
        self._by_spec: dict[str, list[Record]] = {}

    def add(self, record: Record) -> None:
        self._all.append(record)
        self._by_spec.setdefault(record.spec, []).append(record)

    def select(self, spec: Spec | None, fingerprint: str | None) -> list[Record]:
        found = self._all if spec is None else self._by_spec.get(str(spec), [])
        return [r for r in found if fingerprint is None or r.fingerprint == fingerprint]


class Log:
    """A log in a file, which need not exist before the first `append`.

    problems: the lines that are no records. torn: the last line, where a writer died within it; the next `append`
    moves it to the file's name with `.torn` added. repairs: what `append` put right, one sentence each.
    Not for use by several threads at once; any number of processes may use one file.
    """

    def __init__(self, path: str | Path, *, must_exist: bool = False) -> None:
        """Reads nothing yet.

        Raises:
            LogError: it is no path, a directory, a symbolic link or no file at all; or missing, though it must exist.
        """
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise LogError(f"log is {path!r}; it must be the path of a file")
        self.path = Path(path)
        self.name = str(path)
        self.repairs: list[str] = []
        self._forget()
        with os_errors(self.path):
            if not is_file(self.path) and must_exist:
                raise LogError(f"log {path} does not exist")

    def records(self, spec: Spec | None = None, fingerprint: str | None = None) -> list[Record]:
        """The records of a spec and a target's fingerprint, None meaning any, in order; what others appended included.

        Raises:
            LogError: the file cannot be read.
            NewerSchemaError: a later convtune wrote into it.
        """
        self.refresh()
        return self._table.select(spec, fingerprint)

    def check(self) -> None:
        """Raises LogError where there are lines and none is a record, so that nothing is appended to another kind of
        file; otherwise as `records`."""
        if not self.records() and self.problems:
            lines, first = len(self.problems), self.problems[0].reason
            raise LogError(f"{self.path} is no log: none of its {lines} lines is a record; the first: {first}")

    def refresh(self) -> None:
        """Reads what was appended since the last time; all of it where the file was replaced. Raises as `records`."""
        with os_errors(self.path):
            if not is_file(self.path):
                self._forget()
                return
            with self.path.open("rb") as file:
                end = settled_size(file)
                if not self._continues(file):
                    self._forget()
                    self._inode = os.fstat(file.fileno()).st_ino
                file.seek(self._offset)
                self._read(file, end)

    def append(self, records: Iterable[Record]) -> None:
        """Adds the records, all or none; when it returns they are on the disk. Makes missing directories.

        Raises:
            LogError: the file cannot be written; it is then as it was.
        """
        data = b"".join([record.line() for record in records])
        if not data:
            return
        with os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path) as file:
                repair = mend_last_line(file, self.path)
                if repair:
                    self.repairs.append(repair)
                start = file.seek(0, os.SEEK_END)
                write(file, data, start)
            if start == 0:
                sync_directory(self.path.parent)

    def _forget(self) -> None:
        self._table = _Table()
        self.problems: list[Problem] = []
        self.torn: Problem | None = None
        self._offset = self._newlines = 0
        self._last, self._inode = b"", -1

    def _continues(self, file: IO[bytes]) -> bool:
        # an inode may be used again after a second replacement, so the last line read must still be there
        seen = os.pread(file.fileno(), len(self._last), self._offset - len(self._last))
        return os.fstat(file.fileno()).st_ino == self._inode and seen == self._last

    def _read(self, file: IO[bytes], end: int) -> None:
        self.torn = None
        for line in read_lines(file, end, self._newlines + 1, self.name):
            if line.reason and not line.ended:
                self.torn = Problem(self.name, line.number, f"cut short after {line.length_bytes} bytes: {line.reason}")
                return
            if line.reason:
                self.problems.append(Problem(self.name, line.number, line.reason))
            elif line.record:
                self._table.add(line.record)
            # a last record without its newline counts: nothing but that newline can follow it
            self._newlines += line.ended
            self._offset += line.length_bytes
            self._last = line.text if line.length_bytes == len(line.text) else b""


class ShippedLog:
    """The winners that come with convtune, one file `<target>/<variant>.jsonl` each; read-only, read when asked for."""

    name = "shipped log"

    def __init__(self, root: Traversable | None = None) -> None:
        """root: the directory of the targets' directories; None for convtune's own."""
        self._root = root or importlib.resources.files("convtune.tuned_logs")
        self._tables: dict[str, _Table] = {}
        self.problems: list[Problem] = []

    def records(self, spec: Spec | None = None, fingerprint: str | None = None) -> list[Record]:
        """As `Log.records`."""
        names = {file.name for file in self._files()} if spec is None else {f"{str(spec).split(',')[0]}.jsonl"}
        return [record for name in sorted(names) for record in self._table(name).select(spec, fingerprint)]

    def _files(self) -> Iterator[Traversable]:
        for target in sorted(self._root.iterdir(), key=lambda entry: entry.name):
            if target.is_dir():
                yield from (file for file in target.iterdir() if file.name.endswith(".jsonl"))

    def _table(self, name: str) -> _Table:
        if name in self._tables:
            return self._tables[name]
        table = _Table()
        for path in self._files():
            if path.name == name:
                self._read(path, table)
        self._tables[name] = table
        return table

    def _read(self, path: Traversable, table: _Table) -> None:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            for line in read_lines(file, end, 1, str(path)):
                if line.record:
                    table.add(line.record)
                elif line.reason:
                    self.problems.append(Problem(str(path), line.number, line.reason))


class LogStack:
    """Logs in order of preference: the user's first, the shipped one last."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)

    @property
    def problems(self) -> list[Problem]:
        return [problem for layer in self.layers for problem in layer.problems]

    def records(self, spec: Spec | None = None, fingerprint: str | None = None) -> list[Record]:
        """The records of all layers, the first layer's first. Raises as `Log.records`."""
        return [record for layer in self.layers for record in layer.records(spec, fingerprint)]

    def winner(
        self, spec: Spec, fingerprint: str, *, max_error: float | None, origin: str = "measured"
    ) -> tuple[Record, Layer] | None:
        """The winner of the first layer that has one, and that layer: a user's own times come before shipped ones."""
        for layer in self.layers:
            found = winner(layer.records(spec, fingerprint), max_error=max_error, origin=origin)
            if found:
                return found, layer
        return None
