"""Makes a recording for the tests of the search from tuning logs: every candidate once, in the order it was tried.

    python scripts/make_recording.py my.jsonl --spec 'conv,ic=64,oc=64,in=28x28,k=3x3,p=1' -o tests/data/search.jsonl

A recording is a log: measured records of one machine, each spec's default first, where it was measured. Their times
are rounded to four digits, to keep the file small. A log of a space tuned whole gives the best recording.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from convtune.errors import ConvtuneError
from convtune.log import Log
from convtune.record import Record
from convtune.spec import ConvSpec


def recording(records: Iterable[Record], specs: list[str]) -> Iterator[Record]:
    """The search records of these specs, or of all where none is given, each candidate of a spec once."""
    seen: set[tuple[str, str]] = set()
    machine = ""
    for record in records:
        if (specs and record.spec not in specs) or record.round != "search" or record.origin != "measured":
            continue
        machine = machine or record.fingerprint
        place = (record.spec, record.candidate.key)
        if record.fingerprint == machine and place not in seen:
            seen.add(place)
            yield dataclasses.replace(record, times_us=tuple(float(f"{t:.4g}") for t in record.times_us))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--spec", action="append", default=[], help="a canonical string; may be given again")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        specs = [str(ConvSpec.parse(text)) for text in arguments.spec]
        records = [record for path in arguments.logs for record in Log(path, must_exist=True).records()]
        lines = [record.line() for record in recording(records, specs)]
    except ConvtuneError as problem:
        print(problem, file=sys.stderr)
        return 2
    arguments.output.write_bytes(b"".join(lines))
    print(f"{len(lines)} candidates in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
