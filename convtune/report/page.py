"""Page: a report as one HTML file that needs no network, with its data and its pictures' library inside."""

from __future__ import annotations

import functools
import importlib.resources
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from convtune.errors import ConvtuneError
from convtune.log import Problem
from convtune.ranks import UNITS, has_times
from convtune.record import STATUSES
from convtune.report.content import candidates, content
from convtune.report.digest import Section
from convtune.report.kernels import Kernels
from convtune.report.versus import Versus
from convtune.report.versus_content import versus_data

_VEGA = "window.vegaEmbed = vegaEmbed;"
_OFTEN_UNKNOWN = ("default_us", "best_us", "default_cost", "best_cost", "counts", "bench", "resources")
"""Fields of a layer that the page does without where they are None."""
EXTRA = "pip install 'convtune[report]'"


class MissingPackageError(ConvtuneError):
    """A page needs a package that is not installed."""


def page(
    title: str,
    sections: Sequence[Section],
    logs: Sequence[str],
    problems: Sequence[Problem],
    kernels: Kernels | None = None,
) -> str:
    """The report on these sections as HTML.

    Raises:
        MissingPackageError: Jinja2 or Vega is not installed.
    """
    data = content(sections, logs, problems, kernels)
    for section, shown in zip(sections, data["sections"]):
        for layer, row in zip(section.layers, shown["layers"]):
            row["tried"] = candidates(layer)
            if row["names"] == [row["name"]]:
                del row["names"]
            for name in [name for name in _OFTEN_UNKNOWN if row[name] is None]:
                del row[name]
    data["statuses"] = list(STATUSES)
    return render(
        "page.html",
        title=title,
        data=data,
        scripts=["page.js", "table.js", "pictures.js", "kernels.js", "report.js", "paper.js", "layer.js"],
    )


def versus_page(versus: Versus, tolerance: float | None, kernels: Kernels | None = None) -> str:
    """The comparison as HTML, tolerance as for `versus_data`. Raises MissingPackageError as `page` does."""
    scripts = ["page.js", "table.js", "pictures.js", "kernels.js", "compare.js"]
    title = f"{versus.b} against {versus.a}"
    return render("page.html", title=title, data=versus_data(versus, tolerance, kernels), scripts=scripts)


def render(template: str, *, title: str, data: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """A template with its data, style and scripts put in. Text is escaped by Jinja2, and by JSON as a script holds it.

    Raises:
        MissingPackageError: as `page`.
    """
    nonce = secrets.token_urlsafe(16)  # scripts without it do not run, whoever wrote them into the page
    return str(
        _environment()
        .get_template(template)
        .render(
            title=title,
            nonce=nonce,
            data=embedded({**data, **_units()}),
            vega=_vega(),
            style=_asset("page.css"),
            scripts=[_asset(name) for name in scripts],
        )
    )


def _units() -> dict[str, Any]:
    """What the page knows of ranks: the units of each origin, and which origins' are times."""
    units = {origin: list(map(asdict, known)) for origin, known in UNITS.items()}
    return {"units": units, "timed": [origin for origin in UNITS if has_times(origin)]}


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end that, or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def check_packages() -> None:
    """Raises MissingPackageError where a page cannot be made, before what goes into it is built."""
    _environment()
    _vega()


@functools.cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingPackageError(f"an HTML report needs {error.name}; {EXTRA}") from error
    return Environment(loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one ES module that sets `window.vegaEmbed`."""
    try:
        import vl_convert
    except ImportError as error:
        raise MissingPackageError(f"an HTML report needs {error.name}; {EXTRA}") from error
    # a script element ends at the first of these, wherever it stands
    return str(vl_convert.javascript_bundle(_VEGA)).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return importlib.resources.files("convtune.report").joinpath(f"assets/{name}").read_text(encoding="utf-8")
