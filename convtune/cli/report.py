"""`convtune report`: what was tuned, as a page, a table or data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convtune.cli import kernels, options, outputs
from convtune.cli.application import DONE
from convtune.cli.notices import warn_of

if TYPE_CHECKING:
    from convtune.log import Problem
    from convtune.record import Record

FORMATS = ("html", "text", "markdown", "csv", "json")


@click.command("report")
@click.argument("logs", type=options.PLACE, nargs=-1, metavar="[LOG]...")
@outputs.file_and_format(FORMATS)
@click.option("--bench", "benches", type=options.PLACE, multiple=True, metavar="FILE", help="Of `convtune bench -o`.")
@click.option("--title", default="convtune report", show_default=True, help="Of the page.")
@kernels.option
@options.accuracy
@options.as_json
def command(
    *,
    logs: tuple[Path, ...],
    output: Path | None,
    form: str | None,
    benches: tuple[Path, ...],
    title: str,
    show_kernels: bool,
    accuracy: str,
    as_json: bool,
) -> int:
    """Report what was tuned: layers, speed-ups, roofline, every candidate. Without LOG: your own log.

    An HTML page holds all it needs: send it, open it, print it.
    """
    from convtune.paths import log_path
    from convtune.report import peers
    from convtune.report.digest import digest
    from convtune.report.roof import roofs_of

    form = outputs.format_of(form, as_json, output, FORMATS)
    places = logs or (log_path(),)
    outputs.spare((*places, *benches), output)
    if show_kernels and form == "csv":
        raise click.UsageError("--kernels is for html, text, markdown and json; csv has no place for them.")
    read = [peers.read(path) for path in benches]
    records, problems = _records(places)
    warn_of(problems)
    roofs = {**roofs_of(records), **{bench.fingerprint: bench.roof for bench in read if bench.roof}}
    sections = digest(records, accuracy=accuracy, roofs=roofs, benches=read)
    names = [str(path) for path in places]
    winners = [layer.best for section in sections for layer in section.layers if layer.best]
    built = kernels.inspected(winners) if show_kernels else None
    if form == "html":
        from convtune.report.page import page

        text = page(title, sections, names, problems, built)
    else:
        from convtune.cli.report_tables import render

        text = render(form, sections, names, problems, built)
    outputs.write(text, output)
    return DONE


def _records(paths: Sequence[Path]) -> tuple[list[Record], list[Problem]]:
    from convtune.log import Log

    records, problems = list["Record"](), list["Problem"]()
    seen = set[bytes]()
    for path in paths:
        log = Log(path, must_exist=True)
        log.check()
        found = log.records()
        if len(paths) > 1:  # a merged log and its sources have the same lines
            fresh = [(line, record) for record in found if (line := record.line()) not in seen]
            seen.update(line for line, _ in fresh)
            found = [record for _, record in fresh]
        records += found
        problems += [*log.problems, *([log.torn] if log.torn else [])]
    return records, problems
