"""Places for requests."""

import contextlib

import pytest
from intarsia_platform.gateway.failures import ServerBusy, TooManyRequests
from intarsia_platform.gateway.room import Room


def test_each_principal_has_its_own_places():
    room = Room(per_principal=2, total=10)
    with room.hold("ana"), room.hold("ana"), room.hold("ben"):
        assert room.held == 3
        with pytest.raises(TooManyRequests) as caught, room.hold("ana"):
            pass
        assert "ana" not in str(caught.value)
        with room.hold("ben"):
            assert room.held == 4
    assert room.held == 0
    with room.hold("ana"):
        assert room.held == 1


def test_all_together_have_a_bound():
    room = Room(per_principal=2, total=3)
    with room.hold("a"), room.hold("b"), room.hold("c"), pytest.raises(ServerBusy), room.hold("d"):
        pass
    with room.hold("d"):
        pass


def test_a_place_is_given_back_whatever_happens():
    room = Room(per_principal=1, total=1)
    for _ in range(3):
        with contextlib.suppress(ValueError), room.hold("ana"):
            raise ValueError
    assert room.held == 0
