"""Where a prompt is cut for the calls of the model.

The borders are places, the same for every prompt: whether a call computes a piece, and with which
shapes, depends on how long the prompt is and on nothing else. So the keys and values of a whole
piece are a function of the tokens up to its end, and may be computed once and copied after that
(:mod:`intarsia_platform.serving.prefix_cache`).
"""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 256
"""Tokens of a prompt in one call; borders lie at all multiples."""

FIRST_PIECE = 128
"""One border more, so that shorter beginnings can be kept too."""


def piece_end(begin: int) -> int:
    """Where a piece ends, if the prompt is that long.

    Args:
        begin: Where it begins: 0 or a border.

    Returns:
        The next border.
    """
    return FIRST_PIECE if begin < FIRST_PIECE else (begin // PIECE + 1) * PIECE


def borders(tokens: int) -> Iterator[int]:
    """The borders inside a prompt and at its end.

    Args:
        tokens: Its length.

    Yields:
        Ends of its whole pieces, ascending.
    """
    end = piece_end(0)
    while end <= tokens:
        yield end
        end = piece_end(end)
