"""`python -m convtune.cli`, for where the `convtune` program is not on the path."""

from __future__ import annotations

from convtune.cli import main

main()
