"""The report: one self-contained page that a person can open, send, print and keep."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from intarsia_client.files import write_bytes

from intarsia_platform.reporting.measures import (
    bytes_text,
    duration_text,
    measure_of,
    printable,
    share_text,
)
from intarsia_platform.reporting.palette import css_variables
from intarsia_platform.reporting.plans import HEADINGS, plan_rows, plan_title
from intarsia_platform.reporting.plots import (
    broadcast_plot,
    clients_plot,
    learning_plot,
    privacy_plot,
    traffic_plot,
)
from intarsia_platform.reporting.steps import NextStep, loading_code, next_steps, on_lines
from intarsia_platform.reporting.summary import (
    MOST_ROWS,
    absent,
    client_rows,
    comparison,
    decided,
    facts,
    headline,
)
from intarsia_platform.results import SimulationResult

if TYPE_CHECKING:
    from jinja2 import Template


def write_report(
    path: Path,
    result: SimulationResult,
    *,
    title: str,
    introduction: str,
    command: str | None = None,
    steps: Sequence[NextStep] | None = None,
) -> Path:
    """Write the report of a simulation as one HTML file without scripts or outside references.

    The same result gives the same bytes. Every string is escaped.

    Args:
        path: Where the file shall be.
        result: The simulation.
        title: Heading of the page.
        introduction: Who the clients are and what they learn, in a few sentences of plain text.
        command: What was typed to make the result; None leaves it out.
        steps: What to type next; :func:`~intarsia_platform.reporting.steps.next_steps` of the
            result where it is None.

    Returns:
        ``path``.

    Raises:
        StorageError: If the file cannot be written; nothing is left behind then.
    """
    measure = measure_of(result)
    page = _template().render(
        title=title,
        introduction=introduction,
        result=result,
        measure=measure,
        palette=css_variables(),
        plots={
            "clients": clients_plot(result),
            "learning": learning_plot(result),
            "traffic": traffic_plot(result),
            "broadcast": broadcast_plot(result),
            "privacy": privacy_plot(result),
        },
        headline=headline(result),
        facts=facts(result),
        rows=client_rows(result, measure),
        has_own=any(measure.of(client.own) is not None for client in result.clients),
        comparison=comparison(result),
        absent=absent(result),
        decided=decided(result),
        plan_headings=HEADINGS,
        plans=[(plan_title(plan), plan_rows(plan, MOST_ROWS), plan.notes) for plan in result.plan],
        configuration=json.dumps(result.configuration, indent=2, ensure_ascii=False, default=str),
        command=command,
        steps=next_steps(result) if steps is None else steps,
        loading=loading_code(result),
    )
    write_bytes(path, page.encode("utf-8", errors="replace"))
    return path


@functools.cache
def _template() -> Template:
    """The page's template, compiled once in a process."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("intarsia_platform.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": bytes_text,
        "duration": duration_text,
        "name": printable,
        "on_lines": on_lines,
        "share": share_text,
    }
    return environment.get_template("report.html")
