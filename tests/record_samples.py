"""Records for the tests of records and logs."""

from __future__ import annotations

from typing import Any

from convtune.record import Record
from convtune.space import Candidate

SPEC = "conv,ic=64,oc=64,in=56x56,k=3x3,p=1"
OTHER_SPEC = "depthwise,ic=32,oc=32,in=7x7,k=3x3"


def target(name: str = "native", fingerprint: str = "f0") -> dict[str, Any]:
    return {
        "name": name,
        "family": "x86",
        "model": "A Processor 9000",
        "mcpu": "znver5",
        "vector_bytes": 64,
        "threads": 2,
        "fingerprint": fingerprint,
    }


def gpu(fingerprint: str = "g0", **changes: Any) -> dict[str, Any]:
    facts = {"name": "sm_80", "family": "cuda", "model": "A GPU 100", "arch": "sm_80", "sms": 108, "clock_mhz": 1410}
    return {**facts, "dram_gbs": 1555.0, "l2_bytes": 41943040, "fingerprint": fingerprint, **changes}


def utc(second: int) -> str:
    return f"2026-01-02T03:{second // 60:02}:{second % 60:02}.000000Z"


def make(rank: float | None = 10.0, **changes: Any) -> Record:
    """An ok record of one time, or of that cost where its origin is emulated; of none where `rank` is None.

    A changed `width` makes another candidate.
    """
    emulated = changes.get("origin") == "emulated"
    fields: dict[str, Any] = {
        "spec": SPEC,
        "target": target(),
        "candidate": Candidate("dense_direct", {"width": changes.pop("width", 4), "order": "outer"}),
        "origin": "measured",
        "status": "ok",
        "seed": 7,
        "times_us": () if rank is None or emulated else (rank,),
        "cost": rank if emulated else None,
        "error": 1e-7,
        "build_s": 0.125,
        "versions": {"convtune": "0.1.0", "tvm": "0.27.0"},
        "utc": utc(0),
    }
    return Record(**{**fields, **changes})


def failure(status: str = "crash", **changes: Any) -> Record:
    return make(None, **{"status": status, "error": None, "message": f"{status}: signal 11"} | changes)


def final(rank: float, batch: int, **changes: Any) -> Record:
    return make(rank, round="final", batch=utc(batch), **changes)
