"""What a client refuses to train, before anything is trained."""

from __future__ import annotations

from intarsia_client.assignment import (
    PRECISIONS,
    SCHEDULES,
    SHARED_FACTORS,
    START_KINDS,
    TRAINED_FACTORS,
    TrainAssignment,
)
from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from intarsia_client.shards import DataShard
from intarsia_client.wire import Adapter


def check_assignment(
    base: BaseModel, shard: DataShard, assignment: TrainAssignment, global_adapter: Adapter
) -> None:
    """Refuse what cannot be trained, before anything is.

    Args:
        base: The base model that the client has.
        shard: The client's records.
        assignment: What the server asks.
        global_adapter: The published adapter, or its prefix.

    Raises:
        InputError: Naming what does not fit.
    """
    expected = {
        "base_digest": base.digest,
        "task": base.task,
        "labels": base.labels,
        "client": shard.client,
    }
    for name, value in expected.items():
        asked = getattr(assignment, name)
        if asked != value:
            raise InputError(
                f"assignment {name}", _short(asked), f"this client has {_short(value)}"
            )
    there = set(global_adapter.modules)
    if not assignment.target_modules or not there.issuperset(assignment.target_modules):
        unknown = sorted(set(assignment.target_modules) - there)
        raise InputError(
            "assignment target_modules",
            unknown[0] if unknown else "none",
            f"name modules of the global adapter: {_short(sorted(there))}",
        )
    if not shard.records:
        raise InputError(f"records of client {shard.client}", 0, "give at least one")
    if assignment.privacy.unit not in ("none", "example"):
        raise InputError(
            "privacy.unit",
            assignment.privacy.unit,
            'choose "none" or "example"; whole clients can only be protected where updates meet',
        )
    _check_names(assignment)
    _check_factors(assignment)
    training = assignment.training
    for name, least in (("epochs", 1), ("batch_size", 1), ("max_steps", 0)):
        if getattr(training, name) < least:
            raise InputError(f"train.{name}", getattr(training, name), f"choose at least {least}")


def _check_names(assignment: TrainAssignment) -> None:
    for thing, value, known in (
        ("train.schedule", assignment.training.schedule, SCHEDULES),
        ("assignment start", assignment.start, START_KINDS),
        ("assignment trained_factors", assignment.trained_factors, TRAINED_FACTORS),
        ("assignment shared_factors", assignment.shared_factors, SHARED_FACTORS),
        ("assignment upload", assignment.upload, PRECISIONS),
    ):
        if value not in known:
            raise InputError(thing, value, f"choose one of {', '.join(known)}")


def _check_factors(assignment: TrainAssignment) -> None:
    """Refuse combinations in which nothing would be learned or kept to any purpose."""
    trained, new = assignment.trained_factors, assignment.start in ("fresh", "sampled")
    if trained == "none" and assignment.task == "causal-lm":
        raise InputError(
            "assignment trained_factors", trained, "a causal-lm has no head to train instead"
        )
    if assignment.shared_factors == "a" and trained not in ("both", "a"):
        raise InputError(
            "assignment trained_factors", trained, 'train A where shared_factors is "a"'
        )
    if assignment.shared_factors == "a" and new:
        raise InputError(
            "assignment start", assignment.start, 'a client\'s own B needs "residual" or "prefix"'
        )
    if assignment.training.keep_optimizer and new:
        raise InputError(
            "train.keep_optimizer", True, f"a {assignment.start} start trains others every round"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
