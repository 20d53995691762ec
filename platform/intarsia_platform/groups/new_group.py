"""What a group is made of, before it is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from intarsia_client.records import Record
from intarsia_continual.descriptors.base import Descriptor

from intarsia_platform.groups.rows import GroupSettings, Rights

if TYPE_CHECKING:
    from intarsia_client.base_model import BaseModel


class Describe(Protocol):
    """Describes a group by its own texts."""

    def __call__(
        self, base: BaseModel, texts: Sequence[str], settings: GroupSettings
    ) -> Descriptor:
        """Describe texts; see :func:`intarsia_platform.groups.describing.describe_texts`."""


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """What a group is made of.

    Args:
        name: What to call it.
        base: The base model's folder or hub identifier.
        records: Its records.
        labels: Words that policies speak of, at least one.
        task: One of :data:`intarsia_client.wire.TASKS`; empty asks the base.
        settings: How to train and describe it.
        rights: Its owner and the like.
    """

    name: str
    base: str
    records: Sequence[Record]
    labels: Sequence[str]
    task: str = ""
    settings: GroupSettings = dataclasses.field(default_factory=GroupSettings)
    rights: Rights = dataclasses.field(default_factory=Rights)
