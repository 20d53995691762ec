"""The journal of a run, on every database: legal steps, one-transaction steps, refusals."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from intarsia_client.errors import InputError, IntegrityError, RefusedUpdate
from intarsia_client.files import bytes_digest
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.journal import (
    PlannedParticipation,
    RunJournal,
    create_run,
    latest_unfinished,
    list_runs,
)
from intarsia_platform.registry.lineage import Lineage
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import AdapterVersion, PrivacySpendRow
from intarsia_platform.registry.runs import digest_of_config

CONFIG = {"model": {"base": "tiny"}, "lora": {"ranks": [4, 8]}}
BASE, START = bytes_digest(b"base"), bytes_digest(b"start")
CLIENTS = ("ada", "bert", "cleo")


def digest(*words: object) -> str:
    return bytes_digest(repr(words).encode())


def new_run(database: Database, **changes: Any) -> RunJournal:
    settings = {"name": "demo", "config": CONFIG, "seed": 7, "rounds": 3, "base_digest": BASE}
    return create_run(database, **{**settings, **changes})


def planned(*clients: str) -> list[PlannedParticipation]:
    return [
        PlannedParticipation(client=client, node_id=2**64 - 1 - index, assignment={"rank": 4})
        for index, client in enumerate(clients)
    ]


def collecting(journal: RunJournal, number: int = 1, *, start: str = START) -> None:
    journal.plan_round(number, start, planned(*CLIENTS))
    journal.mark_sent(number, dict.fromkeys(CLIENTS, 100))
    journal.mark_collecting(number)


def accept(journal: RunJournal, client: str, number: int = 1, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "update_digest": digest(journal.run_id, number, client),
        "nonce": f"{number}-{client}",
        "number_of_examples": 10,
        "bytes_up": 50,
        "metrics": {"loss": 0.5},
        "shard_digest": digest("shard", client),
    }
    journal.accept(number, client, **{**settings, **changes})


def spend(client: str = "ada", round: int = 1, **changes: Any) -> PrivacySpendRow:  # noqa: A002
    values: dict[str, Any] = {
        "scope": "all",
        "unit": "example",
        "noise_multiplier": 1.1,
        "sample_rate": 0.01,
        "steps": 100,
        "delta": 1e-5,
        "max_grad_norm": 1.0,
    }
    return PrivacySpendRow(client=client, round=round, **{**values, **changes})


def statuses(journal: RunJournal, number: int = 1) -> Mapping[str, str]:
    return {part.client: part.status for part in journal.participations(number)}


def reason_of(call: Any) -> str:
    with pytest.raises(RefusedUpdate) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.reason


class TestRuns:
    def test_what_was_given_is_kept(self, database: Database) -> None:
        journal = new_run(database)
        run = journal.run_row()
        assert run.id == journal.run_id == f"run-0001-{digest_of_config(CONFIG)[7:15]}"
        assert (run.number, run.name, run.status) == (1, "demo", "running")
        assert (run.config, run.seed, run.rounds, run.base_digest) == (CONFIG, 7, 3, BASE)
        assert run.created_at.utcoffset() is not None
        assert run.mlflow_run_id is None

    def test_numbers_count_up(self, database: Database) -> None:
        first, second = new_run(database), new_run(database, config={})
        assert [run.id for run in list_runs(database)] == [first.run_id, second.run_id]
        assert second.run_id.startswith("run-0002-")

    def test_numbers_are_not_given_twice(self, database: Database) -> None:
        threads = [threading.Thread(target=new_run, args=(database,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run.number for run in list_runs(database)] == [1, 2, 3, 4, 5, 6]

    def test_a_config_that_is_not_json_is_refused(self, database: Database) -> None:
        with pytest.raises(InputError, match="configuration"):
            new_run(database, config={"rate": math.nan})
        assert list_runs(database) == []

    def test_the_latest_unfinished_run_is_found(self, database: Database) -> None:
        assert latest_unfinished(database) is None
        runs = [new_run(database, config={"seed": n}) for n in range(4)]
        for run, status in zip(runs, ("failed", "interrupted", "running", "finished"), strict=True):
            run.set_status(status)
        found = latest_unfinished(database)
        assert found is not None
        assert found.run_id == runs[2].run_id
        of_config = latest_unfinished(database, digest_of_config({"seed": 0}))
        assert of_config is not None
        assert of_config.run_id == runs[0].run_id
        assert latest_unfinished(database, digest_of_config({"seed": 3})) is None

    def test_a_finished_run_stays_finished(self, database: Database) -> None:
        journal = new_run(database)
        journal.set_status("finished")
        journal.set_status("finished")
        with pytest.raises(IntegrityError, match="finished to running"):
            journal.set_status("running")
        with pytest.raises(InputError, match="done"):
            journal.set_status("done")  # type: ignore[arg-type]

    def test_the_mlflow_run_is_noted(self, database: Database) -> None:
        journal = new_run(database)
        journal.set_mlflow_run("abc")
        assert journal.run_row().mlflow_run_id == "abc"

    def test_an_unknown_run_is_named(self, database: Database) -> None:
        with pytest.raises(InputError, match="run-0009"):
            RunJournal(database, "run-0009").run_row()


class TestRounds:
    def test_the_whole_path(self, database: Database) -> None:
        journal = new_run(database)
        assert journal.current_round() is None
        start = START
        for number in (1, 2, 3):
            collecting(journal, number, start=start)
            for client in CLIENTS:
                accept(journal, client, number)
            journal.mark_aggregating(number)
            current = journal.current_round()
            assert current is not None
            assert (current.number, current.state) == (number, "aggregating")
            result = digest("result", number)
            row = journal.publish(number, result_digest=result, metrics={"loss": None})
            assert (row.state, row.start_digest, row.result_digest) == ("published", start, result)
            assert journal.round(number) == row
            assert journal.current_round() is None
            start = result
        assert [row.number for row in journal.published_rounds()] == [1, 2, 3]

    def test_each_state_and_each_step(self, database: Database) -> None:
        """Every state against every step: what the table of legal steps says, and nothing else."""
        states = ("planned", "sent", "collecting", "aggregating", "published")
        legal = {
            ("planned", "sent"),
            ("sent", "sent"),
            ("sent", "collecting"),
            ("collecting", "sent"),
            ("collecting", "aggregating"),
            ("aggregating", "published"),
        }
        for reached in range(5):
            for after in states:
                journal = new_run(database)
                steps = {
                    "planned": lambda j=journal: j.plan_round(1, START, planned("ada")),
                    "sent": lambda j=journal: j.mark_sent(1, {}),
                    "collecting": lambda j=journal: j.mark_collecting(1),
                    "aggregating": lambda j=journal: j.mark_aggregating(1),
                    "published": lambda j=journal: j.publish(1, result_digest=START, metrics={}),
                }
                for state in states[: reached + 1]:
                    steps[state]()
                before = states[reached]
                if (before, after) in legal or before == after == "published":
                    steps[after]()
                    assert journal.round(1).state == after
                else:
                    with pytest.raises(IntegrityError, match=rf"{before}.* to {after}"):
                        steps[after]()
                    assert journal.round(1).state == before

    def test_rounds_are_planned_one_after_the_other(self, database: Database) -> None:
        journal = new_run(database)
        with pytest.raises(IntegrityError, match="to planned"):
            journal.plan_round(2, START, [])
        journal.plan_round(1, START, [])
        with pytest.raises(IntegrityError, match=r"planned \(round 1\) to planned"):
            journal.plan_round(2, START, [])
        with pytest.raises(IntegrityError, match="unknown"):
            journal.mark_sent(5, {})

    def test_runs_do_not_touch_each_other(self, database: Database) -> None:
        first, second = new_run(database), new_run(database)
        collecting(first)
        collecting(second)
        accept(first, "ada", update_digest=digest("first"))
        accept(second, "ada", update_digest=digest("second"))
        assert statuses(first) == statuses(second)
        first.mark_aggregating(1)
        assert second.round(1).state == "collecting"

    def test_the_plan_comes_back(self, database: Database) -> None:
        journal = new_run(database)
        plan = [
            PlannedParticipation(client="é", node_id=2**64 - 1, assignment={"seed": 2**60}),
            PlannedParticipation(client="Z", node_id=0, status="sat-out", reason="privacy-budget"),
            PlannedParticipation(client="a", node_id=5, assignment={"ranks": [1, {"b": None}]}),
        ]
        journal.plan_round(1, START, plan)
        rows = journal.participations(1)
        assert [(r.client, r.node_id, r.assignment, r.status, r.reason) for r in rows] == [
            ("Z", 0, {}, "sat-out", "privacy-budget"),
            ("a", 5, {"ranks": [1, {"b": None}]}, "planned", None),
            ("é", 2**64 - 1, {"seed": 2**60}, "planned", None),
        ]

    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            (planned("ada", "ada"), "ada is planned twice"),
            ([PlannedParticipation(client="", node_id=1)], "client name"),
            ([PlannedParticipation(client="c" * 256, node_id=1)], "client name"),
            ([PlannedParticipation(client="ada", node_id=2**64)], "node id"),
            ([PlannedParticipation(client="ada", node_id=-1)], "node id"),
            (
                [PlannedParticipation(client="ada", node_id=1, assignment={"r": math.inf})],
                "assignment of ada",
            ),
        ],
    )
    def test_a_bad_plan_leaves_no_round(
        self, database: Database, plan: list[PlannedParticipation], words: str
    ) -> None:
        journal = new_run(database)
        with pytest.raises(InputError, match=words):
            journal.plan_round(1, START, plan)
        assert journal.current_round() is None

    def test_sending_again_adds_to_what_was_sent(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        journal.mark_sent(1, {"bert": 70, "cleo": 70})
        journal.mark_collecting(1)
        down = {part.client: part.bytes_down for part in journal.participations(1)}
        assert down == {"ada": 100, "bert": 170, "cleo": 170}
        assert statuses(journal) == {"ada": "accepted", "bert": "planned", "cleo": "planned"}

    def test_sending_to_a_stranger_changes_nothing(self, database: Database) -> None:
        journal = new_run(database)
        journal.plan_round(1, START, planned("ada"))
        with pytest.raises(IntegrityError, match="zoe is not in it"):
            journal.mark_sent(1, {"ada": 1, "zoe": 1})
        assert journal.round(1).state == "planned"
        assert journal.participations(1)[0].bytes_down == 0


class TestAccept:
    def test_everything_is_written_at_once(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada", spend=spend(), number_of_examples=12, metrics={"loss": 0.25})
        (ada, *_) = journal.participations(1)
        assert (ada.status, ada.number_of_examples, ada.bytes_up) == ("accepted", 12, 50)
        assert (ada.update_digest, ada.metrics) == (
            digest(journal.run_id, 1, "ada"),
            {"loss": 0.25},
        )
        assert PrivacyLedger(database).spends("all", "ada") == [spend()]
        parents = Lineage(database).parents(digest(journal.run_id, 1, "ada"))
        assert {(row.kind, row.digest) for row in parents} == {
            ("shard", digest("shard", "ada")),
            ("version", START),
        }

    def test_a_nonce_counts_once_in_a_run(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada", nonce="n")
        assert reason_of(lambda: accept(journal, "bert", nonce="n")) == "replayed-nonce"
        assert reason_of(lambda: accept(journal, "ada", nonce="n")) == "replayed-nonce"
        journal.mark_aggregating(1)
        journal.publish(1, result_digest=digest("r1"), metrics={})
        collecting(journal, 2, start=digest("r1"))
        assert reason_of(lambda: accept(journal, "bert", 2, nonce="n")) == "replayed-nonce"
        assert statuses(journal, 2)["bert"] == "planned"
        other = new_run(database)
        collecting(other)
        accept(other, "ada", nonce="n")

    def test_a_client_counts_once_in_a_round(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        again = digest("another")
        call = lambda: accept(journal, "ada", nonce="m", update_digest=again)  # noqa: E731
        assert reason_of(call) == "duplicate-client"
        accept(journal, "bert", nonce="m")
        assert journal.participations(1)[0].update_digest == digest(journal.run_id, 1, "ada")
        assert Lineage(database).artefact(again) is None

    def test_only_who_was_asked(self, database: Database) -> None:
        journal = new_run(database)
        plan = PlannedParticipation(client="cleo", node_id=9, status="sat-out", reason="budget")
        journal.plan_round(1, START, [*planned("ada"), plan])
        journal.mark_sent(1, {})
        journal.mark_collecting(1)
        for client in ("cleo", "zoe"):
            assert reason_of(lambda c=client: accept(journal, c)) == "not-invited"
        assert statuses(journal) == {"ada": "planned", "cleo": "sat-out"}

    def test_what_is_settled_stays(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        journal.refuse(1, "ada", "not-finite", "NaN", 10)
        journal.fail(1, "bert", "crashed")
        journal.mark_late(1, "cleo")
        for client in CLIENTS:
            assert reason_of(lambda c=client: accept(journal, c)) == "already-settled"
        assert statuses(journal) == {"ada": "refused", "bert": "failed", "cleo": "late"}

    def test_only_while_collecting(self, database: Database) -> None:
        journal = new_run(database)
        journal.plan_round(1, START, planned(*CLIENTS))
        with pytest.raises(IntegrityError, match="planned to accepting"):
            accept(journal, "ada")
        journal.mark_sent(1, {})
        with pytest.raises(IntegrityError, match="sent to accepting"):
            accept(journal, "ada")
        journal.mark_collecting(1)
        journal.mark_aggregating(1)
        assert reason_of(lambda: accept(journal, "ada")) == "late"
        journal.publish(1, result_digest=START, metrics={})
        assert reason_of(lambda: accept(journal, "ada")) == "late"

    @pytest.mark.parametrize(
        "changes",
        [
            {"metrics": {"loss": math.nan}},
            {"metrics": {"loss": b"bytes"}},
            {"metrics": {"loss": "\ud800"}},
            {"number_of_examples": -1},
            {"number_of_examples": 2**63},
            {"shard_digest": "my records"},
        ],
    )
    def test_nonsense_is_refused(self, database: Database, changes: dict[str, Any]) -> None:
        journal = new_run(database)
        collecting(journal)
        assert reason_of(lambda: accept(journal, "ada", **changes)) == "malformed"
        assert statuses(journal)["ada"] == "planned"

    @pytest.mark.parametrize("nonce", ["", "n" * 256, "\x00", "\ud800"])
    def test_a_nonce_that_cannot_be_kept_is_refused(self, database: Database, nonce: str) -> None:
        journal = new_run(database)
        collecting(journal)
        assert reason_of(lambda: accept(journal, "ada", nonce=nonce)) == "replayed-nonce"

    def test_a_contradicting_spend_accepts_nothing(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        PrivacyLedger(database).record(spend(steps=99))
        with pytest.raises(IntegrityError, match="other values"):
            accept(journal, "ada", spend=spend())
        with pytest.raises(IntegrityError, match="spends for bert"):
            accept(journal, "ada", spend=spend("bert"))
        assert statuses(journal)["ada"] == "planned"
        accept(journal, "ada", spend=spend(steps=99))

    def test_of_many_that_accept_one_nonce_one_wins(self, database: Database) -> None:
        clients = [f"client-{number}" for number in range(8)]
        journal = new_run(database)
        journal.plan_round(1, START, planned(*clients))
        journal.mark_sent(1, {})
        journal.mark_collecting(1)
        barrier, reasons = threading.Barrier(len(clients)), []

        def run(client: str) -> None:
            barrier.wait()
            try:
                accept(journal, client, nonce="same")
                reasons.append("accepted")
            except RefusedUpdate as refusal:
                reasons.append(refusal.reason)

        threads = [threading.Thread(target=run, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(reasons) == ["accepted"] + ["replayed-nonce"] * 7
        assert list(statuses(journal).values()).count("accepted") == 1


class TestOtherEnds:
    def test_a_refusal_is_listed_and_settles(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        assert journal.refuse(1, "ada", "not-finite", "factor a holds NaN", 33, spend=spend())
        (ada, *_) = journal.participations(1)
        assert (ada.status, ada.reason, ada.detail, ada.bytes_up) == (
            "refused",
            "not-finite",
            "factor a holds NaN",
            33,
        )
        (refusal,) = journal.refusals(1)
        assert (refusal.client, refusal.reason, refusal.bytes_up) == ("ada", "not-finite", 33)
        assert PrivacyLedger(database).spends("all", "ada") == [spend()]

    def test_a_refusal_does_not_undo_an_acceptance(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        assert not journal.refuse(1, "ada", "duplicate-client", "twice", 50, spend=spend())
        assert not journal.refuse(1, "stranger", "not-invited", "who", 50)
        assert statuses(journal)["ada"] == "accepted"
        assert [row.client for row in journal.refusals(1)] == ["ada", "stranger"]
        assert PrivacyLedger(database).spends("all", "ada") == []

    def test_text_from_anyone_is_kept_within_bounds(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        journal.refuse(1, "x" * 999, "malformed", "\x00\ud800" + "y" * 9999, 1)
        (refusal,) = journal.refusals(1)
        assert (len(refusal.client), len(refusal.detail)) == (255, 1000)
        assert refusal.detail.startswith("??y")

    def test_the_first_end_stands(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        assert journal.fail(1, "ada", "crashed", detail="exit 9")
        assert not journal.mark_late(1, "ada")
        assert not journal.fail(1, "ada", "again")
        accept(journal, "bert")
        assert not journal.mark_late(1, "bert")
        assert not journal.fail(1, "bert", "crashed")
        assert journal.mark_late(1, "cleo", bytes_up=7, spend=spend("cleo"))
        rows = {part.client: (part.status, part.reason) for part in journal.participations(1)}
        assert rows == {
            "ada": ("failed", "crashed"),
            "bert": ("accepted", None),
            "cleo": ("late", "after-deadline"),
        }
        assert PrivacyLedger(database).clients("all") == ["cleo"]

    def test_a_stranger_cannot_fail_or_be_late(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        for call in (lambda: journal.fail(1, "zoe", "x"), lambda: journal.mark_late(1, "zoe")):
            with pytest.raises(IntegrityError, match="zoe is not in it"):
                call()

    def test_nobody_answers_before_anything_is_sent(self, database: Database) -> None:
        journal = new_run(database)
        journal.plan_round(1, START, planned("ada"))
        with pytest.raises(IntegrityError, match="planned to refusing"):
            journal.refuse(1, "ada", "x", "y", 1)
        with pytest.raises(IntegrityError, match="planned to late"):
            journal.mark_late(1, "ada")
        assert journal.fail(1, "ada", "unreachable")

    def test_closing_the_round_makes_the_silent_late(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "bert")
        journal.mark_aggregating(1)
        assert statuses(journal) == {"ada": "late", "bert": "accepted", "cleo": "late"}
        assert not journal.mark_late(1, "ada", bytes_up=5)

    def test_who_was_asked_may_sit_out(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "bert")
        assert journal.sit_out(1, "ada", "privacy-budget", detail="epsilon 8.1 of 8")
        assert not journal.sit_out(1, "bert", "privacy-budget")
        (ada, *_) = journal.participations(1)
        assert (ada.status, ada.reason, ada.detail) == (
            "sat-out",
            "privacy-budget",
            "epsilon 8.1 of 8",
        )
        assert reason_of(lambda: accept(journal, "ada")) == "not-invited"
        with pytest.raises(IntegrityError, match="zoe is not in it"):
            journal.sit_out(1, "zoe", "privacy-budget")

    def test_a_round_taken_up_again_asks_the_unanswered(self, database: Database) -> None:
        journal = new_run(database)
        clients = ("ada", "bert", "cleo", "dora", "emil")
        journal.plan_round(1, START, planned(*clients))
        with pytest.raises(IntegrityError, match="planned to asking again"):
            journal.ask_again(1)
        journal.mark_sent(1, {})
        journal.mark_collecting(1)
        accept(journal, "ada")
        journal.refuse(1, "bert", "not-finite", "NaN", 1)
        journal.fail(1, "cleo", "crashed")
        journal.mark_late(1, "dora")
        journal.sit_out(1, "emil", "privacy-budget")
        assert journal.ask_again(1) == 2
        assert journal.ask_again(1) == 0
        assert statuses(journal) == {
            "ada": "accepted",
            "bert": "refused",
            "cleo": "planned",
            "dora": "planned",
            "emil": "sat-out",
        }
        assert [part.reason for part in journal.participations(1)][2:4] == [None, None]
        accept(journal, "cleo")
        journal.mark_aggregating(1)
        with pytest.raises(IntegrityError, match="aggregating to asking again"):
            journal.ask_again(1)


def adapter_row(digest_: str, journal: RunJournal, name: str = "result") -> AdapterVersion:
    return AdapterVersion(
        digest=digest_,
        name=name,
        base="tiny",
        base_digest=BASE,
        task="causal-lm",
        rank=8,
        size=1234,
        tensors_digest=digest("tensors"),
        configuration_digest=digest("configuration"),
        manifest_digest=digest("manifest"),
        run_id=journal.run_id,
        round=1,
        created_at=journal.run_row().created_at,
        labels=("public",),
    )


class TestPublish:
    def test_lineage_from_shard_to_version(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        accept(journal, "bert")
        journal.mark_aggregating(1)
        result, aggregate = digest("result"), digest("aggregate")
        row = journal.publish(
            1,
            result_digest=result,
            metrics={},
            adapter=adapter_row(result, journal),
            aggregate_digest=aggregate,
            aggregate_size=99,
        )
        assert row.aggregate_digest == journal.round(1).aggregate_digest == aggregate
        lineage = Lineage(database)
        above = [(found.kind, found.size) for found in lineage.ancestors(result)]
        assert above == [
            ("shard", None),
            ("shard", None),
            ("update", 50),
            ("update", 50),
            ("aggregate", 99),
            ("version", None),
            ("base", None),
        ]
        below = {found.digest for found in lineage.descendants(digest("shard", "ada"))}
        assert below == {digest(journal.run_id, 1, "ada"), aggregate, result}

    def test_what_was_trained_later_depends_on_what_was_trained_before(
        self, database: Database
    ) -> None:
        journal = new_run(database)
        start = START
        for number, client in ((1, "ada"), (2, "bert"), (3, "cleo")):
            collecting(journal, number, start=start)
            accept(journal, client, number)
            journal.mark_aggregating(number)
            start = digest("result", number)
            journal.publish(number, result_digest=start, metrics={})
        below = {row.digest for row in Lineage(database).descendants(digest("shard", "ada"))}
        assert digest(journal.run_id, 3, "cleo") in below
        assert digest("result", 3) in below
        first = {row.digest for row in Lineage(database).ancestors(digest("result", 1))}
        assert digest("shard", "bert") not in first

    def test_a_start_of_its_own_hangs_on_the_round_before(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        journal.mark_aggregating(1)
        journal.publish(1, result_digest=digest("result"), metrics={})
        journal.plan_round(2, digest("cut to rank 4"), [])
        below = {row.digest for row in Lineage(database).descendants(digest("shard", "ada"))}
        assert digest("cut to rank 4") in below

    def test_a_round_that_changes_nothing_owes_nothing(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        journal.mark_aggregating(1)
        journal.publish(1, result_digest=START, metrics={})
        assert [row.digest for row in Lineage(database).ancestors(START)] == [BASE]
        assert digest(journal.run_id, 1, "ada") in {
            row.digest for row in Lineage(database).descendants(START)
        }

    def test_publishing_again_changes_nothing(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        accept(journal, "ada")
        journal.mark_aggregating(1)
        result = digest("result")
        first = journal.publish(1, result_digest=result, metrics={"loss": 1.0})
        assert journal.publish(1, result_digest=result, metrics={"loss": 2.0}) == first
        for changes in ({"result_digest": START}, {"aggregate_digest": START}):
            with pytest.raises(IntegrityError, match="published to published"):
                journal.publish(1, **{"result_digest": result, "metrics": {}, **changes})
        assert journal.round(1) == first

    def test_a_failing_publication_leaves_the_round_open(self, database: Database) -> None:
        journal = new_run(database)
        collecting(journal)
        journal.mark_aggregating(1)
        result = digest("result")
        with pytest.raises(InputError, match="metrics of round 1"):
            journal.publish(1, result_digest=result, metrics={"loss": math.inf})
        with pytest.raises(IntegrityError, match="not a known artefact"):
            journal.publish(1, result_digest=result, metrics={}, parents=[digest("unknown")])
        with pytest.raises(IntegrityError, match="adapter of round 1"):
            journal.publish(
                1, result_digest=result, metrics={}, adapter=adapter_row(START, journal)
            )
        assert journal.round(1).state == "aggregating"
        assert Lineage(database).artefact(result) is None
        journal.publish(1, result_digest=result, metrics={}, parents=[START])
