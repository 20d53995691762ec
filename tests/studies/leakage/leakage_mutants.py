"""Two ways to do it wrong, to see that the audit finds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from intarsia_continual.retrieval import Choice
from intarsia_platform.access.ticket import Ticket
from intarsia_platform.answering.choosing import Chooser
from intarsia_platform.answering.service import AnsweringService


class LateChooser(Chooser):
    """Retrieves among all adapters and asks only then which of them the caller may use.

    Args:
        sound: The chooser that it takes the place of.
        everything: Digests of all adapters of the home.
    """

    def __init__(self, sound: Chooser, everything: Collection[str]) -> None:
        self.__dict__.update(vars(sound))
        self._everything = everything

    def _retrieved(self, ticket: Ticket, text: str) -> tuple[Choice, ...]:
        places = {
            adapter: descriptor
            for adapter, descriptor in self._library.servable(self._everything).items()
            if descriptor is not None
        }
        found = self._descriptors.read(places, self._library.describes)
        encoder, method, family = self._family(found)
        vector = self._encoders.encode(encoder, text)
        chosen = self._retriever(method, self._settings.top_k).choose(vector, family)
        return tuple(choice for choice in chosen if choice.digest in set(ticket.digests))


def filter_late(service: AnsweringService, everything: Collection[str]) -> None:
    """Let a service resolve access after retrieval."""
    service._machine._chooser = LateChooser(service._machine._chooser, everything)


def wrong_rights(
    rights: Mapping[str, tuple[str, ...]], principal: str, group: str
) -> dict[str, tuple[str, ...]]:
    """Rights in which a steward gave one caller one group too many."""
    return {**rights, principal: (*rights[principal], group)}
