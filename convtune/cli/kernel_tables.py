"""Kernels that were built, for a terminal or a pull request: instructions, the cache model, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.cli import tables

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORT = {
    "loop: instructions": "loop instr.",
    "loop: other vector arithmetic": "other arith.",
    "loop: vector load": "load",
    "loop: vector store": "store",
    "instructions": "all instr.",
    "vector registers": "registers",
    "vectors to the stack": "to stack",
    "vectors from the stack": "from stack",
    "into L1 caches": "into L1",
    "into L2 caches": "into L2",
}
"""Titles for the head of a column; those up to "all instr." are of the busiest loop."""
TRAFFIC = {"l1_bytes": "into L1 caches", "l2_bytes": "into L2 caches", "l3_bytes": "from memory"}
"""What a call fetches by the cache model, by where it goes."""
Table = tuple[dict[str, str], list[list[str | None]]]


def figures(kernel: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a kernel, by title: those in its busiest innermost loop, all of it, and what caches fetch."""
    found: dict[str, str] = {}
    mix, traffic = kernel["instructions"], kernel["traffic"]
    if mix and mix["loop"]:
        loop = mix["loop"]
        found["loop: instructions"] = str(loop["instructions"])
        found |= {f"loop: {kind}": str(count) for kind, count in loop["kinds"].items() if count}
    if mix:
        whole = mix["kernel"]
        found["instructions"] = str(whole["instructions"])
        found["vector registers"] = str(whole["vector_registers"])
        found["vectors to the stack"] = str(whole["stack_stores"])
        found["vectors from the stack"] = str(whole["stack_loads"])
    if traffic:
        found |= {title: tables.bytes_text(round(traffic[name])) for name, title in TRAFFIC.items()}
    return found


def side_by_side(a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    """The figures of two kernels as a table's columns and rows."""
    first, second = figures(a), figures(b)
    rows: list[list[str | None]] = [
        [title, first.get(title), second.get(title)] for title in dict.fromkeys([*first, *second])
    ]
    return {"kernel": "left", "A": "right", "B": "right"}, rows


def one_below_another(kernels: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures of several kernels by name, a row each."""
    known = {name: figures(kernel) for name, kernel in kernels.items()}
    named = dict.fromkeys(title for found in known.values() for title in found)
    titles = sorted(named, key=lambda title: not title.startswith("loop: "))
    rows = [[name, *(found.get(title) for title in titles)] for name, found in known.items()]
    heads = [_SHORT.get(title, title.removeprefix("loop: ")) for title in titles]
    return {"the winner's kernel": "left"} | dict.fromkeys(heads, "right"), rows


def unified(rows: Sequence[Sequence[str | None]], most: int) -> str:
    """A diff that `report.kernels.side_by_side` made, A's lines above B's; at most so many lines of it."""
    lines = list(_unified(rows))
    left_out = len(lines) - most
    cut = [f"… {tables.plural(left_out, 'further line')}; HTML and JSON have more"] if left_out > 0 else []
    return "\n".join(lines[:most] + cut)


def _unified(rows: Sequence[Sequence[str | None]]) -> Iterator[str]:
    theirs: list[str] = []  # B's lines of a run of changed ones, which come after A's
    for mark, left, right in rows:
        if mark != "~":
            yield from theirs
            theirs = []
        if mark == "…":
            yield "…"
        elif mark == "=":
            yield f"  {left}"
        elif mark == "+":
            yield f"+ {right}"
        else:
            yield f"- {left}"
            theirs += [f"+ {right}"] if mark == "~" else []
    yield from theirs
