"""Factors of the adapters that a batch decodes with, side by side by rank.

One matrix-vector product a row and a module is too little work for a call of its own. Factors of
equal rank are therefore kept in one block, a slot each, and multiplied in one batched product, in
which every row still meets its own factors only, at their true rank. When the batch changes, slots
that stay wanted stay where they are: a request that joins costs the copy of its own factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia_platform.serving.banked_adapter import BankedAdapter
from intarsia_platform.serving.mixture import Mixture

Group = tuple[str, ...]
Ranks = tuple[int, ...]
SlotKey = tuple[str, int]
BucketKey = tuple[Ranks, str]

SHARED_RANK = 48
"""From how many ranks of copies saved on an adapter of several rows has a slot of its own: a call
of its own costs about as much as reading so many."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One adapter of one row's mixture.

    Args:
        row: The row.
        part: Which of the row's adapters.
        weight: Its weight.
    """

    row: int
    part: int
    weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """What a batch needs of groups of modules in which its adapters have the same ranks.

    Most layers of a model are alike, so that there are few of these.

    Args:
        entries: From the ranks in a group's modules, ascending, to the slots of those ranks and
            whom each serves. A slot is called by its adapter's digest and a count, since a block of
            slots with one row each has a copy for every row. An adapter of many rows has a block
            and a slot of its own; its block is called by its ranks and its digest.
        adapters: The adapters by digest.
    """

    entries: Mapping[BucketKey, Mapping[SlotKey, tuple[Entry, ...]]]
    adapters: Mapping[str, BankedAdapter]


def ranks_in(group: Group, mixtures: Sequence[Mixture]) -> tuple[Ranks, ...]:
    """The ranks of a batch's adapters in the modules of a group.

    Args:
        group: The modules.
        mixtures: Of each row.

    Returns:
        The ranks of each adapter of each row, row by row; 0 where it has no factors.
    """
    return tuple(
        tuple(adapter.ranks.get(name, 0) for name in group)
        for mixture in mixtures
        for adapter, _ in mixture
    )


def wanted_of(
    ranks: Sequence[Ranks], mixtures: Sequence[Mixture], *, shared_rank: int = SHARED_RANK
) -> Wanted:
    """What a batch needs of groups in which its adapters have certain ranks.

    Args:
        ranks: What :func:`ranks_in` gave.
        mixtures: Of each row.
        shared_rank: See :data:`SHARED_RANK`.

    Returns:
        The entries; adapters without factors in these groups have none.
    """
    adapters: dict[str, BankedAdapter] = {}
    users: dict[str, list[Entry]] = {}
    ranks_of: dict[str, Ranks] = {}
    left = iter(ranks)
    for row, mixture in enumerate(mixtures):
        for part, (adapter, weight) in enumerate(mixture):
            own = next(left)
            if any(own):
                adapters[adapter.digest], ranks_of[adapter.digest] = adapter, own
                entry = Entry(row=row, part=part, weight=weight)
                users.setdefault(adapter.digest, []).append(entry)
    entries: dict[BucketKey, dict[SlotKey, tuple[Entry, ...]]] = {}
    for digest, own_users in users.items():
        own = ranks_of[digest]
        if (len(own_users) - 1) * sum(own) >= shared_rank:
            entries[own, digest] = {(digest, 0): tuple(own_users)}
        else:
            block = entries.setdefault((own, ""), {})
            block |= {(digest, copy): (entry,) for copy, entry in enumerate(own_users)}
    return Wanted(entries={key: entries[key] for key in sorted(entries)}, adapters=adapters)


class GroupSlots:
    """The slots of one group of modules.

    Args:
        group: The modules.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._buckets: dict[BucketKey, Bucket] = {}
        self.owner: object | None = None

    @property
    def size(self) -> int:
        """Bytes that the slots take."""
        return sum(bucket.size for bucket in self._buckets.values())

    def arrange(self, owner: object, wanted: Wanted) -> list[Bucket]:
        """Have a batch's factors side by side, copying those that are not there yet.

        Args:
            owner: Whom the slots are arranged for from now on.
            wanted: What the batch needs.

        Returns:
            The buckets, by ascending rank. They hold until the slots are arranged for another.
        """
        self.owner = owner
        for key in set(self._buckets) - set(wanted.entries):
            del self._buckets[key]
        buckets = []
        # Ordinary tensors, which may be written to in and outside inference mode.
        with torch.inference_mode(False), torch.no_grad():
            for key, entries in wanted.entries.items():
                if key not in self._buckets:
                    like = wanted.adapters[next(iter(entries))[0]]
                    self._buckets[key] = Bucket(self._group, key[0], like)
                self._buckets[key].arrange(entries.keys(), wanted.adapters)
                buckets.append(self._buckets[key])
        return buckets

    def clear(self) -> None:
        """Drop everything."""
        self.owner = None
        self._buckets.clear()

    def forget(self, digest: str) -> None:
        """Drop every bucket that an adapter has a slot in."""
        self.owner = None
        for key, bucket in list(self._buckets.items()):
            if any(held == digest for held, _ in bucket.keys):
                del self._buckets[key]


