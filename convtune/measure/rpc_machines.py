"""The machines with an RPC key: each has a worker here with a session there, and takes a kernel when it is free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from convtune.errors import MeasureError, TargetError
from convtune.measure.device import Prepare
from convtune.measure.rpc_device import NO_SESSION, SESSION_ENDED, Join
from convtune.measure.rpc_queue import Queue, Task
from convtune.measure.worker import MEMORY_BYTES, Batch, Reply, Worker, wait_for

if TYPE_CHECKING:
    from convtune.measure.bench import Limits
    from convtune.remote import Remote
    from convtune.spec import ConvSpec

FREE_S = 60.0
"""Seconds to wait for a server: so long it may take to be started again, or to be done with another program."""
_PAUSE_S = 2.0  # before a tracker that is gone is asked again
_ATTEMPTS = 3


class Machine:
    """A worker with a session on one of the key's machines, or on its way to one."""

    def __init__(self, worker: Worker, remote: Remote, limits: Limits) -> None:
        self.worker, self._remote, self._limits = worker, remote, limits
        self.address = ""  # HOST:PORT of the server, while there is a session
        self.problem = ""  # why there was none to be had
        self._sent: Join | Prepare | Task | None = None
        self.prepared: ConvSpec | None = None
        self._failures, self._not_before = 0, 0.0

    @property
    def works(self) -> bool:
        """Whether it has a task."""
        return isinstance(self._sent, Task)

    def advance(self, spec: ConvSpec, queue: Queue, may_prepare: bool) -> None:
        """Sends what comes next, where the worker has nothing to do."""
        if self.worker.died_idle:
            self.lose()
        self.worker.start()
        if not self.worker.ready or self.worker.busy:
            return
        if not self.address:
            if time.monotonic() >= self._not_before:
                # a server that takes the session and is silent: the worker ends by itself, long before this
                self._send(Join(self._remote, FREE_S), 2 * FREE_S, MEMORY_BYTES)
        elif self.prepared != spec:
            if may_prepare:
                self._send(Prepare(spec), self._limits.reference(spec), self._limits.memory(spec))
        elif (task := queue.next(self.address)) is not None:
            self._sent, task.device = task, self.address
            self.worker.submit(task.request(self.address), task.seconds, self._limits.memory(spec))

    def _send(self, request: Join | Prepare, seconds: float, memory_bytes: int) -> None:
        self._sent = request
        self.worker.submit(request, seconds, memory_bytes)

    @property
    def prepares(self) -> bool:
        return isinstance(self._sent, Prepare)

    def receive(self, queue: Queue) -> Task | None:
        """The task that was done, if one was. Raises MeasureError and TargetError as `Machines.work` does."""
        reply = self.worker.receive() if self.worker.waits else None
        if reply is None:
            return None
        sent, self._sent = self._sent, None
        if isinstance(sent, Join):
            self._joined(reply)
        elif isinstance(sent, Prepare):
            if reply.status != "ok":
                raise MeasureError(f"no reference of {sent.spec} ({reply.status}): {reply.message}")
            self.prepared = sent.spec
        elif sent is not None:
            return self._done(sent, reply, queue)
        return None

    def _joined(self, reply: Reply) -> None:
        if reply.status == "ok":
            self.address, self.problem, self._failures = reply.value, "", 0
            return
        if reply.message.startswith("TargetError: "):
            raise TargetError(reply.message.removeprefix("TargetError: "))
        self._failures += 1
        if reply.message.startswith("MeasureError: "):  # there is none
            self.problem = reply.message.removeprefix("MeasureError: ")
        else:
            self.lose()
            if self._failures >= _ATTEMPTS:
                silent = reply.message.startswith("SIGALRM")
                why = "they take it, and are silent" if silent else reply.message
                self.problem = f"no RPC session with a server of key {self._remote.key!r}: {why}"
        self._not_before = time.monotonic() + (_PAUSE_S if self.problem else 0.0)

    def _done(self, task: Task, reply: Reply, queue: Queue) -> Task | None:
        if reply.message.startswith(NO_SESSION):  # since the task before
            self.lose()
            queue.give_back(task)
            return None
        lost = reply.message.startswith(SESSION_ENDED)
        if lost:
            reply = Reply("crash", message=reply.message.removeprefix(SESSION_ENDED))
        if lost or not self.worker.running or (reply.status == "ok" and getattr(reply.value, "suspect", False)):
            self.lose()
            task.attempts -= 1
            if task.attempts > 0:
                queue.give_back(task)
                return None
        task.reply = reply
        return task

    def forget(self) -> None:
        """To be called before there are other tasks: nobody waits for the one before, and what failed may work."""
        if self.works:
            self.lose()
            self._sent = None
        self.problem, self._not_before = "", 0.0

    def lose(self) -> None:
        """Ends the worker, and with it the session."""
        self.worker.stop()
        self.address, self.prepared = "", None


class Machines:
    """As many as the tracker has servers with the key; those that register later come in with the next tasks."""

    def __init__(self, remote: Remote, worker: Callable[[], Worker], limits: Limits) -> None:
        """worker: makes one, of the service RpcDevice."""
        self._remote, self._worker, self._limits = remote, worker, limits
        self._machines: list[Machine] = []
        self._reference_of: ConvSpec | None = None
        self.on_wait: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._machines)

    def look(self) -> None:
        """Counts the servers again."""
        try:
            servers = self._remote.servers()
        except TargetError:  # of no matter while there are sessions, and otherwise joining finds out
            servers = 0
        for _ in range(len(self._machines), max(servers, 1)):
            self._machines.append(Machine(self._worker(), self._remote, self._limits))

    def work(self, spec: ConvSpec, queue: Queue, builds: Batch) -> Iterator[Task | None]:
        """The tasks of a queue as they are done, in any order; None whenever builds may have replies.

        Raises:
            MeasureError: there is no machine any more, a worker does not start, or the reference cannot be computed.
            TargetError: a machine of another kind has the key.
        """
        for machine in self._machines:
            machine.forget()
        while queue.open or any(machine.works for machine in self._machines):
            builds.submit()
            for machine in self._machines:
                # the first leaves the reference on the disk for the others
                alone = not any(other.prepares for other in self._machines)
                machine.advance(spec, queue, alone or self._reference_of == spec)
            wait_for([*builds.workers, *(m.worker for m in self._machines)], self.on_wait, _PAUSE_S)
            yield None
            for machine in self._machines:
                before = machine.prepared
                if (task := machine.receive(queue)) is not None:
                    yield task
                if machine.prepared is not None and machine.prepared is not before:
                    self._reference_of = machine.prepared  # those of other specs are gone
            if queue.open and all(machine.problem and not machine.address for machine in self._machines):
                raise MeasureError(self._machines[0].problem)

    def stop(self) -> None:
        """Ends all workers, and with them the sessions."""
        for machine in self._machines:
            machine.lose()
