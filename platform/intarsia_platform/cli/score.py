"""``intarsia score``: how well records are predicted with what one principal may use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intarsia_platform.cli.ask import (
    TICKET_SECONDS,
    Base,
    Principal,
    Purpose,
    Wanted,
    tell_without_policies,
)
from intarsia_platform.cli.output import check_json_place, facts, present, table
from intarsia_platform.cli.retrieval_options import (
    Routing,
    Threshold,
    TopK,
    retrieval_settings,
)
from intarsia_platform.cli.settings import settings_of

if TYPE_CHECKING:
    from intarsia_platform.answering.answers import ScoredRecord, Scores

_SHOWN = 20


def score_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE")],
    principal: Principal,
    use: Wanted = "auto",
    purpose: Purpose = "",
    text: Annotated[
        str, typer.Option("--text", metavar="FIELD", help="The field of texts.")
    ] = "text",
    class_field: Annotated[
        str, typer.Option("--class", metavar="FIELD", help="The field of classes.")
    ] = "label",
    max_length: Annotated[
        int,
        typer.Option("--max-length", metavar="N", help="Longest window; 0 for the base's, to 512."),
    ] = 0,
    top_k: TopK = 3,
    threshold: Threshold = "0.05",
    routing: Routing = "request",
    base: Base = None,
) -> None:
    """Score records.

    Args:
        context: The command's context.
        path: The file of records.
        principal: Who asks.
        use: What to predict them with.
        purpose: What for.
        text: The field of texts.
        class_field: The field of classes.
        max_length: Tokens that are read at once; a longer record is scored in windows.
        top_k: Adapters that retrieval takes at most.
        threshold: Share of an adapter's own texts that a prompt must beat.
        routing: Where it is settled how much each retrieved adapter counts.
        base: The base.
    """
    from intarsia_client.records import read_records

    from intarsia_platform.answering.service import ServiceSettings, open_service
    from intarsia_platform.answering.use import parse_use

    settings = settings_of(context)
    check_json_place(settings)
    wanted = parse_use(use)
    records = read_records(path, text=text, label=class_field, thing="FILE")
    serving = ServiceSettings(
        score_tokens=max_length,
        ticket_seconds=TICKET_SECONDS,
        retrieval=retrieval_settings(top_k, threshold, routing),
    )
    home = settings.open_home()
    with open_service(
        home, base=base, settings=serving, principal=principal, purpose=purpose
    ) as service:
        ticket = service.authorize(principal, purpose)
        tell_without_policies(ticket)
        scores = service.score(ticket, records, wanted)
    rows = _by_use(scores)
    parts: list[object] = [facts(_summary(scores)), ""]
    parts.append(table(["used", "records", "mean loss"], rows[:_SHOWN], right="records mean loss"))
    if len(rows) > _SHOWN:
        parts.append(f"and {len(rows) - _SHOWN} other sets; --json has every record")
    present(settings, scores.as_mapping(), *parts)  # type: ignore[arg-type]


def _summary(scores: Scores) -> dict[str, object]:
    shown: dict[str, object] = {"records": len(scores.records)}
    if scores.perplexity is not None:
        shown["tokens"] = sum(one.tokens for one in scores.records)
        shown["perplexity"] = f"{scores.perplexity:.4g}"
    if scores.accuracy is not None:
        shown["accuracy"] = f"{scores.accuracy:.4f}"
    return shown


def _by_use(scores: Scores) -> list[tuple[str, int, str]]:
    """Sets of adapters, the most frequent first: records, and their mean loss."""
    sets: dict[str, list[ScoredRecord]] = {}
    for one in scores.records:
        names = ", ".join(used.name for used in one.used) or "base"
        sets.setdefault(names, []).append(one)
    ordered = sorted(sets, key=lambda names: (-len(sets[names]), names))
    return [(names, len(sets[names]), f"{_mean_loss(sets[names]):.4f}") for names in ordered]


def _mean_loss(records: list[ScoredRecord]) -> float:
    weights = [one.tokens or 1 for one in records]
    nats = sum(one.loss * weight for one, weight in zip(records, weights, strict=True))
    return nats / sum(weights)
