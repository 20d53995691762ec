"""States of virtual clients: the newest before a round, two kept, quickly and in flat memory."""

from __future__ import annotations

import tracemalloc

import pytest
from intarsia_client.files import bytes_digest
from intarsia_platform.registry.client_states import ClientStates
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.journal import create_run
from intarsia_platform.registry.tables import ClientStateTable
from sqlalchemy import func, select

LARGEST = 2**64 - 1


@pytest.fixture
def states(database: Database) -> ClientStates:
    return new_states(database)


def new_states(database: Database) -> ClientStates:
    base = bytes_digest(b"base")
    run = create_run(database, name="r", config={}, seed=0, rounds=9, base_digest=base)
    return ClientStates(database, run.run_id)


def rows(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(ClientStateTable)).scalar_one()


def test_the_newest_before_a_round(states: ClientStates) -> None:
    assert states.load(LARGEST, 5) is None
    states.save_many([(LARGEST, 2, b"two"), (LARGEST, 4, b"four"), (1, 4, b"other")])
    assert states.load(LARGEST, 2) is None
    assert states.load(LARGEST, 3) == b"two"
    assert states.load(LARGEST, 4) == b"two"
    assert states.load(LARGEST, 99) == b"four"
    assert states.load(1, 99) == b"other"


def test_a_round_run_again_replaces_its_state(states: ClientStates) -> None:
    states.save_many([(1, 1, b"one"), (1, 2, b"first")])
    states.save_many([(1, 2, b"second")])
    assert states.load(1, 2) == b"one"
    assert states.load(1, 3) == b"second"


def test_two_are_kept_of_each_node(database: Database, states: ClientStates) -> None:
    for number in (1, 3, 4, 9):
        states.save_many([(node, number, bytes([number])) for node in range(3)])
    states.save_many([(7, 5, b"once")])
    assert rows(database) == 7
    assert states.load(0, 4) is None
    assert states.load(0, 9) == b"\x04"
    assert states.load(0, 10) == b"\x09"
    assert states.load(7, 10) == b"once"


def test_runs_are_apart(database: Database) -> None:
    first, second = new_states(database), new_states(database)
    for number in (1, 2, 3):
        first.save_many([(1, number, b"first")])
    second.save_many([(1, 1, b"second")])
    assert second.load(1, 9) == b"second"
    assert rows(database) == 3


def test_nothing_to_save_is_fine(database: Database, states: ClientStates) -> None:
    states.save_many([])
    assert rows(database) == 0


def test_memory_does_not_grow_with_the_number_of_states(states: ClientStates) -> None:
    states.save_many((node, 1, b"s" * 2000) for node in range(500))
    peaks = []
    for count in (500, 5000):
        tracemalloc.start()
        states.save_many((node, 2, bytes(2000)) for node in range(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 5,000 states of 2 kB are 10 MB; only one batch of them is ever held.
    assert peaks[1] < peaks[0] + (1 << 20)
