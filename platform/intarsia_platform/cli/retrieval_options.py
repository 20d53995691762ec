"""The options that say how adapters are retrieved, the same for every command that answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from intarsia_client.errors import InputError

if TYPE_CHECKING:
    from intarsia_platform.answering.settings import RetrievalSettings

TopK = Annotated[
    int, typer.Option("--top-k", metavar="K", help="Adapters that retrieval takes at most, to 16.")
]
Threshold = Annotated[
    str,
    typer.Option(
        "--threshold", metavar="S", help="Share of its own texts that a prompt must beat; or none."
    ),
]
Routing = Annotated[
    str,
    typer.Option(
        "--routing", metavar="HOW", help="request, or token by token and layer by layer: arrow, lag"
    ),
]


def retrieval_settings(top_k: int, threshold: str, routing: str) -> RetrievalSettings:
    """Read the options, before anything is loaded.

    Args:
        top_k: Adapters at most.
        threshold: A share, or ``"none"``.
        routing: Where it is settled how much each counts.

    Returns:
        The settings.

    Raises:
        InputError: If one of them cannot be used.
    """
    from intarsia_continual.retrieval import STEPS

    from intarsia_platform.answering.settings import RetrievalSettings

    if not 1 <= top_k <= STEPS:
        raise InputError("--top-k", top_k, f"give 1 to {STEPS}")
    return RetrievalSettings(top_k=top_k, threshold=_share(threshold), routing=routing)


def _share(text: str) -> float | None:
    if text == "none":
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise InputError("--threshold", text, "give a share between 0 and 1, or none")
    return share
