"""Builds the kernels of records, to show what they look like: `--kernels` of report and compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from convtune.cli import tables

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.report.kernels import Kernels

option = click.option(
    "--kernels",
    "show_kernels",
    is_flag=True,
    help="Build the schedules that are shown: their loop nests, the instructions in their assembly, a model of caches.",
)


def inspected(records: Iterable[Record]) -> Kernels:
    """What each record's kernel looks like, or why it cannot be built; some tenths of a second each."""
    from convtune.measure.inspection import inspect
    from convtune.report.kernels import key
    from convtune.spec import ConvSpec

    by_target: dict[str, dict[Any, Record]] = {}
    for record in records:
        by_target.setdefault(record.fingerprint, {})[key(record)] = record
    found: dict[Any, dict[str, Any]] = {}
    for named in by_target.values():
        kernels = list(named.values())
        click.echo(
            f"convtune: building {tables.plural(len(kernels), 'kernel')} for {kernels[0].target['name']}", err=True
        )
        results = inspect(kernels[0].target, [(ConvSpec.parse(r.spec), r.candidate) for r in kernels])
        for place, result in zip(named, results):
            if isinstance(result, str):
                found[place] = {**dict.fromkeys(("script", "instructions", "traffic")), "why": result, "no_traffic": ""}
            else:
                found[place] = {
                    "script": result.script,
                    "instructions": result.listing.data() if result.listing else None,
                    "traffic": dataclasses.asdict(result.traffic) if result.traffic else None,
                    "why": "",
                    "no_traffic": result.no_traffic,
                }
    return found
