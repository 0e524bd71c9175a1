"""The command line. Results go to standard output, progress to standard error."""

from __future__ import annotations

from convtune.cli.application import main

__all__ = ["main"]
