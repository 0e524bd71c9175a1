"""Which candidates to try: a search of one spec, and what carries over from others. No clock, no input or output."""

from __future__ import annotations

from convtune.search.search import Search
from convtune.search.transfer import fitted, nearest, nearest_winner

__all__ = ["Search", "fitted", "nearest", "nearest_winner"]
