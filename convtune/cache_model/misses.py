"""What a cache must fetch while a loop nest runs: the outermost working set that fits decides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .footprints import Footprints
from .nest import Access, Nest, Node

Lines = dict[int, float]
"""Cache lines by buffer."""


class Cache:
    """A cache of so many lines, that throws away what was not used for longest."""

    def __init__(self, nest: Nest, footprints: Footprints, lines: float, private: bool) -> None:
        """private: each thread has one."""
        self.nest, self.footprints, self.lines, self.private = nest, footprints, lines, private
        self.inside: dict[int, list[Access]] = {}

    def misses(self) -> float:
        """Lines fetched by a call, the first use of each counted too."""
        return sum(self._of(self.nest.body, 0).values())

    def distinct(self) -> float:
        """Lines that a call touches, each once."""
        return sum(self._working_set(self.nest.body, 0).values())

    def _accesses(self, nodes: Sequence[Node]) -> list[Access]:
        found: list[Access] = []
        for node in nodes:
            if isinstance(node, Access):
                found.append(node)
            else:
                if id(node) not in self.inside:
                    self.inside[id(node)] = self._accesses(node.body)
                found += self.inside[id(node)]
        return found

    def _working_set(self, nodes: Sequence[Node], depth: int) -> Lines:
        return self.footprints.of(self._accesses(nodes), depth)

    def _of(self, nodes: Sequence[Node], depth: int) -> Lines:
        """Of nodes one after the other, inside of `depth` loops."""
        together = self._working_set(nodes, depth)
        if sum(together.values()) <= self.lines:
            return self._of_threads(nodes, depth, together)
        total: Lines = defaultdict(float)
        before: Lines = {}
        for group in _groups(nodes):
            used = self._working_set(group, depth)
            missed = self._alone(group, depth, used)
            for buffer, lines in missed.items():
                total[buffer] += max(0.0, lines - self._left(buffer, before, used))
            before = used
        return total

    def _left(self, buffer: int, before: Lines, used: Lines) -> float:
        """Lines of a buffer that are there because what ran just before used them.

        They must still be there at their first use, before which others come in: half of the new ones, on average.
        """
        held = sum(before.values())
        fresh = sum(lines for key, lines in used.items() if key not in before)
        if buffer not in before or held + fresh / 2 > self.lines:
            return 0.0
        return min(before[buffer], used[buffer])

    def _alone(self, group: Sequence[Node], depth: int, used: Lines) -> Lines:
        """Of a loop, or of accesses between loops."""
        (loop, *_) = group
        if isinstance(loop, Access):
            return used
        times = loop.threads if self.private else 1
        body = self._working_set(loop.body, depth + 1)
        if sum(used.values()) <= self.lines or sum(body.values()) <= self.lines:
            return self._of_threads(group, depth, used)
        inside = self._of(loop.body, depth + 1)
        return {buffer: lines * loop.trips * times for buffer, lines in inside.items()}

    def _of_threads(self, nodes: Sequence[Node], depth: int, once: Lines) -> Lines:
        """Each line once, by every thread that uses it."""
        if not self.private or all(_threads(node) == 1 for node in nodes):
            return once
        total: Lines = defaultdict(float)
        for group in _groups(nodes):
            for buffer, lines in self._working_set(group, depth).items():
                total[buffer] = max(total[buffer], lines * _threads(group[0]))
        return total


def _threads(node: Node) -> int:
    """How many share the iterations of a loop and of those that it was split into."""
    if isinstance(node, Access):
        return 1
    return node.threads * max((_threads(inside) for inside in node.body), default=1)


def _groups(nodes: Sequence[Node]) -> list[list[Node]]:
    """Loops one by one, what is between them together."""
    groups: list[list[Node]] = []
    for node in nodes:
        if isinstance(node, Access) and groups and isinstance(groups[-1][0], Access):
            groups[-1].append(node)
        else:
            groups.append([node])
    return groups
