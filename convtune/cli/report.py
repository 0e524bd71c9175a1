"""`convtune report`: what was tuned, as a page, a table or data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convtune.cli import options
from convtune.cli.application import DONE
from convtune.cli.notices import warn_of
from convtune.errors import LogError

if TYPE_CHECKING:
    from convtune.log import Problem
    from convtune.record import Record

FORMATS = ("html", "text", "markdown", "csv", "json")
_ENDINGS = {".html": "html", ".htm": "html", ".txt": "text", ".md": "markdown", ".csv": "csv", ".json": "json"}


@click.command("report")
@click.argument("logs", type=options.PLACE, nargs=-1, metavar="[LOG]...")
@click.option("-o", "--output", type=options.PLACE, metavar="FILE", help="Where it goes; its ending tells the format.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Otherwise by FILE's ending, and text without one.")
@click.option("--bench", "benches", type=options.PLACE, multiple=True, metavar="FILE", help="Of `convtune bench -o`.")
@click.option("--title", default="convtune report", show_default=True, help="Of the page.")
@options.accuracy
def command(
    *,
    logs: tuple[Path, ...],
    output: Path | None,
    form: str | None,
    benches: tuple[Path, ...],
    title: str,
    accuracy: str,
) -> int:
    """Report what was tuned: layers, speed-ups, roofline, every candidate. Without LOG: your own log.

    An HTML page holds all it needs: send it, open it, print it.
    """
    from convtune.paths import log_path
    from convtune.report import peers
    from convtune.report.digest import digest
    from convtune.report.roof import roofs_of

    form = _format(form, output)
    places = logs or (log_path(),)
    read = [peers.read(path) for path in benches]
    records, problems = _records(places)
    warn_of(problems)
    roofs = {**roofs_of(records), **{bench.fingerprint: bench.roof for bench in read if bench.roof}}
    sections = digest(records, accuracy=accuracy, roofs=roofs, benches=read)
    names = [str(path) for path in places]
    if form == "html":
        from convtune.report.page import page

        text = page(title, sections, names, problems)
    else:
        from convtune.cli.report_tables import render

        text = render(form, sections, names, problems)
    write(text, output)
    return DONE


def _format(form: str | None, output: Path | None) -> str:
    if form is None and output is not None and output.suffix.lower() not in _ENDINGS:
        endings = ", ".join(_ENDINGS)
        raise click.UsageError(
            f"-o {output}: its ending tells no format; it must be one of {endings}, or give --format."
        )
    form = form or (_ENDINGS[output.suffix.lower()] if output else "text")
    if form == "html" and output is None:
        raise click.UsageError("--format html needs -o FILE.")
    return form


def _records(paths: Sequence[Path]) -> tuple[list[Record], list[Problem]]:
    from convtune.log import Log

    records, problems = list["Record"](), list["Problem"]()
    for path in paths:
        log = Log(path, must_exist=True)
        records += log.records()
        problems += [*log.problems, *([log.torn] if log.torn else [])]
    return records, problems


def write(text: str, output: Path | None) -> None:
    """Prints the text, or writes the file whole or not at all, and says where it is."""
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(output)
    except OSError as error:
        raise LogError(f"report {output} cannot be written: {error.strerror}") from error
    click.echo(f"{output}", err=True)
