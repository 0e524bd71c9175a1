"""Kernels: schedules as TVM script and their instructions, in as many lines as a page may hold, and what differs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from convtune.record import Record

LONGEST_LINES = 400
"""Of a script; unrolled ones have thousands, which say the same again and again."""
MOST_SCRIPT_BYTES = 3 << 20
"""Of all scripts of a report together."""
CONTEXT_LINES = 3

Key = tuple[str, str, str]
Kernels = Mapping[Key, Mapping[str, Any]]
"""Each kernel's `script`, its `instructions` as `assembly.Listing.data` has them, its `traffic` as
`cache_model.Traffic`, all None where not known; `why` it could not be built, and why there is `no_traffic`, "" where
there is."""
SIDE = ("why", "instructions", "traffic", "no_traffic")
"""What a comparison has of each side's kernel, besides the diff."""


def key(record: Record) -> Key:
    """What a kernel follows from: its target's fingerprint, spec and candidate."""
    return record.fingerprint, record.spec, record.candidate.key


def loop_nest(script: str) -> str:
    """A TVM script without what every one has: the imports, and the module around the function."""
    lines = script.splitlines()
    start = next((n for n, line in enumerate(lines) if line.lstrip().startswith("def ")), 0)
    indent = len(lines[start]) - len(lines[start].lstrip()) if lines else 0
    return "\n".join(line[indent:] if line[:indent].isspace() or not indent else line for line in lines[start:])


def shown(kernels: Kernels, wanted: Key, room_bytes: int = MOST_SCRIPT_BYTES) -> dict[str, Any] | None:
    """A kernel for a page: its script cut to LONGEST_LINES, with the number of those `left_out`; None if not built.

    room_bytes: of scripts that the page still has room for.
    """
    if wanted not in kernels:
        return None
    found = dict(kernels[wanted])
    lines = loop_nest(found["script"] or "").splitlines()
    text = "\n".join(lines[:LONGEST_LINES])
    if len(text.encode()) > room_bytes:
        text, found["why"] = "", "its script is left out, as the page would be too long; report fewer layers for it"
    left_out = max(0, len(lines) - LONGEST_LINES) if text else 0
    return {**found, "script": text or None, "left_out": left_out}


def side_by_side(a: str, b: str) -> list[tuple[str, str | None, str | None]]:
    """Rows of a diff of two scripts: "=" both sides' line, "-" or "+" one side's, "~" both changed, "…" left out."""
    left, right = (loop_nest(text).splitlines() for text in (a, b))
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    rows: list[tuple[str, str | None, str | None]] = []
    end = (0, 0)
    for group in matcher.get_grouped_opcodes(CONTEXT_LINES):
        if (group[0][1], group[0][3]) != end:
            rows.append(("…", None, None))
        for kind, i1, i2, j1, j2 in group:
            for n in range(max(i2 - i1, j2 - j1)):
                mine = left[i1 + n] if i1 + n < i2 else None
                other = right[j1 + n] if j1 + n < j2 else None
                mark = "=" if kind == "equal" else "-" if other is None else "+" if mine is None else "~"
                rows.append((mark, mine, other))
        end = (group[-1][2], group[-1][4])
    if rows and end != (len(left), len(right)):
        rows.append(("…", None, None))
    return rows[:LONGEST_LINES] + ([("…", None, None)] if len(rows) > LONGEST_LINES else [])
