"""A comparison for a terminal, a pull request or a script: text, Markdown, JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from convtune.cli import tables
from convtune.cli.report_tables import markdown, markdown_table
from convtune.comparison.verdict import VERDICTS
from convtune.ranks import SOURCES
from convtune.record import Record
from convtune.report.versus import MISSING
from convtune.report.versus_content import versus_data

if TYPE_CHECKING:
    from convtune.report.kernels import Kernels
    from convtune.report.versus import Group, Pair, Versus

_MOST_DIFFERING = 4
"""Knobs named in a row; JSON and the page have all."""


def render(form: str, versus: Versus, fail_on: float | None, kernels: Kernels | None = None) -> str:
    """The comparison in a form: text, markdown or json."""
    if form == "json":
        return json.dumps(versus_data(versus, fail_on, kernels), indent=2, allow_nan=False)
    sides = [f"A: {versus.a}", f"B: {versus.b}"]
    groups = [_group(group, form) for group in versus.groups if group.compared]
    skipped = [
        f"{group.target['model']}, {group.origin}: on one side only" for group in versus.groups if not group.compared
    ]
    if form == "markdown":
        return "\n\n".join(["  \n".join(map(markdown, sides)), *groups, *map(markdown, skipped)])
    return "\n".join([*sides, "", "\n\n".join(groups), *skipped])


def _group(group: Group, form: str) -> str:
    model = f"{group.target['name']}: {group.target['model']}, {SOURCES[group.origin]}"
    pairs = [pair for pair in group.pairs if MISSING not in (pair.a, pair.b)]
    ranks = (side.rank for pair in pairs for side in (pair.a, pair.b) if isinstance(side, Record))
    column = tables.RankColumn.of(ranks, group.origin)
    interval = [] if group.origin == "emulated" else ["95 % interval"]
    headers = dict.fromkeys([column.head("A"), column.head("B"), "A/B", *interval], "right")
    columns = {"layer": "left", **headers, "B": "left", "what differs": "left"}
    rows = [_row(pair, column, bool(interval)) for pair in pairs]
    facts = _facts(group)
    if form == "markdown":
        return "\n\n".join([f"### {markdown(model)}", markdown_table(columns, rows), markdown(facts)])
    return "\n".join([model, "", tables.render(columns, rows), "", facts])


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
    return "; ".join([f"B: {counts}", mean, *others])
