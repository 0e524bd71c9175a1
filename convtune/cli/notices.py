"""Warnings, on standard error, of log lines that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from convtune.log import Problem

_SHOWN = 3


def warn_of(problems: Sequence[Problem]) -> None:
    """Names the first few lines that were skipped, and how many more there are."""
    for problem in problems[:_SHOWN]:
        click.echo(f"convtune: warning: {problem}; skipped", err=True)
    if len(problems) > _SHOWN:
        click.echo(f"convtune: warning: {len(problems) - _SHOWN} more such lines; see `convtune log check`", err=True)
