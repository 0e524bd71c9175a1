"""`convtune log`: checks, merges, prunes and exports tuning logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convtune.cli import options, tables
from convtune.cli.application import DONE, FAILED
from convtune.cli.notices import warn_of
from convtune.log_tools import FORMATS
from convtune.record import ORIGINS

_own_log = click.argument("log", type=options.PLACE, required=False)


@click.group("log", no_args_is_help=True)
def command() -> None:
    """Check, merge, prune and export tuning logs. Without LOG: $CONVTUNE_LOG, or the one in your data directory."""


@command.command()
@_own_log
@options.as_json
def check(*, log: Path | None, as_json: bool) -> int:
    """Read a whole log, and name every line that is no record; the exit code is 1 if there are any."""
    from convtune import log_tools

    summary = log_tools.check(_or_own(log))
    problems = [*summary.problems, *([summary.torn] if summary.torn else [])]
    if as_json:
        tables.print_json(
            {
                "log": str(summary.path),
                "records": summary.records,
                "duplicates": summary.duplicates,
                "by_status": dict(summary.by_status),
                "by_origin": dict(summary.by_origin),
                "specs": summary.specs,
                "targets": list(summary.targets),
                "problems": [{"line": problem.line, "reason": problem.reason} for problem in summary.problems],
                "torn": {"line": summary.torn.line, "reason": summary.torn.reason} if summary.torn else None,
            }
        )
    else:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"{summary.path}: {tables.plural(summary.records, 'record')}, {summary.duplicates} duplicate")
        click.echo(f"specs    {summary.specs}")
        click.echo(f"targets  {', '.join(summary.targets)}")
        click.echo(f"status   {tables.counts(summary.by_status)}")
        click.echo(f"origin   {tables.counts(summary.by_origin)}")
    return FAILED if problems else DONE


@command.command()
@click.argument("logs", type=options.PLACE, nargs=-1, required=True, metavar="LOG...")
@click.option("-o", "--output", type=options.PLACE, required=True, metavar="FILE", help="Where the merged log goes.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@options.as_json
def merge(*, logs: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool) -> int:
    """Write the records of several logs into one, each once."""
    from convtune import log_tools

    merged = log_tools.merge(logs, output, overwrite=overwrite)
    warn_of(merged.problems)
    result: dict[str, Any] = {"log": str(output), "records": merged.records, "duplicates": merged.duplicates}
    if as_json:
        tables.print_json(result | {"skipped_lines": len(merged.problems)})
    else:
        records = tables.plural(merged.records, "record")
        click.echo(f"{output}: {records}; {tables.plural(merged.duplicates, 'duplicate')} left out")
    return DONE


@command.command()
@_own_log
@click.option(
    "--keep", type=options.IntegerRange(min=1), default=8, show_default=True, metavar="N", help="Of each spec."
)
@click.option("--drop-failures", is_flag=True, help="Also drop candidates that failed; a search may try them again.")
@options.as_json
def prune(*, log: Path | None, keep: int, drop_failures: bool, as_json: bool) -> int:
    """Drop from a log, in place, what no lookup would choose: all but the fastest of each spec and machine."""
    from convtune import log_tools

    path = _or_own(log)
    pruned = log_tools.prune(path, keep=keep, drop_failures=drop_failures)
    if pruned.repair:
        click.echo(f"convtune: warning: {pruned.repair}", err=True)
    warn_of(pruned.problems)
    if as_json:
        tables.print_json({"log": str(path), "kept": pruned.kept, "dropped": pruned.dropped})
    else:
        click.echo(f"{path}: {tables.plural(pruned.kept, 'record')} kept, {pruned.dropped} dropped")
    return DONE


@command.command()
@_own_log
@click.option("--format", "form", type=click.Choice(FORMATS), default="csv", show_default=True)
@click.option("--winners", is_flag=True, help="Only the record that wins each spec and machine, of each origin.")
@click.option("--max-error", type=options.FiniteRange(min=0), metavar="E", help="Of winners: the largest error.")
@click.option("--origin", type=click.Choice(ORIGINS), help="Of winners: of this origin only.")
@options.as_json
def export(
    *, log: Path | None, form: str, winners: bool, max_error: float | None, origin: str | None, as_json: bool
) -> int:
    """Print a log's records for other programs; --json is --format json."""
    from convtune import log_tools

    given = {"--max-error": max_error, "--origin": origin}
    if unused := [option for option, value in given.items() if value is not None and not winners]:
        raise click.UsageError(f"{unused[0]} chooses winners; give --winners too.")
    form = "json" if as_json else form
    exported = log_tools.export(_or_own(log), form, winners=winners, max_error=max_error, origin=origin)
    warn_of(exported.problems)
    click.echo(exported.text, nl=False)
    return DONE


def _or_own(log: Path | None) -> Path:
    from convtune.paths import log_path

    return log_path() if log is None else log
