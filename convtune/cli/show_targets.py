"""What `convtune show targets` lists: CPUs, and GPUs with their own facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.cli import tables
from convtune.cli.show_layers import Row, Rows

if TYPE_CHECKING:
    from convtune.targets import CpuTarget, GpuTarget, Target


def describe() -> Rows:
    """A row for each target, the machine at hand first; those of a CPU and of a GPU have different fields."""
    from convtune import targets

    return [_row(target) for target in targets.known()]


def _row(target: Target) -> Row:
    from convtune.targets import CpuTarget, GpuTarget
    from convtune.tuner import origin_here

    row: Row = {"name": target.name, "family": target.family, "model": target.model, "notice": target.notice or None}
    if isinstance(target, CpuTarget):
        row |= _cpu(target)
    elif isinstance(target, GpuTarget):
        row |= _gpu(target)
    return row | {"runs_here": target.is_host, "tuned_here": origin_here(target)}


def _cpu(target: CpuTarget) -> Row:
    return {
        "vector_bits": 8 * target.vector_bytes,
        "vector_registers": target.vector_registers,
        "threads": target.threads,
        "l1d_bytes": target.l1d_bytes,
        "l2_bytes": target.l2_bytes,
        "l3_bytes": target.l3_bytes,
    }


def _gpu(target: GpuTarget) -> Row:
    return {
        "arch": target.arch,
        "sms": target.sms,
        "clock_mhz": target.clock_mhz,
        "dram_gbs": target.dram_gbs,
        "l2_bytes": target.l2_bytes,
        "shared_per_sm": target.shared_per_sm,
        "shared_per_block": target.shared_per_block,
        "threads_per_sm": target.threads_per_sm,
        "blocks_per_sm": target.blocks_per_sm,
        "registers_per_sm": target.registers_per_sm,
        "fp32_gflops": target.fp32_gflops,
        "tensor_gflops": target.tensor_gflops,
    }


def text(rows: Rows) -> str:
    """Two tables, and what is to be said of some."""
    cpus, gpus = [row for row in rows if "arch" not in row], [row for row in rows if "arch" in row]
    parts = [_cpu_table(cpus), _gpu_table(gpus), *(row["notice"] for row in rows if row["notice"])]
    return "\n\n".join(part for part in parts if part)


def _cpu_table(rows: Rows) -> str:
    columns = {"CPU": "left", "family": "left", "vectors": "right", "threads": "right"}
    columns |= {
        "L1d": "right",
        "L2": "right",
        "L3": "right",
        "runs here": "left",
        "tuned here": "left",
        "model": "left",
    }
    cells = [
        [
            row["name"],
            row["family"],
            f"{row['vector_registers']} x {row['vector_bits']} bit",
            str(row["threads"]),
            *(tables.bytes_text(row[cache]) for cache in ("l1d_bytes", "l2_bytes", "l3_bytes")),
            "yes" if row["runs_here"] else "no",
            row["tuned_here"],
            row["model"] if row["name"] == "native" else "",
        ]
        for row in rows
    ]
    return tables.render(columns, cells)


def _gpu_table(rows: Rows) -> str:
    columns = {"GPU": "left", "arch": "left", "SMs": "right", "clock": "right", "float32": "right"}
    columns |= {"Tensor Cores": "right", "memory": "right", "L2": "right", "shared, per SM": "right"}
    columns |= {"runs here": "left", "tuned here": "left", "model": "left"}
    cells = [
        [
            row["name"],
            row["arch"],
            str(row["sms"]),
            f"{row['clock_mhz']} MHz",
            *(f"{row[peak] / 1e3:.1f} TFLOP/s" for peak in ("fp32_gflops", "tensor_gflops")),
            f"{row['dram_gbs']:.0f} GB/s",
            *(tables.bytes_text(row[memory]) for memory in ("l2_bytes", "shared_per_sm")),
            "yes" if row["runs_here"] else "no",
            row["tuned_here"],
            row["model"],
        ]
        for row in rows
    ]
    return tables.render(columns, cells)
