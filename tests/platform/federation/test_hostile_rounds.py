"""The durable round loop with clients that are slow, answer twice, or answer with old words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from intarsia_client.errors import FederationError, RefusedUpdate
from intarsia_client.files import bytes_digest
from intarsia_client.messages import read_train_content
from intarsia_client.peft_files import encode_adapter
from intarsia_client.start import assigned_start
from intarsia_client.transport import decode_broadcast
from intarsia_platform.federation.rounds import DurableFederation, RoundLimits
from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.journal import RunJournal, create_run
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import PlannedParticipation
from intarsia_platform.registry.store import ContentStore

sys.path.insert(0, str(Path(__file__).parent))
from hostile_cohort import EMPTY, NAMES, PLAN, Root, Sent, answer, guard_of, honest

ROUNDS = 2
DEADLINE = 1.0


class Silent:
    """Watches and says nothing."""

    def round_begun(self, number: int, cohort: int) -> None: ...

    def replied(self, number: int, client: str, status: str) -> None: ...

    def round_closed(self, number: int) -> None: ...


Behaviour = Callable[[str, int, Message, "HonestGrid"], list[Message]]


class HonestGrid:
    """Answers at once for all clients but those whose behaviour is given."""

    def __init__(self, behaviour: dict[str, Behaviour]) -> None:
        self.behaviour = behaviour
        self.sent: dict[tuple[str, int], Message] = {}
        self._replies: dict[str, list[Message]] = {}

    def get_node_ids(self) -> list[int]:
        return list(NAMES)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            client, number = NAMES[message.metadata.dst_node_id], int(message.metadata.group_id)
            identifier = f"{number}-{client}"
            metadata = message.metadata
            metadata.__dict__["_message_id"] = identifier
            behave = self.behaviour.get(client)
            self._replies[identifier] = (
                behave(client, number, message, self) if behave else [self.reply(client, message)]
            )
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, identifiers: Iterable[str]) -> Iterator[Message]:
        for identifier in list(identifiers):
            yield from self._replies.pop(identifier, [])

    def reply(self, client: str, message: Message, **claims: Any) -> Message:
        assignment, data = read_train_content(message.content)
        start = assigned_start(decode_broadcast(data), assignment).trainable
        trained = honest(client, assignment, start)
        reply = answer(message, assignment, start, Sent(trained=trained, claims=claims))
        self.sent[client, assignment.round] = reply
        return reply


def as_reply_to(message: Message, reply: Message) -> Message:
    """Another message's reply, delivered as this one's."""
    asked, sent = message.metadata, reply.metadata
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=asked.dst_node_id, dst_node_id=0,
        reply_to_message_id=asked.message_id, group_id=asked.group_id, created_at=sent.created_at,
        ttl=sent.ttl, message_type=sent.message_type,
    )  # fmt: skip
    return make_message(metadata, reply.content)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(f"sqlite:///{tmp_path}/intarsia.db") as opened:
        yield opened


def run(
    database: Database, folder: Path, grid: HonestGrid, rule: str = "none"
) -> tuple[RunJournal, Any]:
    journal = create_run(
        database, name="attack", config={}, seed=0, rounds=ROUNDS, base_digest="sha256:base"
    )
    store = ContentStore(str(folder / "store"))
    plan = replace(PLAN, run=journal.run_id, rounds=ROUNDS)
    root = Root(lambda assignment, start: honest("server", assignment, start))
    federation = DurableFederation(
        strategy=LoraStrategy(plan, guard=guard_of(rule, root)),
        grid=grid,  # type: ignore[arg-type]
        journal=journal,
        ledger=PrivacyLedger(database),
        store=store,
        registry=AdapterRegistry(database, store),
        initial=encode_adapter(EMPTY),
        limits=RoundLimits(deadline_seconds=DEADLINE, minimum_accepted=3),
        evaluate=lambda number, adapter: None,
        observer=Silent(),
    )
    return journal, federation


def outcome(journal: RunJournal, number: int, client: str) -> tuple[str, str | None]:
    (part,) = (part for part in journal.participations(number) if part.client == client)
    return part.status, part.reason


def never(client: str, number: int, message: Message, grid: HonestGrid) -> list[Message]:
    return []


def test_a_client_that_never_answers_costs_its_place_and_the_deadline(database, tmp_path):
    journal, federation = run(database, tmp_path, HonestGrid({"g": never}))
    begun = time.monotonic()
    federation.run()
    assert time.monotonic() - begun < ROUNDS * DEADLINE + 20
    for number in range(1, ROUNDS + 1):
        assert outcome(journal, number, "g")[0] == "late"
        assert outcome(journal, number, "a")[0] == "accepted"
    assert len(journal.published_rounds()) == ROUNDS


def test_answers_after_the_deadline_and_second_answers_do_not_count(database, tmp_path):
    def twice(client: str, number: int, message: Message, grid: HonestGrid) -> list[Message]:
        return [grid.reply(client, message), grid.reply(client, message, number_of_examples=10**6)]

    grid = HonestGrid({"f": twice})
    journal, federation = run(database, tmp_path, grid)
    federation.run()
    assert outcome(journal, 1, "f") == ("accepted", None)
    (part,) = (part for part in journal.participations(1) if part.client == "f")
    assert part.number_of_examples == 20
    # And past the grid, at the database itself, the round being closed.
    with pytest.raises(RefusedUpdate) as caught:
        accept(journal, "f", nonce="another word")
    assert caught.value.reason == "late"


def test_a_nonce_counts_once_whoever_brings_it(database, tmp_path):
    journal, _ = run(database, tmp_path, HonestGrid({}))
    names = ("a", "b")
    parts = [
        PlannedParticipation(client=client, node_id=node, assignment={})
        for node, client in enumerate(names, start=1)
    ]
    journal.plan_round(1, bytes_digest(b"start"), parts)
    journal.mark_sent(1, dict.fromkeys(names, 1))
    journal.mark_collecting(1)
    accept(journal, "a", nonce="word")
    for client in names:
        with pytest.raises(RefusedUpdate) as caught:
            accept(journal, client, nonce="word")
        assert caught.value.reason == "replayed-nonce"
    accept(journal, "b", nonce="another word")


def accept(journal: RunJournal, client: str, *, nonce: str) -> None:
    journal.accept(
        1, client, nonce=nonce, update_digest=bytes_digest(client.encode()), number_of_examples=20,
        bytes_up=1, metrics={}, shard_digest=bytes_digest(b"shard"),
    )  # fmt: skip


def test_an_update_of_the_round_before_is_refused(database, tmp_path):
    def again(client: str, number: int, message: Message, grid: HonestGrid) -> list[Message]:
        if number == 1:
            return [grid.reply(client, message)]
        return [as_reply_to(message, grid.sent[client, 1])]

    journal, federation = run(database, tmp_path, HonestGrid({"g": again}))
    federation.run()
    assert outcome(journal, 1, "g") == ("accepted", None)
    assert outcome(journal, 2, "g") == ("refused", "stale-round")


def test_an_update_that_another_client_sent_is_refused(database, tmp_path):
    def copied(client: str, number: int, message: Message, grid: HonestGrid) -> list[Message]:
        return [as_reply_to(message, grid.sent["a", number])]

    journal, federation = run(database, tmp_path, HonestGrid({"g": copied}))
    federation.run()
    assert outcome(journal, 1, "g") == ("refused", "wrong-client")


def test_a_round_with_too_few_for_its_rule_is_not_published(database, tmp_path):
    """Seven are needed for two dishonest ones; one keeps silent, and the round stays open."""
    journal, federation = run(database, tmp_path, HonestGrid({"g": never}), "multi-krum")
    with pytest.raises(FederationError, match="accepted updates in round 1: 6; at least 7"):
        federation.run()
    assert journal.published_rounds() == []
    row = journal.current_round()
    assert row is not None and row.state == "collecting"
