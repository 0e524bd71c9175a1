"""Record: one candidate's outcome on one spec and target, the line of JSON that keeps it, and which record wins."""

from __future__ import annotations

import codecs
import functools
import importlib.metadata
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from convtune.errors import ConvtuneError, LogError
from convtune.record_fields import check_resources, check_target, check_utc, check_versions, is_int, is_number, short
from convtune.space import Candidate
from convtune.spec import ConvSpec

SCHEMA = 1
ORIGINS = ("measured", "emulated", "estimated")
STATUSES = ("ok", "wrong", "build_error", "timeout", "crash", "out_of_memory", "error")
ROUNDS = ("search", "final")
LONGEST_LINE_BYTES = 4 * 2**20  # a MetaSchedule trace of a deep nest is some 100 kB

METASCHEDULE = "metaschedule"
_UTC_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
_NEEDED = ("spec", "target", "candidate", "origin", "status", "times_us", "versions", "seed", "utc")
_FREE = ("message", "error", "build_s", "round", "batch")
_OPTIONAL = ("resources", "cost", "counts", "default", "device")  # left out of a line where they are None


class NewerSchemaError(LogError):
    """A record was written by a later convtune, in a form that this one cannot judge."""


def utc_now() -> str:
    """The time, written so that later times are greater strings."""
    return datetime.now(timezone.utc).strftime(_UTC_FORMAT)


