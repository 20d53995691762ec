"""Random sequences of journal calls against a model of what may follow what."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from intarsia_client.errors import IntegrityError, RefusedUpdate
from intarsia_client.files import bytes_digest
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import PlannedParticipation, RunJournal, create_run

CLIENTS = ("ada", "bert", "cleo")
NONCES = ("m", "n", "o", "p")
ENDS = ("refused", "failed", "late", "sat-out")


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty database, made once and copied for each sequence."""
    JournalMachine.template = tmp_path_factory.mktemp("journal") / "template.db"
    open_database(f"sqlite:///{JournalMachine.template}").close()


class JournalMachine(RuleBasedStateMachine):
    """The model: a state and a status each, kept in plain dictionaries."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.template.parent))
        shutil.copy(self.template, self.folder / "intarsia.db")
        self.database = open_database(f"sqlite:///{self.folder}/intarsia.db")
        base = bytes_digest(b"base")
        self.journal = create_run(
            self.database, name="r", config={}, seed=0, rounds=9, base_digest=base
        )
        self.number = 0
        self.state = "published"
        self.statuses: dict[int, dict[str, str]] = {}
        self.nonces: dict[str, str] = {}
        self.start = base

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    def attempt(self, to: str, legal: bool, call: object) -> None:
        if legal:
            call()
            self.state = to
        else:
            with pytest.raises(IntegrityError):
                call()

    @rule(ahead=st.integers(0, 2), out=st.sets(st.sampled_from(CLIENTS)))
    def plan(self, ahead: int, out: set[str]) -> None:
        number = self.number + ahead
        plan = [
            PlannedParticipation(
                client=client, node_id=node, status="sat-out" if client in out else "planned"
            )
            for node, client in enumerate(CLIENTS)
        ]
        legal = self.state == "published" and ahead == 1
        self.attempt("planned", legal, lambda: self.journal.plan_round(number, self.start, plan))
        if legal:
            self.number = number
            self.statuses[number] = {entry.client: entry.status for entry in plan}

    @precondition(lambda self: self.number)
    @rule()
    def sent(self) -> None:
        legal = self.state in ("planned", "sent", "collecting")
        self.attempt("sent", legal, lambda: self.journal.mark_sent(self.number, {"ada": 1}))

    @precondition(lambda self: self.number)
    @rule()
    def collecting(self) -> None:
        legal = self.state == "sent"
        self.attempt("collecting", legal, lambda: self.journal.mark_collecting(self.number))

    @precondition(lambda self: self.number)
    @rule()
    def aggregating(self) -> None:
        legal = self.state == "collecting"
        self.attempt("aggregating", legal, lambda: self.journal.mark_aggregating(self.number))
        if legal:
            statuses = self.statuses[self.number]
            statuses.update({c: "late" for c, status in statuses.items() if status == "planned"})

    @precondition(lambda self: self.number)
    @rule()
    def publish(self) -> None:
        legal = self.state == "aggregating"
        result = bytes_digest(f"result {self.number}".encode())
        if self.state == "published":
            self.journal.publish(self.number, result_digest=result, metrics={})
            return
        call = lambda: self.journal.publish(  # noqa: E731
            self.number, result_digest=result, metrics={}
        )
        self.attempt("published", legal, call)
        if legal:
            self.start = result

    @precondition(lambda self: self.number)
    @rule(client=st.sampled_from((*CLIENTS, "stranger")), nonce=st.sampled_from(NONCES))
    def accept(self, client: str, nonce: str) -> None:
        update = bytes_digest(f"{self.number} {client} {nonce}".encode())
        call = lambda: self.journal.accept(  # noqa: E731
            self.number,
            client,
            update_digest=update,
            nonce=nonce,
            number_of_examples=1,
            bytes_up=1,
            metrics={},
        )
        status = self.statuses[self.number].get(client, "sat-out")
        expected = {
            "sat-out": "not-invited",
            "accepted": "duplicate-client",
            "planned": None,
        }.get(status, "already-settled")
        if nonce in self.nonces:
            expected = "replayed-nonce"
        if self.state in ("planned", "sent"):
            with pytest.raises(IntegrityError):
                call()
        elif self.state != "collecting" or expected:
            with pytest.raises(RefusedUpdate) as caught:
                call()
            assert caught.value.reason == (expected if self.state == "collecting" else "late")
        else:
            call()
            self.statuses[self.number][client] = "accepted"
            self.nonces[nonce] = client

    @precondition(lambda self: self.number and self.state != "planned")
    @rule(client=st.sampled_from(CLIENTS), end=st.sampled_from(ENDS))
    def settle(self, client: str, end: str) -> None:
        changed = {
            "refused": lambda: self.journal.refuse(self.number, client, "r", "d", 1),
            "failed": lambda: self.journal.fail(self.number, client, "r"),
            "late": lambda: self.journal.mark_late(self.number, client),
            "sat-out": lambda: self.journal.sit_out(self.number, client, "r"),
        }[end]()
        assert changed == (self.statuses[self.number][client] == "planned")
        if changed:
            self.statuses[self.number][client] = end

    @precondition(lambda self: self.number)
    @rule()
    def ask_again(self) -> None:
        if self.state not in ("sent", "collecting"):
            with pytest.raises(IntegrityError):
                self.journal.ask_again(self.number)
            return
        statuses = self.statuses[self.number]
        unanswered = [c for c, status in statuses.items() if status in ("failed", "late")]
        assert self.journal.ask_again(self.number) == len(unanswered)
        statuses.update(dict.fromkeys(unanswered, "planned"))

    @precondition(lambda self: self.number)
    @rule()
    def restart(self) -> None:
        """Everything is in the database: a new process sees what the old one did."""
        self.database.close()
        self.database = open_database(f"sqlite:///{self.folder}/intarsia.db")
        self.journal = RunJournal(self.database, self.journal.run_id)

    @invariant()
    def is_as_the_model_says(self) -> None:
        current = self.journal.current_round()
        if self.state == "published":
            assert current is None
        else:
            assert current is not None
            assert (current.number, current.state) == (self.number, self.state)
        for number, expected in self.statuses.items():
            found = {part.client: part for part in self.journal.participations(number)}
            assert {client: part.status for client, part in found.items()} == expected
            for part in found.values():
                assert (part.update_digest is not None) == (part.status == "accepted")
        published = [row.number for row in self.journal.published_rounds()]
        assert published == list(range(1, self.number + (self.state == "published")))


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
