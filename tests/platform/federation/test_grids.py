"""What both grids promise, and both are held to by the same tests."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg
from intarsia_client.errors import InputError
from intarsia_platform.federation.client_contexts import MemoryStates, VirtualClient, VirtualClients
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.ray_grid import RayGrid

sys.path.insert(0, str(Path(__file__).parent))
from grid_fixtures import local_ray, messages, pull_all

APP = "grid_client_apps:app"
CLIENTS = VirtualClients(
    node_ids=range(1, 9),
    node_config=lambda node: {"target": node / 2, "name": f"client {node}"},
)


class RecordingStates(MemoryStates):
    """Keeps a list of what was saved, and can start anew."""

    def __init__(self):
        self.restart()

    def restart(self):
        super().__init__()
        self.saved = []

    def save_many(self, rows):
        self.saved.append([(node, number) for node, number, _ in rows])
        super().save_many(rows)


@pytest.fixture(scope="module")
def one_ray():
    with local_ray(cpus=2):
        yield


@pytest.fixture(scope="module")
def store():
    return RecordingStates()


@pytest.fixture(scope="module", params=["in process", pytest.param("ray", marks=pytest.mark.slow)])
def grid(request, store):
    options = {
        "run_id": 5,
        "run_config": {"rounds": 3},
        "deadline_seconds": 60.0,
        "states": store,
    }
    if request.param == "in process":
        made = InProcessGrid(APP, CLIENTS, **options)
    else:
        request.getfixturevalue("one_ray")
        made = RayGrid(APP, CLIENTS, **options)
    with made:
        yield made


@pytest.fixture
def states(store):
    """What the grids save during one test."""
    store.restart()
    return store


def training(nodes, number):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3)])})
    return [Message(content, node, "train", group_id=str(number)) for node in nodes]


def seen(replies):
    return [reply.content["metrics"]["seen"] for reply in replies]


def test_fedavg_runs_unchanged_and_equals_numpy(grid, states):
    start = np.arange(6, dtype=np.float64).reshape(2, 3)
    result = FedAvg(fraction_evaluate=0.5).start(grid, ArrayRecord([start]), num_rounds=3)
    weights, expected = np.arange(1, 9), start
    for _ in range(3):
        steps = [expected + (node / 2 - expected) / 2 for node in weights]
        expected = np.average(steps, axis=0, weights=weights)
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], expected, rtol=1e-12)
    assert len(result.evaluate_metrics_clientapp) == 3
    # Flower's strategies name no round; their clients remember all the same.
    rounds_seen = [record["seen"] for record in result.train_metrics_clientapp.values()]
    assert rounds_seen == pytest.approx([0, 1, 2])


def test_replies_name_their_message_and_come_once(grid, states):
    sent = messages("train.noop", [4, 2, 4], number=3)
    ids = list(grid.push_messages(sent))
    replies = pull_all(grid, ids)
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    assert len(set(ids)) == len(by_message) == len(replies) == 3
    for message_id, message in zip(ids, sent, strict=True):
        reply = by_message[message_id]
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert reply.content["metrics"]["node"] == message.metadata.dst_node_id
        assert (reply.metadata.group_id, reply.metadata.run_id) == ("3", 5)
        assert message.metadata.message_id == ""
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 6
    assert list(grid.pull_messages(ids)) == []


def test_replies_come_in_the_order_of_their_messages(grid, states):
    nodes = [8, 1, 99, 5, 3] * 40
    replies = grid.send_and_receive(messages("train.noop", nodes))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert list(grid.send_and_receive([])) == []


def test_create_message_belongs_to_the_run(grid, states):
    message = grid.create_message(RecordDict(), "train.noop", 3, "4")
    (reply,) = grid.send_and_receive([message])
    assert (message.metadata.run_id, reply.metadata.group_id) == (5, "4")
    assert [info.node_id for info in grid.get_nodes()] == list(range(1, 9))


def test_clients_have_their_settings_and_the_standard_library(grid, states):
    """From the repository's root, whose folder ``platform`` must not hide the module."""
    (reply,) = grid.send_and_receive(messages("query", [6]))
    described = reply.content["described"]
    assert (described["name"], described["rounds"]) == ("client 6", "3")
    assert described["system"] in ("Linux", "Darwin")


def test_state_persists_and_a_round_sent_again_sees_the_earlier_one(grid, states):
    assert seen(grid.send_and_receive(training([1, 2], 1))) == [0, 0]
    assert seen(grid.send_and_receive(training([1], 2))) == [1]
    assert seen(grid.send_and_receive(training([1, 2], 2))) == [1, 1]
    assert seen(grid.send_and_receive(training([1, 2, 3], 3))) == [2, 2, 0]
    assert seen(grid.send_and_receive(messages("evaluate", [1, 1], number=2))) == [2, 2]
    assert seen(grid.send_and_receive(messages("evaluate", [1, 4], number=3))) == [3, 0]
    saved = [row for rows in states.saved for row in rows]
    expected = [(1, 1), (2, 1), (1, 2), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]
    assert sorted(saved) == sorted(expected)


def test_unchanged_and_empty_states_are_not_saved(grid, states):
    list(grid.send_and_receive(messages("train.noop", [1, 2], number=1)))
    states.save_many([(1, 1, states.load(1, 9) or b"")])
    list(grid.send_and_receive(messages("train.noop", [1], number=2)))
    assert states.saved == [[(1, 1)]]


