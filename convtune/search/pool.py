"""The candidates that a search chooses from, each once, and their features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from convtune.search.domain import Domain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convtune.space import Candidate

MOST_LISTED = 5_000  # candidates that are all ranked; where there are more, a sample and neighbourhoods are
SAMPLED = 2_000


class Pool:
    """candidates, keys: what to choose from, and their keys. complete: there are no others."""

    def __init__(
        self,
        domains: Sequence[Domain],
        encode: Callable[[Sequence[Candidate]], NDArray[np.float32]],
        rng: np.random.Generator,
    ) -> None:
        self.candidates: list[Candidate] = []
        self.keys: list[str] = []
        self._places: dict[str, int] = {}
        self._encode = encode
        self._rows: NDArray[np.float32] | None = None
        listed = [domain.listed(MOST_LISTED) for domain in domains]
        whole = [candidates for candidates in listed if candidates is not None]
        self.complete = len(whole) == len(domains) and sum(map(len, whole)) <= MOST_LISTED
        share = SAMPLED // len(domains)
        for domain, candidates in zip(domains, listed):
            if candidates is None or not (self.complete or len(candidates) <= share):
                candidates = domain.sample(rng, share)
            self.add(candidates)

    def within(self, limit: int) -> bool:
        """Whether there are at most `limit` candidates at all."""
        return self.complete and len(self.candidates) <= limit

    def add(self, candidates: Iterable[Candidate]) -> list[int]:
        """The places of the candidates, which are put in where they are not yet."""
        places = []
        for candidate in candidates:
            key = candidate.key
            if key not in self._places:
                self._places[key] = len(self.keys)
                self.keys.append(key)
                self.candidates.append(candidate)
            places.append(self._places[key])
        return places

    def rows(self) -> NDArray[np.float32]:
        """(k, columns): the candidates' features; only those of new candidates are worked out."""
        if self._rows is None:
            self._rows = self._encode(self.candidates)
        elif len(self._rows) < len(self.candidates):
            new = self._encode(self.candidates[len(self._rows) :])
            self._rows = np.concatenate([self._rows, new])
        return self._rows

    def copy(self) -> Pool:
        """A pool with the same candidates, to add to."""
        self.rows()  # once, not in every copy
        other = copy.copy(self)
        other.candidates, other.keys, other._places = [*self.candidates], [*self.keys], dict(self._places)
        return other
