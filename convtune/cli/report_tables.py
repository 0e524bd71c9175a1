"""A report for a terminal, a pull request or a script: text, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.cli import kernel_tables, tables
from convtune.ranks import SOURCES, gain_word, gains_words, has_times
from convtune.report.content import content
from convtune.report.kernels import key

if TYPE_CHECKING:
    from convtune.log import Problem
    from convtune.report.digest import LayerDigest, Section
    from convtune.report.kernels import Kernels

_RANKS = ("default_us", "best_us", "default_cost", "best_cost")
_FIELDS = ("name", "spec", "variant", *_RANKS, "speedup", "gflops", "roofline_share", "error")
_COUNTS = ("trials", "elapsed_s")


def render(
    form: str,
    sections: Sequence[Section],
    logs: Sequence[str],
    problems: Sequence[Problem],
    kernels: Kernels | None = None,
) -> str:
    """The report in a form: text, markdown, csv or json."""
    if form == "json":
        return json.dumps(content(sections, logs, problems, kernels), indent=2, allow_nan=False)
    if form == "csv":
        return _csv(content(sections, logs, problems))
    parts = [_section(section, form, kernels) for section in sections]
    return "\n\n".join(parts) or "no record in these logs: nothing was tuned, or all was pruned"


def _section(section: Section, form: str, kernels: Kernels | None) -> str:
    """Its heading, its layers, and what they come to."""
    model = f"{section.target['name']}: {section.target['model']}, {SOURCES[section.origin]}"
    heading = f"## {markdown(model)}" if form == "markdown" else model
    column = tables.RankColumn.of(_ranks(section), section.origin)
    headers = _headers(section, column)
    rows = [_row(layer, section, column) for layer in section.layers]
    more = [table for table in (_counted(section), _kernels(section, kernels)) if table]
    if form == "markdown":
        shown = [markdown_table(*table) for table in more]
        facts = [*map(markdown, _unknown(section, kernels)), *_facts(section)]
        return "\n\n".join([heading, markdown_table(headers, rows), *shown, *facts])
    shown = [f"\n{tables.render(*table)}" for table in more]
    facts = [*_unknown(section, kernels), *_facts(section)]
    return "\n".join([heading, "", tables.render(headers, rows), *shown, "", *facts])


def _winners(section: Section, kernels: Kernels | None) -> dict[str, Mapping[str, Any]]:
    """The winners' kernels by layer, where they were asked for."""
    return {layer.name: kernels[key(layer.best)] for layer in section.layers if layer.best} if kernels else {}


def _kernels(section: Section, kernels: Kernels | None) -> kernel_tables.Table | None:
    """The winners' instructions and cache model; None where they were not built."""
    built = {name: kernel for name, kernel in _winners(section, kernels).items() if not kernel["why"]}
    return kernel_tables.one_below_another(built) if built else None


def _unknown(section: Section, kernels: Kernels | None) -> list[str]:
    """Why some figures of kernels are missing."""
    found = _winners(section, kernels).items()
    return [
        *(f"{name}: the kernel could not be built: {kernel['why']}" for name, kernel in found if kernel["why"]),
        *(f"{name}: no cache model: {kernel['no_traffic']}" for name, kernel in found if kernel["no_traffic"]),
    ]


def _counted(section: Section) -> kernel_tables.Table | None:
    """What the winners execute in emulation, as a table's columns and rows; None where nothing was emulated."""
    counts = {layer.name: layer.best.counts for layer in section.layers if layer.best and layer.best.counts}
    if not counts:
        return None
    kinds = dict.fromkeys(kind for found in counts.values() for kind in found)
    titles = [kind.replace("_bytes", " bytes").replace("_", " ") for kind in kinds]
    rows: list[list[str | None]] = [
        [name, *(f"{found.get(kind, 0):,}" for kind in kinds)] for name, found in counts.items()
    ]
    return {"the winner executes": "left"} | dict.fromkeys(titles, "right"), rows


def _ranks(section: Section) -> Iterator[float | None]:
    """All that stand in the columns of the section's table that have its unit."""
    for layer in section.layers:
        yield from (layer.default_rank, layer.best_rank, *(layer.peers.peers_us.values() if layer.peers else ()))


