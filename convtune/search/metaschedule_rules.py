"""MetaSchedule's rules for each kind of machine, in its own order, with less unrolling and without tensor intrinsics.

They are those of src/s_tir/meta_schedule/schedule_rule/schedule_rule.cc, postproc.cc and mutator.cc in TVM 0.27.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.targets import GpuTarget
from convtune.targets.gpu import STATIC_SHARED_BYTES

if TYPE_CHECKING:
    from convtune.targets import Target

JOBS_PER_CORE = 16
VECTOR_ELEMENTS = 64
UNROLL_STEPS = (0, 16, 64, 256)  # with its 512 the slowest of 24 builds took 2.9 s, with these 0.5
GPU_UNROLL_STEPS = (0, 16, 64)  # with 256 a deformable's source had 2 MB, for which nvcc takes minutes
THREADS = (32, 64, 128, 256, 512, 1024)
MOST_BLOCKS = 256


class Rules(ABC):
    """What spans MetaSchedule's space, and what changes its candidates.

    population: of a generation. MetaSchedule's own is 512 for 64 candidates; 8 are asked for here.
    """

    population: int = 64

    @abstractmethod
    def target(self, target: Target) -> Any:
        """The tvm.target.Target that it schedules for; raises TargetError where TVM does not know it."""

    @abstractmethod
    def schedule_rules(self) -> list[Any]: ...

    @abstractmethod
    def postprocessors(self) -> list[Any]: ...

    @abstractmethod
    def mutators(self) -> Mapping[Any, float]:
        """Each with its probability."""


class CpuRules(Rules):
    """For CPUs. RewriteLayout is left out: it has nothing to do, as our weights are packed already."""

    def target(self, target: Target) -> Any:
        return target.to_tvm()

    def schedule_rules(self) -> list[Any]:
        from tvm.s_tir.meta_schedule import schedule_rule

        inline = schedule_rule.AutoInline(
            into_producer=False,
            into_consumer=True,
            inline_const_tensor=True,
            disallow_if_then_else=True,
            require_injective=True,
            require_ordered=True,
            disallow_op=["tirx.exp"],
        )
        return [
            schedule_rule.InlineConstantScalars(),
            inline,
            schedule_rule.AddRFactor(max_jobs_per_core=JOBS_PER_CORE, max_innermost_factor=64),
            schedule_rule.MultiLevelTiling(
                "SSRSRS",
                max_innermost_factor=64,
                reuse_write=schedule_rule.ReuseType(req="may", levels=[1, 2], scope="global"),
            ),
            schedule_rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=JOBS_PER_CORE,
                max_vectorize_extent=VECTOR_ELEMENTS,
                unroll_max_steps=list(UNROLL_STEPS),
                unroll_explicit=True,
            ),
            schedule_rule.RandomComputeLocation(),
        ]

    def postprocessors(self) -> list[Any]:
        from tvm.s_tir.meta_schedule import postproc

        return [
            postproc.DisallowDynamicLoop(),
            postproc.RewriteParallelVectorizeUnroll(),
            postproc.RewriteReductionBlock(),
        ]

    def mutators(self) -> Mapping[Any, float]:
        from tvm.s_tir.meta_schedule import mutator

        return {
            mutator.MutateTileSize(): 0.9,
            mutator.MutateComputeLocation(): 0.05,
            mutator.MutateUnroll(): 0.03,
            mutator.MutateParallel(JOBS_PER_CORE): 0.02,
        }


class GpuRules(Rules):
    """For CUDA: tiles of blocks, virtual threads and threads, operands in shared memory, sums in registers."""

    population = 256  # most samples do not fit a GPU: of 64 often none does

    def target(self, target: Target) -> Any:
        """Its shared memory is static, which is limited on every arch."""
        assert isinstance(target, GpuTarget)
        return dataclasses.replace(target, shared_per_block=STATIC_SHARED_BYTES).to_tvm()

    def schedule_rules(self) -> list[Any]:
        from tvm.s_tir.meta_schedule import schedule_rule

        return [
            schedule_rule.MultiLevelTiling(
                "SSSRRSRS",
                tile_binds=["blockIdx.x", "vthread.x", "threadIdx.x"],
                max_innermost_factor=64,
                vector_load_lens=[1, 2, 3, 4],
                reuse_read=schedule_rule.ReuseType(req="must", levels=[4], scope="shared"),
                reuse_write=schedule_rule.ReuseType(req="must", levels=[3], scope="local"),
            ),
            schedule_rule.InlineConstantScalars(),
            schedule_rule.AutoInline(
                into_producer=True,
                into_consumer=True,
                inline_const_tensor=True,
                disallow_if_then_else=False,
                require_injective=False,
                require_ordered=False,
            ),
            schedule_rule.CrossThreadReduction(thread_extents=[4, 8, 16, *THREADS[:-1]]),
            schedule_rule.ParallelizeVectorizeUnroll(
                max_jobs_per_core=-1,
                max_vectorize_extent=-1,
                unroll_max_steps=list(GPU_UNROLL_STEPS),
                unroll_explicit=True,
            ),
            schedule_rule.AutoBind(max_threadblocks=MOST_BLOCKS, thread_extents=list(THREADS)),
        ]

    def postprocessors(self) -> list[Any]:
        from tvm.s_tir.meta_schedule import postproc

        return [
            postproc.DisallowDynamicLoop(),
            postproc.RewriteCooperativeFetch(),
            postproc.RewriteUnboundBlock(MOST_BLOCKS),
            postproc.RewriteParallelVectorizeUnroll(),
            postproc.RewriteReductionBlock(),
            postproc.VerifyGPUCode(),
        ]

    def mutators(self) -> Mapping[Any, float]:
        from tvm.s_tir.meta_schedule import mutator

        return {mutator.MutateTileSize(): 0.9, mutator.MutateUnroll(): 0.08, mutator.MutateThreadBinding(): 0.02}


def rules_of(target: Target) -> Rules:
    """The rules for a target of that kind."""
    return GpuRules() if isinstance(target, GpuTarget) else CpuRules()
