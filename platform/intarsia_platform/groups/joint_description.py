"""A federated group's descriptor: each client describes its own texts, the parts are joined here.

centroid, gaussian     clients send moments; their sum goes back, and each scores its left-out
                       texts with it; nothing of a single text leaves a client
document-similarity    clients send vectors of single texts; only where it was chosen
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from intarsia_client.errors import FederationError, InputError
from intarsia_client.wire import FloatArray
from intarsia_continual.descriptors.base import HELD_OUT, PERCENTILES, Descriptor, DescriptorMethod
from intarsia_continual.descriptors.catalog import DESCRIBED_TEXTS, find_method
from intarsia_continual.descriptors.document_similarity import DOCUMENTS
from intarsia_continual.encoders import TextEncoder

from intarsia_platform.groups.moments import LEAST_TEXTS, Moments, joined
from intarsia_platform.groups.site_app import (
    PART,
    QUESTION,
    VECTORS,
    Question,
    read_moments,
    read_vectors,
)

SITE_APP = "intarsia_platform.groups.site_app:app"

_ROUNDING = 1e-6
_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class JointDescription:
    """A group's descriptor and whose texts it describes.

    Args:
        descriptor: The descriptor.
        clients: Those who took part, by name.
    """

    descriptor: Descriptor
    clients: tuple[str, ...]


class JointDescriber:
    """Asks clients to describe their texts and joins what they say.

    Formal guarantee: for ``centroid`` and ``gaussian`` the arrays but the left-out scores are what
    the method makes of all the texts that were read, whichever client has them, up to rounding.
    ``document-similarity`` cannot be joined exactly where there are more texts than are kept: each
    client draws its share of them.

    Args:
        grid: Where the clients run, with :data:`SITE_APP`.
        names: From node identifier to the client's name.
        encoder: What this side would encode with; replies of another encoder are refused.
        deadline_seconds: How long each exchange may take, in seconds.
    """

    def __init__(
        self,
        grid: Grid,
        names: Mapping[int, str],
        encoder: TextEncoder,
        *,
        deadline_seconds: float,
    ) -> None:
        """Keep all of them."""
        self._grid = grid
        self._names = names
        self._encoder = encoder
        self._seconds = deadline_seconds

    def describe(self, question: Question) -> JointDescription:
        """Describe a group.

        Args:
            question: How; its ``most`` is filled in here.

        Returns:
            The descriptor and who took part.

        Raises:
            FederationError: If no client could describe its texts.
            InputError: If there is no such method.
        """
        method = find_method(question.method).method
        nodes = _evenly(sorted(self._names, key=lambda node: self._names[node]))
        keeps_texts = question.method == "document-similarity"
        kept = DOCUMENTS if keeps_texts else DESCRIBED_TEXTS
        asked = Question(**{**vars(question), "most": max(LEAST_TEXTS, kept // len(nodes))})
        if keeps_texts:
            return self._from_documents(method, asked, nodes)
        return self._from_moments(method, asked, nodes)

    def _from_moments(
        self, method: DescriptorMethod, question: Question, nodes: Sequence[int]
    ) -> JointDescription:
        def read(message: Message) -> Moments:
            found = read_moments(message)
            return found.checked(self._encoder.width, second=question.second, most=question.most)

        parts = self._ask("moments", RecordDict(), question, nodes, read)
        total = joined(parts.values())
        arrays = {"total": Array(total.total)}
        if total.second is not None:
            arrays["second"] = Array(total.second)
        content = RecordDict(
            {PART: ConfigRecord({"texts": total.count}), VECTORS: ArrayRecord(arrays)}
        )

        def scores(message: Message) -> FloatArray:
            found = read_vectors(message).get("scores")
            if found is None or found.ndim != 1 or not 0 < len(found) <= question.most:
                raise InputError("left-out scores", "none", "send one for each text")
            if not np.isfinite(found).all():
                raise InputError("left-out scores", "not finite", "encode the texts again")
            return found.astype(np.float32)

        left_out = self._ask("left_out", content, question, list(parts), scores)
        levels = np.linspace(0.0, 1.0, PERCENTILES)
        quantiles = np.quantile(np.concatenate(list(left_out.values())), levels)
        # Neither method draws anything.
        summary = method.summarise(total.sample(), np.random.default_rng(question.seed))
        descriptor = Descriptor(
            method=method.name,
            encoder=self._encoder.digest,
            arrays={**summary, HELD_OUT: quantiles.astype(np.float32)},
        )
        method.check(descriptor)
        return JointDescription(descriptor=descriptor, clients=self._called(parts))

    def _from_documents(
        self, method: DescriptorMethod, question: Question, nodes: Sequence[int]
    ) -> JointDescription:
        def read(message: Message) -> tuple[FloatArray, FloatArray]:
            found = read_vectors(message)
            return self._rows(found, "documents", question), self._rows(found, "probes", question)

        parts = self._ask("documents", RecordDict(), question, nodes, read)
        rows, probes = (np.concatenate([one[side] for one in parts.values()]) for side in (0, 1))
        descriptor = method.fit(
            rows,
            np.random.default_rng(question.seed),
            encoder=self._encoder.digest,
            probes=probes,
        )
        return JointDescription(descriptor=descriptor, clients=self._called(parts))

    def _rows(
        self, arrays: Mapping[str, np.ndarray[Any, Any]], name: str, question: Question
    ) -> FloatArray:
        found = arrays.get(name)
        if found is None or found.ndim != 2 or found.shape[1] != self._encoder.width:
            raise InputError(f"vectors {name}", "of another shape", "send the encoder's")
        lengths = np.linalg.norm(found, axis=1)
        if not (LEAST_TEXTS <= len(found) <= question.most and (lengths <= 1 + _ROUNDING).all()):
            raise InputError(f"vectors {name}", "impossible", "send the encoder's")
        return found.astype(np.float32)

    def _ask(
        self,
        what: str,
        content: RecordDict,
        question: Question,
        nodes: Sequence[int],
        read: Callable[[Message], _Found],
    ) -> dict[int, _Found]:
        """What each node answers that can be used, in the order of ``nodes``."""
        messages = [
            Message(
                RecordDict({**content, QUESTION: question.as_record()}),
                dst_node_id=node,
                message_type=f"query.{what}",
                group_id="0",
            )
            for node in nodes
        ]
        found: dict[int, _Found] = {}
        reasons = []
        for reply in self._grid.send_and_receive(messages, timeout=self._seconds):
            node = reply.metadata.src_node_id
            try:
                found[node] = self._read(reply, read)
            except InputError as error:
                reasons.append(f"{self._names.get(node, node)}: {error}")
        if not found:
            raise FederationError(
                "clients that describe their texts",
                0,
                f"at least one is needed; {min(reasons, default='none answered in time')}",
            )
        return {node: found[node] for node in nodes if node in found}

    def _read(self, reply: Message, read: Callable[[Message], _Found]) -> _Found:
        if reply.has_error():
            raise InputError("client", (reply.error.reason or "failed")[:300], "see its log")
        part = reply.content.config_records.get(PART, ConfigRecord())
        if part.get("encoder") != self._encoder.digest:
            raise InputError("encoder", str(part.get("encoder"))[:80], "use the one asked for")
        return read(reply)

    def _called(self, parts: Mapping[int, object]) -> tuple[str, ...]:
        return tuple(sorted(self._names[node] for node in parts))


def _evenly(nodes: Sequence[int]) -> list[int]:
    """Of many nodes as many as together give no more texts than one home's group would."""
    count = min(len(nodes), DESCRIBED_TEXTS // LEAST_TEXTS)
    return [nodes[place * len(nodes) // count] for place in range(count)]
