"""Prints the figures that README.md names, measured now, as a Markdown table with the machine. Asserts nothing."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import measurements
from measurements import Figure

from convtune import targets


@click.group()
def main() -> None:
    """Measure one of the figures, or all of them. Results go to standard output, progress to standard error."""


trials = click.option("--trials", type=click.IntRange(min=1), default=32, show_default=True, help="A layer.")
log = click.option("--log", type=click.Path(path_type=Path), help="Log to go on with; otherwise a new one, not kept.")


@main.command()
@trials
@log
@click.option("--rounds", type=click.IntRange(min=1), default=40, show_default=True)
def peak(log: Path | None, trials: int, rounds: int) -> None:
    """The tuned dense kernel's share of the FMA peak."""
    with tempfile.TemporaryDirectory() as directory:
        show(measurements.peak(log or Path(directory, "log.jsonl"), trials, rounds))


@main.command()
@click.option("--count", type=click.IntRange(min=1), default=20, show_default=True)
def candidate(count: int) -> None:
    """How long a dense candidate takes, from knobs to a verified time."""
    show(measurements.candidates(count))


@main.command()
@trials
def network(trials: int) -> None:
    """How long all of mobilenet_v2 takes, and again with the same log."""
    with tempfile.TemporaryDirectory() as directory:
        show(measurements.network(Path(directory, "log.jsonl"), trials))


@main.command()
@trials
@log
def default(log: Path | None, trials: int) -> None:
    """The default schedules against the tuned ones, over three networks."""
    with tempfile.TemporaryDirectory() as directory:
        show(measurements.defaults(log or Path(directory, "log.jsonl"), trials))


@main.command()
@click.option("--repeat", type=click.IntRange(min=1), default=15, show_default=True)
def start(repeat: int) -> None:
    """How long importing convtune and its help take."""
    show(measurements.start(repeat))


@main.command("all")
@trials
def everything(trials: int) -> None:
    """All of them, in some twenty minutes."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log.jsonl")
        figures = measurements.start(15) + measurements.candidates(20) + measurements.network(log, trials)
        show(figures + measurements.peak(log, trials, 40) + measurements.defaults(log, trials))


def show(figures: Sequence[Figure]) -> None:
    """Prints the machine, the command, and a row for each figure."""
    target = targets.native()
    context = click.get_current_context()
    options = " ".join(f"--{name} {value}" for name, value in context.params.items() if value is not None)
    click.echo(
        f"{target.model}, `{target.mcpu}`, {target.threads} threads, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}: `scripts/figures.py {context.info_name} {options}`\n"
    )
    click.echo("| what | wanted | median | spread |\n| --- | --- | --- | --- |")
    for figure in figures:
        click.echo(f"| {figure.what} | {figure.wanted} | {figure.measured} | {figure.spread} |")


if __name__ == "__main__":
    main()
