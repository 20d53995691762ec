"""Names that nodes give themselves, over the in-process grid; some nodes mean no good."""

from __future__ import annotations

import logging
import time

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.user_config import UserConfigValue
from flwr.clientapp import ClientApp
from intarsia_client.app import DESCRIPTION
from intarsia_client.errors import FederationError
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.roster import ask_names


def grid_of(
    names: dict[int, UserConfigValue], app: ClientApp | str = "intarsia_client.app:app"
) -> InProcessGrid:
    clients = [
        VirtualClient(node_id=node, node_config={"client": name}) for node, name in names.items()
    ]
    return InProcessGrid(app, clients)


@pytest.fixture(autouse=True)
def flowers_log_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)


@pytest.fixture
def stranger() -> ClientApp:
    """An app that says whatever its node's configuration has, or is slow, or says nothing."""
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        name = context.node_config["client"]
        if name == "slow":
            time.sleep(0.5)
        content = RecordDict()
        if name != "nothing":
            content[DESCRIPTION] = ConfigRecord({"client": name})
        return Message(content, reply_to=message)

    return app


def test_every_node_is_asked_and_named_in_order() -> None:
    with grid_of({9: "north", 2: "south", 5: "west"}) as grid:
        assert list(ask_names(grid, [9, 2], 5.0).items()) == [(2, "south"), (9, "north")]
        assert ask_names(grid, [], 5.0) == {}


def test_two_nodes_of_one_name_are_refused() -> None:
    with grid_of({1: "north", 2: "south", 3: "north"}) as grid:
        with pytest.raises(FederationError, match="name of nodes 1 and 3: 'north'; give each"):
            ask_names(grid, [1, 2, 3], 5.0)
        assert ask_names(grid, [1, 2], 5.0) == {1: "north", 2: "south"}


def test_nobody_takes_the_name_that_a_silent_node_gets(stranger: ClientApp) -> None:
    with (
        grid_of({1: "nothing", 2: "node-1"}, stranger) as grid,
        pytest.raises(FederationError, match="name of nodes 1 and 2: 'node-1'"),
    ):
        ask_names(grid, [1, 2], 5.0)


@pytest.mark.parametrize("name", ["nothing", "", "x" * 201, "two\nlines", 7])
def test_a_node_without_a_usable_name_is_left_out(
    name: UserConfigValue, stranger: ClientApp, caplog: pytest.LogCaptureFixture
) -> None:
    with grid_of({1: "north", 2: name}, stranger) as grid, caplog.at_level("WARNING", "flwr"):
        assert ask_names(grid, [1, 2], 5.0) == {1: "north"}
    (warning,) = [r.message for r in caplog.records if "node 2" in r.message]
    assert warning.startswith("node 2 has no name: ") and "\n" not in warning


def test_a_node_that_fails_is_left_out_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    with grid_of({1: "north", 2: 3}) as grid, caplog.at_level("WARNING", "flwr"):
        assert ask_names(grid, [1, 2], 5.0) == {1: "north"}
    assert "node 2 has no name: node configuration client: 3; set it to a string" in caplog.messages


def test_the_wait_for_names_ends(stranger: ClientApp, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    with (
        grid_of({1: "north", 2: "slow", 3: "south"}, stranger) as grid,
        caplog.at_level("WARNING", "flwr"),
    ):
        assert ask_names(grid, [1, 2, 3], 0.2) == {1: "north"}
    assert time.monotonic() - begun < 3
    assert "node 3 did not say its name within 0.2 s" in caplog.messages
