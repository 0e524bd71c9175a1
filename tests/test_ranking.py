"""scripts/ranking.py: which candidates it draws, and that its figures are those of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import ranking

from convtune import space, targets
from convtune.spec import ConvSpec

TARGET = targets.resolve("x86-64-v2", 1)


def test_candidates_are_different_and_the_default_is_the_first() -> None:
    spec = ConvSpec.parse("conv,ic=13,oc=24,in=15x17,k=3x3,p=1")
    found = list(ranking.candidates(spec, TARGET, 20, seed=3))
    assert found[0] == space.default_candidate(spec, TARGET)
    assert len({candidate.key for candidate in found}) == len(found) == 20
    assert {candidate.space for candidate in found} == {owner.name for owner in space.accepting(spec, TARGET)}
    assert found == list(ranking.candidates(spec, TARGET, 20, seed=3))
    assert found != list(ranking.candidates(spec, TARGET, 20, seed=4))


def test_figures_of_a_layer() -> None:
    """Four candidates, of which the one of least cost is the second best; the lower of two passes counts."""
    medians = np.array([[30.0, 99.0], [12.0, 11.0], [10.0, 13.0], [40.0, 44.0]])
    spearman, kendall, *picked = ranking._row([3.0, 1.0, 2.0, 4.0], medians)
    assert (spearman, kendall) == (pytest.approx(0.8), pytest.approx(2 / 3))
    assert picked == pytest.approx([1.1, 1.0, 1.0, 3.0, 91 / 40])


def test_layers_are_of_several_variants_and_ranks() -> None:
    specs = [ConvSpec.parse(text) for text in ranking.LAYERS]
    assert len({spec.variant for spec in specs}) >= 8 and {spec.rank for spec in specs} == {1, 2, 3}
