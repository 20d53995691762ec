"""One running answer: its place in the cache, its adapters, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from intarsia_client.base_model import BaseModel
from numpy.typing import NDArray

from intarsia_platform.serving.bank import AdapterLease
from intarsia_platform.serving.grants import Watch
from intarsia_platform.serving.mixture import BASE, Mixture
from intarsia_platform.serving.pieces import StopTexts, TextPieces
from intarsia_platform.serving.prefix_cache import Beginnings
from intarsia_platform.serving.prompt_pieces import piece_end
from intarsia_platform.serving.sampling import Sampler
from intarsia_platform.serving.streams import Finish, Stream, Token


@dataclass(kw_only=True, eq=False)
class Row:
    """A request from its submission to its end.

    Args:
        principal: Whose it is.
        stream: Where its events go.
        watch: Whether its ticket still covers it.
        lease: Its adapters.
        mixture: Its adapters and their weights.
        prompt: Its prompt's tokens.
        beginnings: Of its prompt, as they may be kept.
        most: Its answer's tokens at most.
        sampler: Chooses its tokens.
        pieces: Decodes them.
        stops: Ends its text.
        ends: Tokens that end an answer.
        slot: Its slot in the cache, None while it waits.
        done: Tokens of its prompt that the cache holds.
        answered: Tokens of its answer so far.
        last: The last of them.
    """

    principal: str
    stream: Stream
    watch: Watch
    lease: AdapterLease
    mixture: Mixture
    prompt: Sequence[int]
    beginnings: Beginnings
    most: int
    sampler: Sampler
    pieces: TextPieces
    stops: StopTexts
    ends: frozenset[int]
    slot: int | None = None
    done: int = 0
    answered: int = 0
    last: int = 0

    @property
    def decoding(self) -> bool:
        """Whether its whole prompt is in the cache."""
        return self.done == len(self.prompt)

    @property
    def next_piece(self) -> Sequence[int]:
        """The next tokens of its prompt."""
        return self.prompt[self.done : piece_end(self.done)]

    def choose(self, logits: NDArray[np.float32]) -> Token:
        """Choose the next token.

        Args:
            logits: Shape (vocabulary,); no NaN, and the largest of them finite.

        Returns:
            The event, with a finish if it is the last one.
        """
        token = self.sampler.choose(logits)
        self.last = token
        self.answered += 1
        text = self.stops.add("" if token in self.ends else self.pieces.add(token))
        finish: Finish | None = None
        if token in self.ends or self.stops.ended:
            finish = Finish.STOP
        elif self.answered >= self.most:
            finish = Finish.LENGTH
        if finish is not None and not self.stops.ended:
            text += self.stops.add(self.pieces.finish())
            text += self.stops.finish()
            finish = Finish.STOP if self.stops.ended else finish
        return Token(token=token, text=text, finish=finish)

    def let_go(self) -> None:
        """Give its adapters back; again does nothing."""
        self.mixture = BASE
        self.lease.close()


def end_tokens(base: BaseModel) -> frozenset[int]:
    """The tokens with which a base model ends what it writes.

    Args:
        base: The base model.

    Returns:
        Those of its generation settings, else those of its configuration and its tokenizer.
    """
    for owner in (getattr(base.model, "generation_config", None), base.model.config):
        found = getattr(owner, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    own = base.tokenizer.eos_token_id
    return frozenset() if own is None else frozenset([own])


def first_tokens(base: BaseModel) -> tuple[int, ...]:
    """What stands before a text, as in training: the token that begins one, where there is one.

    Args:
        base: The base model.

    Returns:
        One token or none.
    """
    for owner in (base.tokenizer, base.model.config):
        found = getattr(owner, "bos_token_id", None)
        if isinstance(found, int):
            return (found,)
    return ()
