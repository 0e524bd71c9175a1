"""Stock MetaSchedule as a peer: the winner of its search, run as convtune's own kernels are."""

from __future__ import annotations

from convtune.peers.compiled import CompiledPeer


class MetaSchedule(CompiledPeer):
    name = "metaschedule"
    distributions = ("apache-tvm",)
    engine = "metaschedule"


metaschedule = MetaSchedule()
