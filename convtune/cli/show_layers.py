"""What `convtune show` says of workloads: cost, receptive field, the standard convolution, stages, spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.cli import tables
from convtune.errors import SpecError

if TYPE_CHECKING:
    from convtune.receptive import Field
    from convtune.spec import ConvSpec
    from convtune.targets import Target
    from convtune.workloads import Workload

Row = dict[str, Any]
Rows = list[Row]

_FIGURES: Mapping[str, str] = {
    "out_size": "output",
    "parameters": "parameters",
    "macs": "MACs",
    "bytes": "bytes, each tensor once",
    "flops_per_byte": "FLOP/byte",
    "receptive_field": "receptive field",
}
_COMPARED = ("parameters", "macs", "bytes", "flops_per_byte")


def describe(workloads: Sequence[Workload], target: Target, chain: bool) -> Rows:
    """A row for each workload. Raises SpecError where they are to be a chain and are none."""
    from convtune.receptive import receptive_fields

    fields = receptive_fields([workload.spec for workload in workloads]) if chain else [None] * len(workloads)
    return [_layer(workload, target, field) for workload, field in zip(workloads, fields)]


def _layer(workload: Workload, target: Target, in_chain: Field | None) -> Row:
    from convtune import space, variants
    from convtune.cost import intermediate_bytes

    spec = workload.spec
    default = space.default_candidate(spec, target)
    stages = spec.stages if spec.stages != (spec,) else ()
    costs, problems = _costs(spec)
    return {
        "name": workload.name,
        "count": workload.count,
        "spec": str(spec),
        **costs,
        "chain": in_chain and {"receptive_field": list(in_chain.size), "jump": list(map(float, in_chain.jump))},
        **_beside_standard(spec, costs, problems),
        "not_counted": variants.get(spec.variant).uncounted or None,
        "stages": [{"spec": str(stage), **_costs(stage)[0]} for stage in stages],
        "intermediate_bytes": intermediate_bytes(spec),
        "problems": problems,
        "target": target.name,
        "spaces": {accepting.name: _candidates(accepting, spec, target) for accepting in space.accepting(spec, target)},
        "default": {"space": default.space, "knobs": dict(default.knobs)},
    }


def _candidates(accepting: Any, spec: ConvSpec, target: Target) -> int:
    from convtune import space

    return sum(1 for _ in space.all_knobs(accepting, spec, target))


def _costs(spec: ConvSpec) -> tuple[Row, list[str]]:
    """The figures of a convolution, and why one of them is not known."""
    from convtune.receptive import receptive_fields

    problems = []
    try:
        field = list(receptive_fields([spec])[0].size)
    except SpecError as error:
        field = None
        problems.append(str(error))
    figures = {
        "out_size": list(spec.out_size),
        "parameters": spec.parameters,
        "macs": spec.macs,
        "bytes": spec.bytes,
        "flops_per_byte": spec.flops / spec.bytes,
        "receptive_field": field,
    }
    return figures, problems


def _beside_standard(spec: ConvSpec, costs: Row, problems: list[str]) -> Row:
    """The figures of the standard convolution, where it is another, and the ratios to them."""
    from convtune.cost import compare

    try:
        compared = compare(spec)
    except SpecError as error:
        problems.append(f"standard convolution: {error}")
        return {"standard": None, "ratio": None}
    if compared.standard == spec:
        return {"standard": None, "ratio": None}
    standard, _ = _costs(compared.standard)
    return {
        "standard": {"spec": str(compared.standard), **standard},
        "ratio": {
            **{figure: costs[figure] / standard[figure] for figure in _COMPARED},
            "formula": compared.formula,
            "numbers": compared.numbers,
        },
    }


def text(rows: Rows) -> str:
    return _one(rows[0]) if len(rows) == 1 and not rows[0]["chain"] else _table(rows)


def _one(row: Row) -> str:
    """All that is known of one workload."""
    default, standard = row["default"], row["standard"]
    knobs = ", ".join(f"{name}={value}" for name, value in default["knobs"].items())
    spaces = ", ".join(f"{name} with {tables.plural(count, 'candidate')}" for name, count in row["spaces"].items())
    schedules = {"spaces": f"{spaces} (target {row['target']})", "default": f"{default['space']}({knobs})"}
    facts = {"name": row["name"], "spec": row["spec"]}
    if not standard and not row["stages"]:
        facts |= {label: _figure(row, figure) for figure, label in _FIGURES.items()}
        return _lines(facts | _remarks(row) | schedules)
    beside = ""
    if standard:
        facts |= {"standard": standard["spec"], "MACs": _ratio(row["ratio"])}
        beside = f"{_beside(row)}\n\n"
    else:
        facts |= {label: _figure(row, figure) for figure, label in _FIGURES.items()}
    return f"{_lines(facts | _remarks(row))}\n\n{beside}{_stages(row)}{_lines(schedules)}"


def _remarks(row: Row) -> dict[str, str]:
    counted = {"not counted": row["not_counted"]} if row["not_counted"] else {}
    return counted | ({"not known": "; ".join(row["problems"])} if row["problems"] else {})


def _lines(facts: Mapping[str, str]) -> str:
    width = max(10, *map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def _ratio(ratio: Row) -> str:
    same = dict.fromkeys((ratio["formula"], ratio["numbers"], f"{ratio['macs']:.4g}"))  # 1 = 1 = 1 says no more than 1
    return f"{' = '.join(same)} of the standard's"


def _beside(row: Row) -> str:
    """Its figures and those of the standard convolution."""
    columns = {"": "left", "this": "right", "standard": "right", "ratio": "right"}
    cells = [
        [
            label,
            _figure(row, figure),
            _figure(row["standard"], figure),
            f"{row['ratio'][figure]:.3f}" if figure in _COMPARED else "",
        ]
        for figure, label in _FIGURES.items()
    ]
    return tables.render(columns, cells)


def _stages(row: Row) -> str:
    """The stages of a composite one, and what lies between them; "" for the others."""
    if not row["stages"]:
        return ""
    columns = {"stage": "left"} | {label.split(",")[0]: "right" for label in _FIGURES.values()} | {"spec": "left"}
    cells = [
        [str(number), *(_figure(stage, figure) for figure in _FIGURES), stage["spec"]]
        for number, stage in enumerate(row["stages"], start=1)
    ]
    kept = tables.bytes_text(row["intermediate_bytes"])
    between = f"between them {kept}, which separate calls write and read again\n" if len(cells) > 1 else ""
    return f"{tables.render(columns, cells)}\n{between}\n"


def _figure(row: Row, figure: str) -> str:
    value = row[figure]
    if value is None:
        return tables.NOTHING
    if isinstance(value, list):
        return _x(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _x(numbers: Sequence[float]) -> str:
    return "x".join(f"{number:g}" for number in numbers)


def _table(rows: Rows) -> str:
    chain = bool(rows[0]["chain"])
    columns = {"layer": "left", "count": "right", "output": "right", "parameters": "right", "MMACs": "right"}
    columns |= {"of standard": "right", "size": "right", "FLOP/byte": "right", "field": "right"}
    columns |= {"chain's field": "right", "jump": "right"} if chain else {}
    columns |= {"spaces: candidates": "left"}
    cells = [
        [
            row["name"],
            str(row["count"]),
            _x(row["out_size"]),
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.1f}",
            tables.number(row["ratio"]["macs"], 3) if row["ratio"] else None,
            tables.bytes_text(row["bytes"]),
            f"{row['flops_per_byte']:.1f}",
            _figure(row, "receptive_field"),
            *([_x(row["chain"]["receptive_field"]), _x(row["chain"]["jump"])] if chain else []),
            ", ".join(f"{name}: {count}" for name, count in row["spaces"].items()),
        ]
        for row in rows
    ]
    return tables.render(columns, cells)
