"""Which candidates to try: a search of one spec, and what carries over from others. No clock, no input or output."""

from __future__ import annotations

from convtune.search.lending import Guess, guess
from convtune.search.search import Search
from convtune.search.transfer import fitted, nearest, nearest_winner

__all__ = ["Guess", "Search", "fitted", "guess", "nearest", "nearest_winner"]
