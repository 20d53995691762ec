"""What an engine is asked, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from intarsia_client.errors import IntarsiaError

from intarsia_platform.access.ticket import Ticket
from intarsia_platform.serving.grants import Weighted
from intarsia_platform.serving.sampling import Sampling


class EngineBusy(IntarsiaError):  # noqa: N818 - a state, not a fault of anybody
    """Too many requests wait already, or the engine is closed; try again later."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller wants.

    Args:
        ticket: What the caller may use.
        prompt: A text, or its tokens as the base's tokenizer gives them.
        choices: The adapters to answer with and their weights; empty for the base alone.
        routing: Which router divides each token among them, layer by layer; empty for the weights.
        sampling: How tokens are chosen.
    """

    ticket: Ticket
    prompt: str | Sequence[int]
    choices: Sequence[Weighted] = ()
    routing: str = ""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What an engine is doing.

    Args:
        running: Requests in the cache.
        waiting: Requests that wait for a slot.
        free: Slots of the cache that nobody holds.
        cache_bytes: Bytes of the cache.
        tokens: Tokens answered since it began.
        calls: Calls of the model since it began.
        prefix_hits: Whole pieces of prompts that were copied and not computed.
        prefix_misses: Whole pieces that were looked for and not there.
        prefix_bytes: Bytes of kept prompts' beginnings.
    """

    running: int
    waiting: int
    free: int
    cache_bytes: int
    tokens: int
    calls: int
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_bytes: int = 0
