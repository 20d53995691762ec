"""What the groups' rooms hand to each other: plain frozen rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from intarsia_client.errors import InputError, StorageError

AUTOMATIC = "auto"
DESCRIPTOR = "document-similarity"
FEDERATED_DESCRIPTOR = "centroid"
"""A federated group's descriptor where none is chosen: it keeps the least, and tells the least."""
RESERVED_NAMES = ("auto", "base")
"""What a request may say in the place of an adapter's name; no group is called so."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_LONGEST_LABEL = 100
_LARGEST_LEVEL = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """How a group's adapter is trained and its records described.

    Args:
        rank: Rank of every module.
        alpha_over_rank: LoRA's alpha over the rank.
        target_modules: Names or ends of names of the modules; empty for every linear module.
        epochs: Passes over the records.
        batch_size: Sequences in one step.
        learning_rate: AdamW's peak rate; 0 chooses one by the base's width.
        max_length: Longest sequence in tokens; 0 chooses 128, or what the base takes if less.
        seed: Seed of everything random.
        classes: Class names in order, for classification.
        own_classes: Whether the classes are those of the records, found anew at each training.
        descriptor: Name of the descriptor method.
        encoder: ``"minilm"``, ``"base"``, or :data:`AUTOMATIC` for MiniLM where it is installed.
        clients: Whose federation trained it, by name; none where its records lie here.
        rounds: Rounds of that federation.
    """

    rank: int = 8
    alpha_over_rank: float = 2.0
    target_modules: tuple[str, ...] = ()
    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 0.0
    max_length: int = 0
    seed: int = 0
    classes: tuple[str, ...] = ()
    own_classes: bool = True
    descriptor: str = DESCRIPTOR
    encoder: str = AUTOMATIC
    clients: tuple[str, ...] = ()
    rounds: int = 1

    def as_mapping(self) -> dict[str, Any]:
        """The settings as JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(one) if isinstance(one, tuple) else one for key, one in values.items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> GroupSettings:
        """Read what :meth:`as_mapping` wrote.

        Raises:
            StorageError: If another version of Intarsia wrote it.
        """
        lists = {key: tuple(one) for key, one in values.items() if isinstance(one, list)}
        try:
            return cls(**{**values, **lists})
        except TypeError as error:
            raise StorageError(
                "group settings", error, "use the newest Intarsia that has opened this home"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What policies may ask of an adapter beside its name and labels.

    Args:
        owner: Who answers for it.
        tenant: Whose it is.
        level: The clearance that it asks for, 0 for none.
        expires_at: When it may no longer be used, None for never.
    """

    owner: str = ""
    tenant: str = ""
    level: int = 0
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One data group.

    Args:
        name: What people call it, and its adapter.
        base: The base model's folder or hub identifier.
        base_digest: Digest of the base model.
        task: One of :data:`intarsia_client.wire.TASKS`.
        settings: How it is trained; nothing in it is left to be chosen.
        labels: Its labels, sorted.
        version: Counts the trainings, from 1.
        records: How many records it has.
        records_digest: Digest of its records, and of their blob in the store; of a federated
            group, of the list of its clients' shards.
        adapter_digest: Its adapter.
        descriptor_digest: Its descriptor's blob in the store.
        created_at: When it was added, in UTC.
        updated_at: When it was last trained, in UTC.
    """

    name: str
    base: str
    base_digest: str
    task: str
    settings: GroupSettings
    labels: tuple[str, ...]
    version: int
    records: int
    records_digest: str
    adapter_digest: str
    descriptor_digest: str
    created_at: datetime
    updated_at: datetime


def checked_name(name: str) -> str:
    """A group's name, if it can be one.

    Args:
        name: The name.

    Returns:
        The same.

    Raises:
        InputError: If it cannot; ``auto`` and ``base`` mean other things where an adapter is asked
            for.
    """
    if name in RESERVED_NAMES:
        raise InputError("group name", name, "choose another; requests use this word otherwise")
    if not _NAME.fullmatch(name) or name.startswith("sha256"):
        raise InputError(
            "group name",
            repr(name),
            "use up to 100 letters, digits, dots, hyphens, underscores and slashes",
        )
    return name


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels, sorted and each once.

    Args:
        labels: The labels.

    Returns:
        At least one.

    Raises:
        InputError: If there is none, or one is no word.
    """
    found = tuple(sorted(set(labels)))
    if not found:
        raise InputError("labels", "none", "give at least one with --label; policies speak of them")
    for label in found:
        if (
            not 0 < len(label) <= _LONGEST_LABEL
            or label != label.strip()
            or not label.isprintable()
        ):
            raise InputError(
                "label", repr(label), f"use 1 to {_LONGEST_LABEL} printable characters"
            )
    return found


def checked_rights(rights: Rights, now: datetime) -> Rights:
    """Rights, if they can be ones.

    Args:
        rights: The rights.
        now: The present moment.

    Returns:
        The same.

    Raises:
        InputError: If the level is out of range, a name is too long, or the expiry lies in the
            past or has no zone.
    """
    if not 0 <= rights.level <= _LARGEST_LEVEL:
        raise InputError("level", rights.level, f"choose 0 to {_LARGEST_LEVEL}")
    for thing, value in (("owner", rights.owner), ("tenant", rights.tenant)):
        if len(value) > _LONGEST_LABEL or not value.isprintable():
            raise InputError(thing, repr(value[:40]), "use up to 100 printable characters")
    expires = rights.expires_at
    if expires is not None and (expires.tzinfo is None or expires <= now):
        raise InputError("expiry", expires.isoformat(), "name a moment to come, with its zone")
    return rights