class Bucket:
    """Slots for one rank of each module of a group.

    Args:
        group: The modules.
        ranks: Rank of each module.
        like: An adapter of these ranks, for the widths.
    """

    a: Tensor
    """A of all slots in use, transposed, shape (slots, d_in, rank over all modules)."""
    b: tuple[Tensor | None, ...]
    """Each module's B, transposed, shape (slots, rank, d_out), or None."""
    all_b: Tensor | None
    """All modules' B, shape (slots * modules, rank, d_out), where ranks and widths are equal."""

    def __init__(self, group: Group, ranks: Ranks, like: BankedAdapter) -> None:
        self.keys: tuple[SlotKey, ...] = ()
        self._group, self._ranks = group, ranks
        present = [name for name in group if name in like.a]
        widths = {like.b[name].shape[0] for name in present}
        # Then all modules' B are one block, and one product serves them all.
        self._alike = len(present) == len(group) and len(set(ranks)) == 1 and len(widths) == 1
        self._shapes: list[tuple[int, ...]] = [(sum(ranks), like.a[present[0]].shape[1])]
        if self._alike:
            self._shapes.append((len(group), ranks[0], *widths))
        else:
            self._shapes += [(like.ranks[name], like.b[name].shape[0]) for name in present]
        self._tensors: list[Tensor] = []
        self._repeated: dict[int, tuple[Tensor, tuple[Tensor | None, ...]]] = {}

    @property
    def size(self) -> int:
        """Bytes that the slots take."""
        return sum(one.numel() * one.element_size() for one in self._tensors)

    def arrange(self, wanted: Set[SlotKey], adapters: Mapping[str, BankedAdapter]) -> None:
        """Have these and no others in the slots, side by side.

        Args:
            wanted: The slots' keys.
            adapters: By digest.
        """
        keys = list(self.keys)
        missing = wanted - set(keys)
        if not missing and len(keys) == len(wanted):
            return
        holes = [slot for slot, key in enumerate(keys) if key not in wanted]
        # Should copying fail halfway, nothing may be taken for what it is not.
        self.keys = ()
        self._reserve(len(wanted), adapters[next(iter(wanted))[0]])
        for key in sorted(missing):
            slot = holes.pop(0) if holes else len(keys)
            self._write(slot, adapters[key[0]])
            keys[slot : slot + 1] = [key]
        for slot in reversed(holes):
            # Holes that are left are filled from the end, so that what is used lies together.
            last = keys.pop()
            if slot < len(keys):
                keys[slot] = last
                for tensor in self._tensors:
                    tensor[slot].copy_(tensor[len(keys)])
        self.keys = tuple(keys)
        self._look()

    def _reserve(self, count: int, like: BankedAdapter) -> None:
        before = len(self._tensors[0]) if self._tensors else 0
        if count <= before:
            return
        capacity = max(count, 2 * before)
        model = next(iter(like.a.values()))
        grown = [
            torch.empty(capacity, *shape, dtype=model.dtype, device=model.device)
            for shape in self._shapes
        ]
        for new, old in zip(grown, self._tensors, strict=False):
            new[:before].copy_(old)
        self._tensors = grown

    def _write(self, slot: int, adapter: BankedAdapter) -> None:
        a, *b = (tensor[slot] for tensor in self._tensors)
        a.copy_(adapter.stacked_a(self._group))
        places = b[0].unbind(0) if self._alike else b
        present = [name for name in self._group if name in adapter.b]
        for name, place in zip(present, places, strict=True):
            place.copy_(adapter.b[name].T)

    def repeated(self, count: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The factors of a single slot for several products.

        Args:
            count: How many, or -1 for the slots as they are.

        Returns:
            Views of A and of each module's B.
        """
        if count < 0:
            return self.a, self.b
        if count not in self._repeated:
            b = (None if one is None else one.expand(count, -1, -1) for one in self.b)
            self._repeated[count] = self.a.expand(count, -1, -1), tuple(b)
        return self._repeated[count]

    def _look(self) -> None:
        self._repeated.clear()
        count = len(self.keys)
        a, *rest = (tensor[:count] for tensor in self._tensors)
        self.a = a.transpose(1, 2)
        if self._alike:
            self.b, self.all_b = rest[0].unbind(1), rest[0].flatten(0, 1)
        else:
            left = iter(rest)
            self.b, self.all_b = tuple(next(left) if rank else None for rank in self._ranks), None
