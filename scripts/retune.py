"""Tunes workloads on this machine and puts their winners into the logs that convtune ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from check_logs import SHIPPED
from finals import finals

from convtune import space, targets, workloads
from convtune.log import Log
from convtune.log_file import replace_file
from convtune.record import Record
from convtune.spec import ConvSpec
from convtune.tuner import Tuner


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="WORKLOAD...")
@click.option("--trials", type=click.IntRange(min=1), default=64, show_default=True, help="A layer.")
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    default="build/retune.jsonl",
    show_default=True,
    help="Where all candidates go; the same command goes on with it.",
)
def main(names: tuple[str, ...], trials: int, log: Path) -> None:
    """Tune WORKLOADs and ship their winners, each with the default that was measured in turn with it."""
    specs = dict.fromkeys(workload.spec for workload in workloads.parse(names))
    target = targets.resolve("native")
    with Tuner(target, log) as tuner:
        for number, spec in enumerate(specs, start=1):
            result = tuner.tune(spec, trials)
            click.echo(f"{number}/{len(specs)} {spec}: default {result.default_us} us, best {result.best_us} us")
            found = finals(spec, space.default_candidate(spec, target), tuner.log.records(spec, target.fingerprint))
            if found is None:
                raise click.ClickException(f"{spec} has no winner that was measured in turn with its default")
            ship(found, SHIPPED)


def ship(records: Sequence[Record], root: Path) -> None:
    """Puts records of one spec and machine in place of those that the shipped log has of them."""
    first = records[0]
    path = root / str(first.target["mcpu"]) / f"{ConvSpec.parse(first.spec).variant}.jsonl"
    others = [r for r in Log(path).records() if (r.spec, r.fingerprint) != (first.spec, first.fingerprint)]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, sorted({record.line() for record in (*others, *records)}))


if __name__ == "__main__":
    main()
