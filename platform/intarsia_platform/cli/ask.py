"""``intarsia ask``: one answer for one principal, with what that principal may use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intarsia_platform.cli.lines import say
from intarsia_platform.cli.output import (
    STANDARD_OUTPUT,
    check_json_place,
    is_terminal,
    present,
    short_digest,
    table,
)
from intarsia_platform.cli.retrieval_options import (
    Routing,
    Threshold,
    TopK,
    retrieval_settings,
)
from intarsia_platform.cli.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from intarsia_platform.access.ticket import Ticket
    from intarsia_platform.answering.answers import Answered
    from intarsia_platform.answering.service import AnsweringService
    from intarsia_platform.answering.use import Use
    from intarsia_platform.cli.settings import Settings

Principal = Annotated[str, typer.Option("--as", metavar="PRINCIPAL", help="Who asks.")]
Wanted = Annotated[
    str,
    typer.Option("--use", metavar="WHAT", help="auto, base, or NAME[=WEIGHT],NAME[=WEIGHT],..."),
]
Purpose = Annotated[
    str, typer.Option("--purpose", metavar="WORD", help="What for, as policies may ask.")
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="The base; by default that of the groups."),
]

TICKET_SECONDS = 86_400.0
"""How long a command's ticket holds. A right that is taken away ends it at once all the same."""


def ask_command(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    principal: Principal,
    use: Wanted = "auto",
    purpose: Purpose = "",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", help="Longest answer.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="0 takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="S", help="Decides everything random.")
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Show which adapters were used, and why they could be.")
    ] = False,
    top_k: TopK = 3,
    threshold: Threshold = "0.05",
    routing: Routing = "request",
    base: Base = None,
) -> None:
    """Answer one prompt.

    Args:
        context: The command's context.
        prompt: The text to go on from.
        principal: Who asks.
        use: What to answer with.
        purpose: What for.
        max_tokens: Longest answer.
        temperature: Divides the logits.
        seed: Decides everything random.
        why: Whether to explain.
        top_k: Adapters that retrieval takes at most.
        threshold: Share of an adapter's own texts that a prompt must beat.
        routing: Where it is settled how much each retrieved adapter counts.
        base: The base.
    """
    from intarsia_platform.access.refusal import bad_ticket
    from intarsia_platform.answering.answers import collect
    from intarsia_platform.answering.service import ServiceSettings, open_service
    from intarsia_platform.answering.use import parse_use
    from intarsia_platform.serving.sampling import Sampling
    from intarsia_platform.serving.streams import Finish

    settings = settings_of(context)
    check_json_place(settings)
    wanted = parse_use(use)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    retrieval = retrieval_settings(top_k, threshold, routing)
    serving = ServiceSettings(
        max_rows=1, ticket_seconds=TICKET_SECONDS, alone=True, retrieval=retrieval
    )
    home = settings.open_home()
    with open_service(
        home, base=base, settings=serving, principal=principal, purpose=purpose
    ) as service:
        ticket = service.authorize(principal, purpose)
        tell_without_policies(ticket)
        show = _shown(settings)
        answered = collect(service.start(ticket, prompt, wanted, sampling), show)
        if show is not None:
            show("\n")
        if answered.finish in (Finish.REVOKED, Finish.CANCELLED):
            raise bad_ticket()
        mapping, parts = answered.as_mapping(), list[Any]()
        if why:
            mapping["why"] = _why(service, ticket, wanted, answered, routing)
            parts = ["", _why_shown(mapping["why"])]
    present(settings, mapping, *parts)


def tell_without_policies(ticket: Ticket) -> None:
    """Say that nothing but the base may be used, where no policies are in force.

    Args:
        ticket: The caller's ticket.
    """
    if not ticket.policy_version:
        say("no policies are set, so only the base may be used; see `intarsia policy set`")


def _shown(settings: Settings) -> Callable[[str], None] | None:
    """Writes an answer as it comes; not where the JSON goes to standard output."""
    if settings.json == STANDARD_OUTPUT:
        return None
    plain = not is_terminal(sys.stdout)

    def show(text: str) -> None:
        sys.stdout.write(text if plain else _harmless(text))
        sys.stdout.flush()

    return show


def _harmless(text: str) -> str:
    """An answer's text without what would command a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _why(
    service: AnsweringService, ticket: Ticket, use: Use, answered: Answered, routing: str
) -> dict[str, Any]:
    from intarsia_platform.access.decisions import decide
    from intarsia_platform.access.facts import AdapterFactsReader
    from intarsia_platform.access.policy import PolicyStore

    reader = AdapterFactsReader(service.database)
    policies = PolicyStore(service.database).current()
    adapters = []
    for used in answered.used:
        found = reader.of(used.digest)
        facts = [] if found is None else [found]
        decisions = decide(policies, ticket.principal, facts, ticket.purpose)
        adapters.append(
            {
                **used.as_mapping(),
                "labels": list(used.labels),
                "policies": sorted({one for decision in decisions for one in decision.reasons}),
            }
        )
    return {
        "chosen_by": _chooser(use, routing),
        "granted": [granted.name for granted in ticket.adapters],
        "adapters": adapters,
        "finish": str(answered.finish),
    }


def _chooser(use: Use, routing: str) -> str:
    if use.kind != "auto":
        return "caller"
    return "retrieval" if routing == "request" else f"retrieval, {routing} by token and layer"


def _why_shown(why: dict[str, Any]) -> RenderableType:
    granted = ", ".join(sorted(why["granted"])) or "no adapter"
    if not why["adapters"]:
        alone = "no adapter's texts are like the prompt" if why["granted"] else "none may be used"
        reason = "as asked" if why["chosen_by"] == "caller" else alone
        return f"the base answered alone, {reason}; may use {granted}"
    rows = [
        (
            one["name"],
            short_digest(one["adapter"]),
            f"{one['weight']:.4g}",
            ", ".join(one["labels"]) or None,
            why["chosen_by"],
            ", ".join(one["policies"]) or None,
        )
        for one in why["adapters"]
    ]
    headings = ["adapter", "digest", "weight", "labels", "chosen by", "permitted by"]
    return table(headings, rows, right="weight")
