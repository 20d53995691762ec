import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from hypothesis import given
from hypothesis import strategies as st
from intarsia_client.errors import InputError, StorageError
from intarsia_platform.federation.client_contexts import (
    MemoryStates,
    VirtualClient,
    VirtualClients,
    decode_state,
    encode_state,
    load_state,
    round_number,
    trains,
)

numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.lists(st.integers(-9, 9))
)
scalars = st.one_of(st.booleans(), st.text(), st.binary(), st.integers(-(2**63), 2**63 - 1))
arrays = st.binary(max_size=64).map(lambda data: Array(np.frombuffer(data, np.uint8)))
records = st.one_of(
    st.dictionaries(st.text(), numbers).map(MetricRecord),
    st.dictionaries(st.text(), scalars).map(ConfigRecord),
    st.dictionaries(st.text(), arrays).map(ArrayRecord),
)


def metadata(kind: str, group: str, node: int = 7) -> Metadata:
    return Metadata(1, "1", 1, node, "", group, 0.0, 1.0, kind)


@given(st.dictionaries(st.text(), records))
def test_state_survives_its_bytes(content):
    state = RecordDict(content)
    restored = decode_state(encode_state(state))
    assert restored == state
    assert list(restored) == list(state)
    assert encode_state(restored) == encode_state(state)


def test_empty_state_has_no_bytes():
    assert encode_state(RecordDict()) == b""
    assert decode_state(None) == decode_state(b"") == RecordDict()


@pytest.mark.parametrize(
    ("group", "number"), [("", 0), ("0", 0), ("12", 12), ("-1", 0), ("1.5", 0), ("round 3", 0)]
)
def test_round_is_the_group_where_it_is_a_number(group, number):
    assert round_number(metadata("train", group)) == number


def test_only_train_messages_train():
    kinds = ["train", "train.noop", "evaluate", "evaluate.other", "query"]
    assert [trains(metadata(kind, "1")) for kind in kinds] == [True, True, False, False, False]


def test_train_sees_earlier_rounds_and_others_their_own_too():
    states = MemoryStates()
    states.save_many([(7, 1, b"one"), (7, 2, b"two"), (8, 1, b"other")])
    assert load_state(states, metadata("train", "1")) is None
    assert load_state(states, metadata("train", "2")) == b"one"
    assert load_state(states, metadata("train", "9")) == b"two"
    assert load_state(states, metadata("evaluate", "1")) == b"one"
    assert load_state(states, metadata("query.x", "2")) == b"two"
    assert load_state(states, metadata("train", "2", node=9)) is None


def test_messages_without_a_round_share_one_state():
    states = MemoryStates()
    states.save_many([(7, 0, b"first")])
    assert load_state(states, metadata("train", "")) == b"first"
    assert load_state(states, metadata("evaluate", "")) == b"first"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.binary(max_size=4))))
def test_memory_states_know_the_latest_two_rounds(rows):
    """Rounds go forward by 0 (sent again) or 1; compared with a store that forgets nothing."""
    states, everything, current = MemoryStates(), {}, {}
    for node, step, state in rows:
        number = current[node] = current.get(node, 0) + step
        states.save_many([(node, number, state)])
        everything[node, number] = state
        for before in (number, number + 1):
            known = [there for who, there in everything if who == node and there < before]
            expected = everything[node, max(known)] if known else None
            assert states.load(node, before) == expected


def test_memory_states_refuse_more_than_their_bound_and_keep_what_they_had():
    states = MemoryStates(limit_bytes=10)
    states.save_many([(1, 1, b"x" * 5), (1, 2, b"y" * 5)])
    states.save_many([(1, 3, b"z" * 5)])
    with pytest.raises(StorageError, match="client states held in memory: 12 bytes, 10 allowed"):
        states.save_many([(1, 4, b""), (2, 1, b"w" * 7)])
    assert states.load(1, 9) == b"z" * 5
    assert states.load(2, 9) is None


def test_listed_clients_are_found_by_their_id():
    clients = VirtualClients.listed(
        [
            VirtualClient(node_id=9, node_config={"rank": 4}),
            VirtualClient(node_id=2, node_config={}),
        ]
    )
    assert list(clients.node_ids) == [9, 2]
    assert clients.node_config(9) == {"rank": 4}


def test_two_clients_with_one_id_are_refused():
    client = VirtualClient(node_id=9, node_config={})
    with pytest.raises(InputError, match="2 clients with 1 node ids"):
        VirtualClients.listed([client, client])
