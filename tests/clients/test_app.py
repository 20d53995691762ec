"""The ClientApp's own word about its node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.app.user_config import UserConfigValue
from intarsia_client.app import DESCRIPTION
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid


def ask(config: dict[str, UserConfigValue]) -> Message:
    clients = [VirtualClient(node_id=7, node_config=config)]
    with InProcessGrid("intarsia_client.app:app", clients) as grid:
        (reply,) = grid.send_and_receive([Message(RecordDict(), 7, "query")])
    return reply


def test_a_node_describes_itself(tmp_path: Path) -> None:
    data = tmp_path / "north.jsonl"
    data.write_text("".join(json.dumps({"text": f"note {n}"}) + "\n" for n in range(3)))
    reply = ask({"client": "north", "data": str(data)})
    assert dict(reply.content.config_records[DESCRIPTION]) == {"client": "north", "records": 3}
    reply = ask({"client": "south"})
    assert dict(reply.content.config_records[DESCRIPTION]) == {"client": "south", "records": 0}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({}, "node configuration client: None; set it to a string"),
        ({"client": 3}, "node configuration client: 3; set it to a string"),
        ({"client": "north", "data": "absent.jsonl"}, "data of north: "),
    ],
)
def test_a_node_that_is_configured_wrongly_says_so(
    config: dict[str, UserConfigValue], line: str
) -> None:
    reply = ask(config)
    assert reply.has_error() and reply.error.reason.startswith(line)
