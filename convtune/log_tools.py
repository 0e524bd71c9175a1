"""What `convtune log` does: check a log, merge several, prune one to its best, export one for other programs."""

from __future__ import annotations

import bisect
import contextlib
import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from convtune.errors import LogError
from convtune.log import Log, Problem
from convtune.log_file import Line, is_file, locked, mend_last_line, os_errors, read_lines, replace_file, settled_size
from convtune.record import METASCHEDULE, ORIGINS, Record, read_object, standing, winner

FORMATS = ("json", "csv", "jsonl")


@dataclass(frozen=True)
class Summary:
    """What is in a log. duplicates: records that an earlier line has. torn: the last line, if a writer died in it."""

    path: Path
    records: int
    duplicates: int
    by_status: Mapping[str, int]
    by_origin: Mapping[str, int]
    specs: int
    targets: tuple[str, ...]
    problems: tuple[Problem, ...]
    torn: Problem | None


@dataclass(frozen=True)
class Merged:
    """problems: lines of the inputs that are no records; they were left out and stay where they are."""

    records: int
    duplicates: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Pruned:
    """kept, dropped: numbers of records. repair: what was put right at the log's end first, if anything.

    problems: lines that are no records; they stayed.
    """

    kept: int
    dropped: int
    repair: str | None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Exported:
    """problems: lines that are no records; they were left out."""

    text: str
    problems: tuple[Problem, ...]


def check(path: str | Path) -> Summary:
    """Reads a whole log; raises LogError where it is missing, unreadable or from a newer convtune."""
    log = Log(path, must_exist=True)
    records = log.records()
    return Summary(
        path=log.path,
        records=len(records),
        duplicates=len(records) - len({record.line() for record in records}),
        by_status=dict(Counter(record.status for record in records)),
        by_origin=dict(Counter(record.origin for record in records)),
        specs=len({record.spec for record in records}),
        targets=tuple(sorted({record.target["name"] for record in records})),
        problems=tuple(log.problems),
        torn=log.torn,
    )


def merge(paths: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Merged:
    """Writes the records of all logs to `out`, in order, each line once, with fields from later versions as they are.

    Raises:
        LogError: an input is missing, unreadable or from a newer convtune; `out` is one of them, or exists and
            `overwrite` is not set; or it cannot be written. It is then as it was.
    """
    inputs, out = [Path(path) for path in paths], Path(out)
    with os_errors(out):
        exists = is_file(out)
        if exists and any(path.exists() and path.samefile(out) for path in inputs):
            raise LogError(f"log {out} is an input of the merge too; merge into a new file")
        if exists and not overwrite:
            raise LogError(f"log {out} exists; merge into a new file, or say that it may be overwritten: --overwrite")
    texts: dict[bytes, None] = {}
    problems, count = list[Problem](), 0
    for path in inputs:
        lines = _lines(path)
        problems += _problems(path, lines)
        for line in lines:
            if line.record:
                texts.setdefault(line.content)
                count += 1
    with os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out) if exists else contextlib.nullcontext():
            replace_file(out, (text + b"\n" for text in texts))
    return Merged(len(texts), count - len(texts), tuple(problems))


def prune(path: str | Path, *, keep: int = 8, drop_failures: bool = False) -> Pruned:
    """Drops from a log, in place and in one step, what no lookup would choose.

    Of each spec, target and origin stay the `keep` best of the search and of the finals, at every limit of the error: a
    fast record does not displace a more accurate one. The winner stays the same whatever the limit. So does the default
    where records say which it is, for what tuning gained.
    Failures stay, so that no search tries them again, unless `drop_failures`. Lines that are no records stay as well.

    Raises:
        LogError: the log is missing, unreadable, from a newer convtune or cannot be written. It is then as it was.
    """
    path = Path(path)
    if keep < 1:
        raise LogError(f"keep={keep}: at least 1 record per spec and target must be kept")
    with os_errors(path):
        if not is_file(path):
            raise LogError(f"log {path} does not exist")
        with locked(path) as lock, path.open("rb") as file:
            repair = mend_last_line(lock, path)
            lines = list(read_lines(file, os.fstat(file.fileno()).st_size, 1, str(path)))
            dropped = _dropped(lines, keep, drop_failures)
            rest = [line for line in lines if line.number not in dropped]
            replace_file(path, (_bytes(file, line) for line in rest))
    return Pruned(sum(line.record is not None for line in rest), len(dropped), repair, _problems(path, lines))


def export(
    path: str | Path, form: str, *, winners: bool = False, max_error: float | None = None, origin: str | None = None
) -> Exported:
    """A log's records as text: a "json" array, a "csv" table, or "jsonl", which is a log again.

    winners: only those that win their spec and target among the records of one origin, within `max_error`; of every
    origin, or of `origin` only. Lines that are no records are left out.

    Raises:
        LogError: there is no such form, `max_error` or `origin` is given without `winners`, or the log is missing,
            unreadable or from a newer convtune.
    """
    if form not in FORMATS:
        raise LogError(f"export format {form!r} is not known; it must be one of {', '.join(FORMATS)}")
    if not winners and (max_error is not None or origin is not None):
        raise LogError(
            f"max_error={max_error}, origin={origin!r}: max_error and origin choose winners; winners is False"
        )
    found = _lines(Path(path))
    lines = [(line.record, line.content) for line in found if line.record]
    if winners:
        chosen = _winners([record for record, _ in lines], max_error, origin)
        lines = [(record, text) for record, text in lines if id(record) in chosen]
    return Exported(_text(lines, form), _problems(path, found))


