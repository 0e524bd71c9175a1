"""The comparison with peers: contenders in processes of their own take turns, and the pairs of times are judged."""

from __future__ import annotations

from convtune.comparison.comparison import Comparison, Settings
from convtune.comparison.result_file import ResultFile

__all__ = ["Comparison", "ResultFile", "Settings"]
