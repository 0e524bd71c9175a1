"""A comparison for a terminal, a pull request or a script: text, Markdown, JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from convtune.cli import tables
from convtune.cli.report_tables import markdown, markdown_table
from convtune.comparison.verdict import VERDICTS
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
    model = f"{group.target['name']}: {group.target['model']}, times {group.origin}"
    origin = "" if group.origin == tables.MEASURED else f" {group.origin}"
    headers = dict.fromkeys([f"A µs{origin}", f"B µs{origin}", "A/B", "95 % interval"], "right")
    columns = {"layer": "left", **headers, "B": "left", "what differs": "left"}
    rows = [_row(pair) for pair in group.pairs if MISSING not in (pair.a, pair.b)]
    facts = _facts(group)
    if form == "markdown":
        return "\n\n".join([f"### {markdown(model)}", markdown_table(columns, rows), markdown(facts)])
    return "\n".join([model, "", tables.render(columns, rows), "", facts])


def _row(pair: Pair) -> list[str | None]:
    sides = [pair.a, pair.b]
    times = [side.time_us if isinstance(side, Record) else None for side in sides]
    column = tables.TimeColumn("µs", 1.0, 2 if any(t and t < 10 for t in times) else 1)
    shown = [side if isinstance(side, str) else column.text(side.time_us) for side in sides]
    known = pair.bounds
    spread = f"{known.lower:.2f} to {known.upper:.2f}" if known and known.lower is not None else None
    ratio = tables.speedup(known.ratio) if known else None
    return [pair.name, *shown, ratio, spread, pair.verdict.replace("_", " ") if known else None, _differing(pair)]


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
