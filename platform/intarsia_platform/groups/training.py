"""One group's adapter, trained on its own records and nothing else.

It is a federation of one client and one round with a fresh start, so that all of it (batches,
optimiser, numerics) is what clients do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from intarsia_client.assignment import TrainAssignment, TrainingParameters
from intarsia_client.attachment import empty_adapter
from intarsia_client.base_model import BaseModel, linear_modules
from intarsia_client.errors import InputError
from intarsia_client.peft_files import adapter_digest
from intarsia_client.records import Record, records_digest
from intarsia_client.shards import DataShard
from intarsia_client.training import LocalTrainer, Tell
from intarsia_client.wire import Adapter

from intarsia_platform.groups.rows import GroupSettings

# Neither a group's name nor its place decides what is learned.
_CLIENT = "group"
_LONGEST = 128
_RATE_TIMES_WIDTH = 0.5
_RATES = (1e-4, 8e-3)


def train_group(
    base: BaseModel,
    records: Sequence[Record],
    settings: GroupSettings,
    *,
    tell: Tell | None = None,
) -> Adapter:
    """Train a group's adapter from a fresh start.

    Formal guarantee: the adapter is a function of the base, the records in their order and the
    settings. Equal ones give equal bytes on the same machine with the same number of threads;
    records that are not among ``records`` have no influence whatever.

    Args:
        base: The base model, loaded for the group's classes where it classifies.
        records: The group's records, at least one.
        settings: How to train; see :func:`settled`.
        tell: Called after each step.

    Returns:
        The adapter.

    Raises:
        InputError: If the records or the settings do not fit the base.
        FederationError: If the training diverged.
    """
    settings = settled(settings, base)
    modules = linear_modules(base, settings.target_modules or "all-linear")
    start = empty_adapter(base, modules)
    assignment = group_assignment(base, settings, start)
    shard = DataShard(client=_CLIENT, records=records, digest=records_digest(records))
    return LocalTrainer(base).train(shard, assignment, start, tell=tell).trained


def group_assignment(
    base: BaseModel, settings: GroupSettings, start: Adapter, *, how: str = "fresh"
) -> TrainAssignment:
    """What a client is told that trains a group's adapter, as the one client of the one round.

    Args:
        base: The base model.
        settings: Settled ones.
        start: Where it begins, and which modules it adapts.
        how: One of :data:`intarsia_client.assignment.START_KINDS`.

    Returns:
        The assignment.
    """
    return TrainAssignment(
        run=_CLIENT,
        round=1,
        rounds=1,
        client=_CLIENT,
        nonce="",
        seed=settings.seed,
        base=base.base,
        base_digest=base.digest,
        start_digest=adapter_digest(start),
        task=base.task,
        labels=base.labels,
        rank=settings.rank,
        lora_alpha=settings.alpha_over_rank * settings.rank,
        target_modules=tuple(start.modules),
        start=how,
        training=TrainingParameters(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_length=settings.max_length,
        ),
    )


def settled(settings: GroupSettings, base: BaseModel) -> GroupSettings:
    """Settings in which the base has decided what was left to it.

    The learning rate falls with the width of the base, as the one that a layer bears does (Yang
    et al. 2022, arXiv:2203.03466).

    Args:
        settings: The settings.
        base: The base model.

    Returns:
        Settings that settle to themselves.

    Raises:
        InputError: If one of them is out of range.
    """
    width = int(getattr(base.model.config, "hidden_size", 0) or 512)
    low, high = _RATES
    rate = settings.learning_rate or min(high, max(low, _RATE_TIMES_WIDTH / width))
    for name, value in (("rank", settings.rank), ("seed", settings.seed + 1)):
        if value < 1:
            raise InputError(name, getattr(settings, name), "choose a larger one")
    if not 0.0 < rate < float("inf"):
        raise InputError("learning rate", rate, "choose a finite one above 0")
    return dataclasses.replace(
        settings,
        learning_rate=rate,
        max_length=settings.max_length or min(_LONGEST, base.longest_sequence),
        classes=base.labels,
    )


def classes_of(records: Sequence[Record], given: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes that a group's head tells apart.

    Args:
        records: Its records.
        given: Class names in their order; empty takes the records' own, sorted.

    Returns:
        At least two.

    Raises:
        InputError: If there are fewer, or a record has another one.
    """
    there = {record.label or "" for record in records}
    classes = tuple(given) or tuple(sorted(there))
    strange = sorted(there.difference(classes))
    if strange:
        raise InputError("class", strange[0], "name it among the classes, or correct the record")
    if len(set(classes)) < max(2, len(classes)):
        raise InputError("classes", list(classes), "give at least two, each once")
    return classes
