"""Warnings, on standard error: what a target is not, and log lines that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from convtune.log import Problem
    from convtune.targets import Target

_SHOWN = 3


def tell(target: Target) -> None:
    """Says what a user should know of how the target was chosen, if there is anything."""
    if target.notice:
        click.echo(f"convtune: {target.notice}", err=True)


def warn_of(problems: Sequence[Problem]) -> None:
    """Names the first few lines that were skipped, and how many more there are."""
    for problem in problems[:_SHOWN]:
        click.echo(f"convtune: warning: {problem}; skipped", err=True)
    if len(problems) > _SHOWN:
        click.echo(f"convtune: warning: {len(problems) - _SHOWN} more such lines; see `convtune log check`", err=True)
