"""Checks the logs that convtune ships: every line a record, and each of them of use to `compile`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from convtune import accuracy, log_tools, space
from convtune.log import Log
from convtune.record import Record, winner
from convtune.spec import ConvSpec

SHIPPED = Path(__file__).parents[1] / "tuned_logs"


def problems(root: Path) -> Iterator[str]:
    """What is wrong with the logs `<mcpu>/<variant>.jsonl` under a directory, one line each."""
    for path in sorted(root.rglob("*.jsonl")):
        if path.parent.parent != root:
            yield f"{path}: is not {root.name}/<mcpu>/<variant>.jsonl"
            continue
        summary = log_tools.check(path)
        yield from map(str, (*summary.problems, *((summary.torn,) if summary.torn else ())))
        if summary.duplicates:
            yield f"{path}: {summary.duplicates} lines are there twice"
        groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in Log(path).records():
            yield from (f"{path}: {record.spec}: {fault}" for fault in _faults(record, path))
            groups[record.spec, record.fingerprint].append(record)
        for (spec, fingerprint), records in groups.items():
            yield from (f"{path}: {spec} on {fingerprint}: {fault}" for fault in _group_faults(spec, records))


def _faults(record: Record, path: Path) -> Iterator[str]:
    if ConvSpec.parse(record.spec).variant != path.stem:
        yield f"is not {path.stem}, as the file's name says"
    if record.target["mcpu"] != path.parent.name:
        yield f"mcpu is {record.target['mcpu']}, not {path.parent.name}, as the directory's name says"
    if record.candidate.space not in space.known():
        yield f"space {record.candidate.space!r} does not exist"
    for name, wanted in (("status", "ok"), ("origin", "measured"), ("round", "final")):
        if getattr(record, name) != wanted:
            yield f"{name} is {getattr(record, name)}; a shipped record's is {wanted}"


def _group_faults(spec: str, records: list[Record]) -> Iterator[str]:
    if len({record.batch for record in records}) > 1 or len(records) > 2:
        yield f"{len(records)} records; a winner and the default that was measured with it are enough"
    if winner(records, max_error=accuracy.limit(ConvSpec.parse(spec), "standard")) is None:
        yield "none of its records wins"


def main() -> None:
    found = list(problems(SHIPPED))
    print("\n".join(found) or f"the logs in {SHIPPED} are in order")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
