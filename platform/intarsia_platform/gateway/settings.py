"""How a gateway serves: its limits, and what an answer tells of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from intarsia_client.errors import InputError


class Telling(StrEnum):
    """What an answer says of the adapters that it draws on."""

    ALL = "all"
    """Their labels, names, digests and weights."""
    LABELS = "labels"
    """Their labels."""
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """How a gateway serves.

    Args:
        body_bytes: Longest body of a request.
        body_seconds: How long a body may take to come.
        prompt_tokens: Longest prompt; 0 for what the service takes.
        max_tokens: Longest answer that may be asked for.
        default_tokens: Longest answer where none is asked for.
        requests_per_principal: Requests of one principal at once.
        requests: Requests of everybody at once.
        request_seconds: Longest time for one request, its wait included.
        threads: Threads for what would hold up the event loop: database, retrieval, tokenizer. Each
            may hold a connection of the database's pool, which keeps 16 open; and each takes turns
            with the engine's thread.
        look_seconds: How often the engine is looked after.
        stuck_seconds: How long an engine with requests may do nothing before it counts as stuck;
            longer than its longest call of the model.
        idle_seconds: After how long without a request it gives memory back.
        telling: What an answer says of its adapters.
        metrics: Whether there is a page of metrics.
        console: Whether there is a console.

    Raises:
        InputError: If a number makes no sense.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    prompt_tokens: int = 0
    max_tokens: int = 1024
    default_tokens: int = 128
    requests_per_principal: int = 8
    requests: int = 256
    request_seconds: float = 300.0
    threads: int = 4
    look_seconds: float = 5.0
    stuck_seconds: float = 60.0
    idle_seconds: float = 60.0
    telling: Telling = Telling.ALL
    metrics: bool = True
    console: bool = True

    def __post_init__(self) -> None:
        """Check every number."""
        counts = (
            "body_bytes",
            "max_tokens",
            "default_tokens",
            "requests_per_principal",
            "requests",
            "threads",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "use a whole number from 1")
        if self.prompt_tokens < 0:
            raise InputError("prompt_tokens", self.prompt_tokens, "use a whole number from 0")
        times = ("body_seconds", "request_seconds", "look_seconds", "stuck_seconds", "idle_seconds")
        for name in times:
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise InputError(name, seconds, "use a number of seconds above 0")
