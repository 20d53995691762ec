"""Which node is which site: a server that has never seen its nodes asks each for its name."""

from __future__ import annotations

from collections.abc import Iterable
from logging import WARNING

from flwr.app import Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from intarsia_client.app import DESCRIPTION
from intarsia_client.errors import FederationError

_LONGEST_NAME = 200


def ask_names(grid: Grid, nodes: Iterable[int], deadline_seconds: float) -> dict[int, str]:
    """Ask nodes how they call themselves; the answer belongs into a plan's ``names``.

    A node that does not answer in time, or with nothing usable, is left out with a warning; the
    plan calls it ``node-<identifier>``, and a node with another name then refuses to train.
    A name is a node's own word: who may connect at all is for the transport to decide.

    Args:
        grid: Where the nodes are.
        nodes: Their identifiers.
        deadline_seconds: How long to wait for the answers, in seconds.

    Returns:
        From node identifier to name, in the order of the identifiers.

    Raises:
        FederationError: If two nodes go by one name, which would give both the same one-time
            words and the same place in the sum.
    """
    asked = sorted(nodes)
    messages = [Message(RecordDict(), node, "query", group_id="0") for node in asked]
    given: dict[int, str] = {}
    silent = set(asked)
    for reply in grid.send_and_receive(messages, timeout=deadline_seconds):
        node = reply.metadata.src_node_id
        silent.discard(node)
        try:
            given[node] = _name_in(reply)
        except ValueError as error:
            log(WARNING, "node %s has no name: %s", node, error)
    for node in sorted(silent):
        log(WARNING, "node %s did not say its name within %g s", node, deadline_seconds)
    bearers: dict[str, int] = {}
    for node in asked:
        name = given.get(node, f"node-{node}")
        if name in bearers:
            raise FederationError(
                f"name of nodes {bearers[name]} and {node}",
                repr(name),
                "give each node's configuration a client of its own",
            )
        bearers[name] = node
    return {node: given[node] for node in asked if node in given}


def _name_in(reply: Message) -> str:
    """The name in a reply, which may come from anyone.

    Raises:
        ValueError: If there is none, or none that can stand in a line of text.
    """
    if reply.has_error():
        raise ValueError(" ".join(str(reply.error.reason).split())[:1000])
    record = reply.content.config_records.get(DESCRIPTION)
    name = None if record is None else record.get("client")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{str(name)[:_LONGEST_NAME]!r} in its description")
    return name
