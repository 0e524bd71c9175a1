"""`convtune compare`: two logs, two spaces or two records, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convtune.cli import kernels, options, outputs, tables
from convtune.cli.application import DONE, FAILED
from convtune.cli.notices import warn_of
from convtune.errors import LogError

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.report.kernels import Kernels
    from convtune.report.versus import Versus

FORMATS = ("html", "text", "markdown", "json")
_RECORD = re.compile(r"(?P<path>.+):(?P<line>\d+)", re.ASCII | re.DOTALL)


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """The share that a percentage such as 5% or 0.5% is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value, re.ASCII) if value is not None else None
    if value is not None and match is None:
        raise click.BadParameter(f"{value!r} is no percentage; write it as 5%.", ctx, param)
    return float(match[1]) / 100 if match else None


@click.command("compare")
@click.argument("a")
@click.argument("b")
@options.log("Of two spaces: where their records are; otherwise $CONVTUNE_LOG, or the one in your data directory.")
@click.option(
    "--fail-on", callback=_share, metavar="PERCENT", help="Exit with 1 where B is surely worse by more, or failed."
)
@outputs.file_and_format(FORMATS)
@kernels.option
@options.accuracy
@options.as_json
def command(
    *,
    a: str,
    b: str,
    log: Path | None,
    fail_on: float | None,
    output: Path | None,
    form: str | None,
    show_kernels: bool,
    accuracy: str,
    as_json: bool,
) -> int:
    """Compare two logs, two spaces in a log, or two records (LOG:LINE), layer by layer.

    Of each layer the winners of both sides are compared: B wins, loses, or makes no difference beyond the spread.
    """
    form = outputs.format_of(form, as_json, output, FORMATS)
    outputs.spare((_input(text, log) for text in (a, b)), output)
    found = _sides(a, b, log, accuracy)
    regressions = [] if fail_on is None else found.regressions(fail_on)
    if not found.compared and not regressions:  # a gate fails where no layer of B works
        raise LogError(_nothing(found))
    built = _built(found) if show_kernels else None
    outputs.write(_text(form, found, fail_on, built), output)
    for pair in regressions:
        more = "more weighted instructions" if pair.origin == "emulated" else "slower"
        lost = f"{100 / pair.bounds.ratio - 100:.1f} % {more}" if pair.bounds else pair.verdict
        click.echo(f"regression: {pair.name} ({pair.origin}): {lost}", err=True)
    return FAILED if regressions else DONE


def _text(form: str, found: Versus, fail_on: float | None, built: Kernels | None) -> str:
    if form == "html":
        from convtune.report.page import versus_page

        return versus_page(found, fail_on, built)
    from convtune.cli.compare_tables import render

    return render(form, found, fail_on, built)


def _built(found: Versus) -> Kernels:
    """The kernels of both sides, where they differ."""
    from convtune.record import Record

    pairs = [pair for group in found.groups for pair in group.compared if pair.differing]
    return kernels.inspected(side for pair in pairs for side in (pair.a, pair.b) if isinstance(side, Record))


def _sides(a: str, b: str, log: Path | None, accuracy: str) -> Versus:
    """The two sides that the arguments name."""
    from convtune.report.versus import versus

    kinds = {_kind(text) for text in (a, b)}
    if len(kinds) > 1:
        raise click.UsageError(f"A and B must be two logs, two spaces or two records; {a} and {b} are not of one kind.")
    kind = kinds.pop()
    if kind != "space" and log is not None:
        raise click.UsageError("--log is for two spaces; A and B name their own logs.")
    if kind == "space":
        from convtune.paths import log_path

        records = _records(log or log_path())
        first_of, second_of = (_of_space(records, name, log or log_path()) for name in (a, b))
        return versus(a, b, first_of, second_of, accuracy)
    if kind == "record":
        first, second = _record(a), _record(b)
        _check_records(first, second, a, b)
        return versus(a, b, [first], [second], accuracy)
    return versus(a, b, _records(Path(a)), _records(Path(b)), accuracy)


def _input(text: str, log: Path | None) -> Path:
    """The log that an argument reads."""
    from convtune.paths import log_path

    match = _RECORD.fullmatch(text)
    kind = _kind(text)
    if kind == "record" and match:
        return Path(match["path"])
    return Path(text) if kind == "log" else log or log_path()


def _of_space(records: Sequence[Record], name: str, log: Path) -> list[Record]:
    found = [record for record in records if record.candidate.space == name]
    if not found:
        spaces = ", ".join(sorted({record.candidate.space for record in records})) or "none at all"
        raise LogError(f"{log} has no record of {name!r}, which is no file either; it has: {spaces}")
    return found


def _kind(text: str) -> str:
    """A file is a log, a file and a line a record, and a name without a directory or an ending a space."""
    match = _RECORD.fullmatch(text)
    if Path(text).exists() or not text:
        return "log"
    if match and Path(match["path"]).exists():
        return "record"
    return "space" if re.fullmatch(r"\w+", text) else "log"


def _records(path: Path) -> list[Record]:
    from convtune.log import Log

    log = Log(path, must_exist=True)
    records = log.records()
    warn_of([*log.problems, *([log.torn] if log.torn else [])])
    return records


def _record(text: str) -> Record:
    """The record of LOG:LINE."""
    from convtune.record import Record

    match = _RECORD.fullmatch(text)
    assert match, text
    path, wanted = Path(match["path"]), int(match["line"])
    with path.open("rb") as file:
        line = next((line for number, line in enumerate(file, start=1) if number == wanted), None)
    if line is None:
        hint = "; lines count from 1" if wanted == 0 else ""
        raise LogError(f"log {path} has no line {wanted}{hint}")
    try:
        return Record.parse(line)
    except LogError as error:
        raise LogError(f"log {path} line {wanted}: {error}") from error


def _check_records(first: Record, second: Record, a: str, b: str) -> None:
    for name in ("spec", "origin", "fingerprint"):
        values = [getattr(record, name) for record in (first, second)]
        if values[0] != values[1]:
            what = "target's fingerprint" if name == "fingerprint" else name
            raise LogError(f"{a} and {b} do not compare: their {what}s are {values[0]} and {values[1]}")
    for text, record in ((a, first), (b, second)):
        if record.status != "ok":
            raise LogError(f"{text} has nothing to compare: its status is {record.status}")


def _nothing(found: Versus) -> str:
    """Why no layer compares."""
    sides: Sequence[tuple[str, list[str]]] = [
        (
            name,
            sorted(
                {
                    f"{group.target['model']} ({group.target['fingerprint']}), {group.origin}"
                    for group in found.groups
                    for pair in group.pairs
                    if getattr(pair, side) != "missing"
                }
            ),
        )
        for name, side in ((found.a, "a"), (found.b, "b"))
    ]
    told = "; ".join(
        f"{name} has {tables.plural(len(machines), 'machine')}: {', '.join(machines) or 'none'}"
        for name, machines in sides
    )
    return f"no layer has a kernel on both sides on one machine and of one origin, so nothing compares; {told}"
