"""Tickets that nobody can alter, and the secret behind them."""

import dataclasses
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import AccessError, InputError, StorageError
from intarsia_platform.access.ticket import (
    GrantedAdapter,
    Ticket,
    TicketMint,
    load_secret,
    open_mint,
)
from intarsia_platform.home import Home

MINT = TicketMint(b"s" * 32)

words = st.text("ab01:é\x00 ", max_size=5)
numbers = st.integers(0, 5)
seconds = st.floats(0, 1e10)
adapters = st.builds(
    GrantedAdapter, digest=words, name=words, labels=st.lists(words, max_size=3).map(tuple)
)
pairs = st.tuples(words, words).map(lambda pair: (min(pair), max(pair)))
FIELDS = {
    "id": words,
    "principal": words,
    "purpose": words,
    "adapters": st.lists(adapters, max_size=3).map(tuple),
    "apart": st.frozensets(pairs, max_size=3),
    "policy_version": words,
    "epoch": numbers,
    "issued_at": seconds,
    "expires_at": seconds,
    "credential": words,
    "issuer": words,
    "mac": words,
}


@st.composite
def issued(draw: st.DrawFn) -> Ticket:
    drawn = {name: draw(kind) for name, kind in FIELDS.items() if name not in ("id", "mac")}
    return MINT.issue(**{**drawn, "expires_at": 2e10})


def simple(**changes: object) -> Ticket:
    given = {
        "principal": "ann",
        "adapters": [
            GrantedAdapter(digest="sha256:b", name="legal", labels=("x", "y")),
            GrantedAdapter(digest="sha256:a", name="finance"),
        ],
        "apart": [("sha256:b", "sha256:a")],
        "policy_version": "v",
        "epoch": 3,
        "issued_at": 100.0,
        "expires_at": 400.0,
    }
    return MINT.issue(**{**given, **changes})


def test_every_field_is_drawn():
    assert {field.name for field in dataclasses.fields(Ticket)} == set(FIELDS)


@given(issued(), st.data())
@settings(deadline=None, max_examples=120)
def test_a_change_of_any_field_is_found(ticket, data):
    MINT.check(ticket, 0.0)
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    value = data.draw(FIELDS[name].filter(lambda one: one != getattr(ticket, name)))
    with pytest.raises(AccessError):
        MINT.check(dataclasses.replace(ticket, **{name: value}), 0.0)


@given(issued(), st.data())
@settings(deadline=None, max_examples=50)
def test_two_tickets_never_share_a_code(ticket, data):
    """What moves from one field into its neighbour changes the code too."""
    names = ["principal", "purpose", "policy_version", "credential"]
    first, second = data.draw(st.permutations(names))[:2]
    swapped = dataclasses.replace(
        ticket, **{first: getattr(ticket, second), second: getattr(ticket, first)}
    )
    accepted = MINT.accepts(swapped, 0.0)
    assert accepted == (swapped == ticket)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 3.5}, {"epoch": None}, {"expires_at": float("nan")}, {"expires_at": "400"},
        {"mac": None}, {"mac": "é"}, {"mac": ""}, {"adapters": None}, {"apart": frozenset({1})},
        {"apart": frozenset()}, {"adapters": ()}, {"principal": b"ann"}, {"id": "\ud800"},
        {"apart": frozenset({("sha256:a", "sha256:b", "")})},
        {"adapters": (GrantedAdapter(digest="sha256:a", name="finance"),)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_ticket_of_ours_is_refused_in_the_same_words(change):
    ticket = simple()
    with pytest.raises(AccessError) as expired:
        MINT.check(ticket, 400.0)
    with pytest.raises(AccessError) as forged:
        MINT.check(dataclasses.replace(ticket, **change), 200.0)
    assert str(forged.value) == str(expired.value)


def test_time_and_secret_count():
    ticket = simple()
    MINT.check(ticket, 399.9)
    assert not MINT.accepts(ticket, 400.0) and not MINT.accepts(ticket, float("nan"))
    assert not TicketMint(b"t" * 32).accepts(ticket, 200.0)
    with pytest.raises(InputError, match="finite"):
        simple(expires_at=float("inf"))
    with pytest.raises(InputError, match="32 or more"):
        TicketMint(b"short")


def test_a_ticket_is_sorted_unique_and_frozen():
    ticket = simple()
    assert ticket.digests == ("sha256:a", "sha256:b")
    assert ticket.apart == {("sha256:a", "sha256:b")}
    assert ticket.id != simple().id and ticket.mac not in repr(ticket)
    assert ticket.allowed_digest == simple(principal="bob").allowed_digest
    assert ticket.allowed_digest != simple(adapters=[]).allowed_digest
    with pytest.raises(dataclasses.FrozenInstanceError):
        ticket.principal = "bob"


def test_only_what_is_granted_is_found():
    ticket = simple()
    assert ticket.named("legal") is ticket.adapter("sha256:b")
    for wrong in (lambda: ticket.named("sha256:a"), lambda: ticket.adapter("sha256:c")):
        with pytest.raises(AccessError, match="is not one that you may use"):
            wrong()


def test_the_secret_is_made_once_and_is_its_owners(tmp_path):
    path = tmp_path / "home" / "keys" / "ticket-secret"
    secret = load_secret(path)
    assert len(secret) == 32 and load_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    assert load_secret(tmp_path / "other") != secret


def test_a_home_has_one_mint(tmp_path):
    ticket, home = simple(), Home.open(tmp_path / "home")
    own = open_mint(home).issue(
        principal="ann", adapters=(), policy_version="", epoch=0, issued_at=0, expires_at=9
    )
    assert open_mint(home).accepts(own, 1) and not open_mint(home).accepts(ticket, 1)
    assert not open_mint(Home.open(tmp_path / "other")).accepts(own, 1)
    assert (tmp_path / "home" / "keys" / "ticket-secret").stat().st_size == 32


def test_a_secret_that_is_open_or_damaged_is_refused(tmp_path):
    path = tmp_path / "ticket-secret"
    load_secret(path)
    path.chmod(0o640)
    with pytest.raises(StorageError, match="0600"):
        load_secret(path)
    path.chmod(0o600)
    for data in (b"", b"x" * 31, b"x" * 33):
        path.write_bytes(data)
        with pytest.raises(StorageError, match="32 bytes"):
            load_secret(path)
    with pytest.raises(StorageError):
        load_secret(path / "below")


def test_processes_that_come_first_together_get_one_secret(tmp_path):
    program = (
        "import sys, pathlib; from intarsia_platform.access.ticket import load_secret\n"
        "sys.stdin.readline(); print(load_secret(pathlib.Path(sys.argv[1])).hex())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "keys" / "secret")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    secrets = {process.communicate(timeout=60)[0].strip() for process in started}
    assert len(secrets) == 1 and len(secrets.pop()) == 64
