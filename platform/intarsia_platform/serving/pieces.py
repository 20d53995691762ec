"""From tokens to pieces of text that can be shown at once.

A tokenizer over bytes may cut a character into several tokens, and some drop the space before the
first word of what they decode. So a piece is what decoding a few more tokens adds to the text of
those before, given out when it does not end inside a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 8
# A character has at most four bytes and a token at least one of them.
_INCOMPLETE = 3
_HELD = 8


class TextPieces:
    """Decodes one answer token by token.

    Formal guarantee: no piece ends inside a character of several bytes; pieces once given out are
    never taken back.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The tokens before the answer.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        """Keep the end of the prompt, since the first word's space depends on it."""
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_CONTEXT:])
        # A context that begins inside a character can spoil those after it.
        for _ in range(_INCOMPLETE):
            if self._decode(self._tokens).startswith(_UNKNOWN):
                self._tokens = self._tokens[1:]
        self._shown = len(self._tokens)
        # A character that the prompt begins and the answer completes is the answer's.
        self._before = self._decode(self._tokens).rstrip(_UNKNOWN)

    def add(self, token: int) -> str:
        """Take the next token.

        Args:
            token: The token.

        Returns:
            The text that is certain now and was not before, often none.
        """
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith(_UNKNOWN):
            return self._show(text, len(self._tokens))
        if len(self._tokens) - self._shown >= _HELD:
            # Not text at all. All but the tokens that may begin a character can go.
            end = len(self._tokens) - _INCOMPLETE
            return self._show(self._decode(self._tokens[:end]), end)
        return ""

    def finish(self) -> str:
        """Take the end of the answer.

        Returns:
            What was held back, without a character that has not come whole.
        """
        return self._show(self._decode(self._tokens).rstrip(_UNKNOWN), len(self._tokens))

    def _show(self, text: str, end: int) -> str:
        """Give out the text up to a token, and go on from there."""
        piece = text[len(self._before) :]
        # The tokens just shown are the context of the next ones; none before them is needed.
        keep = self._shown if piece else max(0, self._shown - _CONTEXT)
        self._shown = end - keep
        self._tokens = self._tokens[keep:]
        self._before = self._decode(self._tokens[: self._shown])
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class StopTexts:
    """Ends a text before the first of some stop texts, wherever tokens and pieces begin and end.

    Formal guarantee: what is given out is the text before the earliest place where a stop text
    begins, however the text is cut into pieces.

    Args:
        stops: The stop texts, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Nothing is held back yet."""
        self._stops = tuple(stops)
        self._held = ""
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether a stop text has come."""
        return self._ended

    def add(self, piece: str) -> str:
        """Take a piece.

        Args:
            piece: More text.

        Returns:
            The text in which no stop text can begin any more; what may be the beginning of one is
            held back.
        """
        if self._ended:
            return ""
        text = self._held + piece
        earliest = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        # A longer stop text that began before may be complete only later: wait for it.
        open_from = next((at for at in range(len(text)) if self._may_begin(text[at:])), len(text))
        if earliest and min(earliest) <= open_from:
            self._ended, self._held = True, ""
            return text[: min(earliest)]
        self._held = text[open_from:]
        return text[:open_from]

    def finish(self) -> str:
        """Take the end of the text.

        Returns:
            What was held back and turned out not to be a stop text.
        """
        held, self._held = self._held, ""
        if self._ended:
            return ""
        earliest = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        self._ended = bool(earliest)
        return held[: min(earliest)] if earliest else held

    def _may_begin(self, end: str) -> bool:
        """Whether the rest of the text is the beginning of a stop text, and not yet the whole."""
        return any(len(end) < len(stop) and stop.startswith(end) for stop in self._stops)
