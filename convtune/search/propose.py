"""Proposer: picks the most promising of the candidates not tried yet, by a model where enough is known to train one."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convtune.search import model
from convtune.search.domain import Domain, differing
from convtune.search.features import Encoder
from convtune.search.pool import Pool
from convtune.search.transfer import distance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convtune.search.trial import Trial
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target

LEAST_TIMED = 8  # candidates that worked, of any spec, from which a model is trained
MOST_EXAMPLES = 2_000  # rows of other specs: more would train slower, and come from farther away
NEAREST = 8  # other specs whose defaults are chosen, for the ratios to them: each choice may look at every candidate
EXPLORED = 0.15  # share of picks that do not ask the model
EXPLORED_BLINDLY = 0.5  # the same while there is none
CLIMBED = 0.6  # share of the other picks that are neighbours of the fastest so far, while there are any
LEAST_DIFFERING = 2  # knobs between two picks of a batch: a near copy of an untested guess teaches little
STEPS_FROM = 4  # promising candidates whose neighbours join a pool that does not hold all
STEPS = 2
ESTIMATE = "space's log_estimate"  # the column in which `space.Estimating` says what it thinks of a candidate
BLUR = 0.2  # in that logarithm: estimates nearer to each other than this say nothing
RANDOM_FEW = 16  # of which the one most unlike all others is explored


class Proposer:
    """Holds what stays the same during a search: the pool of candidates and what other specs taught.

    Its picks are a function of the seed and of the arguments alone, so an interrupted search can be gone on with.
    """

    def __init__(
        self, spec: ConvSpec, target: Target, domains: Mapping[str, Domain], others: Collection[Trial], seed: int
    ) -> None:
        self._spec, self._target, self._domains, self._others, self._seed = spec, target, domains, others, seed
        self._facts = target.facts()

    @functools.cached_property
    def pool(self) -> Pool:
        """All candidates, or a sample. Made when it is first needed: where nothing is left to try it never is."""
        return Pool(list(self._domains.values()), self._encode, np.random.default_rng(self._seed))

    def propose(self, n: int, tried: Sequence[Trial], waiting: Collection[Candidate]) -> list[Candidate]:
        """Up to n candidates that are neither tried nor waiting for a time.

        EXPLORED of them are unlike what is known; of the others, CLIMBED are neighbours of the fastest so far, or of
        the defaults while nothing is timed, and the rest may be any. Which ones, the model says, or else the spaces'
        own estimates.
        """
        rng = np.random.default_rng([self._seed, len(tried), len(waiting)])
        timed = [(t.rank, t.candidate.key, t.candidate) for t in tried if t.rank is not None]
        best = [min(timed)[2]] if timed else [domain.default for domain in self._domains.values()]
        # what is added for these picks is not kept: the next ones may be made by another process, after an interruption
        pool = self.pool if self.pool.complete else self.pool.copy()
        near = set(self._add_neighbours(pool, best))
        booster = self._train(tried)
        scores = self._guesses(pool, rng) if booster is None else self._scores(booster, pool)
        taken = {t.candidate.key for t in tried} | {candidate.key for candidate in waiting}
        free = [place for place in np.argsort(scores, kind="stable").tolist() if pool.keys[place] not in taken]
        explored = EXPLORED_BLINDLY if booster is None else EXPLORED
        batch, picks = [*waiting], list[int]()
        while free and len(picks) < n:
            if rng.random() < explored:
                few = rng.choice(free, size=RANDOM_FEW).tolist()
                place = few[_most_unlike([pool.candidates[place] for place in few], [*best, *batch])]
            else:
                climbed = rng.random() < CLIMBED
                ranked = ([place for place in free if place in near] if climbed else free) or free
                place = ranked[_first_unlike([pool.candidates[place] for place in ranked], batch)]
            free.remove(place)
            picks.append(place)
            batch.append(pool.candidates[place])
        return [pool.candidates[place] for place in picks]

    def _add_neighbours(self, pool: Pool, candidates: Iterable[Candidate]) -> list[int]:
        return pool.add(near for c in candidates for near in self._domains[c.space].neighbours(c))

    def _train(self, tried: Sequence[Trial]) -> Any:
        """The model of all that is known; None where that is too little."""
        if sum(trial.rank is not None for trial in (*tried, *self._others)) < LEAST_TIMED:
            return None
        # in an order of its own, so that it does not matter which of a batch was timed first
        own = self._examples_of(sorted(tried, key=lambda trial: trial.candidate.key))
        return model.fit(own, self._examples, self._seed)

    def _scores(self, booster: Any, pool: Pool) -> NDArray[np.float32]:
        """What the model says of every candidate in the pool, to which it adds those next to the promising ones."""
        scores = model.predict(booster, pool.rows())
        for _ in range(0 if pool.complete else STEPS):
            promising = np.argsort(scores, kind="stable")[:STEPS_FROM].tolist()
            self._add_neighbours(pool, [pool.candidates[place] for place in promising])
            scores = model.predict(booster, pool.rows())
        return scores

    def _guesses(self, pool: Pool, rng: np.random.Generator) -> NDArray[np.float64]:
        """Scores while nothing is timed: the spaces' own estimates, blurred so that seeds differ; or dice alone."""
        dice = rng.random(len(pool.candidates))
        if ESTIMATE not in self._encoder.columns:
            return dice
        estimates = pool.rows()[:, self._encoder.columns.index(ESTIMATE)].astype(float)
        unknown = np.isnan(estimates)  # of a space that has none
        estimates[unknown] = np.median(estimates[~unknown]) if not unknown.all() else 0.0
        return estimates + BLUR * dice

    def _encode(self, candidates: Sequence[Candidate]) -> NDArray[np.float32]:
        return self._encoder.rows(self._spec, self._facts, candidates)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._spec, self._target, self._domains)

    def _examples_of(self, group: Sequence[Trial], *, to_default: bool = True) -> model.Examples:
        """Examples of trials of one spec on one target; there may be none."""
        spec, facts = (group[0].spec, group[0].facts) if group else (self._spec, self._facts)
        rows = self._encoder.rows(spec, facts, [trial.candidate for trial in group], to_default=to_default)
        return model.Examples(rows, np.array([trial.rank for trial in group], float))  # None becomes NaN

    @functools.cached_property
    def _examples(self) -> list[model.Examples]:
        """What other specs and machines taught, the nearest first, as much as trains quickly."""
        groups: dict[tuple[ConvSpec, str], list[Trial]] = {}
        for trial in self._others:
            if self._domains[trial.candidate.space].space.takes(trial.spec, self._target):
                groups.setdefault((trial.spec, str(trial.facts["fingerprint"])), []).append(trial)

        def far(place: tuple[ConvSpec, str]) -> tuple[bool, float, str, str]:
            spec, fingerprint = place
            return fingerprint != self._target.fingerprint, distance(spec, self._spec), str(spec), fingerprint

        examples, rows = [], 0
        for nearer, place in enumerate(sorted(groups, key=far)):
            rows += len(groups[place])
            if rows > MOST_EXAMPLES:
                break
            examples.append(self._examples_of(groups[place], to_default=nearer < NEAREST))
        return examples


def _most_unlike(candidates: Sequence[Candidate], known: Sequence[Candidate]) -> int:
    """Which candidate differs most from the one of the known that it is most like."""
    apart = [min(differing(candidate, other) for other in known) for candidate in candidates]
    return apart.index(max(apart))


def _first_unlike(candidates: Sequence[Candidate], batch: Sequence[Candidate]) -> int:
    """Which is the first that is no near copy of one in the batch; 0 where each is."""
    unlike = (all(differing(c, other) >= LEAST_DIFFERING for other in batch) for c in candidates)
    return next((place for place, is_unlike in enumerate(unlike) if is_unlike), 0)
