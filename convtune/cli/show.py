"""`convtune show`: what a workload is, and which targets, variants, spaces and workloads there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from convtune.cli import options, tables

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target
    from convtune.workloads import Workload

Rows = list[dict[str, Any]]


@click.command("show")
@click.argument("what", nargs=-1, required=True, metavar="WORKLOAD...|targets|variants|spaces|workloads")
@options.target
@options.layout
@options.threads
@options.as_json
def command(*, what: tuple[str, ...], target: str, layout: str | None, threads: int | None, as_json: bool) -> None:
    """Show what a workload is and which schedule spaces accept it, or list what there is."""
    if len(what) == 1 and what[0] in _LISTS:
        rows, show = _LISTS[what[0]]
        found = rows()
    else:
        found, show = _layers(what, target, layout, threads), _layers_text
    if as_json:
        tables.print_json(found)
    else:
        click.echo(show(found))


def _layers(texts: Sequence[str], target: str, layout: str | None, threads: int | None) -> Rows:
    from convtune import targets
    from convtune.workloads import parse

    machine = targets.resolve(target, threads)
    return [_layer(workload, machine) for workload in parse(texts, layout)]


def _layer(workload: Workload, target: Target) -> dict[str, Any]:
    from convtune import space

    spec = workload.spec
    default = space.default_candidate(spec, target)
    return {
        "name": workload.name,
        "count": workload.count,
        "spec": str(spec),
        "out_size": list(spec.out_size),
        "parameters": spec.parameters,
        "macs": spec.macs,
        "bytes": spec.bytes,
        "flops_per_byte": spec.flops / spec.bytes,
        "target": target.name,
        "spaces": {accepting.name: _candidates(accepting, spec, target) for accepting in space.accepting(spec, target)},
        "default": {"space": default.space, "knobs": dict(default.knobs)},
    }


def _candidates(accepting: Any, spec: ConvSpec, target: Target) -> int:
    from convtune import space

    return sum(1 for _ in space.all_knobs(accepting, spec, target))


def _layers_text(rows: Rows) -> str:
    if len(rows) > 1:
        return _layers_table(rows)
    (row,) = rows
    default = row["default"]
    knobs = ", ".join(f"{name}={value}" for name, value in default["knobs"].items())
    spaces = ", ".join(f"{name} with {tables.plural(count, 'candidate')}" for name, count in row["spaces"].items())
    facts = {
        "name": row["name"],
        "spec": row["spec"],
        "output": "x".join(map(str, row["out_size"])),
        "parameters": f"{row['parameters']:,}",
        "MACs": f"{row['macs']:,}",
        "bytes": f"{row['bytes']:,}, each tensor once",
        "intensity": f"{row['flops_per_byte']:.2f} FLOP/byte",
        "spaces": f"{spaces} (target {row['target']})",
        "default": f"{default['space']}({knobs})",
    }
    return "\n".join(f"{name:<10}  {value}" for name, value in facts.items())


def _layers_table(rows: Rows) -> str:
    columns = {"layer": "left", "count": "right", "output": "right", "parameters": "right", "MMACs": "right"}
    columns |= {"size": "right", "FLOP/byte": "right", "spaces: candidates": "left"}
    cells = [
        [
            row["name"],
            str(row["count"]),
            "x".join(map(str, row["out_size"])),
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.1f}",
            tables.bytes_text(row["bytes"]),
            f"{row['flops_per_byte']:.1f}",
            ", ".join(f"{name}: {count}" for name, count in row["spaces"].items()),
        ]
        for row in rows
    ]
    return tables.render(columns, cells)


def _targets() -> Rows:
    from convtune import targets

    return [
        {
            "name": target.name,
            "family": target.family,
            "model": target.model,
            "vector_bits": 8 * target.vector_bytes,
            "vector_registers": target.vector_registers,
            "threads": target.threads,
            "l1d_bytes": target.l1d_bytes,
            "l2_bytes": target.l2_bytes,
            "l3_bytes": target.l3_bytes,
            "runs_here": target.is_host,
        }
        for target in targets.known()
    ]


def _targets_text(rows: Rows) -> str:
    columns = {"target": "left", "family": "left", "vectors": "right", "threads": "right"}
    columns |= {"L1d": "right", "L2": "right", "L3": "right", "runs here": "left", "model": "left"}
    cells = [
        [
            row["name"],
            row["family"],
            f"{row['vector_registers']} x {row['vector_bits']} bit",
            str(row["threads"]),
            *(tables.bytes_text(row[cache]) for cache in ("l1d_bytes", "l2_bytes", "l3_bytes")),
            "yes" if row["runs_here"] else "no",
            row["model"] if row["name"] == "native" else "",
        ]
        for row in rows
    ]
    return tables.render(columns, cells)


def _variants() -> Rows:
    from convtune import variants

    return [
        {"name": variant.name, "dimensions": list(variant.ranks), "summary": variant.summary}
        for variant in variants.known().values()
    ]


def _spaces() -> Rows:
    from convtune import space

    return [{"name": known.name, "summary": known.summary} for known in space.known().values()]


def _summaries_text(rows: Rows) -> str:
    columns = {"name": "left", **({"dimensions": "left"} if "dimensions" in rows[0] else {}), "meaning": "left"}
    cells = [
        [row["name"], *([", ".join(map(str, row["dimensions"]))] if "dimensions" in row else []), row["summary"]]
        for row in rows
    ]
    return tables.render(columns, cells)


def _workloads() -> Rows:
    from convtune.workloads import zoo

    return [
        {
            "name": network.name,
            "layers": len(network.workloads),
            "convolutions": sum(workload.count for workload in network.workloads),
            "macs": sum(workload.count * workload.spec.macs for workload in network.workloads),
            "variants": sorted({workload.spec.variant for workload in network.workloads}),
            "unavailable_layers": network.unavailable,
        }
        for network in zoo().values()
    ]


def _workloads_text(rows: Rows) -> str:
    columns = {"network": "left", "layers": "right", "convolutions": "right", "MMACs": "right"}
    columns |= {"not in this version": "right", "variants": "left"}
    cells = [
        [
            row["name"],
            str(row["layers"]),
            str(row["convolutions"]),
            f"{row['macs'] / 1e6:.1f}",
            tables.plural(row["unavailable_layers"], "layer") if row["unavailable_layers"] else "",
            ", ".join(row["variants"]),
        ]
        for row in rows
    ]
    return tables.render(columns, cells)


_LISTS: Mapping[str, tuple[Callable[[], Rows], Callable[[Rows], str]]] = {
    "targets": (_targets, _targets_text),
    "variants": (_variants, _summaries_text),
    "spaces": (_spaces, _summaries_text),
    "workloads": (_workloads, _workloads_text),
}
