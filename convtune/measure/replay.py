"""Replays a MetaSchedule trace: the plain convolution of a spec becomes the schedule that the trace records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convtune.errors import ScheduleError
from convtune.expression import plain

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

KINDS = (
    *("GetSBlock", "GetLoops", "GetChildBlocks", "GetConsumers", "GetProducers", "EnterPostproc"),
    *("SampleCategorical", "SampleComputeLocation", "SamplePerfectTile"),
    *("Fuse", "Split", "Reorder", "Parallel", "Vectorize", "Annotate", "Unannotate"),
    *("ComputeAt", "ComputeInline", "ReverseComputeAt", "ReverseComputeInline"),
    *("CacheRead", "CacheWrite", "DecomposeReduction", "RFactor", "Bind"),
)
KEYS = (
    *("meta_schedule.parallel", "meta_schedule.vectorize", "meta_schedule.unroll_explicit"),
    *("meta_schedule.tiling_structure", "meta_schedule.random_compute_producer"),
    *("meta_schedule.cooperative_fetch", "meta_schedule.thread_extent_low_inclusive"),
    *("meta_schedule.thread_extent_high_inclusive", "pragma_auto_unroll_max_step", "pragma_unroll_explicit"),
    *("software_pipeline_stage", "software_pipeline_order", "software_pipeline_async_stages"),
)
"""All that our rules make. Traces come from logs, which others may have written: other instructions and annotations
could bring code of their own into the kernel (pragma_import_llvm) or let it leave its buffers."""


def replay(spec: ConvSpec, trace: Any) -> Any:
    """The tvm.s_tir.Schedule that a trace, which is JSON data, makes of `expression.plain(spec)`.

    Raises:
        ScheduleError: it is no trace that convtune would make, or it does not fit the spec.
    """
    from tvm.s_tir import Schedule, Trace

    _check(trace)
    # the seed is for samples without a decision, of which a whole trace has none: chance must not enter here
    schedule = Schedule(plain(spec), seed=1, error_render_level="fast")
    try:
        Trace.apply_json_to_schedule(trace, schedule)
    except Exception as error:  # TVM raises half a dozen kinds, by where in the trace it finds the fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ScheduleError(f"the MetaSchedule trace does not fit {spec}: {reason}") from error
    return schedule


def _check(trace: Any) -> None:
    """Raises ScheduleError where the trace has an instruction or annotation that our rules never make."""
    if not (isinstance(trace, list) and len(trace) == 2 and all(isinstance(part, list) for part in trace)):
        raise ScheduleError("a MetaSchedule trace must be [instructions, decisions], both lists")
    for instruction in trace[0]:
        if not (isinstance(instruction, list) and len(instruction) == 4 and isinstance(instruction[2], list)):
            raise ScheduleError(f"instruction {str(instruction)[:80]} must be [kind, inputs, attributes, outputs]")
        kind, _, attributes, _ = instruction
        if kind not in KINDS:
            raise ScheduleError(f"instruction {str(kind)[:80]!r} in a trace is none of {', '.join(KINDS)}")
        if kind in ("Annotate", "Unannotate") and not any(attributes[:1] == [key] for key in KEYS):
            raise ScheduleError(f"annotation {str(attributes)[:80]} in a trace is none of {', '.join(KEYS)}")