def _text(lines: Sequence[tuple[Record, bytes]], form: str) -> str:
    if form == "csv":
        return _csv(record for record, _ in lines)
    if form == "jsonl":
        return "".join(text.decode() + "\n" for _, text in lines)
    return json.dumps([read_object(text) for _, text in lines], indent=2) + "\n"


def _problems(path: str | Path, lines: Iterable[Line]) -> tuple[Problem, ...]:
    return tuple(Problem(str(path), line.number, line.reason) for line in lines if line.reason)


def _lines(path: Path) -> list[Line]:
    with os_errors(path):
        if not is_file(path):
            raise LogError(f"log {path} does not exist")
        with path.open("rb") as file:
            return list(read_lines(file, settled_size(file), 1, str(path)))


def _bytes(file: IO[bytes], line: Line) -> bytes:
    file.seek(line.start)
    return file.read(line.length_bytes)


def _winners(records: Iterable[Record], max_error: float | None, origin: str | None) -> set[int]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.spec, record.fingerprint), []).append(record)
    origins = ORIGINS if origin is None else (origin,)
    found = [winner(group, max_error=max_error, origin=each) for group in groups.values() for each in origins]
    return {id(record) for record in found if record}


def _dropped(lines: Iterable[Line], keep: int, drop_failures: bool) -> set[int]:
    """Numbers of the lines that prune takes out."""
    dropped: set[int] = set()
    seen: set[bytes] = set()
    groups: dict[tuple[str, str, str], list[tuple[int, Record]]] = {}
    for line in lines:
        record = line.record
        if record is None:
            continue
        known = line.content in seen
        if not known:
            groups.setdefault((record.spec, record.fingerprint, record.origin), []).append((line.number, record))
        if known or (drop_failures and record.status != "ok"):
            dropped.add(line.number)
        seen.add(line.content)
    for group in groups.values():
        stands = {id(record) for record in standing(record for _, record in group)}
        ok = [(number, record) for number, record in group if record.status == "ok"]
        kept = _kept([(number, record) for number, record in ok if id(record) in stands], keep)
        dropped |= {number for number, _ in ok} - kept
    return dropped


def _kept(group: Sequence[tuple[int, Record]], keep: int) -> set[int]:
    """Of one spec, target and origin: all that `winner` could choose, the runners-up, and the default beside them."""
    kept = _fastest([(number, record) for number, record in group if record.round == "search"], keep)
    batches: dict[str, list[tuple[int, Record]]] = {}
    for number, record in group:
        if record.round == "final":
            batches.setdefault(record.batch, []).append((number, record))
    most_accurate: float | None = None
    for _, batch in sorted(batches.items(), reverse=True):
        # an older batch counts only where the limit is too low for all of the newer ones
        error = min(_error(record) for _, record in batch)
        if most_accurate is None or error < most_accurate:
            most_accurate = error
            kept |= _fastest(batch, keep)
    rounds = {record.batch for number, record in group if number in kept}  # "" is that of the search
    return kept | {number for number, record in group if record.default and record.batch in rounds}


def _fastest(entries: Iterable[tuple[int, Record]], keep: int) -> set[int]:
    """Those to which fewer than `keep` others are both as accurate and as fast."""
    kept, errors = set(), list[float]()
    for number, record in sorted(entries, key=lambda entry: entry[1].rank):
        error = _error(record)
        if bisect.bisect_right(errors, error) < keep:
            kept.add(number)
        bisect.insort(errors, error)
    return kept


def _error(record: Record) -> float:
    return math.inf if record.error is None else record.error


def _csv(records: Iterable[Record]) -> str:
    text = io.StringIO()
    rows = [_row(record) for record in records]
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_COLUMNS = (
    *("spec", "target", "model", "fingerprint", "space", "knobs", "status", "origin", "round", "batch"),
    *(
        "time_us",
        "repeats",
        "cost",
        "error",
        "build_s",
        "default",
        "device",
        "convtune",
        "tvm",
        "seed",
        "utc",
        "message",
    ),
    "counts",
)


def _row(record: Record) -> dict[str, object]:
    candidate = record.candidate
    # a trace is too long for a cell
    knobs = {"trace": candidate.key} if candidate.space == METASCHEDULE else candidate.knobs
    row = {name: getattr(record, name) for name in _COLUMNS if hasattr(record, name)}
    return {
        **row,
        "target": record.target["name"],
        "model": record.target["model"],
        "space": candidate.space,
        "knobs": " ".join(f"{name}={value}" for name, value in knobs.items()),
        "time_us": record.time_us if record.times_us else None,
        "repeats": len(record.times_us),
        "counts": " ".join(f"{kind}={count}" for kind, count in (record.counts or {}).items()),
        "convtune": record.versions["convtune"],
        "tvm": record.versions["tvm"],
    }
