"""The file beneath a log: its lines, the lock on it, the mending of a torn end, and its replacement as a whole."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO

from convtune.errors import LogError
from convtune.record import LONGEST_LINE_BYTES, NewerSchemaError, Record


@dataclass(frozen=True)
class Line:
    """A line of a log: its number from 1, and where its bytes are.

    text: its bytes, newline included; no more than a log allows. ended: it has a newline.
    Either `record` is set or `reason` says why it is none; neither, where it is blank.
    """

    number: int
    start: int
    length_bytes: int
    text: bytes
    ended: bool
    record: Record | None
    reason: str

    @property
    def content(self) -> bytes:
        """What may become a line of another file: without the newline, and without a byte order mark."""
        return self.text.removeprefix(codecs.BOM_UTF8).strip()


def read_lines(file: IO[bytes], end: int, number: int, source: str) -> Iterator[Line]:
    """The lines from where `file` stands, the first of them line `number`, up to byte `end`.

    Raises:
        NewerSchemaError: a later convtune wrote one of them.
    """
    start = file.tell()
    while start < end:
        text = part = file.readline(min(LONGEST_LINE_BYTES, end - start))
        length = len(text)
        # the rest of an overlong line is passed over in pieces, for it may have any size
        while part and not part.endswith(b"\n") and start + length < end:
            part = file.readline(min(LONGEST_LINE_BYTES, end - start - length))
            length += len(part)
        if not length:
            return
        try:
            record, reason = _parse(text, length)
        except NewerSchemaError as problem:
            raise NewerSchemaError(f"log {source} line {number}: {problem}") from None
        yield Line(number, start, length, text, part.endswith(b"\n"), record, reason)
        start += length
        number += 1


def _parse(text: bytes, length: int) -> tuple[Record | None, str]:
    if length > LONGEST_LINE_BYTES:
        return None, f"longer than {LONGEST_LINE_BYTES} bytes"
    if not text.removeprefix(codecs.BOM_UTF8).strip():
        return None, ""
    try:
        return Record.parse(text), ""
    except NewerSchemaError:
        raise
    except LogError as problem:
        return None, str(problem)


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        where = f" ({problem.filename})" if problem.filename not in (None, str(path), path) else ""
        raise LogError(f"log {path}: {problem.strerror or problem}{where}") from problem


def is_file(path: Path) -> bool:
    """Whether a file is there; raises LogError where something else is."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISREG(mode):
        return True
    if stat.S_ISLNK(mode):
        # prune and merge replace the file, which would cut a link off from what it links to
        raise LogError(f"log {path} is a symbolic link; name the file itself, {path.resolve()}")
    kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
    raise LogError(f"log {path} is {kind}; it must be a file")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[FileIO]:
    """The file, made if missing, open for reading and appending while no other process may write it."""
    while True:
        is_file(path)
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                # while this process waited, prune may have put another file in its place
                if is_file(path) and os.path.samestat(path.lstat(), os.fstat(file.fileno())):
                    yield file
                    return
            finally:
                # a child forked meanwhile has the file open too, so closing it here would not unlock it
                fcntl.flock(file, fcntl.LOCK_UN)


def settled_size(file: IO[bytes]) -> int:
    """Size in bytes at a moment when nobody was writing, so that an unfinished last line is a torn one."""
    fcntl.flock(file, fcntl.LOCK_SH)
    try:
        return os.fstat(file.fileno()).st_size
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def mend_last_line(file: FileIO, path: Path) -> str | None:
    """Ends the last line of a locked log where a writer died within it; returns what was done, if anything.

    A whole record gets its newline. Anything else is moved to the end of the `.torn` file beside the log.
    """
    size = file.seek(0, os.SEEK_END)
    start = _last_line_start(file, size)
    if start == size:
        return None
    file.seek(start)
    tail = file.read()
    try:
        Record.parse(tail)
    except NewerSchemaError:
        pass  # whole, though not for this version to judge
    except LogError:
        torn = path.with_name(path.name + ".torn")
        with locked(torn) as side:
            write(side, tail + b"\n", side.seek(0, os.SEEK_END))
        # only now that its bytes are safe elsewhere
        file.truncate(start)
        os.fsync(file)
        return f"log {path} ended within a record: its {len(tail)} bytes were moved to {torn}"
    write(file, b"\n", size)
    return f"log {path} had no newline at its end: added"


def _last_line_start(file: FileIO, size: int) -> int:
    end = size
    while end > 0:
        start = max(end - 65536, 0)
        newline = os.pread(file.fileno(), end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def write(file: FileIO, data: bytes, start: int) -> None:
    """One write, unless the system takes less; nothing is left of it where it fails."""
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file)
    except OSError:
        file.truncate(start)
        raise


def sync_directory(path: Path) -> None:
    """Makes names in the directory last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Puts a file of these bytes at `path` in one step: readers see the old one or the new one, whole."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            file.writelines(pieces)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
