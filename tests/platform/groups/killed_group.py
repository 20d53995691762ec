"""Adds or updates a group, each time in a process that SIGKILLs itself.

    python killed_group.py BASE

Reads jobs from standard input, one JSON object a line: ``home``, ``what`` (``add`` or
``update``), ``point`` and what the group is made of; answers each with the exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deadly import after, answer_jobs, die
from intarsia_client.files import atomic_file, bytes_digest
from intarsia_client.records import Record
from intarsia_platform.groups import pending, publishing
from intarsia_platform.groups.lifecycle import GroupLifecycle, open_groups
from intarsia_platform.groups.new_group import NewGroup
from intarsia_platform.groups.rows import GroupSettings
from intarsia_platform.home import Home
from intarsia_platform.registry.store import ContentStore
from sqlalchemy import event


def half_written(store: ContentStore, data: bytes) -> Any:
    """Dies in the middle of a file, under the temporary name that the store gives it."""
    digest = bytes_digest(data).removeprefix("sha256:")
    with atomic_file(Path(store.url) / "sha256" / digest[:2] / digest) as temporary:
        temporary.write_bytes(data[: len(data) // 2])
        die()


def arm(point: str, lifecycle: GroupLifecycle) -> Callable[[int, int], None] | None:
    """Set the trap; gives what to call after each training step."""
    if point == "training":
        return lambda done, _: die() if done == 2 else None
    if point == "rows":
        publishing.insert_group = after(publishing.insert_group, 1)
    elif point == "noting":
        pending.Change.note = after(pending.Change.note, 1)
    elif point == "first-blob":
        ContentStore.put = after(ContentStore.put, 1)
    elif point == "half-a-blob":
        # The records are the last but one.
        whole, count = ContentStore.put, iter(range(99))
        ContentStore.put = lambda self, data: (whole, half_written)[next(count) == 4](self, data)
    elif point == "last-blob":
        ContentStore.put = after(ContentStore.put, 6)
    elif point == "before-commit":
        event.listen(lifecycle._database.engine, "commit", lambda _: armed and die())
    elif point == "after-commit":
        pending.PendingBlobs.sweep = die
    elif point == "first-deletion":
        ContentStore.delete = after(ContentStore.delete, 1)
    return None


armed: list[int] = []


def run(job: dict[str, Any]) -> None:
    records = [Record(text=text) for text in job["texts"]]
    with open_groups(Home.open(Path(job["home"]))) as lifecycle:
        tell = arm(job["point"], lifecycle)
        # Reading ends in a commit too; the one that counts follows on the note.
        note = pending.Change.note
        pending.Change.note = lambda *words: (armed.append(1), note(*words))[1]
        if job["what"] == "add":
            settings = GroupSettings(**job["settings"])
            group = NewGroup(name="wards", base=job["base"], records=records, labels=["medical"],
                             settings=settings)  # fmt: skip
            lifecycle.add(group, tell=tell)
        else:
            lifecycle.update("wards", remove=records, tell=tell)


if __name__ == "__main__":
    answer_jobs(sys.argv[1], run, "model_signing")