@functools.cache
def installed_versions() -> Mapping[str, str]:
    from convtune import __version__

    return {"convtune": __version__, "tvm": importlib.metadata.version("apache-tvm")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A candidate's outcome. Validated when it is made, so that what is in a log can be read again.

    spec: canonical string. target: `Target.facts()`. origin, status, round: one of ORIGINS, STATUSES, ROUNDS.
    times_us: every repeat; at least one where the status is ok. Where the origin is "emulated" there are none, and an
    ok record has a cost instead: weighted instructions. counts: what the cost is of, instructions by kind and bytes
    moved into each cache. message: why the status is not ok.
    error: max |y - reference| / max |reference|; None where there is no result, or none that is finite.
    build_s: None where nothing was built. resources: of each of a GPU's kernels by name, RESOURCES of a thread (its
    registers, spills and stack) and of a block (its static shared memory), and what else the compiler says; None where
    there are no such kernels. default: whether this is the schedule without tuning, of the convtune that wrote it; None
    where an older one did not say. device: HOST:PORT of the RPC server whose machine it was; None where it was this
    machine. batch: when the measuring of these finalists in turn began, as `utc_now` writes it,
    the same for all of them; "" in the search round. versions: of "convtune" and "tvm" at least. utc: as `utc_now`
    writes it.

    Raises:
        LogError: a field's value is not allowed.
    """

    spec: str
    target: Mapping[str, Any]
    candidate: Candidate
    origin: str
    status: str
    seed: int
    times_us: tuple[float, ...] = ()
    message: str = ""
    error: float | None = None
    build_s: float | None = None
    round: str = "search"
    batch: str = ""
    resources: Mapping[str, Mapping[str, int]] | None = None
    cost: float | None = None
    counts: Mapping[str, int] | None = None
    default: bool | None = None
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    utc: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def time_us(self) -> float:
        """Median of the repeats, in microseconds; NaN where nothing was timed."""
        return statistics.median(self.times_us) if self.times_us else math.nan

    @property
    def rank(self) -> float:
        """What is compared among records of one spec, target and origin, the least wins: the median time in
        microseconds, or the cost where the origin is "emulated". NaN where there is none.
        """
        return self.time_us if self.cost is None else self.cost

    @property
    def ranks(self) -> tuple[float, ...]:
        """The repeats that `rank` is the median of; the cost alone where there is one."""
        return self.times_us if self.cost is None else (self.cost,)

    @property
    def fingerprint(self) -> str:
        """Of the target: times of different fingerprints do not compare."""
        return str(self.target["fingerprint"])

    def _is_refuted_by(self, wrong: Record) -> bool:
        worse = wrong.error is None or self.error is None or wrong.error > self.error
        return worse and wrong.utc > self.utc

    def line(self) -> bytes:
        """The record as one line of JSON, newline included; raises LogError where it is longer than a log allows."""
        fields = {name: getattr(self, name) for name in ("origin", "status", "times_us", *_FREE, "seed", "utc")}
        optional = {name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None}
        try:
            data = {
                "schema": SCHEMA,
                "spec": self.spec,
                "target": dict(self.target),
                "candidate": _candidate_data(self.candidate),
                **fields,
                **{name: _plain(value) for name, value in optional.items()},
                "versions": dict(self.versions),
            }
            line = json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as problem:
            raise LogError(f"a record of {self.spec} cannot be written as JSON: {problem}") from None
        if len(line) > LONGEST_LINE_BYTES:
            raise LogError(f"a record of {self.spec} has {len(line)} bytes; at most {LONGEST_LINE_BYTES} are allowed")
        return line

    @classmethod
    def parse(cls, line: bytes) -> Record:
        """The record of one line of a log. Fields that this version does not know are ignored.

        Raises:
            NewerSchemaError: a later convtune wrote it.
            LogError: it is no record.
        """
        try:
            return cls(**_fields(read_object(line)))
        except RecursionError:
            raise LogError("JSON nested too deeply") from None


def traced(trace: Any) -> Candidate:
    """The candidate of a MetaSchedule trace, which is JSON data. Equal traces give equal candidates."""
    text = json.dumps(trace, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return Candidate(METASCHEDULE, {"trace": text})


def trace(candidate: Candidate) -> Any:
    """The JSON data that `traced` was given."""
    return json.loads(str(candidate.knobs["trace"]))


def winner(records: Iterable[Record], *, max_error: float | None, origin: str = "measured") -> Record | None:
    """The record to build from, among those of one spec and one target; None where none will do.

    Only what is ok, not refuted later, of this origin and known to be within `max_error` (None: any error) takes part.
    Finalists are measured in turn, under the same conditions, so their times compare best: where there are any, that of
    the least rank in the newest batch wins. Otherwise that of the least rank in the search does.
    """
    usable = [r for r in standing(records) if r.origin == origin and _accurate(r, max_error)]
    assert len({(r.spec, r.fingerprint) for r in usable}) <= 1, "records of different specs or targets do not compare"
    finals = [r for r in usable if r.round == "final"]
    if finals:
        newest = max(r.batch for r in finals)
        usable = [r for r in finals if r.batch == newest]
    return min(usable, key=lambda r: r.rank, default=None)


def standing(records: Iterable[Record]) -> list[Record]:
    """The ok records of one spec and target whose candidates no later record calls wrong.

    A kernel may be verified again, and more thoroughly. A wrong one that is no less accurate than before was wrong for
    a lower limit only, and refutes nothing.
    """
    ok, refuted = list[Record](), dict[tuple[str, str], list[Record]]()
    for record in records:
        if record.status == "ok":
            ok.append(record)
        elif record.status == "wrong":
            refuted.setdefault((record.origin, record.candidate.key), []).append(record)
    if not refuted:  # as nearly always; keys of 100,000 candidates take a second
        return ok
    return [r for r in ok if not any(map(r._is_refuted_by, refuted.get((r.origin, r.candidate.key), ())))]


def _accurate(record: Record, max_error: float | None) -> bool:
    return max_error is None or (record.error is not None and record.error <= max_error)


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object of one line, fields this version does not know included; raises as `Record.parse` does."""
    if len(line) > LONGEST_LINE_BYTES:
        raise LogError(f"longer than {LONGEST_LINE_BYTES} bytes")
    # editors and other systems' tools put a byte order mark at a file's start, which joining files leaves within
    line = line.removeprefix(codecs.BOM_UTF8)
    try:
        data = _DECODER.decode(line.decode())
    except UnicodeDecodeError as problem:
        raise LogError(f"not UTF-8: byte {problem.start + 1} is 0x{line[problem.start]:02x}") from None
    except ValueError as problem:
        raise LogError(f"not JSON: {problem}") from None
    if not isinstance(data, dict):
        raise LogError(f"not a JSON object: {short(data)}")
    schema: Any = data.get("schema")
    if not is_int(schema) or schema < 1:
        raise LogError(f"schema={short(schema)} is not a schema number; this convtune reads up to {SCHEMA}")
    if schema > SCHEMA:
        raise NewerSchemaError(f"written by a newer convtune, schema {schema}; this one reads up to {SCHEMA}")
    return data


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in _NEEDED if name not in data]
    if missing:
        raise LogError(f"missing {', '.join(missing)}")
    fields = {name: data[name] for name in (*_NEEDED, *_FREE, *_OPTIONAL) if name in data}
    if not isinstance(fields["times_us"], list):
        raise LogError(f"times_us={short(fields['times_us'])} is not a list of numbers")
    fields["times_us"] = tuple(fields["times_us"])
    fields["candidate"] = _candidate(fields["candidate"])
    fields["spec"] = _canonical(fields["spec"])
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _candidate_data(candidate: Candidate) -> dict[str, Any]:
    if candidate.space == METASCHEDULE:
        return {"space": METASCHEDULE, "trace": trace(candidate)}
    return {"space": candidate.space, "knobs": dict(candidate.knobs)}


