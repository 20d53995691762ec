"""How a service answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from intarsia_client.errors import InputError

from intarsia_platform.serving.capacities import BANK_BYTES, PREFIX_BYTES

REQUEST_ROUTING = "request"
ROUTINGS = (REQUEST_ROUTING, "arrow", "lag")
"""Where it is settled how much each retrieved adapter counts: once for a request, or by a router of
:mod:`intarsia_continual.layerwise` for each token in each module."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """How adapters are retrieved; as :class:`intarsia_continual.retrieval.Retriever` takes it.

    Args:
        top_k: How many are mixed at most; or, with a router, among how many it divides tokens.
        threshold: Share of an adapter's own left-out texts that a prompt must not stay below; None
            leaves no adapter out.
        temperature: Small for one adapter, large for equal weights.
        routing: One of :data:`ROUTINGS`.

    Raises:
        InputError: If there is no such routing; the numbers are checked by the retriever.
    """

    top_k: int = 3
    threshold: float | None = 0.05
    temperature: float = 0.3
    routing: str = REQUEST_ROUTING

    def __post_init__(self) -> None:
        """Refuse a router that there is not, before anything is loaded."""
        if self.routing not in ROUTINGS:
            raise InputError("routing", self.routing, f"choose one of {', '.join(ROUTINGS)}")

    @property
    def router(self) -> str:
        """The router's name, empty where a request's weights hold for all its tokens."""
        return "" if self.routing == REQUEST_ROUTING else self.routing


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How a service answers. What is checked is checked by the part that it goes to.

    Args:
        max_rows: Answers that run at once.
        max_waiting: Requests that may wait for one of them to end.
        row_tokens: Tokens of a prompt and its answer together; 0 for what the base takes, at most
            2,048.
        score_tokens: Tokens that a record is scored with at once, longer ones in windows; 0 for
            what the base takes, at most 512.
        bank_bytes: Most memory for adapters.
        descriptor_bytes: Most memory for descriptors.
        prefix_bytes: Most memory for the beginnings of callers' prompts; 0 keeps none.
        retrieval: How adapters are retrieved.
        ticket_seconds: How long a ticket holds at most, and so the longest answer.
        classes: A classifier's classes in order, where the home's groups have several sets.
        alone: Whether answers come one at a time, so that no batch needs to be measured first;
            greedy answers may then differ from a larger service's where two tokens are as likely
            but for rounding.
    """

    max_rows: int = 16
    max_waiting: int = 1024
    row_tokens: int = 0
    score_tokens: int = 0
    bank_bytes: int = BANK_BYTES
    descriptor_bytes: int = 1 << 28
    prefix_bytes: int = PREFIX_BYTES
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    ticket_seconds: float = 300.0
    classes: tuple[str, ...] = ()
    alone: bool = False