def test_an_app_that_raises_is_answered_with_its_line(grid, states):
    for kind, node, reason in (
        ("train.fail", 1, "data file: x.jsonl; give one with records"),
        ("train.fail", 2, "ValueError: two lines"),
        ("train.leave", 1, "SystemExit: 3"),
        ("train.nothing", 1, "TypeError: the client app returned <class 'NoneType'>, not a"),
        ("train.unknown", 1, "ValueError: No train function registered with name 'unknown'"),
    ):
        failed, good = grid.send_and_receive(
            [*messages(kind, [node], number=1), *messages("train.noop", [3], number=1)]
        )
        assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert failed.error.reason.startswith(reason)
        assert failed.metadata.src_node_id == node
        assert good.content["metrics"]["node"] == 3
    assert states.saved == []


def test_an_unknown_node_is_unavailable(grid, states):
    stranger, good = grid.send_and_receive(messages("train.noop", [99, 1]))
    assert stranger.error.code == ErrorCode.NODE_UNAVAILABLE
    assert stranger.error.reason == "node 99 is not in this grid"
    assert good.has_content()


def test_what_a_client_changes_in_its_message_stays_with_it(grid, states):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(2**15)])})
    replies = list(
        grid.send_and_receive([Message(content, node, "train.vandal") for node in range(1, 9)])
    )
    assert [reply.content["metrics"]["before"] for reply in replies] == [1] * 8
    assert [reply.content["metrics"]["records"] for reply in replies] == [2] * 8
    assert list(content) == ["arrays"] and list(content["arrays"]) == ["0"]


def test_a_late_reply_is_absent_and_never_comes(grid, states, tmp_path):
    late = messages("train.sleep", [1, 2, 3], seconds=1.5, marks=str(tmp_path))
    started = time.monotonic()
    assert list(grid.send_and_receive(late, timeout=0.5)) == []
    assert time.monotonic() - started < 2.8
    replies = list(grid.send_and_receive(messages("train.noop", range(1, 9))))
    assert [reply.content["metrics"]["node"] for reply in replies] == list(range(1, 9))
    time.sleep(max(0.0, started + 2.0 - time.monotonic()))
    # In this process the one under way cannot be stopped; no other was begun or went on.
    allowed = {"done-1"} if isinstance(grid, InProcessGrid) else set()
    assert {mark.name for mark in tmp_path.iterdir()} == allowed


def test_cancelled_messages_are_never_answered(grid, states, tmp_path):
    ids = list(
        grid.push_messages(messages("train.sleep", [1, 2], seconds=0.3, marks=str(tmp_path)))
    )
    ids += grid.push_messages(messages("train.noop", [3, 99]))
    grid.cancel_messages([ids[0], ids[1], ids[3], "unknown"])
    assert [reply.metadata.src_node_id for reply in pull_all(grid, ids[2:3])] == [3]
    assert pull_all(grid, ids, seconds=0.6) == []
    assert list(tmp_path.iterdir()) == []


def test_interrupting_an_in_process_client_passes_through_and_loses_no_message():
    interrupted = []
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_id == 2 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return Message(RecordDict({"a": ArrayRecord([np.zeros(1)])}), reply_to=message)

    grid = InProcessGrid(app, CLIENTS)
    ids = list(grid.push_messages(training([1, 2, 3], 1)))
    with pytest.raises(KeyboardInterrupt):
        grid.pull_messages(ids)
    assert [reply.metadata.src_node_id for reply in pull_all(grid, ids)] == [1, 2, 3]
    list(grid.push_messages(messages("train.noop", [1])))
    grid.close()


def test_a_pull_in_process_lets_the_caller_in_between_long_messages(tmp_path):
    grid = InProcessGrid(APP, CLIENTS)
    ids = list(
        grid.push_messages(messages("train.sleep", [1, 2, 3], seconds=0.05, marks=str(tmp_path)))
    )
    assert [len(list(grid.pull_messages(ids))) for _ in range(4)] == [1, 1, 1, 0]


def test_clients_cost_nothing_before_they_are_asked():
    asked = []

    def settings(node):
        asked.append(node)
        return {"target": 1.0}

    clients = VirtualClients(node_ids=range(10**9), node_config=settings)
    grid = InProcessGrid("grid_client_apps:make_app", clients)
    (reply,) = grid.send_and_receive(messages("train.noop", [10**9 - 1]))
    assert reply.content["metrics"]["node"] == 10**9 - 1
    assert asked == [10**9 - 1]


def test_clients_may_be_listed():
    grid = InProcessGrid(APP, [VirtualClient(node_id=4, node_config={"name": "four"})])
    (reply,) = grid.send_and_receive(messages("query", [4]))
    assert reply.content["described"]["name"] == "four"


@pytest.mark.parametrize(
    ("app", "line"),
    [
        ("no_such_module:app", "client app: no_such_module:app; make it importable"),
        ("grid_client_apps", "client app: grid_client_apps; write it as module:attribute"),
        ("grid_client_apps:nothing", "client app: grid_client_apps:nothing; make it importable"),
        ("grid_client_apps:make_nothing", "name a flwr.clientapp.ClientApp, not <class 'int'>"),
        (lambda: 1 / 0, "make it importable and callable .ZeroDivisionError: division by zero"),
    ],
)
def test_an_unusable_client_app_is_one_line(app, line):
    with pytest.raises(InputError, match=line):
        InProcessGrid(app, CLIENTS)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_every_wait_has_a_deadline(seconds):
    with pytest.raises(InputError, match="deadline_seconds"):
        InProcessGrid(APP, CLIENTS, deadline_seconds=seconds)


def test_arrays_arrive_bit_by_bit(grid, states):
    weights = np.array([0.1, np.nan, -0.0, 1e-320])
    content = RecordDict({"arrays": ArrayRecord({"0": Array(weights)})})
    (reply,) = grid.send_and_receive([Message(content, 2, "train", group_id="1")])
    expected = weights + (1.0 - weights) / 2
    assert reply.content["arrays"].to_numpy_ndarrays()[0].tobytes() == expected.tobytes()
