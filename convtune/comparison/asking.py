"""Requests to the processes of several sides at once: what is not timed need not wait for its turn."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable

from convtune.errors import MeasureError
from convtune.measure.worker import Batch, Reply, wait_for

Asking = Generator[Batch, Reply, None]
"""Yields a batch of one request to a process of its own, is sent the reply, and so on until it has no more."""
Answer = Reply | MeasureError


def at_once(askings: Iterable[Asking]) -> None:
    """Lets all of them ask side by side, until none has a request any more.

    A MeasureError, of a process that does not start, is raised where the request was yielded. Interrupted, it ends the
    processes that were asked.
    """
    with contextlib.ExitStack() as begun:
        ready: list[tuple[Asking, Answer | None]] = [(asking, None) for asking in askings]
        waiting: list[tuple[Asking, Batch]] = []
        while ready or waiting:
            for asking, answer in ready:
                batch = _next(asking, answer)
                if batch is not None:
                    waiting.append((asking, begun.enter_context(batch)))
            for _, batch in waiting:
                batch.submit()
            wait_for([worker for _, batch in waiting for worker in batch.workers], None)
            answers = [(asking, batch, _answer(batch)) for asking, batch in waiting]
            ready = [(asking, answer) for asking, _, answer in answers if answer is not None]
            waiting = [(asking, batch) for asking, batch, answer in answers if answer is None]


def _next(asking: Asking, answer: Answer | None) -> Batch | None:
    """Its next request, which the answer leads to; None where it has no more."""
    try:
        if isinstance(answer, MeasureError):
            return asking.throw(answer)
        return next(asking) if answer is None else asking.send(answer)
    except StopIteration:
        return None


def _answer(batch: Batch) -> Answer | None:
    """What there is by now."""
    try:
        return batch.replies().get(0)
    except MeasureError as problem:
        return problem