def _plain(value: Any) -> Any:
    """The value with every mapping in it as a dict, which alone JSON knows."""
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _candidate(data: Any) -> Candidate:
    if not isinstance(data, dict) or not isinstance(data.get("space"), str):
        raise LogError(f"candidate={short(data)} has no space")
    if data["space"] == METASCHEDULE:
        if "trace" not in data:
            raise LogError(f"candidate={short(data)} has no trace")
        return traced(data["trace"])
    if not isinstance(data.get("knobs"), dict):
        raise LogError(f"candidate={short(data)} has no knobs")
    return Candidate(data["space"], data["knobs"])


@functools.lru_cache(maxsize=16384)
def _canonical_text(text: str) -> str:
    return str(ConvSpec.parse(text))


def _canonical(text: Any) -> str:
    """The spec as this version writes it, so that looking up by string finds what an older one wrote."""
    if not isinstance(text, str):
        raise LogError(f"spec={short(text)} is not a string")
    try:
        return _canonical_text(text)
    except ConvtuneError as problem:
        raise LogError(f"spec: {problem}") from None


def _check(record: Record) -> None:
    if _canonical(record.spec) != record.spec:
        raise LogError(f"spec={short(record.spec)} is not canonical; it must be {_canonical(record.spec)!r}")
    check_target(record.target)
    _check_candidate(record.candidate)
    for name, allowed in (("origin", ORIGINS), ("status", STATUSES), ("round", ROUNDS)):
        if getattr(record, name) not in allowed:
            raise LogError(f"{name}={short(getattr(record, name))} is not allowed; one of {', '.join(allowed)} is")
    _check_rank(record)
    for name in ("error", "build_s"):
        value = getattr(record, name)
        if value is not None and not (is_number(value) and value >= 0):
            raise LogError(f"{name}={short(value)} must be a finite number of at least 0, or None")
    if not isinstance(record.message, str):
        raise LogError(f"message={short(record.message)} is not a string")
    if not is_int(record.seed):
        raise LogError(f"seed={short(record.seed)} is not an integer")
    if record.resources is not None:
        check_resources(record.resources)
    if not isinstance(record.default, (bool, type(None))):
        raise LogError(f"default={short(record.default)} must be true or false, or None")
    if not isinstance(record.device, (str, type(None))):
        raise LogError(f"device={short(record.device)} is not a string, or None")
    check_versions(record.versions)
    check_utc("utc", record.utc)
    if record.round == "final":
        check_utc("batch", record.batch)
    elif record.batch != "":
        raise LogError(f"batch={short(record.batch)} in round {record.round!r}; only finalists have one")


def _check_rank(record: Record) -> None:
    """That an ok record has what its origin is compared by, and that none has what another origin is."""
    times, cost, emulated, ok = record.times_us, record.cost, record.origin == "emulated", record.status == "ok"
    if not isinstance(times, tuple) or not all(is_number(t) and t > 0 for t in times):
        raise LogError(f"times_us={short(times)} must be a tuple of positive, finite numbers")
    if emulated and times:
        raise LogError(f"times_us={short(times)} must be empty: an emulated kernel has a cost and no time")
    if ok and not (emulated or times):
        raise LogError("times_us is empty; a record whose status is ok has at least one time")
    if cost is not None and not (emulated and ok):
        raise LogError(
            f"cost={short(cost)} in a record of origin {record.origin} with status {record.status}; only emulated "
            "ones that are ok have one"
        )
    if emulated and ok and (not is_number(cost) or cost is None or cost <= 0):
        raise LogError(f"cost={short(cost)} must be a positive, finite number, as the record is emulated and ok")
    if record.counts is None:
        return
    if not (emulated and isinstance(record.counts, Mapping)):
        raise LogError(f"counts={short(record.counts)} must be an object, and only emulated records have one")
    for kind, value in record.counts.items():
        if not (isinstance(kind, str) and is_int(value) and value >= 0):
            raise LogError(f"counts.{kind}={short(value)} must be an integer of at least 0")


def _check_candidate(candidate: Any) -> None:
    if not isinstance(candidate, Candidate) or not candidate.space:
        raise LogError(f"candidate={short(candidate)} must be a candidate whose space has a name")
    if candidate.space == METASCHEDULE and not isinstance(candidate.knobs.get("trace"), str):
        raise LogError(f"a candidate of {METASCHEDULE} has no trace; make it with convtune.record.traced")
    for name, value in candidate.knobs.items():
        if not (is_int(value) or isinstance(value, str)):
            raise LogError(f"knob {short(name)}={short(value)} must be an integer or a string")
