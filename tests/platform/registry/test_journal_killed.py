"""Processes killed with SIGKILL before and after the commit of each step of the journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from intarsia_client.files import bytes_digest
from intarsia_platform.registry.client_states import ClientStates
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import RunJournal, create_run
from intarsia_platform.registry.lineage import Lineage
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import PlannedParticipation, PrivacySpendRow
from intarsia_platform.registry.tables import ClientStateTable
from sqlalchemy import select

START, UPDATE, RESULT = (bytes_digest(word) for word in (b"start", b"update", b"result"))

PROLOGUE = f"""
import os, signal, sys
from sqlalchemy import event
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import PlannedParticipation, RunJournal
from intarsia_platform.registry.rows import PrivacySpendRow
START, UPDATE, RESULT = {START!r}, {UPDATE!r}, {RESULT!r}
database = open_database(sys.argv[1])
journal = RunJournal(database, sys.argv[2])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""

SPEND = (
    "PrivacySpendRow(scope='s', client='ada', round=1, unit='example', noise_multiplier=1.0,"
    " sample_rate=0.1, steps=5, delta=1e-5, max_grad_norm=1.0)"
)

STEPS = [
    ("planned", "journal.plan_round(1, START, [PlannedParticipation(client='ada', node_id=7)])"),
    ("sent", "journal.mark_sent(1, {'ada': 10})"),
    ("collecting", "journal.mark_collecting(1)"),
    (
        "accepted",
        "journal.accept(1, 'ada', update_digest=UPDATE, nonce='n', number_of_examples=3,"
        f" bytes_up=4, metrics={{}}, shard_digest=None, spend={SPEND})",
    ),
    ("aggregating", "journal.mark_aggregating(1)"),
    ("published", "journal.publish(1, result_digest=RESULT, metrics={})"),
]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def killed(url: str, run_id: str, steps: str, *, inside: str = "pass") -> None:
    """Take steps in a process that then kills itself, before the commit of the one it is inside."""
    code = f"{PROLOGUE}\n{steps}\nevent.listen(database.engine, 'commit', die)\n{inside}\ndie()\n"
    command = [sys.executable, "-c", code, url, run_id]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def seen(url: str, run_id: str) -> dict[str, Any]:
    """All that a process that comes later can see of the round, but for the times."""
    with open_database(url) as database:
        journal, lineage = RunJournal(database, run_id), Lineage(database)
        row = journal.current_round() or next(iter(journal.published_rounds()), None)
        return {
            "round": row and (row.state, row.start_digest, row.result_digest),
            "participations": journal.participations(1),
            "spends": PrivacyLedger(database).spends("s", "ada"),
            "known": [lineage.artefact(digest) is not None for digest in (START, UPDATE, RESULT)],
            "edges": lineage.edges(RESULT),
        }


def begun(folder: Path) -> tuple[str, str]:
    folder.mkdir()
    url = f"sqlite:///{folder}/intarsia.db"
    base = bytes_digest(b"base")
    with open_database(url) as database:
        journal = create_run(database, name="r", config={}, seed=0, rounds=1, base_digest=base)
    return url, journal.run_id


def test_a_kill_leaves_the_state_before_or_the_state_after(tmp_path: Path) -> None:
    """Each process takes one step, then dies inside the next, before that one's commit."""
    names: dict[str, Any] = {"PlannedParticipation": PlannedParticipation}
    names |= {"PrivacySpendRow": PrivacySpendRow}
    names |= {"START": START, "UPDATE": UPDATE, "RESULT": RESULT}
    whole_url, whole_id = begun(tmp_path / "undisturbed")
    url, run_id = begun(tmp_path / "killed")
    states = []
    for number in range(len(STEPS) + 1):
        done = STEPS[number - 1][1] if number else "pass"
        inside = STEPS[number][1] if number < len(STEPS) else "pass"
        killed(url, run_id, done, inside=inside)
        with open_database(whole_url) as database:
            exec(done, {**names, "journal": RunJournal(database, whole_id)})  # noqa: S102
        state = seen(url, run_id)
        assert state == seen(whole_url, whole_id)
        states.append(state["round"] and state["round"][0])
    assert states == [
        None,
        "planned",
        "sent",
        "collecting",
        "collecting",
        "aggregating",
        "published",
    ]
    assert state["participations"][0].status == "accepted"
    assert len(state["spends"]) == 1
    assert {(edge.child, edge.parent) for edge in state["edges"]} >= {
        (RESULT, UPDATE),
        (UPDATE, START),
    }


def test_of_two_processes_that_accept_one_nonce_one_wins(tmp_path: Path) -> None:
    url, run_id = begun(tmp_path / "shared")
    clients = [f"client-{number}" for number in range(3)]
    with open_database(url) as database:
        journal = RunJournal(database, run_id)
        plan = [PlannedParticipation(client=c, node_id=n) for n, c in enumerate(clients)]
        journal.plan_round(1, START, plan)
        journal.mark_sent(1, {})
        journal.mark_collecting(1)
    code = (
        f"{PROLOGUE}\n"
        "import time\n"
        "from intarsia_client.errors import RefusedUpdate\n"
        "from intarsia_client.files import bytes_digest\n"
        "client, start = sys.argv[3], float(sys.argv[4])\n"
        "time.sleep(max(0.0, start - time.time()))\n"
        "for nonce in range(20):\n"
        "    try:\n"
        "        journal.accept(1, client, update_digest=bytes_digest(client.encode()),\n"
        "            nonce=str(nonce), number_of_examples=1, bytes_up=1, metrics={})\n"
        "        print('accepted', nonce)\n"
        "    except RefusedUpdate as refusal:\n"
        "        print(refusal.reason, nonce)\n"
    )
    start = str(time.time() + 1.0)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, run_id, client, start],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for client in clients
    ]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 3, outputs
    lines = [line.split() for output, _ in outputs for line in output.splitlines()]
    accepted = [nonce for reason, nonce in lines if reason == "accepted"]
    assert len(accepted) == len(set(accepted)) == 3
    assert {reason for reason, _ in lines} == {"accepted", "replayed-nonce", "duplicate-client"}
    with open_database(url) as database:
        parts = RunJournal(database, run_id).participations(1)
    assert [part.status for part in parts] == ["accepted"] * 3


def test_a_kill_inside_a_batch_of_client_states_keeps_none_of_it(tmp_path: Path) -> None:
    url, run_id = begun(tmp_path / "killed")
    step = (
        "from intarsia_platform.registry.client_states import ClientStates\n"
        "ClientStates(database, sys.argv[2]).save_many((n, {}, b'x') for n in range(600))"
    )
    killed(url, run_id, step.format(1), inside=step.format(2))
    with open_database(url) as database:
        states = ClientStates(database, run_id)
        assert [states.load(node, 2) for node in (0, 300, 599)] == [b"x"] * 3
        assert [states.load(node, 3) for node in (0, 300, 599)] == [b"x"] * 3
        with database.read() as connection:
            rounds = connection.execute(select(ClientStateTable.round).distinct()).scalars().all()
    assert rounds == [1]
