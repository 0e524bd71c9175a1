"""The cost model: boosted trees that order candidates by how fast they will be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 40
TREES: dict[str, Any] = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 5,
    "eta": 0.2,
    "max_bin": 64,
    "colsample_bytree": 0.6,
    "nthread": 1,  # the other cores build and time candidates; and one thread adds in one order, so trees repeat
    "verbosity": 0,
}
FAILURE = 1.0  # log2: a failed candidate counts as twice as slow as the slowest that worked
OWN_WEIGHT = 4.0  # of this spec's ranks against those of other specs


@dataclass(frozen=True)
class Examples:
    """What is known on one spec and target. rows: (k, columns); ranks: (k,) of one origin, NaN where it failed."""

    rows: NDArray[np.float32]
    ranks: NDArray[np.float64]


def slowness(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2 of the ranks over their geometric mean, so that specs and machines of any speed mix; failures come last."""
    failed = np.isnan(ranks)
    if failed.all():
        return np.full(len(ranks), FAILURE)
    logs = np.log2(ranks)
    logs[failed] = np.max(logs[~failed]) + FAILURE
    centred: NDArray[np.float64] = logs - np.mean(logs[~failed])
    return centred


def fit(own: Examples, others: Sequence[Examples], seed: int) -> Any:
    """The booster trained on this spec's examples and on those of others; the same for the same arguments."""
    import xgboost

    groups = [group for group in (own, *others) if len(group.ranks)]
    weights = [np.full(len(group.ranks), OWN_WEIGHT if group is own else 1.0) for group in groups]
    data = xgboost.DMatrix(
        np.concatenate([group.rows for group in groups]),
        label=np.concatenate([slowness(group.ranks) for group in groups]),
        weight=np.concatenate(weights),
        nthread=1,
    )
    return xgboost.train({**TREES, "seed": seed}, data, num_boost_round=ROUNDS)


def predict(booster: Any, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(k,): the predicted slowness of each row. Only the order means something."""
    predicted: NDArray[np.float32] = booster.inplace_predict(rows)
    return predicted