def _headers(section: Section, column: tables.RankColumn) -> dict[str, str]:
    peers = [column.head(name) for name in section.peers]
    rates = ["GFLOP/s", "of roofline"] if has_times(section.origin) else []
    numbers = [column.head("default"), column.head("tuned"), gain_word(section.origin), *rates, *peers]
    compared = ["to best library"] if peers else []
    return {"layer": "left"} | dict.fromkeys([*numbers, *compared, "error", "trials", "failed"], "right")


def _row(layer: LayerDigest, section: Section, column: tables.RankColumn) -> list[str | None]:
    best, known = layer.best, layer.peers.peers_us if layer.peers else {}
    ratio = layer.peers.ratio if layer.peers else None
    rates = [tables.number(layer.gflops), tables.share(layer.share)] if has_times(section.origin) else []
    ranks = (layer.default_rank, layer.best_rank, *(known.get(name) for name in section.peers))
    default, tuned, *peers = map(column.text, ranks)
    verdict = layer.peers.verdict.replace("_", " ") if layer.peers else ""
    compared = [f"{tables.speedup(ratio[0])} {verdict}".strip() if ratio else None] if section.peers else []
    return [
        layer.name,
        default,
        tuned or "failed",
        tables.speedup(layer.speedup),
        *rates,
        *peers,
        *compared,
        tables.error(best.error if best else None),
        str(len(layer.trials)),
        str(sum(layer.failures.values())),
    ]


def _facts(section: Section) -> list[str]:
    told = [
        f"{tables.plural(len(section.layers), 'layer')}, {tables.plural(section.trials, 'trial')} in "
        f"{tables.duration(section.elapsed_s)}; failed: {tables.counts(section.failures) or 'none'}"
    ]
    if section.speedup:
        told.append(
            f"geometric mean of {gains_words(section.origin)}, each layer once: {tables.speedup(section.speedup)}"
        )
    roof = section.roof
    if roof:
        told.append(f"roofline: {roof.gflops:.0f} GFLOP/s, {roof.memory_gbs:.0f} GB/s, {roof.source}")
    elif has_times(section.origin):
        told.append("roofline: what this machine can do at most is not known here")
    return [*told, f"records written by {'; '.join(section.versions)}"]


def markdown(text: str) -> str:
    """A text that Markdown, and HTML in it, shows as it is; on one line."""
    escaped = "".join(
        f"\\{c}" if c in "\\`*_[]|~#" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in text
    )
    return " ".join(escaped.split())


def markdown_table(columns: Mapping[str, str], rows: Sequence[Sequence[str | None]]) -> str:
    """As `tables.render`, in Markdown."""
    from tabulate import tabulate

    texts = [[tables.NOTHING if cell is None else markdown(cell) for cell in row] for row in rows]
    headers = [markdown(header) for header in columns]
    return tabulate(texts, headers, "pipe", colalign=list(columns.values()), disable_numparse=True) if texts else ""


def _csv(data: Mapping[str, Any]) -> str:
    """A line for each layer of each section, with the numbers as they are in JSON."""
    peers = sorted({name for section in data["sections"] for name in section["peers"]})
    failed = sorted({status for section in data["sections"] for status in section["failures"]})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = ["target", "model", "fingerprint", "origin", *_FIELDS, "space", "knobs", *_COUNTS]
    writer.writerow([*header, *failed, *(f"{name}_us" for name in peers), "ratio_to_best_library"])
    for section in data["sections"]:
        target = [section["target"][name] for name in ("name", "model", "fingerprint")]
        for layer in section["layers"]:
            candidate, bench = layer["candidate"] or {}, layer["bench"] or {}
            knobs = json.dumps(candidate["knobs"]) if candidate else None
            row = [*target, section["origin"], *(layer[name] for name in _FIELDS), candidate.get("space"), knobs]
            row += [layer[name] for name in _COUNTS] + [layer["failures"].get(status, 0) for status in failed]
            row += [bench.get("peers_us", {}).get(name) for name in peers]
            writer.writerow([*row, (bench.get("ratio") or {}).get("median")])
    return file.getvalue()
