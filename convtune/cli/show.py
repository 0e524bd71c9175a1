"""`convtune show`: what workloads are, and which targets, variants, spaces and workloads there are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import click
from click.core import ParameterSource

from convtune.cli import options, show_layers, show_targets, tables
from convtune.cli.notices import tell
from convtune.cli.show_layers import Rows
from convtune.cli.stages import with_stages
from convtune.errors import UnknownNameError


@click.command("show")
@click.argument("what", nargs=-1, required=True, metavar="WORKLOAD...|targets|variants|spaces|workloads")
@options.target
@click.option("--chain", is_flag=True, help="The workloads follow one another: show the receptive field after each.")
@options.stages
@options.layout
@options.threads
@options.as_json
def command(
    *,
    what: tuple[str, ...],
    target: str,
    chain: bool,
    stages: bool,
    layout: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Show what a workload costs and which schedule spaces accept it, or list what there is.

    Beside its figures are those of the standard convolution that it replaces.
    """
    if chain and stages:
        raise click.UsageError("--chain and --stages exclude each other: stages are no layers of the chain.")
    if listed := next((word for word in what if word in _LISTS), None):
        _refuse_more(listed, what)
        rows, show = _LISTS[listed]
        found = rows()
    else:
        found, show = _layers(what, target, chain, stages, layout, threads), show_layers.text
    if as_json:
        tables.print_json(found)
    else:
        click.echo(show(found))


def _refuse_more(listed: str, what: Sequence[str]) -> None:
    """Raises UsageError where something is given beside the list, or an option that only a workload has."""
    if len(what) > 1:
        other = next((word for word in what if word != listed), listed)
        allowed = f"allowed: one of {', '.join(_LISTS)} alone, or any number of workloads"
        raise click.UsageError(f"`show {listed}` takes nothing else, and {other!r} is given; {allowed}.")
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in ("what", "as_json") or option.name is None:
            continue
        if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} is for workloads; `show {listed}` takes --json only.")


def _layers(
    what: tuple[str, ...], target: str, chain: bool, stages: bool, layout: str | None, threads: int | None
) -> Rows:
    from convtune import targets
    from convtune.workloads import parse

    machine = targets.resolve(target, threads)
    tell(machine)
    try:
        workloads = parse(what, layout)
    except UnknownNameError as problem:
        if problem.kind != "workload" or not difflib.get_close_matches(str(problem.name), _LISTS):
            raise
        raise UnknownNameError("workload or list", problem.name, [*problem.known, *_LISTS]) from problem
    return show_layers.describe(with_stages(workloads) if stages else workloads, machine, chain)


_LETTERS = """\
Multiply-accumulates in two dimensions, over those of the dense convolution that is replaced. Letters are those of
specs; k² is kh·kw, all taps of the kernel; in and out are positions of the input and the output, p1 those where only
the first dimension has the output's size: all the same number where the convolution keeps the size."""


def _variants() -> Rows:
    from convtune import variants

    return [
        {
            "name": variant.name,
            "dimensions": list(variant.ranks),
            "summary": variant.summary,
            "ratio": {str(rank): variant.ratio(rank) for rank in variant.ranks},
            "not_counted": variant.uncounted or None,
        }
        for variant in variants.known().values()
    ]


def _variants_text(rows: Rows) -> str:
    columns = dict.fromkeys(("name", "dimensions", "MACs, of the standard's", "meaning"), "left")
    cells = [[row["name"], ", ".join(map(str, row["dimensions"])), row["ratio"]["2"], row["summary"]] for row in rows]
    return f"{tables.render(columns, cells)}\n\n{_LETTERS}"


def _spaces() -> Rows:
    from convtune import space

    return [{"name": known.name, "summary": known.summary} for known in space.known().values()]


def _spaces_text(rows: Rows) -> str:
    return tables.render({"name": "left", "meaning": "left"}, [[row["name"], row["summary"]] for row in rows])


def _workloads() -> Rows:
    from convtune.workloads import zoo

    return [
        {
            "name": network.name,
            "layers": len(network.workloads),
            "convolutions": sum(workload.count for workload in network.workloads),
            "macs": sum(workload.count * workload.spec.macs for workload in network.workloads),
            "variants": sorted({workload.spec.variant for workload in network.workloads}),
        }
        for network in zoo().values()
    ]


def _workloads_text(rows: Rows) -> str:
    columns = {"network": "left", "layers": "right", "convolutions": "right", "MMACs": "right", "variants": "left"}
    cells = [
        [
            row["name"],
            str(row["layers"]),
            str(row["convolutions"]),
            f"{row['macs'] / 1e6:.1f}",
            ", ".join(row["variants"]),
        ]
        for row in rows
    ]
    return tables.render(columns, cells)


_LISTS: Mapping[str, tuple[Callable[[], Rows], Callable[[Rows], str]]] = {
    "targets": (show_targets.describe, show_targets.text),
    "variants": (_variants, _variants_text),
    "spaces": (_spaces, _spaces_text),
    "workloads": (_workloads, _workloads_text),
}
