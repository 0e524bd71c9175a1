"""A comparison for a terminal, a pull request or a script: text, Markdown, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.cli import kernel_tables, tables
from convtune.cli.report_tables import markdown, markdown_table
from convtune.comparison.verdict import VERDICTS
from convtune.ranks import SOURCES
from convtune.record import Record
from convtune.report.versus import MISSING
from convtune.report.versus_content import kernels_data, versus_data

if TYPE_CHECKING:
    from convtune.report.kernels import Kernels
    from convtune.report.versus import Group, Pair, Versus

_MOST_DIFFERING = 4
"""Knobs named in a row; JSON and the page have all."""
_APART = 1.05
_IN_TURN = (
    "A/B, the median of pairs timed in turn, is not the ratio of the medians: the machine's speed changed between turns"
)
_MOST_DIFF_LINES = {"text": 60, "markdown": 300}
"""Of a diff of two loop nests; Markdown folds it up."""


def render(form: str, versus: Versus, fail_on: float | None, kernels: Kernels | None = None) -> str:
    """The comparison in a form: text, markdown or json."""
    if form == "json":
        return json.dumps(versus_data(versus, fail_on, kernels), indent=2, allow_nan=False)
    sides = [f"A: {versus.a}", f"B: {versus.b}"]
    groups = [_group(group, form, kernels) for group in versus.groups if group.compared]
    skipped = [
        f"{group.target['model']}, {group.origin}: on one side only" for group in versus.groups if not group.compared
    ]
    if form == "markdown":
        return "\n\n".join(["  \n".join(map(markdown, sides)), *groups, *map(markdown, skipped)])
    return "\n".join([*sides, "", "\n\n".join(groups), *skipped])


def _group(group: Group, form: str, kernels: Kernels | None) -> str:
    model = f"{group.target['name']}: {group.target['model']}, {SOURCES[group.origin]}"
    pairs = [pair for pair in group.pairs if MISSING not in (pair.a, pair.b)]
    ranks = (side.rank for pair in pairs for side in (pair.a, pair.b) if isinstance(side, Record))
    column = tables.RankColumn.of(ranks, group.origin)
    interval = [] if group.origin == "emulated" else ["95 % interval"]
    headers = dict.fromkeys([column.head("A"), column.head("B"), "A/B", *interval], "right")
    columns = {"layer": "left", **headers, "B": "left", "what differs": "left"}
    rows = [_row(pair, column, bool(interval)) for pair in pairs]
    facts = _facts(group)
    built = {pair.name: kernels_data(pair, kernels).get("kernels") for pair in group.compared}
    shown = [_kernels(name, both, form) for name, both in built.items() if both]
    if form == "markdown":
        return "\n\n".join([f"### {markdown(model)}", markdown_table(columns, rows), markdown(facts), *shown])
    return "\n".join([model, "", tables.render(columns, rows), "", facts, *(f"\n{text}" for text in shown)])


def _kernels(name: str, both: Mapping[str, Any], form: str) -> str:
    """Both sides' instructions and cache model, and what differs in their loop nests."""
    a, b = both["a"], both["b"]
    columns, rows = kernel_tables.side_by_side(a, b)
    why = {"A could not be built": a["why"], "B could not be built": b["why"]}
    why |= {"no cache model of A": a["no_traffic"], "no cache model of B": b["no_traffic"]}
    told = [f"{what}: {reason}" for what, reason in why.items() if reason]
    diff = kernel_tables.unified(both["diff"], _MOST_DIFF_LINES[form])
    if form == "markdown":
        nests = f"<details><summary>loop nests</summary>\n\n{_fenced(diff)}\n\n</details>" if diff else ""
        parts = [f"#### {markdown(name)}", markdown_table(columns, rows), *map(markdown, told), nests]
        return "\n\n".join(part for part in parts if part)
    return "\n\n".join(part for part in (name, tables.render(columns, rows), "\n".join(told), diff) if part)


def _fenced(diff: str) -> str:
    """A diff as Markdown shows it, in a fence that nothing in it ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", diff)), default=0))
    return f"{fence}diff\n{diff}\n{fence}"


def _row(pair: Pair, column: tables.RankColumn, has_interval: bool) -> list[str | None]:
    shown = [side if isinstance(side, str) else column.text(side.rank) for side in (pair.a, pair.b)]
    known = pair.bounds
    spread = f"{known.lower:.2f} to {known.upper:.2f}" if known and known.lower is not None else None
    ratio = tables.speedup(known.ratio) if known else None
    spreads = [spread] if has_interval else []
    return [pair.name, *shown, ratio, *spreads, pair.verdict.replace("_", " ") if known else None, _differing(pair)]


def _differing(pair: Pair) -> str | None:
    named = [
        f"{'' if name == 'space' else f'{name} '}{'-' if a is None else a} → {'-' if b is None else b}"
        for name, (a, b) in pair.differing.items()
    ]
    if "space" in pair.differing:  # then the knobs are others too
        named = named[:1]
    others = len(named) - _MOST_DIFFERING
    return ", ".join([*named[:_MOST_DIFFERING], *([f"{others} more"] if others > 0 else [])]) or None


def _facts(group: Group) -> str:
    counts = ", ".join(f"{group.verdicts.get(verdict, 0)} {verdict.replace('_', ' ')}" for verdict in VERDICTS)
    alone = {
        "only in B": [p for p in group.pairs if p.a == MISSING],
        "only in A": [p for p in group.pairs if p.b == MISSING],
    }
    others = [f"{tables.plural(len(pairs), 'layer')} {where}" for where, pairs in alone.items() if pairs]
    mean = f"geometric mean of A/B, each layer once: {tables.speedup(group.geometric_mean)}"
    apart = sum(map(_is_apart, group.pairs))
    turns = [f"{tables.plural(apart, 'layer')} whose {_IN_TURN}"] if apart else []
    return "; ".join([f"B: {counts}", mean, *others, *turns])


def _is_apart(pair: Pair) -> bool:
    """Whether a reader who divides the ranks shown would get another ratio than the one that is shown."""
    known = pair.bounds
    if known is None or not known.in_turn or isinstance(pair.a, str) or isinstance(pair.b, str):
        return False
    return not 1 / _APART <= known.ratio / (pair.a.rank / pair.b.rank) <= _APART
