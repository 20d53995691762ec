"""The epoch rises with its transaction, once for each."""

import subprocess
import sys

import pytest
from intarsia_platform.registry.epoch import bump, read_epoch

PROGRAM = """
import sys
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.database import open_database
with open_database(sys.argv[1]) as database:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(12):
        with database.begin() as connection:
            print(bump(connection))
"""


def epoch(database) -> int:
    with database.read() as connection:
        return read_epoch(connection)


def test_it_begins_at_0_and_rises(database):
    assert epoch(database) == 0
    for expected in (1, 2, 3):
        with database.begin() as connection:
            assert bump(connection) == expected
        assert epoch(database) == expected


def test_it_rises_with_its_transaction_or_not_at_all(database):
    with pytest.raises(ZeroDivisionError), database.begin() as connection:
        assert bump(connection) == 1
        raise ZeroDivisionError
    assert epoch(database) == 0


def test_two_processes_never_raise_it_to_the_same_number(database):
    url = database.engine.url.render_as_string(hide_password=False)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].split() for process in started]
    numbers = [[int(word) for word in words] for words in printed]
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 25))
    assert all(one == sorted(one) for one in numbers) and epoch(database) == 24
