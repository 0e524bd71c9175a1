"""Measurement: candidates are built, verified and timed in processes that may die."""

from __future__ import annotations

from convtune.measure.bench import Bench, Built, Outcome, Timeouts

__all__ = ["Bench", "Built", "Outcome", "Timeouts"]
