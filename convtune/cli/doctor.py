"""`convtune doctor`: says whether convtune can do its work here, and how to get what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from convtune.cli import options, tables
from convtune.cli.application import DONE, FAILED

if TYPE_CHECKING:
    from convtune.doctor import Finding


@click.command("doctor")
@click.option("--measure/--no-measure", default=True, help="Measure the FMA peak and the memory bandwidth, or do not.")
@options.as_json
def command(*, measure: bool, as_json: bool) -> int:
    """Look at what convtune needs: what is there, what is missing for what, how to get it.

    "absent" is something that convtune does without; "broken" stops its main job, or is an nvcc that does not work, and
    makes the exit code 1.
    """
    from convtune.doctor import examine

    findings = examine(measure)
    if as_json:
        tables.print_json({"findings": [vars(finding) | {"figures": dict(finding.figures)} for finding in findings]})
    else:
        click.echo(_text(findings))
    return FAILED if any(finding.state == "broken" for finding in findings) else DONE


def _text(findings: Sequence[Finding]) -> str:
    lines = []
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        lines.append(f"{finding.state:<6}  {finding.subject:<{width}}  {finding.value}")
        if finding.state != "ok":
            lines.append(f"{'':<{width + 8}}  it is for {finding.purpose}")
        if finding.remedy:
            lines.append(f"{'':<{width + 8}}  to get it: {finding.remedy}")
    return "\n".join(lines)
