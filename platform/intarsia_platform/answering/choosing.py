"""From what a request wants to adapters and weights, all of them its ticket's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray
from intarsia_continual.descriptors.base import Descriptor
from intarsia_continual.descriptors.catalog import find_method
from intarsia_continual.retrieval import Choice, Retriever

from intarsia_platform.access.refusal import bad_ticket, refused, shown
from intarsia_platform.access.ticket import Ticket
from intarsia_platform.answering.descriptors import DescriptorShelf
from intarsia_platform.answering.encoders import EncoderShelf
from intarsia_platform.answering.library import Library
from intarsia_platform.answering.settings import REQUEST_ROUTING, RetrievalSettings
from intarsia_platform.answering.use import Use, UseKind
from intarsia_platform.serving.grants import Admission, check_grants

_PAIR = 2


class Chooser:
    """Chooses adapters. Safe for several threads.

    Formal guarantee: :meth:`choose` is a function of the text, the use, and of what is registered
    about the adapters that the ticket grants. An adapter that it does not grant, whether it is
    hidden, added, changed or removed, changes neither a choice nor a weight nor the words of an
    error, since nothing of it is read.

    Args:
        admission: Says whether a ticket holds.
        library: What can be served.
        descriptors: What is known of each adapter's texts.
        encoders: Turn prompts into vectors.
        settings: How to retrieve.
        task: What the base does.

    Raises:
        InputError: If a setting cannot be used, or not with such a base.
    """

    def __init__(
        self,
        admission: Admission,
        library: Library,
        descriptors: DescriptorShelf,
        encoders: EncoderShelf,
        settings: RetrievalSettings,
        task: str = "causal-lm",
    ) -> None:
        """Keep the parts."""
        self._admission = admission
        self._library = library
        self._descriptors = descriptors
        self._encoders = encoders
        self._settings = settings
        if settings.router and task != "causal-lm":
            raise InputError(
                "routing",
                settings.routing,
                f"use {REQUEST_ROUTING}: a router divides no classification heads",
            )
        # Each family of descriptors gets its own; wrong numbers are to be found now.
        self._retriever("document-similarity", settings.top_k)

    def choose(self, ticket: Ticket, text: str, use: Use) -> tuple[Choice, ...]:
        """Choose the adapters of one answer.

        Args:
            ticket: What the caller may use.
            text: What is retrieved by; not looked at where the caller named the adapters.
            use: What the caller wants.

        Returns:
            The choices; empty where the base answers alone.

        Raises:
            AccessError: If the ticket does not hold, or does not grant a named adapter, or not
                together with another; in the same words whether that one exists or not.
            InputError: If a named adapter is not served here, or no encoder of the descriptors is
                installed.
            IntegrityError: If a descriptor is damaged.
        """
        if use.kind is UseKind.NAMED:
            return self._named(ticket, use)
        if not self._admission.standing(ticket, ()):
            raise bad_ticket()
        return self._retrieved(ticket, text) if use.kind is UseKind.AUTO else ()

    def _named(self, ticket: Ticket, use: Use) -> tuple[Choice, ...]:
        choices = tuple(
            Choice(digest=ticket.named(part.name).digest, weight=part.share) for part in use.parts
        )
        check_grants(ticket, choices)
        digests = [choice.digest for choice in choices]
        if not self._admission.standing(ticket, digests):
            # Either the ticket does not hold, or no two but all of them may not be mixed.
            held = self._admission.standing(ticket, ())
            raise refused("adapter", use.parts[-1].name) if held else bad_ticket()
        served = self._library.servable(digests)
        for part, digest in zip(use.parts, digests, strict=True):
            if digest not in served:
                raise InputError(
                    f"adapter {shown(part.name)}",
                    "is not served here",
                    "admit it, or serve the base that it was trained for",
                )
        return choices

    def _retrieved(self, ticket: Ticket, text: str) -> tuple[Choice, ...]:
        places = {
            adapter: descriptor
            for adapter, descriptor in self._library.servable(ticket.digests).items()
            if descriptor is not None
        }
        found = self._descriptors.read(places, self._library.describes)
        encoder, method, family = self._family(found)
        if not family:
            return ()
        vector = self._encoders.encode(encoder, text)
        for most in range(self._settings.top_k, 0, -1):
            chosen = self._chosen(self._retriever(method, most), vector, family, ticket)
            # Of two the ticket says whether they may be mixed; more are to be judged together.
            if len(chosen) < _PAIR + 1 or self._admission.standing(
                ticket, [choice.digest for choice in chosen]
            ):
                return chosen
        return ()

    def _chosen(
        self,
        retriever: Retriever,
        vector: FloatArray,
        family: Mapping[str, Descriptor],
        ticket: Ticket,
    ) -> tuple[Choice, ...]:
        if not self._settings.router:
            return retriever.choose(vector, family, ticket.apart)
        # How much each counts is for the router to say, also of the least like the prompt.
        found = retriever.ranking(vector, family, ticket.apart)
        return tuple(Choice(digest=digest, weight=1.0 / len(found)) for digest in found)

    def _family(
        self, descriptors: Mapping[str, Descriptor]
    ) -> tuple[str, str, dict[str, Descriptor]]:
        """The most descriptors of one encoder and one method: scores of two do not compare."""
        families: defaultdict[tuple[str, str], dict[str, Descriptor]] = defaultdict(dict)
        for adapter, descriptor in descriptors.items():
            families[descriptor.encoder, descriptor.method][adapter] = descriptor
        ordered = sorted(families, key=lambda kind: (-len(families[kind]), kind))
        for encoder, method in ordered:
            if self._encoders.has(encoder):
                return encoder, method, families[encoder, method]
        if ordered:
            raise InputError(
                "encoder of the descriptors",
                "is not installed",
                'install it with pip install "intarsia-continual[minilm]"',
            )
        return "", "", {}

    def _retriever(self, method: str, top_k: int) -> Retriever:
        return Retriever(
            find_method(method).method,
            top_k=top_k,
            threshold=self._settings.threshold,
            temperature=self._settings.temperature,
        )
