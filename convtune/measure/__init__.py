"""Measurement: candidates are built, verified and timed in processes that may die."""

from __future__ import annotations

from convtune.measure.bench import Bench, Built, Limits, Outcome

__all__ = ["Bench", "Built", "Limits", "Outcome"]
